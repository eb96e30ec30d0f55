"""One op of the graph at neuron level: the sets of its results, the edges of its weights, and links."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from archc.ir.axes import AxisVar
from archc.ir.graph import Node, Parameter, Value
from archc.ir.signature import parse_signature
from archc.metanet.neuron_graph import MAX_SLOTS
from archc.metanet.neuron_sets import Atom, Name, NodeSet, Term, leaf_digits, set_atoms, term_atoms, terms
from archc.metanet.vocabulary import FORMAL

if TYPE_CHECKING:
    from archc.metanet.neuron_build import Builder

Array = Any
MAX_CHAIN = 4
MAX_TAPS = 3


@dataclass(slots=True)
class Weighing:
    """The edges of one use of a parameter: node numbers on the grid of its elements, broadcast where they can be."""

    parameter: Parameter
    source: Array
    target: Array
    type: int
    taps: list[Array]


@dataclass
class Seen:
    """A set as a node's signature sees it. Its digits are read when they are asked for: most ops do not ask."""

    nodes: NodeSet
    axis: int
    terms: list[Term | None]
    letters: Mapping[str, tuple[AxisVar, ...]]

    @cached_property
    def atoms(self) -> dict[Atom, Array]:
        return set_atoms(self.nodes, self.axis if self.axis >= 0 else None, self.terms, self.letters)


@dataclass(slots=True)
class View:
    """A value as a node's signature sees it."""

    value: Value
    terms: list[Term | None]
    sets: list[Seen]


