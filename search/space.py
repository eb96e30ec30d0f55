"""The space of a search: where candidates come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from archc.grammar.choices import Production
from archc.grammar.draw import Drawn, Space, Trace, read_space
from archc.grammar.enumerate import count, listing
from archc.grammar.load import check, load
from archc.grammar.misfits import empty, misfits
from archc.grammar.mutate import Variant, crossings, generator, parts, variants
from archc.grammar.parser import parse_file
from archc.grammar.printer import print_graph
from archc.grammar.traces import read_trace, taking
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError, Diagnostic, fail
from archc.ir.dims import symbol
from archc.ir.graph import Graph
from archc.passes.spec import parse_transform
from archc.search.graft import admitted, grafts, transformed
from archc.search.inherit import TRANSFORM
from archc.search.records import Candidate

KINDS: Mapping[str, float] = {"resample": 0.4, "production": 0.3, "parameter": 0.2, "exchange": 0.1, "transform": 0.25}
"""How often each kind of mutation is tried first, relative to each other; transforms where the search has some."""
LISTED = 4096
"""Derivations of a space that is listed to count its architectures."""


class SearchSpace(Protocol):
    """What strategies ask of a space. `key` addresses the random numbers: equal keys, equal candidates."""

    def draw(self, key: str) -> Candidate:
        """A fresh draw."""

    def redraw(self, trace: Mapping[str, Production], key: str) -> Candidate:
        """What a trace says, and draws where it says nothing or what it says does not fit."""

    def mutate(self, number: int, parent: Candidate, key: str) -> Candidate:
        """Another architecture near trial `number`: never the same one (its hash differs).

        Raises: CompileError (E0714) when there is no other.
        """

    def cross(self, numbers: tuple[int, int], parents: tuple[Candidate, Candidate], key: str) -> Candidate:
        """A part of one in the place of a part of equal type of the other; where they have none such, a mutation of
        the first (its `origin` says so)."""

    def seeds(self) -> tuple[Candidate, ...]:
        """Nets of the user's to begin with."""

    def neighbours(self, parent: Candidate) -> list[Candidate]:
        """All that differ in one choice, in a fixed order; of a `range`, those a step away."""

    def size(self) -> int | None:
        """How many architectures there are, when they can be listed; None for a large or open space."""


def open_space(
    path: Path,
    *,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    seeds: Sequence[Path] = (),
    transforms: Sequence[str] = (),
    kinds: Mapping[str, float] = KINDS,
) -> SearchSpace:
    """The search space of a file that begins with `space`.

    values      its parameters
    dims        sizes of symbols
    seeds       nets to begin with: `.arch` files, or the choices that lead to them (`.json`, as `archc sample` writes)
    transforms  passes that mutations may apply besides: `"widen(factor = 2)"`
    kinds       how often each kind of mutation is tried first

    Raises: CompileError for mistakes in the files and passes, E0712 when nothing can be drawn from the space, E0715 for
    a seed with other inputs or outputs, E0716 for choices that do not fit.
    """
    for spec in transforms:
        parse_transform(spec)
    space = read_space(path, values, dims)
    try:
        ports = _ports(space.draw().graph)
    except CompileError as error:
        raise empty(space, error) from None
    return GrammarSpace(space, tuple(_seed(Path(s), space, ports) for s in seeds), tuple(transforms), dict(kinds))


def lint(
    path: Path, values: Mapping[str, Any] | None = None, dims: Mapping[str, int] | None = None, thorough: bool = False
) -> list[Diagnostic]:
    """Warnings about a space without mistakes: E0703 for rules that nothing uses, E0704 where drawing need not end, and
    where it is `thorough`, E0713 for alternatives that fit nowhere (some dozens of draws)."""
    found = [d for d in check(path, values, dims) if d.severity == "warning"]
    return found + (misfits(read_space(path, values, dims)) if thorough else [])


