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

A draw depends on (space, seed, index) alone. An alternative that does not fit where it is drawn is an error in an
`arch`; here it is left out: the nearest choice that may be to blame falls back to its next alternative, everything
else stays as it was drawn (see `Choices.revise`). What is made at a choice thus has the probability of its weight among
the alternatives that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from archc.grammar.choices import Choices, Production
from archc.grammar.drawer import Drawer, Unfit
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.load import checked, room_to_recurse
from archc.grammar.parser import parse, parse_file
from archc.grammar.printer import print_graph
from archc.grammar.program import Program
from archc.grammar.syntax import Program as Syntax
from archc.ir.canonical import canonical
from archc.ir.cost import Cost, cost
from archc.ir.diagnostics import CompileError, Diagnostic, Note, Span, fail
from archc.ir.dims import Dim
from archc.ir.graph import Graph

Trace = Mapping[str, Production]

TRIES = 40
"""Attempts at one draw, each with another decision at one choice, before it is begun afresh."""
RESTARTS = 25
MOST_NODES = 20_000
"""Nodes of what is drawn: rules need not end, and the limit of an `arch` is far."""


@dataclass(frozen=True)
class Drawn:
    """An architecture and the choices that lead to it; `attempts` counts the elaborations that it took."""

    graph: Graph
    trace: dict[str, Production]
    attempts: int

    @cached_property
    def text(self) -> str:
        """The architecture as `.arch` text without choices."""
        return print_graph(self.graph)

    @cached_property
    def hash(self) -> str:
        """A digest that equal architectures have in common."""
        return canonical(self.graph).hash

    @cached_property
    def cost(self) -> Cost:
        """What the architecture costs (`archc.ir.cost`)."""
        return cost(self.graph)

    @property
    def params(self) -> int:
        return self.cost.params

    @property
    def flops(self) -> Dim:
        return self.cost.flops

    @property
    def activation_bytes(self) -> Dim:
        return self.cost.activation_bytes


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
        self.limits = replace(limits, nodes=min(limits.nodes, MOST_NODES))

    @property
    def name(self) -> str:
        return self.syntax.name.text if self.syntax.name is not None else "space"

    def draw(self, seed: int = 0, index: int = 0) -> Drawn:
        """The architecture of that number.

        Raises: CompileError (E0705) when no choice fits.
        """
        return self.draw_by(f"{seed}/{index}", {})

    def redraw(self, trace: Trace, seed: int = 0, index: int = 0) -> Drawn:
        """The architecture of a trace; drawn, where the trace says nothing of a choice or what it says does not fit."""
        return self.draw_by(f"{seed}/{index}", trace)

    def draw_by(self, key: str, given: Trace, make: Callable[[Limits, Choices], Drawer] = Drawer) -> Drawn:
        """An architecture whose random numbers are those of `key`, by a drawer of one's own."""
        attempts = 0
        failures: dict[tuple[str, Span | None, str], list[Diagnostic]] = {}
        for restart in range(RESTARTS):
            choices = Choices(f"{key}/{restart}" if restart else key, given)
            for _ in range(TRIES):
                attempts += 1
                drawer = make(self.limits, choices)
                try:
                    return Drawn(self._attempt(drawer), choices.trace, attempts)
                except Unfit as unfit:
                    first = unfit.error.diagnostics[0]
                failures.setdefault((first.code, first.span, first.message), []).append(first)
                if not choices.revise((first.code, first.span, first.message, first.label), drawer.failed):
                    break
            if attempts == 1:
                break  # there is nothing to choose
        raise self._nothing_fits(attempts, list(failures.values()))

    def _attempt(self, drawer: Drawer) -> Graph:
        program = Program(self.syntax, self.values, self.dims, self.limits, drawer)
        program.is_resolved = True
        drawer.program = program
        with room_to_recurse():
            program.check()
            if drawer.sink.has_errors:
                raise Unfit(CompileError(*drawer.sink.in_order()))
        return program.graph

    def _nothing_fits(self, attempts: int, failures: list[list[Diagnostic]]) -> CompileError:
        notes = []
        for alike in sorted(failures, key=len, reverse=True)[:5]:
            first = alike[0]
            said = f"{len(alike)} times {first.code}: {first.message}" + (f" ({first.label})" if first.label else "")
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