class NodeReader:
    """One node: the sets of its results, the edges of its weights, and links."""

    def __init__(self, builder: Builder, node: Node) -> None:
        self.b, self.node = builder, node
        self.letters = builder.axes.letters[node]
        signature = node.bound.signature
        depth = 1 + max((builder.depth.get(v, 0) for v in node.inputs), default=0)
        for value in node.outputs:
            builder.depth[value] = depth
        self.level = depth
        self.weights = [(t, node.weights[t.name]) for t in signature.weights if t.name in node.weights]
        self.operands = [self.view(t, v) for t, v in zip(signature.operands, node.operands, strict=True)]
        self.result_terms = [terms(t, v.type.shape, node) for t, v in zip(signature.results, node.outputs, strict=True)]
        self._hub: NodeSet | None = None
        self.inner: dict[tuple[Name, ...], NodeSet] = {}
        self.pairs: dict[tuple[NodeSet, ...], NodeSet] = {}
        self.touched: set[NodeSet] = set()

    def view(self, tensor: Any, value: Value) -> View:
        return self.seen(value, terms(tensor, value.type.shape, self.node))

    def seen(self, value: Value, axes: list[Term | None]) -> View:
        sets = [Seen(nodes, axis, axes, self.letters) for axis, nodes in self.b.of[value].items()]
        return View(value, axes, sets)

    @property
    def hub(self) -> NodeSet:
        """The op's own node."""
        if self._hub is None:
            self._hub = self.b.add(self.node.op.name, (), self.level, "hub")
        return self._hub

    def read(self) -> None:
        if self.node.regions:
            for value in self.node.outputs:
                self.b.make(value, self.node.op.name)
            self.results = [self.seen(v, t) for v, t in zip(self.node.outputs, self.result_terms, strict=True)]
            self.regions()
        else:
            self.results = [self.result(v, t) for v, t in zip(self.node.outputs, self.result_terms, strict=True)]
        mixing = False
        for tensor, parameter in self.weights:
            mixing |= self.weigh(tensor, parameter)
        self.lattice()
        self.close()

    # -- results without weights --------------------------------------------------------------------------------------

    def result(self, value: Value, axes: list[Term | None]) -> View:
        """The sets of a result: that of an operand where the op works on each of its elements, or new ones with links
        from what they are made of."""
        b, own = self.b, {}
        bearing = b.bears(value) or [-1]
        for axis in bearing:
            term = axes[axis] if axis >= 0 else None
            kept = self.kept(value, axis, term)
            if kept is not None:
                own[axis] = kept
                continue
            if axis < 0:
                own[axis] = b.add(self.node.op.name, (), self.level)
            else:
                own[axis] = b.axis_set(value, axis, self.node.op.name, self.level)
        b.of[value] = own
        view = self.seen(value, axes)
        for seen in view.sets:
            for slot, operand in enumerate(self.operands):
                for source in operand.sets:
                    if source.nodes is seen.nodes:
                        self.touched.add(seen.nodes)
                    elif b.joined(source.nodes, source.atoms, seen.nodes, seen.atoms, self.slot(slot)):
                        self.touched |= {source.nodes, seen.nodes}
        return view

    def slot(self, slot: int) -> str:
        """The name of a link from an operand. What `concat` joins is told apart by the neurons that it goes to."""
        op = self.node.op
        return f"{op.name}[{0 if op.commutative or op.category == 'shape' else min(slot, MAX_SLOTS - 1)}]"

    def kept(self, value: Value, axis: int, term: Term | None) -> NodeSet | None:
        """The operand's set that goes on through the op."""
        node = self.node
        if len(node.outputs) != 1 or not node.operands:
            return None
        if node.op.commutative and (inner := self.chained(value)) is not None:
            return self.b.of[inner].get(axis)
        fits = []
        for operand in self.operands:
            for seen in operand.sets:
                if axis < 0:
                    same = seen.axis < 0 and not seen.nodes.components
                else:
                    same = (
                        seen.axis >= 0 and operand.terms[seen.axis] == term and len(term.parts) == 1 if term else False
                    )
                if same:
                    fits.append((operand.value, seen))
        if len(fits) != 1 or any(len(o.sets) and o.value is not fits[0][0] for o in self.operands):
            return None
        source, seen = fits[0]
        if sum(source.uses.values()) != 1 or source in self.b.outputs or source.producer is None:
            return None
        if axis >= 0:
            outers = self.b.outers(self.b.axes.values[value], axis)
            if len(outers) != len(seen.nodes.outers):
                return None
        if self.works_on(axis):
            if len(seen.nodes.chain) == MAX_CHAIN:
                return None
            seen.nodes.chain = (*seen.nodes.chain, node.op.name)
        return seen.nodes

    def chained(self, value: Value) -> Value | None:
        """The operand that is itself such a sum (or product) and used for this one alone: `a + b + c` is one set,
        whatever the order."""
        for operand in self.node.operands:
            inner = operand.producer
            alone = sum(operand.uses.values()) == 1 and operand not in self.b.outputs
            if inner is not None and inner.op is self.node.op and alone and operand.type == value.type:
                return operand
        return None

    def works_on(self, axis: int) -> bool:
        """Whether an op that keeps an axis is worth a word: not where it works along others."""
        return self.node.op.elementwise or self.node.op.category in ("activation", "norm", "pool") or axis < 0

    # -- weights ------------------------------------------------------------------------------------------------------

    def weigh(self, tensor: Any, parameter: Parameter) -> bool:
        """The edges of one weight."""
        node, shape = self.node, parameter.shape
        axes = terms(tensor, shape, node)
        grid = [np.arange(s).reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, s in enumerate(shape)]
        atoms: dict[Atom, Array] = {}
        letters: dict[Name, Array] = {}
        for term, place in zip(axes, grid, strict=True):
            assert term is not None
            if term.plain is None:
                continue
            stride = math.prod(s for _, s, _ in term.plain)
            for name, size, _ in term.plain:
                stride //= size
                letters[name] = place // stride % size
            atoms |= term_atoms(term, place, self.letters)
        reads = self.ends(self.operands, letters, atoms)
        makes = self.ends(self.results, letters, atoms)
        both = {n for n, _, _ in reads} & {n for n, _, _ in makes}
        sources = [(s, at) for n, s, at in reads if n not in both]
        targets = [(s, at) for n, s, at in makes if n not in both]
        covered = {name for n, _, _ in (*reads, *makes) for name in n}
        inner: list[tuple[NodeSet, Array]] = []
        taps: list[Array] = []
        for term, place in zip(axes, grid, strict=True):
            assert term is not None
            if term.names <= covered:
                continue
            plain = term.plain
            free = plain is None or any(not pinned for _, _, pinned in plain)
            if plain is None or not (free or (not sources and not both and targets and node.operands and not inner)):
                taps.append(spread(place, int(place.size)))
                continue
            names = tuple(n for n, _, _ in plain)
            inner.append((self.inner_set(names), ravelled([letters[n] for n in names], [s for _, s, _ in plain])))
        kept_reads = [(s, at) for n, s, at in reads if n in both]
        kept_makes = [(s, at) for n, s, at in makes if n in both]
        if sources and targets:
            targets = (
                targets + inner + [(s, at) for n, s, at in makes if n in both and self.loose(n, reads, makes, both)]
            )
        elif targets:
            sources, targets = (inner, targets + kept_makes) if inner else (kept_reads, targets)
        elif sources:
            targets = inner or kept_makes
        elif inner:
            sources, targets = kept_reads, inner
        elif kept_makes:
            sources, targets = kept_reads[:1], kept_makes[-1:] if len(kept_makes) <= 2 else kept_makes[1:]
        if not sources and len(targets) > 1 and not node.operands:
            sources, targets = targets[:1], targets[1:]
        source, target = self.end(sources), self.end(targets)
        if len(taps) > MAX_TAPS:
            taps = [*taps[: MAX_TAPS - 1], sum(taps[MAX_TAPS - 1 :]) / (len(taps) - MAX_TAPS + 1)]
        kind = self.b.types[f"{node.op.name}.{tensor.name}"]
        self.b.uses.setdefault(parameter, []).append(Weighing(parameter, source, target, kind, taps))
        if len(self.b.uses[parameter]) > 1:
            self.b.edges += parameter.size
        return bool(sources)

    def loose(self, names: frozenset[Name], reads: Any, makes: Any, both: Any) -> bool:
        """Whether an axis that the op keeps is told by no other end of the weight."""
        return not any(names <= n for n, _, _ in (*reads, *makes) if n not in both)

    def ends(
        self, views: Iterable[View], letters: Mapping[Name, Array], atoms: Mapping[Atom, Array]
    ) -> list[tuple[frozenset[Name], NodeSet, Array]]:
        """The sets whose places the weight's axes tell: (letters, set, place for each element)."""
        found, known = [], set()
        for view in views:
            for seen in view.sets:
                if seen.axis < 0:
                    continue
                term = view.terms[seen.axis]
                if term is None or term.plain is None or not term.names or not term.names <= letters.keys():
                    continue
                parts, sizes = [], []
                for (axis, leaf), component in zip(seen.nodes.outers, seen.nodes.components[:-1], strict=True):
                    parts.append(self.digit(view.terms[axis], leaf, atoms))
                    sizes.append(int(str(component.size)))
                if any(p is None for p in parts) or term.names in known:
                    continue
                known.add(term.names)
                for name, size, _ in term.plain:
                    parts.append(letters[name])
                    sizes.append(size)
                found.append((term.names, seen.nodes, ravelled(parts, sizes)))
        return found

    def digit(self, term: Term | None, outer: AxisVar, atoms: Mapping[Atom, Array]) -> Array | None:
        """The place on an axis that indexes others (a leaf, or a sum of leaves), for each element of a weight."""
        offsets, offset = {}, 0
        for part in [p.find() for p in outer.parts] or [outer]:
            offsets[part] = offset
            offset += int(str(part.size))
        found: Array | None = None
        for name in term.names if term else ():
            for k, (own, _) in enumerate(leaf_digits(self.letters[name[0]][name[1]])):
                at = atoms.get((*name, k)) if own in offsets else None
                if at is not None:
                    found = offsets[own] + at if found is None else np.where(at >= 0, offsets[own] + at, found)
        return found

    def end(self, sets: Sequence[tuple[NodeSet, Array]]) -> Array:
        """The node at one end of each element's edge."""
        if not sets:
            return np.int64(self.hub.base)
        self.touched |= {s for s, _ in sets}
        if len(sets) == 1:
            return sets[0][0].base + sets[0][1]
        key = tuple(s for s, _ in sets)
        pair = self.pairs.get(key)
        if pair is None:
            pair = self.pairs[key] = self.b.add(
                self.node.op.name, tuple(c for s in key for c in s.components), self.level, "inner"
            )
            for s, digits in zip(key, np.unravel_index(np.arange(pair.size), [s.size for s in key]), strict=True):
                self.b.link(s.base + digits, pair.nodes, "pair")
                self.b.link(pair.nodes, s.base + digits, "pair")
        return pair.base + ravelled([at for _, at in sets], [s.size for s in key])

    # -- inside the op ------------------------------------------------------------------------------------------------

    def inner_set(self, names: tuple[Name, ...]) -> NodeSet:
        nodes = self.inner.get(names)
        if nodes is None:
            variables = tuple(self.letters[n][k] for n, k in names)
            nodes = self.inner[names] = self.b.add(self.node.op.name, variables, self.level, "inner")
        return nodes

    def lattice(self) -> None:
        """Join the sets inside the op with each other by the letters that they share, down to the hub, and with those
        of operands and results."""
        if not self.inner:
            return
        for a in tuple(self.inner):
            for c in tuple(self.inner):
                common = tuple(n for n in a if n in c)
                if common and not any(set(common) == set(known) for known in self.inner):
                    self.inner_set(common)
        atoms = {names: self.inner_atoms(names, nodes) for names, nodes in self.inner.items()}
        for names, nodes in self.inner.items():
            below = [o for o in self.inner if set(o) < set(names)]
            below = [o for o in below if not any(set(o) < set(p) for p in below)]
            for other in below:
                self.b.joined(nodes, atoms[names], self.inner[other], atoms[other], "factor")
                self.b.joined(self.inner[other], atoms[other], nodes, atoms[names], "factor")
            if not below:
                self.b.link(nodes.nodes, self.hub.base, "factor")
                self.b.link(self.hub.base, nodes.nodes, "factor")
            for view, forth in ((self.operands, True), (self.results, False)):
                for seen in (s for v in view for s in v.sets):
                    ends = (seen.nodes, seen.atoms, nodes, atoms[names])
                    self.b.joined(*(ends if forth else ends[2:] + ends[:2]), "factor")

    def inner_atoms(self, names: tuple[Name, ...], nodes: NodeSet) -> dict[Atom, Array]:
        found: dict[Atom, Array] = {}
        for name, place in zip(names, nodes.digits(), strict=True):
            for k, (_, digits) in enumerate(leaf_digits(self.letters[name[0]][name[1]])):
                found[(*name, k)] = digits[place]
        return found

    def close(self) -> None:
        """What nothing joins yet goes through the hub, so that no operand is lost."""
        loose = [s.nodes for v in self.operands for s in v.sets if s.nodes not in self.touched]
        made = [s.nodes for v in self.results for s in v.sets if s.nodes not in self.touched]
        operands = [v for v in self.operands if not any(s.nodes in self.touched for s in v.sets)]
        for view in operands:
            for seen in view.sets:
                self.b.link(seen.nodes.nodes, self.hub.base, "hub")
        through = self._hub is not None and (bool(loose) or not self.weights or self.node.regions)
        targets = made if not through else [s.nodes for v in self.results for s in v.sets]
        for nodes in targets:
            if made or operands:
                self.b.link(self.hub.base, nodes.nodes, "hub")

    # -- regions ------------------------------------------------------------------------------------------------------

    def regions(self) -> None:
        node, b = self.node, self.b
        lines = node.op.region_lines(node.call) if node.op.region_lines else ()
        returned: list[list[View]] = []
        for line, region in zip(lines, node.regions, strict=True):
            signature = parse_signature(line)
            formals = region.inputs[: len(region.inputs) - node.captures]
            for inner, outer in zip(region.inputs[len(formals) :], node.captured, strict=True):
                b.of[inner] = b.of[outer]
                b.depth[inner] = b.depth.get(outer, 0)
            entered = []
            for slot, (tensor, value) in enumerate(zip(signature.operands, formals, strict=True)):
                b.depth[value] = self.level
                b.make(value, FORMAL)
                view = self.view(tensor, value)
                entered.append(view)
                if slot < len(self.operands):
                    self.bridge(self.operands[slot], view, "enter")
            b.read(region)
            made = [self.view(t, v) for t, v in zip(signature.results, region.outputs, strict=True)]
            returned.append(made)
            for k, view in enumerate(made):
                self.bridge(view, self.results[min(k, len(self.results) - 1)], "leave")
                if node.op.name == "scan" and 1 <= k < len(entered):
                    self.bridge(view, entered[k], "back")
        self.route(returned)

    def bridge(self, a: View, c: View, kind: str) -> None:
        """Link two values axis by axis; through the hub where they have no axis in common."""
        found = False
        for source in a.sets:
            for target in c.sets:
                if self.b.joined(source.nodes, source.atoms, target.nodes, target.atoms, kind):
                    found = True
                    self.touched |= {source.nodes, target.nodes}
        if not found:
            for source in a.sets:
                self.b.link(source.nodes.nodes, self.hub.base, kind)
            for target in c.sets:
                self.b.link(self.hub.base, target.nodes.nodes, kind)

    def route(self, returned: list[list[View]]) -> None:
        """A region that returns a number for each of the others (a router) is joined with what they return."""
        names = self.node.op.regions
        at = next((i for i, name in enumerate(names) if name.startswith("*")), None)
        if at is None or at == 0:
            return
        for seen in (s for v in returned[0] for s in v.sets):
            for expert in range(min(seen.nodes.size, len(returned) - at)):
                for target in (s for v in returned[at + expert] for s in v.sets):
                    self.b.link(seen.nodes.base + expert, target.nodes.nodes, "route")


def ravelled(digits: Sequence[Array], sizes: Sequence[int]) -> Array:
    """The row-major place of digits that broadcast with each other."""
    place: Array = 0
    for digit, size in zip(digits, sizes, strict=True):
        place = place * size + digit
    return place


def spread(digits: Array, size: int) -> Array:
    """Places 0 … size - 1 from -1 to 1; 0 for a single one."""
    return (2.0 * digits / (size - 1) - 1.0) if size > 1 else np.zeros_like(digits, dtype=np.float64)