class GrammarSpace:
    """A space of a grammar."""

    def __init__(
        self, space: Space, seeds: tuple[Candidate, ...], transforms: tuple[str, ...], kinds: Mapping[str, float]
    ) -> None:
        self.space = space
        self._kinds = kinds
        self._transforms = transforms
        self._seeds = seeds

    def draw(self, key: str) -> Candidate:
        return _candidate(self.space.draw(_number(key)), "draw")

    def redraw(self, trace: Mapping[str, Production], key: str) -> Candidate:
        return _candidate(self.space.redraw(trace, _number(key)), "draw")

    def mutate(self, number: int, parent: Candidate, key: str) -> Candidate:
        for made in self._mutations(parent, key):
            if made.hash != parent.hash:
                return made.model_copy(update={"parents": (number,), "inherit": number})
        raise fail("E0714", f"nothing in space `{self.space.name}` differs from trial {number}",
                   help="is there more than one architecture in it? `archc sample` shows what it holds")  # fmt: skip

    def _mutations(self, parent: Candidate, key: str) -> Iterator[Candidate]:
        """What mutations lead to, in keyed order; it may be the parent again."""
        transforms = self._transformed(parent, key)
        edits = self._grafted(parent, key) if parent.trace is None else self._edited(parent.trace, key)
        share = self._kinds.get("transform", 0.0) / sum(self._kinds.values()) if self._transforms else 0.0
        first, second = (transforms, edits) if generator(f"{key}/kind").random() < share else (edits, transforms)
        yield from first
        yield from second

    def _edited(self, trace: Trace, key: str) -> Iterator[Candidate]:
        """Edits of the choices."""
        for variant in variants(self.space, trace, key, {k: w for k, w in self._kinds.items() if k != "transform"}):
            made = self._made(variant, f"mutation/{variant.kind}")
            if made is not None:
                yield made

    def _grafted(self, parent: Candidate, key: str) -> Iterator[Candidate]:
        """Stretches drawn anew, where the choices are not known."""
        for made in grafts(self.space, parent.text, f"{key}/graft"):
            yield Candidate(text=made.text, hash=made.hash, origin="mutation/graft")

    def _transformed(self, parent: Candidate, key: str) -> Iterator[Candidate]:
        """Transforms, each at one of its sites."""
        for i in generator(f"{key}/transform").permutation(len(self._transforms)):
            for spec, graph in transformed(parent.text, self._transforms[i], f"{key}/transform/{i}"):
                made = admitted(self.space, graph)
                if made is not None:
                    yield Candidate(text=made.text, hash=made.hash, origin=TRANSFORM + spec)

    def cross(self, numbers: tuple[int, int], parents: tuple[Candidate, Candidate], key: str) -> Candidate:
        first, second = parents[0].trace, parents[1].trace
        if first is not None and second is not None:
            hashes = {parents[0].hash, parents[1].hash}
            for variant in crossings(self.space, (first, second), key):
                made = self._made(variant, "crossover")
                if made is not None and made.hash not in hashes:
                    return made.model_copy(update={"parents": numbers, "inherit": numbers[0]})
        return self.mutate(numbers[0], parents[0], key)

    def seeds(self) -> tuple[Candidate, ...]:
        return self._seeds

    def neighbours(self, parent: Candidate) -> list[Candidate]:
        found: dict[str, Candidate] = {}
        trace = parent.trace or {}
        for part in parts(self.space, trace).values():
            for other in part.others:
                made = self._made(Variant("neighbour", part.path, taking(trace, part.path, other)), "neighbour")
                if made is not None and made.hash != parent.hash and (made.trace or {}).get(part.path) == other:
                    found.setdefault(made.hash, made)
        return list(found.values())

    def size(self) -> int | None:
        return self._size

    @cached_property
    def _size(self) -> int | None:
        derivations = count(self.space).exact
        if derivations is None or derivations > LISTED:
            return None
        return len({canonical(d.graph).hash for d in listing(self.space)})

    def _made(self, variant: Variant, origin: str) -> Candidate | None:
        """What comes of an edit; None when nothing does."""
        try:
            return _candidate(self.space.redraw(variant.trace, variant.seed), origin)
        except CompileError:
            return None


def _candidate(drawn: Drawn, origin: str) -> Candidate:
    return Candidate(text=drawn.text, hash=canonical(drawn.graph).hash, origin=origin, trace=drawn.trace)


def _number(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def _seed(path: Path, space: Space, ports: str) -> Candidate:
    """A net of the user's: a program, or the choices that lead to it. Parameters of the space that a program has, too,
    are set alike."""
    if path.suffix == ".json":
        return _derived_seed(path, space)
    syntax = parse_file(path)
    known = {f.name.text for f in syntax.formals}
    graph = load(path, {k: v for k, v in (space.values or {}).items() if k in known})
    if _ports(graph) != ports:
        raise fail("E0715", f"`{path}` does not have the inputs and outputs of space `{space.name}`", syntax.span,
                   label=f"needed {ports}, found {_ports(graph)}")  # fmt: skip
    return Candidate(text=print_graph(graph), hash=canonical(graph).hash, origin="seed")


def _derived_seed(path: Path, space: Space) -> Candidate:
    trace = read_trace(path)
    drawn = space.redraw(trace)
    wrong = next((p for p, n in drawn.trace.items() if trace.get(p) != n), None)
    if wrong is not None:
        label = f"`{wrong}` is {trace[wrong]}, which does not fit" if wrong in trace else f"`{wrong}` is open"
        raise fail("E0716", f"the choices of `{path}` are no architecture of space `{space.name}`", label=label)
    return _candidate(drawn, "seed")


def _ports(graph: Graph) -> str:
    """The types of inputs and outputs, whatever their symbols are called."""
    renamed = {s: symbol(f"S{i}") for i, s in enumerate(graph.symbols())}
    types = [", ".join(str(v.type.substitute(renamed)) for v in side) for side in (graph.inputs, graph.outputs)]
    return " -> ".join(types)
