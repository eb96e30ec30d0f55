"""What an expression of a program can be worth while it is elaborated.

Numbers, dimensions, texts, truth values, `none` and lists are plain Python values (a list is a tuple). Besides these:
a `Tensor` (a value of the graph under construction), a `Bundle` of several of them, a `Module` (a template, which makes
fresh weights wherever it is applied) and `POISON`, the value of an expression whose mistake has been reported: whatever
touches it is poison too, and silent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeAlias

from archc.ir.diagnostics import Span
from archc.ir.dims import Expr
from archc.ir.graph import Graph, Value

if TYPE_CHECKING:
    from archc.grammar.counting import Counter
    from archc.grammar.elaborate import Elaborator
    from archc.grammar.naming import Scope


class Poison:
    """The type of `POISON`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "POISON"


POISON: Final = Poison()


class Frame:
    """A graph under construction: the program's, or that of a region with what it captures.

    `captures` is one dictionary for all regions of a node: the values of the enclosing frame that they use, in order of
    first use. `own` maps such a value to the input of this region that stands for it. `symbols` are the dimensions that
    are taken here, `visible` those of regions, which bodies may name.
    """

    __slots__ = ("captures", "graph", "own", "parent", "symbols", "visible")

    def __init__(self, graph: Graph, parent: Frame | None = None, captures: dict[Value, None] | None = None) -> None:
        self.graph, self.parent = graph, parent
        self.captures: dict[Value, None] = {} if captures is None else captures
        self.own: dict[Value, Value] = {}
        self.symbols: dict[str, Expr] = {} if parent is None else dict(parent.symbols)
        self.visible: dict[str, Expr] = {} if parent is None else dict(parent.visible)

    def localise(self, tensor: Tensor) -> Value:
        """The value that stands for `tensor` in this frame; a new capture of all frames between, where it must be."""
        between: list[Frame] = []
        frame: Frame | None = self
        while frame is not tensor.frame:
            assert frame is not None, f"{tensor.value} belongs to no enclosing graph"
            between.append(frame)
            frame = frame.parent
        value = tensor.value
        for inner in reversed(between):
            value = inner.capture(value)
        return value

    def capture(self, outer: Value) -> Value:
        """The input of this region that stands for a value of the enclosing frame."""
        self.captures.setdefault(outer)
        if outer not in self.own:
            self.own[outer] = Value(outer.name, outer.type, span=outer.span)
        return self.own[outer]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A value of a graph under construction."""

    value: Value
    frame: Frame

    @property
    def rank(self) -> int:
        return self.value.rank


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Several tensors: the results of an op, or `(a, b)`."""

    items: tuple[Tensor | Poison, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an application happens: the graph that grows, the scope that names, the uses that led here."""

    frame: Frame
    scope: Scope
    trace: tuple[Span, ...] = ()

    def named(self, scope: Scope) -> Place:
        return Place(self.frame, scope, self.trace)

    def used(self, span: Span) -> Place:
        """The same place, seen from inside a definition that is used at `span`."""
        return Place(self.frame, self.scope, (span, *self.trace))


Result: TypeAlias = Tensor | Bundle | Poison


class Module(ABC):
    """A template. Applying it makes nodes, with weights of their own unless it is shared."""

    span: Span

    @property
    @abstractmethod
    def title(self) -> str:
        """The module in a word, for messages."""

    @abstractmethod
    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        """The results of feeding `inputs` to a fresh instance."""

    @abstractmethod
    def count(self, c: Counter) -> int:
        """How many nodes an application makes: at least this many, known without making them."""


def tensors_of(value: Any) -> tuple[Tensor | Poison, ...] | None:
    """The tensors that a value consists of, or None when it is anything else."""
    if isinstance(value, Tensor | Poison):
        return (value,)
    if isinstance(value, Bundle):
        return value.items
    return None


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | Bundle)


def is_number(value: Any) -> bool:
    """A number or a dimension; truth values are not numbers."""
    return isinstance(value, int | float | Expr) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A number, truth value or list from Python as the language has it: those of numpy and torch, too.

    >>> from fractions import Fraction
    >>> plain([Fraction(1, 2), True, range(3)[2]])
    (0.5, True, 2)
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, bool):
        return value
    if isinstance(value, SupportsIndex):
        return index(value)
    return float(value) if isinstance(value, Real) else value


def contains_poison(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(contains_poison, value))
    if isinstance(value, Bundle):
        return any(item is POISON for item in value.items)
    return value is POISON


def flatten(values: Any) -> Iterator[Any]:
    """The leaves of nested lists."""
    for value in values:
        if isinstance(value, tuple):
            yield from flatten(value)
        else:
            yield value


def describe(value: Any) -> str:
    """A value in words, for messages.

    >>> describe((1, 2)), describe("rope"), describe(None)
    ('the list [1, 2]', 'the text "rope"', '`none`')
    """
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None:
        return "`none`"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, Expr):
        return f"the dimension {value}"
    if isinstance(value, str):
        return f'the text "{value}"'
    if isinstance(value, Tensor):
        return f"a tensor {value.value.type}"
    if isinstance(value, Bundle):
        return f"{len(value.items)} tensors"
    if isinstance(value, Module):
        return f"the module `{value.title}`"
    if isinstance(value, tuple):
        return f"the list {spell(value)}"
    return f"{value}"


def spell(value: Any) -> str:
    """A plain value as a program would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(spell, value))}]"
    if isinstance(value, Tensor | Bundle | Module):
        return describe(value)
    return str(value)
