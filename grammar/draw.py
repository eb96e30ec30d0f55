"""Drawing architectures from a space.

>>> space = '''
... space tiny()
... input  x: f32[N, 4]
... output y: f32[N, 2]
... rule Body = linear(range(8, 32, step = 8)) -> choose { relu | gelu } | 0.5: Body -> Body when depth < 3
... y = x -> Body -> linear(2)
... '''
>>> drawn = draw(space, seed=0, index=1)
>>> print(drawn.text)
arch tiny
...
>>> redraw(space, drawn.trace).text == drawn.text
True

A draw depends on (space, seed, index) alone. It is made on types (`derive.py`, which states the law): what fits, what
it costs and which hash it has is known before a graph is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from archc.grammar.choices import Choices, Production, Trace
from archc.grammar.derive import Beyond, Derivation, Deriver
from archc.grammar.drawer import Drawer, Unfit
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.load import checked, room_to_recurse
from archc.grammar.parser import parse, parse_file
from archc.grammar.printer import print_graph
from archc.grammar.program import Program
from archc.grammar.syntax import Program as Syntax
from archc.grammar.terms import NoTerm, Terms
from archc.ir.canonical import canonical
from archc.ir.cost import Cost, cost
from archc.ir.diagnostics import CompileError, Diagnostic, Note, fail
from archc.ir.dims import Dim
from archc.ir.graph import Graph

__all__ = ["Built", "Drawn", "Production", "Space", "Trace", "draw", "read_space", "redraw"]

ATTEMPTS = 1000
"""Beginnings of one draw, before it is given up."""
MISFITS = 30
"""Those of them that end where nothing fits."""
MOST_TYPES = 100_000
"""Types that are remembered, with what ops make of them, before all is forgotten: about 300 MB."""
MOST_NODES = 2_000
"""Nodes of what is drawn, unless another limit is set: rules need not end, and the limit of an `arch` is far."""


class Drawn:
    """An architecture and the choices that lead to it; `attempts` counts how often it was begun.

    nodes   ops of the graph, those of regions included
    """

    def __init__(self, space: Space, derivation: Derivation, attempts: int) -> None:
        self._space, self._derivation, self.attempts = space, derivation, attempts
        self._transfer, self._terms = space.deriver.transfer, space.terms

    @cached_property
    def trace(self) -> dict[str, Production]:
        """The choices by path, in the order in which they were made."""
        return dict(self._derivation.trace())

    @cached_property
    def graph(self) -> Graph:
        return self._space.build(self.trace)

    @cached_property
    def text(self) -> str:
        """The architecture as `.arch` text without choices."""
        return print_graph(self.graph)

    @cached_property
    def hash(self) -> str:
        """A digest that tells architectures apart: where it is equal, so is the canonical hash of the graph.

        Equal networks have one hash, but for networks that are not series-parallel in one spelling and are in another.
        It is no canonical hash itself (that is `archc.ir.canonical`'s), unless the network is not series-parallel.
        """
        try:
            return self._terms.hash(self._derivation)
        except NoTerm:
            return canonical(self.graph).hash

    @property
    def nodes(self) -> int:
        return self._derivation.nodes

    @property
    def params(self) -> int:
        """Trained numbers."""
        return self._derivation.params

    @property
    def flops(self) -> Dim:
        """Operations of one forward pass."""
        return self._dim(self._derivation.flops, "flops")

    @property
    def activation_bytes(self) -> Dim:
        """Bytes of every node's results together."""
        return self._dim(self._derivation.activation_bytes, "activation_bytes")

    def _dim(self, number: int, name: str) -> Dim:
        if self._transfer.inexact:
            return getattr(self._cost, name)  # type: ignore[no-any-return]
        return self._transfer.scale.read(number)

    @cached_property
    def _cost(self) -> Cost:
        return cost(self.graph)


@dataclass(frozen=True)
class Built:
    """A graph, and the choices that lead to it."""

    graph: Graph
    trace: Trace


class Space:
    """A space with its parameters set, read once, to draw from often.

    Raises: CompileError for mistakes in it, and E0707 when the program is no space.
    """

    def __init__(
        self,
        syntax: Syntax,
        values: Mapping[str, Any] | None = None,
        dims: Mapping[str, int] | None = None,
        limits: Limits = DEFAULT,
    ) -> None:
        if syntax.kind != "space":
            what = "an `arch`, which leaves nothing open" if syntax.kind == "arch" else "a library"
            raise fail("E0707", f"`{syntax.file}` is no space", syntax.span, label=f"it is {what}",
                       help="a file with choices begins with `space name`")  # fmt: skip
        wrong = [d for d in checked(syntax, values, dims, limits) if d.severity == "error"]
        if wrong:
            raise CompileError(*wrong)
        self.syntax, self.values, self.dims = syntax, values, dims
        self.limits = replace(limits, nodes=MOST_NODES) if limits.nodes == DEFAULT.nodes else limits

    @property
    def name(self) -> str:
        return self.syntax.name.text if self.syntax.name is not None else "space"

    @cached_property
    def deriver(self) -> Deriver:
        return Deriver(self.syntax, self.values, self.dims, self.limits)

    @cached_property
    def terms(self) -> Terms:
        return Terms(self.deriver.transfer)

    def draw(self, seed: int = 0, index: int = 0) -> Drawn:
        """The architecture of that number.

        Raises: CompileError (E0705) when no choice fits.
        """
        return self._draw(f"{seed}/{index}", {})

    def redraw(self, trace: Trace, seed: int = 0, index: int = 0) -> Drawn:
        """The architecture of a trace; drawn, where the trace says nothing of a choice or what it says does not fit."""
        return self._draw(f"{seed}/{index}", trace)

    def _draw(self, key: str, given: Trace) -> Drawn:
        if len(self.deriver.transfer.types.all) > MOST_TYPES:
            del self.deriver
            self.__dict__.pop("terms", None)
        deriver = self.deriver
        deriver.failures.clear()
        misfits = 0
        late: list[Diagnostic] = []
        for attempt in range(1, ATTEMPTS + 1):
            derivation = None
            with room_to_recurse():
                try:
                    derivation = deriver.derive(f"{key}/{attempt}", given)
                    misfits += derivation is None
                except Beyond:
                    pass
            if derivation is not None:
                drawn = Drawn(self, derivation, attempt)
                if not deriver.late:
                    return drawn
                try:
                    drawn.graph  # noqa: B018
                except CompileError as error:
                    late.append(error.diagnostics[0])
                else:
                    return drawn
            if misfits == MISFITS or not deriver.chose:
                break
        raise self._nothing_fits(attempt, late)

    def build(self, trace: Trace) -> Graph:
        """The graph of a trace.

        Raises: CompileError when the trace does not fit.
        """
        try:
            return self._elaborated(Drawer(self.limits, Choices("", trace)))
        except Unfit as unfit:
            raise unfit.error from None

    def draw_by(self, key: str, given: Trace, make: Callable[[Limits, Choices], Drawer]) -> Built:
        """An architecture drawn by `key`, elaborated by a drawer of one's own. Choices that the architecture does not
        have are open to it.

        Raises: CompileError (E0705) when no choice fits.
        """
        late: list[Diagnostic] = []
        for attempt in range(MISFITS):
            drawer = make(self.limits, Choices(f"{key}/{attempt}", self._draw(f"{key}/{attempt}", given).trace))
            try:
                graph = self._elaborated(drawer)
            except Unfit as unfit:
                late.append(unfit.error.diagnostics[0])
            else:
                return Built(graph, drawer.choices.trace)
        raise self._nothing_fits(MISFITS, late)

    def _elaborated(self, drawer: Drawer) -> Graph:
        drawer.program = Program(self.syntax, self.values, self.dims, self.limits, drawer)
        drawer.program.is_resolved = True
        with room_to_recurse():
            drawer.program.check()
        if drawer.sink.has_errors:
            raise Unfit(CompileError(*drawer.sink.in_order()))
        return drawer.program.graph

    def _nothing_fits(self, attempts: int, late: list[Diagnostic]) -> CompileError:
        found: dict[tuple[Any, ...], tuple[Diagnostic, int]] = {}
        for diagnostic, count in [*self.deriver.diagnostics(), *((d, 1) for d in late)]:
            key = diagnostic.code, diagnostic.span, diagnostic.message
            found[key] = found.get(key, (diagnostic, 0))[0], found.get(key, (diagnostic, 0))[1] + count
        notes = []
        for first, count in sorted(found.values(), key=lambda alike: alike[1], reverse=True)[:5]:
            said = f"{count} times {first.code}: {first.message}" + (f" ({first.label})" if first.label else "")
            notes.append(Note(said, first.span))
        return fail("E0705", f"no architecture of space `{self.name}` fits", self.syntax.span,
                    label=f"{attempts} were tried", notes=notes,
                    help="widen what is asked for most often, or add an alternative that fits")  # fmt: skip


def read_space(
    source: str | Path,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
) -> Space:
    """A space from a file, or from its text: a `str` of several lines."""
    if isinstance(source, str) and "\n" in source:
        return Space(parse(source, limits=limits), values, dims, limits)
    return Space(parse_file(source, limits), values, dims, limits)


def draw(
    source: str | Path, seed: int = 0, index: int = 0, values: Mapping[str, Any] | None = None, **dims: int
) -> Drawn:
    """Draw number `index` of a space (a file, or a text of several lines); `dims` fixes symbols: `draw(s, N=1)`."""
    return _known(str(source), tuple(sorted((values or {}).items())), tuple(sorted(dims.items()))).draw(seed, index)


def redraw(
    source: str | Path,
    trace: Trace,
    seed: int = 0,
    index: int = 0,
    values: Mapping[str, Any] | None = None,
    **dims: int,
) -> Drawn:
    """What a trace says, with fresh draws where it says nothing: the whole trace is a replay, a part a mutation."""
    space = _known(str(source), tuple(sorted((values or {}).items())), tuple(sorted(dims.items())))
    return space.redraw(trace, seed, index)


@lru_cache(maxsize=16)
def _known(source: str, values: tuple[tuple[str, Any], ...], dims: tuple[tuple[str, int], ...]) -> Space:
    return read_space(source, dict(values), dict(dims))
