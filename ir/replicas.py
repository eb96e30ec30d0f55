"""Replicas: parts of a network that are alike but for their weights, and may change places as wholes.

The experts of a mixture are alike when their regions are the same program; exchanging them, and the router's outputs
with them, keeps the function. So do branches that hang on the same values and are merged by an op that does not mind
their order: a sum, product, minimum or maximum; or one that keeps them apart along an axis (`concat`, `stack`) whose
users treat all parts alike, so that the axis can follow.

What is compared is the program, not the values of weights: op, parameters, wiring, shapes, sharing. A replica's nodes
and weights must be its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from archc.ir.axes import Axes, AxisVar, Exchange
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.signature import Product, Sum, atoms
from archc.ir.whole import factors

MERGES = frozenset({"add", "mul", "minimum", "maximum"})
"""Ops whose operands may come in any order and grouping."""


def find_replicas(graph: Graph, axes: Axes) -> tuple[Exchange, ...]:
    """Every exchange of alike experts and branches; nested ones are listed for each replica."""
    return tuple(_Search(graph, axes).exchanges())


@dataclass
class _Match:
    """What the parts of one replica are in another."""

    nodes: dict[Node, Node] = field(default_factory=dict)
    values: dict[Value, Value] = field(default_factory=dict)
    parameters: dict[Parameter, Parameter] = field(default_factory=dict)


class _Search:
    def __init__(self, graph: Graph, axes: Axes) -> None:
        self.graph, self.axes = graph, axes
        self.found = 0

    @cached_property
    def users(self) -> dict[Parameter, set[Node]]:
        users: dict[Parameter, set[Node]] = {}
        for node in self.graph.walk():
            for parameter in node.weights.values():
                users.setdefault(parameter, set()).add(node)
        return users

    def exchanges(self) -> Iterator[Exchange]:
        for region in self.graph.graphs():
            returned = set(region.outputs)
            for node in region.nodes:
                if node.op.name == "moe":
                    yield from self.experts(node)
                elif node.op.name in MERGES:
                    yield from self.merged(node, returned)
                elif node.op.name in ("concat", "stack"):
                    yield from self.apart(node, returned)

    def made(
        self, kind: str, node: Node, group: Sequence[tuple[int, _Match]], axis: AxisVar | None
    ) -> Iterator[Exchange]:
        """The exchange of replicas that match the first of them, unless it would move nothing."""
        first = [p for p, q in group[1][1].parameters.items() if p is not q] if len(group) > 1 else []
        moves = axis is not None and any(_has(v, axis) for vs in self.axes.parameters.values() for v in vs)
        if len(group) < 2 or not (first or moves):
            return
        replicas = [tuple(first), *(tuple(match.parameters[p] for p in first) for _, match in group[1:])]
        places = tuple(place for place, _ in group)
        yield Exchange(self.found, "experts" if kind == "experts" else "branches", node, tuple(replicas), axis, places)
        self.found += 1

    # -- experts --------------------------------------------------------------------------------------------------

    def experts(self, node: Node) -> Iterator[Exchange]:
        axis = self.axes.values[node.regions[0].outputs[0]][-1].find()
        if axis.kind != "leaf" or axis.pin is None or not (axis.pin.only and axis.pin.node == node.name):
            return
        experts = node.regions[1 : len(node.regions) - node.call.params.shared]

        def match(a: int, b: int) -> _Match | None:
            found = _Match()
            alike = _regions(experts[a], experts[b], found)
            return found if alike and self.private(found, experts[a].walk(), experts[b].walk()) else None

        for group in _groups(len(experts), match):
            yield from self.made("experts", node, group, axis)

    # -- branches -------------------------------------------------------------------------------------------------

    def merged(self, node: Node, returned: set[Value]) -> Iterator[Exchange]:
        whole = [u for u in node.output.uses if u.op is node.op and node.output.uses[u] == 1]
        if len(node.output.uses) == 1 and whole and node.output not in returned and _grouped(whole[0]):
            return  # it is part of a longer chain
        chain: set[Node] = set()
        operands = list(_chain(node, returned, chain))
        yield from self.branches(node, operands, chain, None)

    def apart(self, node: Node, returned: set[Value]) -> Iterator[Exchange]:
        operands = list(node.operands)
        if len({v.producer and v.producer.op for v in operands}) == len(operands):
            return
        axis = self.axes.values[node.output][node.call.axis(node.call.params.axis, extra=node.op.name == "stack")]
        axis = axis.find()
        if axis.kind == "product":  # groups of concatenated channels: the parts are groups
            axis = next((f for f in factors(axis) if f.kind == "sum"), axis)
        if node.op.name == "stack":
            followed = axis.kind == "leaf" and axis.pin is not None and axis.pin.only and axis.pin.node == node.name
        else:
            followed = axis.kind == "sum" and len(axis.parts) == len(operands) and self.followed(axis, node)
        if followed:
            yield from self.branches(node, operands, {node}, axis)

    def branches(
        self, node: Node, operands: Sequence[Value], merge: set[Node], axis: AxisVar | None
    ) -> Iterator[Exchange]:
        if len(operands) > 2 and len({v.producer and v.producer.op for v in operands}) == len(operands):
            return

        def match(a: int, b: int) -> _Match | None:
            found = _Match()
            if operands[a] is operands[b] or not _values(operands[a], operands[b], found):
                return None
            mine, others = set(found.nodes), set(found.nodes.values())
            if mine & others or not all(_own(nodes, merge) for nodes in (mine, others)):
                return None
            inside = [set(_with_regions(nodes)) for nodes in (mine, others)]
            return found if self.private(found, *inside) else None

        for group in _groups(len(operands), match):
            yield from self.made("branches", node, group, axis)

    def private(self, match: _Match, mine: Iterator[Node] | set[Node], others: Iterator[Node] | set[Node]) -> bool:
        """Whether weights that differ are used by the replica alone."""
        mine, others = set(mine), set(others)
        return all(p is q or (self.users[p] <= mine and self.users[q] <= others) for p, q in match.parameters.items())

    def followed(self, axis: AxisVar, merge: Node) -> bool:
        """Whether every user of a concatenated axis treats it as a whole, so that parts may change places in it."""
        outside = [
            v
            for v in (*self.graph.inputs, *self.graph.outputs)
            if any(_has(a, axis) for a in self.axes.values.get(v, ()))
        ]
        if outside:
            return False
        for node in self.graph.walk():
            letters = self.axes.letters[node]
            if node is merge or (
                not any(_has(v, axis) for vs in letters.values() for v in vs) and not self.cut(node, axis)
            ):
                continue
            if self.cut(node, axis):
                return False
            for tensor in node.bound.signature.operands + node.bound.signature.weights + node.bound.signature.results:
                for pattern in tensor.axes:
                    for atom in atoms(pattern):
                        name = getattr(atom, "name", "")
                        if getattr(atom, "pinned", False) and any(_has(v, axis) for v in letters.get(name, ())):
                            return False
        return True

    def cut(self, node: Node, axis: AxisVar) -> bool:
        """Whether a node's signature takes the axis apart."""
        signature = node.bound.signature
        tensors = list(zip(signature.operands, (self.axes.values[v] for v in node.operands), strict=True))
        tensors += [
            (t, self.axes.parameters[node.weights[t.name]]) for t in signature.weights if t.name in node.weights
        ]
        tensors += list(zip(signature.results, (self.axes.values[v] for v in node.outputs), strict=True))
        for tensor, variables in tensors:
            if not any(isinstance(a, Sum | Product) for a in tensor.axes) or not any(_has(v, axis) for v in variables):
                continue
            whole = {id(v.find()) for vs in self.axes.letters[node].values() for v in vs}
            if not any(_within(v.find(), axis, whole) for v in variables):
                return True
        return False


