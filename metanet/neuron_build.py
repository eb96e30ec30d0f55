"""Builds the graph at neuron level (`archc.metanet.neuron_graph`) from the signatures of a network's ops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archc.ir.axes import Axes, AxisVar
from archc.ir.graph import Graph, Parameter, Value
from archc.metanet.neuron_graph import NODE_COLUMNS, NeuronArrays, edge_types, too_large
from archc.metanet.neuron_node import MAX_CHAIN, MAX_TAPS, NodeReader, Weighing, spread
from archc.metanet.neuron_sets import Atom, NodeSet, join, leaf_digits, subaxes
from archc.metanet.vocabulary import INPUT, Vocabulary, number

Array = Any
TAPS = 1
"""Column of `edge_attr` where taps begin."""


def build(graph: Graph, axes: Axes, words: Vocabulary, max_edges: int) -> NeuronArrays:
    """The arrays of a network's graph."""
    return Builder(graph, axes, words, max_edges).result()


class Builder:
    def __init__(self, graph: Graph, axes: Axes, words: Vocabulary, max_edges: int) -> None:
        self.graph, self.axes, self.words, self.max_edges = graph, axes, words, max_edges
        self.types = {name: i for i, name in enumerate(edge_types(words))}
        self.parameters = list(graph.parameters().values())
        total = sum(p.size for p in self.parameters)
        if total > max_edges:
            raise too_large(total, max_edges)
        self.bearing = {leaf for variables in axes.parameters.values() for v in variables for leaf in v.leaves()}
        self.index = {c.leaf: c.indexed_by for c in axes.classes}
        self.sets: list[NodeSet] = []
        self.kinds: list[int] = []
        self.depths: list[int] = []
        self.flags: list[set[str]] = []
        self.count = 0
        self.of: dict[Value, dict[int, NodeSet]] = {}
        self.uses: dict[Parameter, list[Weighing]] = {}
        self.links: list[tuple[Array, Array, int]] = []
        self.edges = total
        self.depth: dict[Value, int] = {}
        self.outputs = {v for g in graph.graphs() for v in g.outputs}

    def result(self) -> NeuronArrays:
        for value in self.graph.inputs:
            self.make(value, INPUT, "input")
        self.read(self.graph)
        for value in self.graph.outputs:
            for nodes in self.of[value].values():
                self.flags[self.sets.index(nodes)].add("output")
        return self.arrays()

    # -- sets ---------------------------------------------------------------------------------------------------------

    def add(self, kind: str, components: tuple[AxisVar, ...], depth: int, *flags: str, outers: Any = ()) -> NodeSet:
        size = math.prod(int(str(c.find().size)) for c in components)
        nodes = NodeSet(self.count, size, tuple(c.find() for c in components), tuple(outers))
        self.count += size
        if self.count > self.max_edges:
            raise too_large(self.edges + self.count, self.max_edges)
        self.sets.append(nodes)
        self.kinds.append(self.words.index("ops", kind))
        self.depths.append(depth)
        self.flags.append(set(flags))
        return nodes

    def bears(self, value: Value) -> list[int]:
        """The axes of a value that have nodes."""
        variables = self.axes.values.get(value, ())
        return [
            i
            for i, (var, size) in enumerate(zip(variables, value.type.shape, strict=bool(variables)))
            if isinstance(size, int) and size > 1 and any(leaf in self.bearing for leaf in var.leaves())
        ]

    def make(self, value: Value, kind: str, *flags: str) -> dict[int, NodeSet]:
        """New sets for a value; one node for a value without axes that parameters speak of."""
        depth = self.depth.setdefault(value, 0)
        own = self.of[value] = {i: self.axis_set(value, i, kind, depth, *flags) for i in self.bears(value)}
        if not own:
            own[-1] = self.add(kind, (), depth, *flags)
        return own

    def axis_set(self, value: Value, axis: int, kind: str, depth: int, *flags: str) -> NodeSet:
        variables = self.axes.values[value]
        outers = self.outers(variables, axis)
        return self.add(kind, (*(leaf for _, leaf in outers), variables[axis]), depth, *flags, outers=outers)

    def outers(self, variables: Sequence[AxisVar], axis: int) -> list[tuple[int, AxisVar]]:
        """The leaves of other axes that index leaves of this one, with their axes."""
        own = set(subaxes(variables[axis]))
        needed = dict.fromkeys(o for leaf in variables[axis].leaves() for o in self.index.get(leaf, ()))
        found = []
        for outer in needed:
            known = {outer, *(part.find() for part in outer.parts)}  # of a sum one may see a part alone
            if known.isdisjoint(own):
                places = ((j, v) for j, x in enumerate(variables) if j != axis for v in subaxes(x) if v in known)
                found += [place] if (place := next(places, None)) else []  # none: it is a part of a single place
        return found

    # -- edges --------------------------------------------------------------------------------------------------------

    def link(self, source: Array, target: Array, kind: str) -> None:
        source, target = np.broadcast_arrays(source, target)
        self.edges += source.size
        if self.edges > self.max_edges:
            raise too_large(self.edges, self.max_edges)
        self.links.append((source, target, self.types[f"link.{kind}"]))

    def joined(self, a: NodeSet, at: Mapping[Atom, Array], b: NodeSet, bt: Mapping[Atom, Array], kind: str) -> bool:
        pairs = join(at, bt, self.max_edges - self.edges)
        if pairs is None:
            return False
        if isinstance(pairs, int):
            raise too_large(self.edges + pairs, self.max_edges)
        self.link(a.base + pairs[0], b.base + pairs[1], kind)
        return True

    # -- the walk -----------------------------------------------------------------------------------------------------

    def read(self, graph: Graph) -> None:
        for node in graph.nodes:
            NodeReader(self, node).read()

    def arrays(self) -> NeuronArrays:
        offsets = np.concatenate([[0], np.cumsum([p.size for p in self.parameters])]).astype(np.int64)
        copies = [(k, w) for k, p in enumerate(self.parameters) for w in self.uses[p][1:]]
        first = [self.uses[p][0] for p in self.parameters]
        lengths = [p.size for p in self.parameters] + [w.parameter.size for _, w in copies]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        link_count = sum(len(np.ravel(s)) for s, _, _ in self.links)
        total = int(starts[-1]) + link_count
        if total > self.max_edges:
            raise too_large(total, self.max_edges)
        edge_index = np.empty((2, total), np.int64)
        edge_type, edge_mark = np.empty(total, np.int64), np.empty(total, np.int64)
        edge_attr = np.zeros((total, TAPS + MAX_TAPS), np.float32)
        edge_mark[: offsets[-1]], edge_mark[offsets[-1] : starts[-1]], edge_mark[starts[-1] :] = 0, 1, 2
        edge_attr[starts[-1] :, 0] = 1.0
        for w, begin, end in zip([*first, *(w for _, w in copies)], starts[:-1], starts[1:], strict=True):
            shape = w.parameter.shape
            edge_index[0, begin:end].reshape(shape)[...] = w.source
            edge_index[1, begin:end].reshape(shape)[...] = w.target
            edge_type[begin:end] = w.type
            for k, tap in enumerate(w.taps):
                edge_attr[begin:end, TAPS + k].reshape(shape)[...] = tap
        at = int(starts[-1])
        for source, target, kind in self.links:
            end = at + source.size
            edge_index[0, at:end], edge_index[1, at:end], edge_type[at:end] = source.ravel(), target.ravel(), kind
            at = end
        x, node_set = self.features()
        sizes = [s.size for s in self.sets]
        chain = [[self.words.index("ops", op) for op in s.chain] + [0] * (MAX_CHAIN - len(s.chain)) for s in self.sets]
        return NeuronArrays(
            names=[p.name for p in self.parameters],
            shapes=[p.shape for p in self.parameters],
            offsets=offsets,
            x=x,
            kind=np.repeat(np.array(self.kinds, np.int64), sizes),
            chain=np.repeat(np.array(chain, np.int64).reshape(-1, MAX_CHAIN), sizes, axis=0),
            node_set=node_set,
            edge_index=edge_index,
            edge_type=edge_type,
            edge_mark=edge_mark,
            edge_attr=edge_attr,
            copies=[(k, int(starts[len(first) + i])) for i, (k, _) in enumerate(copies)],
            axes=self.axes,
            sets=self.sets,
        )

    def features(self) -> tuple[Array, Array]:
        x = np.zeros((self.count, len(NODE_COLUMNS)), np.float32)
        deepest = max(self.depths, default=0) or 1
        for nodes, flags, depth in zip(self.sets, self.flags, self.depths, strict=True):
            own = x[nodes.base : nodes.base + nodes.size]
            own[:, 0] = number(nodes.size)
            for k, flag in enumerate(NODE_COLUMNS[1:5]):
                own[:, 1 + k] = flag in flags
            pins = self.pins(nodes)
            own[:, 5] = len(pins)
            for k, pin in enumerate(pins[:3]):
                own[:, 6 + k] = pin
            own[:, 9] = depth / deepest
        return x, np.repeat(np.arange(len(self.sets)), [s.size for s in self.sets])

    @staticmethod
    def pins(nodes: NodeSet) -> list[Array]:
        """The pinned digits of a set's places, from -1 to 1; 0 where a place has none."""
        found = []
        for var, place in zip(nodes.components, nodes.digits() if nodes.components else [], strict=True):
            for leaf, digits in leaf_digits(var):
                if leaf.pin is not None and leaf.pin.op != "moe":  # experts that are alike may change places
                    found.append(np.where(digits < 0, 0.0, spread(digits, int(str(leaf.size))))[place])
        return found
