"""What is matched: the leaves that move, what indexes them, and the blocks of two networks.

Replicas that may change places as wholes (alike experts, alike branches: `archc.ir.replicas`) are stacked: a new leaf
counts them, and the leaves that each has for itself become one, indexed by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archc.ir.axes import Axes, AxisClass, AxisVar, Exchange
from archc.ir.graph import Graph, Parameter
from archc.metanet.merge.blocks import Block, Sources, compact, cut
from archc.metanet.symmetry import Element, apply, group

Array = Any  # a numpy array
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Stack:
    """Replicas seen as one array: `leaf` counts them; `inner` has for each the leaves of the first and its own."""

    exchange: Exchange
    leaf: AxisVar
    inner: tuple[Mapping[AxisVar, AxisVar], ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """The leaves of a network that can be matched. `outers` are those that index each, stacks counted.

    A leaf that a sum indexes (each part its own permutations) is given one permutation for the whole sum.
    """

    graph: Graph
    axes: Axes
    stacks: tuple[Stack, ...]
    outers: Mapping[AxisVar, tuple[AxisVar, ...]]

    @property
    def labels(self) -> set[AxisVar]:
        """The leaves that are told apart: those that move, and those that index one."""
        classes = self.axes.classes
        return {c.leaf for c in classes} | {o for c in classes for o in _leaves(c)}

    def blocks(self, a: Arrays, b: Arrays) -> list[Block]:
        """The trained parameters of two networks, cut up."""
        found: list[Block] = []
        stacked = {p for s in self.stacks for replica in s.exchange.replicas for p in replica}
        for parameter in self.graph.parameters().values():
            if parameter not in stacked and self._counts(parameter):
                found += self._cut(parameter, a, b)
        for stack in self.stacks:
            for step in zip(*stack.exchange.replicas, strict=True):
                if self._counts(step[0]):
                    each = [self._cut(p, a, b) for p in step]
                    found += [_stacked(stack.leaf, blocks) for blocks in zip(*each, strict=True)]
        return [compact(x) for x in found if any(label is not None for label in x.labels)]

    def _counts(self, parameter: Parameter) -> bool:
        return parameter.trainable and parameter.type.dtype not in ("bool",) and "i" not in parameter.type.dtype

    def _cut(self, parameter: Parameter, a: Arrays, b: Arrays) -> list[Block]:
        counted: dict[AxisVar, list[Stack]] = {}
        for stack in self.stacks:
            if stack.exchange.axis is not None:
                counted.setdefault(stack.exchange.axis.find(), []).append(stack)
        x, y = (np.asarray(w[parameter.name]).astype(np.float64) for w in (a, b))
        found = list(cut(x, y, self.axes.parameters[parameter], self.labels | counted.keys()))
        for axis, stacks in counted.items():
            found = [part for block in found for part in _counted(block, axis, stacks)]
        return found

    # -- from sources to a group element --------------------------------------------------------------------------

    def element(self, sources: Sources) -> Element:
        """The group element that brings B's elements where the sources say."""
        own = self._own(sources)
        element: Element = {}
        for cls in self.axes.classes:
            above = _leaves(cls)
            tables = np.empty((*map(_size, above), cls.size), np.intp)
            for place in np.ndindex(*tables.shape[:-1]):
                scope = dict(zip(above, place, strict=True))
                before = tuple(self._before(o, scope, own) for o in above)
                tables[before][own[cls.leaf][place]] = np.arange(cls.size)
            shape = [_size(o) if o in above else 1 for o in cls.indexed_by]
            whole = (*(_size(o) for o in cls.indexed_by), cls.size)
            element[cls.leaf] = np.broadcast_to(tables.reshape(*shape, cls.size), whole).copy()
        for stack in self.stacks:
            element[stack.exchange] = np.argsort(sources[stack.leaf])
        return element

    def aligned(self, sources: Sources, weights: Arrays) -> dict[str, Array]:
        """B's weights, each element where the sources say."""
        return apply(self.axes, self.element(sources), {n: np.asarray(w) for n, w in weights.items()})

    def _own(self, sources: Sources) -> Sources:
        """The sources of every class, those of stacked ones told apart by the replica that they are of in B."""
        own = {c.leaf: sources[c.leaf] for c in self.axes.classes if c.leaf in sources}
        for stack in self.stacks:
            for here, there in enumerate(sources[stack.leaf]):
                for first, leaf in stack.inner[there].items():
                    own[leaf] = sources[first][here]
        return own

    def _before(self, leaf: AxisVar, scope: Mapping[AxisVar, int], own: Sources) -> int:
        """Where in B the element of a leaf stands that comes to a place of A."""
        if leaf not in own:
            return scope[leaf]
        above = next(_leaves(c) for c in self.axes.classes if c.leaf is leaf)
        return int(own[leaf][(*(scope[o] for o in above), scope[leaf])])


