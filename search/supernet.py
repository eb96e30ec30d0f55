"""Supernets: a space's choices as weighted sums, for one-shot searches (Liu et al. 2019, DARTS, arXiv:1806.09055).

Where all alternatives of a choice give tensors of the same type, all are computed, and their sum, weighed by an input
of the supernet (`mix0: f32[8]`, …), goes on. With weights of which one is 1 and the others 0 the supernet computes what
the network of that choice computes, to the last bit. A supernet is a program like any other.

What cannot be summed stays drawn: choices of values (a width, a kernel), alternatives of different types, choices
inside of regions (experts, gates, scans), and, as their number multiplies, those inside of the alternatives of others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from archc.grammar.choices import Choices, Production
from archc.grammar.draw import Built, Space
from archc.grammar.drawer import Choice, Drawer, Unfit
from archc.grammar.limits import Limits
from archc.grammar.printer import print_graph
from archc.grammar.syntax import Expr, Require
from archc.grammar.values import Place, Result, Tensor
from archc.ir.clone import clone
from archc.ir.dead import remove_dead_code
from archc.ir.diagnostics import CompileError, Span, fail
from archc.ir.graph import Graph, Value
from archc.ir.op import REGISTRY
from archc.ir.types import TensorType

MOST_NODES = 5000
"""Nodes of a supernet."""


@dataclass(frozen=True)
class Mix:
    """A choice that has become a sum.

    path      of the choice
    name      of the input that weighs it
    numbers   the productions, in the order of that input
    """

    path: str
    name: str
    numbers: tuple[int, ...]

    def inside(self, chosen: Mapping[str, Production]) -> bool:
        """Whether the choice is one at all where those around it have come to these productions."""
        return all(
            not self.path.startswith(f"{path}:") or self.path.startswith(f"{path}:{number}/")
            for path, number in chosen.items()
        )


@dataclass(frozen=True)
class Supernet:
    """A network whose choices are sums; `trace` holds the choices that were drawn, `drawn_for` why."""

    graph: Graph
    mixes: tuple[Mix, ...]
    trace: Mapping[str, Production]
    drawn_for: Mapping[str, str]
    sums: tuple[tuple[str, int, tuple[int, ...]], ...]
    """For each application of a mix its name, the sum and the alternatives: places in `_values`."""

    @cached_property
    def text(self) -> str:
        return print_graph(self.graph)

    def derive(self, chosen: Mapping[str, int]) -> Graph:
        """The network with one alternative in place of each sum; parameters keep the supernet's names."""
        graph = clone(self.graph)
        values = _values(graph)
        numbers = {mix.name: mix.numbers.index(chosen.get(mix.path, mix.numbers[0])) for mix in self.mixes}
        for name, whole, parts in reversed(self.sums):  # the outermost first
            values[whole].replace_all_uses(values[parts[numbers[name]]], graph)
        remove_dead_code(graph)
        weighing = {mix.name for mix in self.mixes}
        graph.inputs = [v for v in graph.inputs if v.name not in weighing]
        return graph

    def ranked(self, weights: Mapping[str, Sequence[float]]) -> Iterator[dict[str, int]]:
        """Productions by the path of their choice, those of the largest product of weights first; `weights` by name.

        A choice inside of a production that is not taken is none.
        """
        orders = [sorted(range(len(m.numbers)), key=lambda k, m=m: -weights[m.name][k]) for m in self.mixes]  # type: ignore[misc]

        def chosen(ranks: tuple[int, ...]) -> dict[str, int]:
            every = {m.path: m.numbers[order[r]] for m, order, r in zip(self.mixes, orders, ranks, strict=True)}
            return {m.path: every[m.path] for m in self.mixes if m.inside(every)}

        def price(ranks: tuple[int, ...]) -> float:
            return -sum(
                math.log(max(weights[m.name][order[r]], 1e-30))
                for m, order, r in zip(self.mixes, orders, ranks, strict=True)
            )

        first = (0,) * len(self.mixes)
        heap, seen, told = [(price(first), first)], {first}, set[tuple[tuple[str, int], ...]]()
        while heap:
            _, ranks = heapq.heappop(heap)
            found = chosen(ranks)
            key = tuple(sorted(found.items()))
            if key not in told:
                told.add(key)
                yield found
            for i, order in enumerate(orders):
                if ranks[i] + 1 < len(order):
                    following = (*ranks[:i], ranks[i] + 1, *ranks[i + 1 :])
                    if following not in seen:
                        seen.add(following)
                        heapq.heappush(heap, (price(following), following))