def _within(var: AxisVar, axis: AxisVar, whole: set[int]) -> bool:
    """Whether `axis` stands in `var` under a variable that the node has a letter for."""
    if id(var) in whole and _has(var, axis):
        return True
    return var.kind != "leaf" and any(_within(p.find(), axis, whole) for p in var.parts)


def _has(var: AxisVar, axis: AxisVar) -> bool:
    root = var.find()
    return root is axis or (root.kind != "leaf" and any(_has(p, axis) for p in root.parts))


def _groups(count: int, match: object) -> Iterator[list[tuple[int, _Match]]]:
    """The operands in groups that are alike: each with what the first one's parts are in it."""
    groups: list[list[tuple[int, _Match]]] = []
    for i in range(count):
        for group in groups:
            found = match(group[0][0], i)  # type: ignore[operator]
            if found is not None:
                group.append((i, found))
                break
        else:
            groups.append([(i, _Match())])
    yield from groups


def _grouped(node: Node) -> bool:
    """Whether operands of a merge may be regrouped: none is spread over a larger shape."""
    return all(v.type == node.output.type for v in node.operands)


def _chain(node: Node, returned: set[Value], chain: set[Node]) -> Iterator[Value]:
    """The operands of a chain of merges by one op."""
    chain.add(node)
    for value in node.operands:
        inner = value.producer
        if inner is None or inner.op is not node.op or sum(value.uses.values()) > 1 or value in returned:
            yield value
        elif _grouped(node) and inner.output.type == node.output.type:
            yield from _chain(inner, returned, chain)
        else:
            yield value


def _own(nodes: set[Node], merge: set[Node]) -> bool:
    """Whether what the nodes make is used among them, and by the merge once."""
    last = [(u, n) for node in nodes for v in node.outputs for u, n in v.uses.items() if u not in nodes]
    return len(last) == 1 and last[0][1] == 1 and last[0][0] in merge


def _with_regions(nodes: set[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for region in node.regions:
            yield from region.walk()


def _values(a: Value, b: Value, match: _Match) -> bool:
    """Whether two values are computed alike, from what they share on."""
    waiting = [(a, b)]
    while waiting:
        a, b = waiting.pop()
        if a is b or match.values.get(a) is b:
            continue
        m, n = a.producer, b.producer
        if m is None or n is None or a in match.values or a.index != b.index or not _nodes(m, n, match):
            return False
        match.values[a] = b
        waiting += zip(m.inputs, n.inputs, strict=True)
    return True


def _nodes(m: Node, n: Node, match: _Match) -> bool:
    if m in match.nodes:
        return match.nodes[m] is n
    if m is n or m.op is not n.op or m.params != n.params or len(m.inputs) != len(n.inputs) or m.captures != n.captures:
        return False
    if [v.type for v in m.outputs] != [v.type for v in n.outputs] or m.weights.keys() != n.weights.keys():
        return False
    match.nodes[m] = n
    for role, p in m.weights.items():
        q = n.weights[role]
        if p.type != q.type or p.trainable != q.trainable or match.parameters.setdefault(p, q) is not q:
            return False
    if len(set(match.parameters.values())) != len(match.parameters) or len(m.regions) != len(n.regions):
        return False
    return all(_regions(r, s, match) for r, s in zip(m.regions, n.regions, strict=True))


def _regions(r: Graph, s: Graph, match: _Match) -> bool:
    """Whether two regions are one program; captures are compared by the nodes that carry them."""
    if len(r.inputs) != len(s.inputs) or len(r.outputs) != len(s.outputs):
        return False
    match.values.update(zip(r.inputs, s.inputs, strict=True))
    return all(_values(a, b, match) for a, b in zip(r.outputs, s.outputs, strict=True))
