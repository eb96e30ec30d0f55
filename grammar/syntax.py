"""The abstract syntax of `.arch`: what the parser builds and the elaborator reads.

Every node is a slotted frozen dataclass whose last field is its `span`. Spans take no part in `==`, so two programs
that differ only in layout are equal. Comments and redundant parentheses are not here: the formatter reads them itself.

Two rules keep trees flat, so that the depth of a tree grows with the nesting of its brackets and never with the length
of the program: a chain `a -> b -> c` is one `Pipe`, and operators of one precedence are one `Arithmetic` or `Logical`.

>>> from archc.grammar.parser import parse
>>> parse("logits = image -> linear(2 * 8)").items[0].value
Pipe(stages=(Ref(name='image'), Call(callee=Ref(name='linear'), arguments=(Arithmetic(operands=(Number(value=2), \
Number(value=8)), operators=('*',)),), keywords=())))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from archc.ir.diagnostics import Span


class Node:
    """What every piece of syntax has: a span."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]
    span: Span


@dataclass(frozen=True, slots=True)
class Name(Node):
    """A name where it is *bound* or names an argument (a use inside an expression is a `Ref`). Dots are part of it."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Number(Node):
    """`3`, `0.5`, `1e-5`, `500k`. An int where the literal is a whole number without an exponent, else a float."""

    value: int | float
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class String(Node):
    """`"rope"`; `value` has its escapes resolved."""

    value: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Boolean(Node):
    """`true` or `false`."""

    value: bool
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NoneLiteral(Node):
    """`none`: no value, as in `capacity = none`."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ref(Node):
    """A use of a name: operator, definition, parameter, dimension or value; which one is for the elaborator to say."""

    name: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Keyword(Node):
    """`name = value` among the arguments of a call. Any word may be the name, `input` and `range` too."""

    name: Name
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`callee(arguments…, keywords…)`; positional arguments come first and no keyword stands twice."""

    callee: Expr
    arguments: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Index(Node):
    """`value[index]`."""

    value: Expr
    index: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Negate(Node):
    """`-operand`."""

    operand: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Not(Node):
    """`not operand`."""

    operand: Expr
    span: Span = field(compare=False, repr=False)


ArithmeticOperator: TypeAlias = Literal["+", "-", "*", "/", "//", "%"]
ComparisonOperator: TypeAlias = Literal["==", "!=", "<=", ">=", "<", ">"]


@dataclass(frozen=True, slots=True)
class Arithmetic(Node):
    """Operators of one precedence (`+ -`, or `* / // %`), applied from the left.

    Reads `operands[0] operators[0] operands[1] …`: one operand more than operators, and at least one operator.
    """

    operands: tuple[Expr, ...]
    operators: tuple[ArithmeticOperator, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Compare(Node):
    """`left < right`; comparisons do not chain."""

    left: Expr
    operator: ComparisonOperator
    right: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Logical(Node):
    """`a and b and c`, or the same with `or`; two operands or more."""

    operator: Literal["and", "or"]
    operands: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class If(Node):
    """`if condition then consequent else alternative`, decided while elaborating."""

    condition: Expr
    consequent: Expr
    alternative: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    """`a -> b -> c`: two stages or more."""

    stages: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Tuple(Node):
    """`(a, b)`: several tensors that feed a module together; two items or more."""

    items: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class List(Node):
    """`[0, 2, 1]`, `[[dim]]`; the empty list too."""

    items: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Alternative(Node):
    """One production of a `rule` or `choose`: `weight: body when guard`."""

    weight: Number | None
    body: Expr
    guard: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Choose(Node):
    """`choose { 16 | 32 }`: an inline choice; one alternative or more."""

    alternatives: tuple[Alternative, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Range(Node):
    """`range(lo, hi, step = 1, log = true)`: an inline choice of a number."""

    arguments: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    """`repeat(count, tied = false) as index { body }`."""

    arguments: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]
    index: Name | None
    body: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Fn(Node):
    """`fn(x, y) { statements; return results }`: a module with named values."""

    parameters: tuple[Name, ...]
    statements: tuple[Statement, ...]
    results: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rest(Node):
    """`*S` in a shape: any number of axes."""

    name: Name
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TensorType(Node):
    """`f32[N, 3, H, 2 * W]`; ports always name a dtype, signatures (`[N, C] => [N, 2 * C]`) need not."""

    dtype: Name | None
    dims: tuple[Dim, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Signature(Node):
    """`: [N, C] => [N, 2 * C]`; several inputs or outputs stand in parentheses, `: ([N, C], [N, D]) => [N, C + D]`."""

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Formal(Node):
    """A parameter of a program, `def` or `rule`: `width: int = 16`."""

    name: Name
    type: Name | None
    default: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Import(Node):
    """`import "std/blocks.arch" (block, stage)`; `names` is None where no list is given (everything)."""

    path: String
    names: tuple[Name, ...] | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Port(Node):
    """`input image: f32[N, 3, 32, 32]` or `output logits: …`."""

    direction: Literal["input", "output"]
    name: Name
    type: TensorType
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Def(Node):
    """`def block(c, stride = 1): [N, C, H, W] => [N, c, H, W] = body`; `formals` is None without brackets."""

    name: Name
    formals: tuple[Formal, ...] | None
    signature: Signature | None
    body: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Share(Node):
    """`share table = embedding(vocab, dim)`: one set of weights."""

    name: Name
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let a, b = value`."""

    names: tuple[Name, ...]
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rule(Node):
    """`rule Op = linear(16) | 0.5: norm when depth < 3`. `formals` is None without brackets."""

    name: Name
    formals: tuple[Formal, ...] | None
    signature: Signature | None
    alternatives: tuple[Alternative, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Require(Node):
    """`require params < 500k`."""

    condition: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Bind(Node):
    """`logits = value` or `a, b = value`: the value of output ports."""

    names: tuple[Name, ...]
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Program(Node):
    """A whole file. A file without an `arch` or `space` line is a library: only `import`s can use it.

    `language` is the version named by a `language 1` line, or None. `items` are in source order. `span` is that of the
    header line (of the beginning of the file where there is none).
    """

    file: str
    kind: Literal["arch", "space", "library"]
    name: Name | None
    formals: tuple[Formal, ...]
    items: tuple[Item, ...]
    language: int | None
    span: Span = field(compare=False, repr=False)


Expr: TypeAlias = (
    Number | String | Boolean | NoneLiteral | Ref | Call | Index | Negate | Not | Arithmetic | Compare | Logical | If
    | Pipe | Tuple | List | Choose | Range | Repeat | Fn
)  # fmt: skip
Dim: TypeAlias = Expr | Rest
Statement: TypeAlias = Let | Share | Require
Item: TypeAlias = Import | Port | Def | Share | Let | Rule | Require | Bind


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below `node`, in source order."""
    for name in type(node).__match_args__[:-1]:  # all fields but the span
        value = getattr(node, name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            yield from (item for item in value if isinstance(item, Node))


def walk(node: Node) -> Iterator[Node]:
    """`node` and all nodes below it, in source order, without recursion.

    >>> from archc.grammar.parser import parse
    >>> from archc.grammar.syntax import Ref, walk
    >>> [n.name for n in walk(parse("y = a -> f(b, k = c)")) if isinstance(n, Ref)]
    ['a', 'f', 'b', 'c']
    """
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(reversed(tuple(children(current))))


def same_tree(first: Node, second: Node) -> bool:
    """`first == second`, without recursion: for trees nested deeper than Python's own `==` can go.

    >>> from archc.grammar.parser import parse
    >>> same_tree(parse("y = f( a )"), parse("y = f(a)")), same_tree(parse("y = a"), parse("y = b"))
    (True, False)
    """
    pending: list[tuple[object, object]] = [(first, second)]
    while pending:
        one, other = pending.pop()
        if type(one) is not type(other):
            return False
        if isinstance(one, Node):
            pending.extend((getattr(one, f), getattr(other, f)) for f in type(one).__match_args__[:-1])
        elif isinstance(one, tuple) and isinstance(other, tuple):
            if len(one) != len(other):
                return False
            pending.extend(zip(one, other, strict=True))
        elif one != other:
            return False
    return True