def pose(graph: Graph, replicas: bool = True) -> Problem:
    """The matching problem of a graph; without `replicas`, experts and branches stay where they are."""
    axes = group(graph)
    members = {c.leaf: {m.parameter for m in c.members} for c in axes.classes}
    stacks: list[Stack] = []
    taken: set[Parameter] = set()
    for exchange in sorted(axes.exchanges, key=lambda e: -len(e.replicas[0])) if replicas else ():
        own = {p for replica in exchange.replicas for p in replica}
        inner = None if own & taken else _inner(exchange, axes, members)
        if inner is not None:
            taken |= own
            stacks.append(Stack(exchange, AxisVar(exchange.size), inner))
    above = {first: stack.leaf for stack in stacks for first in stack.inner[0]}
    copies = {leaf for stack in stacks for inner in stack.inner[1:] for leaf in inner.values()}
    outers: dict[AxisVar, tuple[AxisVar, ...]] = {stack.leaf: () for stack in stacks}
    for cls in axes.classes:
        if cls.leaf not in copies:
            outers[cls.leaf] = (*([above[cls.leaf]] if cls.leaf in above else []), *_leaves(cls))
    return Problem(graph, axes, tuple(stacks), outers)


def _inner(
    exchange: Exchange, axes: Axes, members: Mapping[AxisVar, set[str]]
) -> tuple[dict[AxisVar, AxisVar], ...] | None:
    """For each replica the leaves that the first has for itself, and what they are there; None if they do not fit."""
    if exchange.axis is not None and exchange.axis.find().kind != "leaf":
        return None
    found = []
    for replica in exchange.replicas:
        names, leaves = {p.name for p in replica}, dict[AxisVar, AxisVar]()
        for p, q in zip(exchange.replicas[0], replica, strict=True):
            for v, w in zip(axes.parameters[p], axes.parameters[q], strict=True):
                pairs = list(zip(v.leaves(), w.leaves(), strict=False))
                if len(pairs) != len(list(v.leaves())) or any(x.size != y.size for x, y in pairs):
                    return None
                for x, y in pairs:
                    if (x in members) != (y in members):
                        return None
                    private = y in members and members[y] <= names
                    if (not private and x is not y and y in members) or (private and leaves.setdefault(x, y) is not y):
                        return None
        found.append(leaves)
    return tuple(found) if all(leaves.keys() == found[0].keys() for leaves in found) else None


def _stacked(leaf: AxisVar, blocks: Sequence[Block]) -> Block:
    a, b = np.stack([x.a for x in blocks]), np.stack([x.b for x in blocks])
    return Block(a, b, (leaf, *blocks[0].labels), (-1, *blocks[0].axes))


def _counted(block: Block, axis: AxisVar, stacks: Sequence[Stack]) -> Iterator[Block]:
    """A block cut where one of its dimensions counts replicas: one part for each stack, and what is left."""
    if axis not in block.labels:
        yield block
        return
    dim = block.labels.index(axis)
    left = set(range(block.a.shape[dim]))
    parts: list[tuple[AxisVar | None, list[int]]] = []
    for stack in stacks:
        parts.append((stack.leaf, list(stack.exchange.places)))
        left -= set(stack.exchange.places)
    parts.append((None, sorted(left)))
    for label, places in parts:
        labels = (*block.labels[:dim], label, *block.labels[dim + 1 :])
        if places:
            yield Block(block.a.take(places, dim), block.b.take(places, dim), labels, block.axes)


def _leaves(cls: AxisClass) -> tuple[AxisVar, ...]:
    return tuple(o for o in cls.indexed_by if o.kind == "leaf")


def _size(leaf: AxisVar) -> int:
    assert isinstance(leaf.size, int)
    return leaf.size
