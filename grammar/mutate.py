"""Mutations of what was drawn from a space, as edits of its choice trace, and crossover between two traces.

    resample    a choice and all beneath it are drawn again
    production  a choice takes another alternative; what can be kept beneath it is kept
    parameter   a number goes a step up or down: of a `range`, or of a `choose` between numbers
    exchange    two parts of equal type change places
    crossover   a part of one architecture in the place of a part of equal type of another

A part is a choice with everything beneath it: `Body:1/Layer` and each path that begins with `Body:1/Layer:`. Parts that
stand for the same rule, with the same types of inputs and results, can stand in for each other.

An edit is a proposal. The space draws what it leaves open, and draws otherwise what does not fit; so the architecture
that comes of it may be the very same. `variants` yields edits in an order that depends on the key alone, until someone
is content: whoever mutates compares canonical hashes (`archc.search.space`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from archc.grammar.choices import Choices, Grid, Production
from archc.grammar.draw import Space, Trace
from archc.grammar.drawer import Choice, Drawer
from archc.grammar.load import room_to_recurse
from archc.grammar.program import Program
from archc.grammar.syntax import Expr, Number
from archc.grammar.traces import Edit, beneath, cut, part_of, put, taking
from archc.grammar.values import Module, Place, Result, tensors_of
from archc.ir.diagnostics import Span
from archc.ir.types import TensorType

Kind = Literal["resample", "production", "parameter", "exchange"]
KINDS: tuple[Kind, ...] = ("resample", "production", "parameter", "exchange")
Types = tuple[tuple[TensorType, ...], tuple[TensorType, ...]]


@dataclass(frozen=True, slots=True)
class Part:
    """A choice of a drawn architecture.

    path    where it stands in the trace
    rule    what it is a choice of: two parts of one rule have the same alternatives
    taken   its production
    others  the productions that are open here besides, in a fixed order
    steps   those of them that are a step away, where productions are numbers
    types   of the tensors that go in and come out, for a choice of modules
    """

    path: str
    rule: Any
    taken: Production
    others: tuple[Production, ...] = ()
    steps: tuple[Production, ...] = ()
    types: Types | None = None


def parts(space: Space, trace: Trace) -> dict[str, Part]:
    """The choices of an architecture of the space, by path, in the order in which they were made."""
    watcher = Watcher(space, trace)
    return {path: watcher.part(path) for path in watcher.choices.made}


class _Noting(Choices):
    """Choices that remember between what they chose."""

    def __init__(self, given: Trace) -> None:
        super().__init__("", given)
        self.open: dict[str, Sequence[int]] = {}
        self.grids: dict[str, Grid] = {}

    def among(self, path: str, weights: Mapping[int, float]) -> int:
        self.open[path] = list(weights)
        return super().among(path, weights)

    def number(self, path: str, grid: Grid) -> int | float:
        self.grids[path] = grid
        return super().number(path, grid)


class Watcher(Drawer):
    """Replays a trace and notes what stands where."""

    def __init__(self, space: Space, trace: Trace) -> None:
        self.choices: _Noting
        super().__init__(space.limits, _Noting(trace))
        self.types: dict[str, Types] = {}
        self.met: dict[str, Choice] = {}
        self.program = Program(space.syntax, space.values, space.dims, space.limits, self)
        self.program.is_resolved = True
        with room_to_recurse():
            self.program.check()

    def inside(self, choice: Choice, action: Callable[[Expr], Any]) -> Any:
        self.met[choice.path] = choice
        return super().inside(choice, action)

    def apply(self, module: Module, value: Any, at: Place, span: Span) -> Result:
        result = super().apply(module, value, at, span)
        if isinstance(module, Choice) and module.path not in self.types:
            given = value if isinstance(value, tuple) else tensors_of(value) or ()
            made = tensors_of(result) or ()
            self.types[module.path] = tuple(t.value.type for t in given), tuple(t.value.type for t in made)  # type: ignore[union-attr]
        return result

    def part(self, path: str) -> Part:
        taken = self.choices.made[path].chosen
        grid = self.choices.grids.get(path)
        if grid is not None:
            steps = grid_steps(grid, taken)
            return Part(path, (grid,), taken, steps, steps)
        choice = self.met[path]
        others = tuple(n for n in self.choices.open[path] if n != taken)
        return Part(
            path,
            (choice.name, choice.alternatives[0].span),
            taken,
            others,
            _steps(choice, int(taken), others),
            self.types.get(path),
        )


def grid_steps(grid: Grid, value: Production) -> tuple[Production, ...]:
    """The values beside a value of a `range`; where it is continuous, those a tenth of the range away.

    >>> grid_steps(Grid(8, 32, 8, False), 8), grid_steps(Grid(0.01, 1.0, None, True), 0.1)
    ((16,), (0.0631, 0.1585))
    """
    low, high = grid.low, grid.high
    if grid.step is not None:
        found: Sequence[Production] = [value - grid.step, value + grid.step]
    elif low == high:
        found = []
    elif grid.log:
        ratio = (high / low) ** 0.1
        found = [float(f"{value / ratio:.4g}"), float(f"{value * ratio:.4g}")]
    else:
        found = [float(f"{value - (high - low) / 10:.4g}"), float(f"{value + (high - low) / 10:.4g}")]
    return tuple(v for v in found if low <= v <= high and v != value)


def _steps(choice: Choice, taken: int, others: Sequence[int]) -> tuple[Production, ...]:
    """In a choice between numbers, the next smaller and the next larger one."""
    bodies = [a.body for a in choice.alternatives]
    if not all(isinstance(b, Number) for b in bodies):
        return ()
    size = {i: b.value for i, b in enumerate(bodies) if isinstance(b, Number)}
    below = max((i for i in others if size[i] < size[taken]), key=size.__getitem__, default=None)
    above = min((i for i in others if size[i] > size[taken]), key=size.__getitem__, default=None)
    return tuple(i for i in (below, above) if i is not None)


# Edits


def generator(key: str) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    digest = blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@dataclass(frozen=True, slots=True)
class Variant:
    """An edit: `kind` and `path` say what was done where. What is open is drawn with `seed`."""

    kind: str
    path: str
    trace: Edit = field(repr=False)
    seed: int = 0


def variants(space: Space, trace: Trace, key: str, kinds: Mapping[str, float], limit: int = 400) -> Iterator[Variant]:
    """Edits of a trace, at most `limit`: for each a kind is drawn by weight and a place for it, in keyed order. No kind
    and place comes twice, but for those that draw anew."""
    rng = generator(key)
    here = list(parts(space, trace).values())
    edits = {kind: _EDITS[kind](here, trace, rng) for kind in kinds if kinds[kind] > 0}
    for _ in range(limit):
        if not edits:
            return
        names = list(edits)
        weights = np.array([kinds[n] for n in names])
        kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        edit = next(edits[kind], None)
        if edit is None:
            del edits[kind]
            continue
        yield Variant(kind, edit[0], edit[1], int(rng.integers(2**62)))


_Edits = Iterator[tuple[str, Edit]]


def _shuffled(rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
    return [items[i] for i in rng.permutation(len(items))]


def _resample(here: Sequence[Part], trace: Trace, rng: np.random.Generator) -> _Edits:
    """Every place once, then all again, as what is drawn differs."""
    while here:
        for part in _shuffled(rng, here):
            yield part.path, cut(trace, part.path)


def _production(here: Sequence[Part], trace: Trace, rng: np.random.Generator) -> _Edits:
    left = {p.path: _shuffled(rng, p.others) for p in here}
    while left := {path: others for path, others in left.items() if others}:
        for path in _shuffled(rng, list(left)):
            yield path, taking(trace, path, left[path].pop())


def _parameter(here: Sequence[Part], trace: Trace, rng: np.random.Generator) -> _Edits:
    for path, step in _shuffled(rng, [(p.path, s) for p in here for s in p.steps]):
        yield path, {**trace, path: step}


def _exchange(here: Sequence[Part], trace: Trace, rng: np.random.Generator) -> _Edits:
    pairs = [
        (a.path, b.path)
        for alike in _by_type(here).values()
        for i, a in enumerate(alike)
        for b in alike[i + 1 :]
        if not beneath(a.path, b.path) and not beneath(b.path, a.path)
    ]
    for one, other in _shuffled(rng, pairs):
        first, second = part_of(trace, one), part_of(trace, other)
        if first != second:
            yield f"{one} {other}", put(put(trace, one, second), other, first)


_EDITS: Mapping[str, Callable[[Sequence[Part], Trace, np.random.Generator], _Edits]] = {
    "resample": _resample,
    "production": _production,
    "parameter": _parameter,
    "exchange": _exchange,
}


def crossings(space: Space, traces: tuple[Trace, Trace], key: str, limit: int = 200) -> Iterator[Variant]:
    """The first trace with a part of the second in the place of one of its own, of the same rule and types."""
    rng = generator(key)
    own, foreign = (list(parts(space, t).values()) for t in traces)
    donors = _by_type(foreign)
    pairs = [(part, donor) for kind, alike in _by_type(own).items() for part in alike for donor in donors.get(kind, ())]
    for part, donor in _shuffled(rng, pairs)[:limit]:
        replaced, given = part_of(traces[0], part.path), part_of(traces[1], donor.path)
        if replaced != given:
            yield Variant("crossover", f"{part.path} {donor.path}", put(traces[0], part.path, given),
                          int(rng.integers(2**62)))  # fmt: skip


def _by_type(here: Sequence[Part]) -> dict[Any, list[Part]]:
    """Choices of modules, those together that can stand in for each other."""
    found: dict[Any, list[Part]] = {}
    for part in here:
        if part.types is not None:
            found.setdefault((part.rule, part.types), []).append(part)
    return found