def relax(space: Space, key: str, depth: int = 1) -> Supernet:
    """The supernet of a space; what is not summed is drawn by `key`. `depth` is how far inside of each other choices
    are summed.

    Raises: CompileError E0742 when there is nothing to sum, E0743 when it is too much, E0705 when nothing fits.

    >>> from archc.grammar.draw import read_space
    >>> space = read_space('''
    ... space tiny()
    ... input  x: f32[N, 4]
    ... output y: f32[N, 4]
    ... rule Body = linear(4) | relu | identity
    ... y = x -> Body -> linear(choose { 8 | 16 }) -> Body -> linear(4)
    ... ''')
    >>> supernet = relax(space, "0")
    >>> [mix.name for mix in supernet.mixes], list(supernet.trace), [str(v.type) for v in supernet.graph.inputs]
    (['mix0', 'mix1'], ['choose'], ['f32[N, 4]', 'f32[3]'])
    """
    syntax = replace(space.syntax, items=tuple(i for i in space.syntax.items if not isinstance(i, Require)))
    whole = Space(syntax, space.values, space.dims, space.limits)
    drawn_for: dict[str, str] = {}
    while True:
        made: list[Relaxer] = []

        def make(limits: Limits, choices: Choices) -> Relaxer:
            made.append(Relaxer(limits, choices, drawn_for, depth))  # noqa: B023  (used before the next turn)
            return made[-1]  # noqa: B023

        try:
            drawn = whole.draw_by(key, {}, make)
            return _finished(space, drawn, made[-1])
        except _Unlike as unlike:
            drawn_for[unlike.path] = unlike.why
        except _TooLarge:
            raise fail("E0743", f"the supernet of space `{space.name}` is too large", space.syntax.span,
                       label=f"it has more than {MOST_NODES} nodes",
                       help="sum fewer choices inside of each other: `--option depth=1`") from None  # fmt: skip


def _finished(space: Space, drawn: Built, relaxer: Relaxer) -> Supernet:
    if not relaxer.mixes:
        raise fail("E0742", f"space `{space.name}` has no choice that can be a weighted sum", space.syntax.span,
                   label="; ".join(f"`{path}`: {why}" for path, why in list(relaxer.drawn_for.items())[:3]),
                   help="the alternatives of one choice need to give tensors of equal types")  # fmt: skip
    graph = drawn.graph
    places = {value: i for i, value in enumerate(_values(graph))}
    sums = tuple((name, places[whole], tuple(places[p] for p in parts)) for name, whole, parts in relaxer.sums)
    return Supernet(graph, tuple(relaxer.mixes.values()), drawn.trace, dict(relaxer.drawn_for), sums)


def _values(graph: Graph) -> list[Value]:
    """Every value of a graph, in an order that a clone keeps."""
    return [*graph.inputs, *(value for node in graph.nodes for value in node.outputs)]


class _Unlike(Exception):
    """A choice whose alternatives cannot be summed."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why


class _TooLarge(Exception):
    """More nodes than a supernet may have."""


class Relaxer(Drawer):
    """Sums where another drawer chooses; `drawn_for` holds the choices that are to be drawn, and why."""

    def __init__(self, limits: Limits, choices: Choices, drawn_for: dict[str, str], depth: int) -> None:
        super().__init__(limits, choices)
        self.drawn_for, self._levels = drawn_for, depth
        self.mixes: dict[str, Mix] = {}
        self.sums: list[tuple[str, Value, tuple[Value, ...]]] = []
        self._level = 0

    def feed(self, choice: Choice, action: Callable[[Expr], Result], at: Place) -> Result:
        numbers = tuple(sorted(self.open(choice)))
        if len(numbers) < 2 or choice.path in self.drawn_for:
            return self.inside(choice, action)  # type: ignore[no-any-return]
        if at.frame is not self.program.root.frame:
            raise _Unlike(choice.path, "inside of a region")
        if self._level >= self._levels:
            if choice.path in self.mixes:
                raise _Unlike(choice.path, "used again inside of another sum")
            self.drawn_for[choice.path] = "inside of another sum"
            return self.inside(choice, action)  # type: ignore[no-any-return]
        self._level += 1
        parts = {number: self._part(choice, number, action) for number in numbers}
        self._level -= 1
        fitting = {number: part for number, part in parts.items() if part is not None}
        if len({part.value.type for part in fitting.values()}) != 1 or len(fitting) < 2:
            raise _Unlike(choice.path, "alternatives of different types")
        return self._sum(choice, fitting, at)

    def _part(self, choice: Choice, number: int, action: Callable[[Expr], Result]) -> Tensor | None:
        """What an alternative gives; None where it does not fit."""
        try:
            found = self.within(choice, number, action)
        except (CompileError, Unfit):
            return None
        if not isinstance(found, Tensor):
            raise _Unlike(choice.path, "several results")
        return found

    def _sum(self, choice: Choice, parts: Mapping[int, Tensor], at: Place) -> Tensor:
        numbers = tuple(parts)
        mix = self.mixes.get(choice.path)
        if mix is None:
            mix = self.mixes[choice.path] = Mix(choice.path, f"mix{len(self.mixes)}", numbers)
            self.program.graph.add_input(mix.name, TensorType((len(numbers),)), choice.span)
        if mix.numbers != numbers:
            raise _Unlike(choice.path, "other alternatives fit where it is used again")
        weights = next(v for v in self.program.graph.inputs if v.name == mix.name)
        total: Value | None = None
        for k, part in enumerate(parts.values()):
            weight = self._add("select", [weights], at, choice.span, index=k, axis=0)
            weighed = self._add("mul", [weight, part.value], at, choice.span)
            total = weighed if total is None else self._add("add", [total, weighed], at, choice.span)
        assert total is not None
        self.sums.append((mix.name, total, tuple(part.value for part in parts.values())))
        return Tensor(total, at.frame)

    def _spend(self, span: Span) -> None:
        super()._spend(span)
        if self.nodes > MOST_NODES:
            raise _TooLarge

    def _add(self, op: str, operands: Sequence[Value], at: Place, span: Span, **params: int) -> Value:
        self._spend(span)
        name, _ = at.scope.node(op, None, span)
        kind = REGISTRY[op]
        return at.frame.graph.add(kind, operands, kind.params(**params), name=name, span=span, trace=at.trace).output
