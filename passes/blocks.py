"""Recognising what architectures are built of, whatever it is called: chains, feed-forward blocks, residual blocks.

A finder looks at how nodes use each other and at nothing else, so it works on programs, imported networks and what
other passes have left. What almost fits is a `Refusal`, so that a user is told why a place is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from archc.ir.graph import Graph, Node, Value
from archc.ir.op import OpDef
from archc.ir.ops.convolution import CONV
from archc.ir.ops.elementwise import ADD, MUL
from archc.ir.ops.linear import LINEAR


def only_user(graph: Graph, value: Value) -> Node | None:
    """The node that alone reads a value, once; None where others do, or an output is the value itself."""
    if graph.use_count(value) != 1:
        return None
    return next(iter(value.uses), None)


def is_activation(node: Node) -> bool:
    """An elementwise function of one tensor without weights: relu, gelu, silu, tanh …"""
    return node.op.category == "activation" and node.op.elementwise and not node.weights and len(node.operands) == 1


def chain_from(graph: Graph, node: Node, limit: int = 64) -> Iterator[Node]:
    """`node`, then its only user as long as there is one that takes nothing else."""
    for _ in range(limit):
        yield node
        following = only_user(graph, node.output) if len(node.outputs) == 1 else None
        if following is None or len(following.inputs) != 1 or following.regions:
            return
        node = following


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """`down(activation(up(x)))`, or gated: `down(activation(gate(x)) * up(x))`, on the last axis (linear) or on
    channels (1x1 convolutions).

    nodes   all of them in topological order, with dropouts between
    up      the layer that widens; of a gated block the one without activation
    gate    the layer before the activation of a gated block
    """

    graph: Graph
    x: Value
    nodes: tuple[Node, ...]
    up: Node
    activation: Node
    down: Node
    gate: Node | None = None

    @property
    def hidden(self) -> int:
        """The width between."""
        return int(self.up.weights["weight"].shape[0])


def is_layer(node: Node) -> bool:
    """A linear map of channels: `linear`, or a dense 1x1 convolution."""
    if node.op is LINEAR:
        return True
    p = node.call.params
    return node.op is CONV and p.groups == 1 and set(node.weights["weight"].shape[2:]) == {1} and _plain(node)


def _plain(node: Node) -> bool:
    """A convolution that keeps the size of the picture."""
    return node.output.type.shape[2:] == node.operands[0].type.shape[2:]


def feed_forwards(graph: Graph) -> Iterator[FeedForward]:
    """Every feed-forward block of a graph and its regions, in program order."""
    for region in graph.graphs():
        order = {node: i for i, node in enumerate(region.nodes)}
        for node in region.nodes:
            block = _feed_forward(region, node, order)
            if block is not None:
                yield block


def _feed_forward(graph: Graph, activation: Node, order: dict[Node, int]) -> FeedForward | None:
    """The block around an activation."""
    if not is_activation(activation):
        return None
    first = activation.operands[0].producer
    if first is None or not is_layer(first) or only_user(graph, first.output) is not activation:
        return None
    x, op = first.operands[0], first.op
    nodes = [first, activation]
    gated = only_user(graph, activation.output)
    gate = other = None
    if gated is not None and gated.op is MUL and len(set(gated.operands)) == 2:
        beside = next(v for v in gated.operands if v is not activation.output)
        other = beside.producer
        if other is None or other.op is not op or not is_layer(other) or other.operands[0] is not x:
            return None
        if only_user(graph, other.output) is not gated or other.output.type != first.output.type:
            return None
        gate, nodes = first, [first, activation, other, gated]
    last = nodes[-1]
    while (following := only_user(graph, last.output)) is not None and following.op.name == "dropout":
        last = following
        nodes.append(last)
    if following is None or following.op is not op or not is_layer(following):
        return None
    inside = tuple(sorted({*nodes, following}, key=order.__getitem__))
    return FeedForward(graph, x, inside, other or first, activation, following, gate)


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """`add(shortcut(x), body(x))`, and where an activation follows at once, that too: `relu(add(…))`.

    body, shortcut  nodes in topological order; the shortcut's are none where it is the identity
    add             the sum
    after           the activation behind it, None for none
    """

    graph: Graph
    x: Value
    body: tuple[Node, ...]
    out: Value
    shortcut: tuple[Node, ...]
    add: Node
    after: Node | None = None

    @property
    def result(self) -> Value:
        return self.after.output if self.after is not None else self.add.output

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of them, in an order that respects their uses."""
        after = () if self.after is None else (self.after,)
        return (*self.shortcut, *self.body, self.add, *after)


def residuals(graph: Graph) -> Iterator[Residual]:
    """Every residual block of a graph and its regions, in program order; a block within another comes first."""
    for region in graph.graphs():
        order = {node: i for i, node in enumerate(region.nodes)}
        for node in region.nodes:
            if node.op is ADD and node.operands[0] is not node.operands[1]:
                block = _residual(region, node, order)
                if block is not None:
                    yield block


def _residual(graph: Graph, add: Node, order: dict[Node, int]) -> Residual | None:
    left, right = add.operands
    if left.type != right.type:
        return None
    for x, out in ((left, right), (right, left)):
        body = between(graph, x, out, order)
        if body:
            return Residual(graph, x, body, out, (), add, _activation(graph, add))
    return _projected(graph, add, order)


def _projected(graph: Graph, add: Node, order: dict[Node, int]) -> Residual | None:
    """A block whose shortcut is a chain of nodes of its own: the shorter branch is the shortcut."""
    chains = [_up_chain(graph, v) for v in add.operands]
    for short, out in ((0, 1), (1, 0)):
        for i, x in enumerate(chains[short][1]):
            body = between(graph, x, add.operands[out], order)
            if body:
                shortcut = chains[short][0][: i + 1][::-1]
                if len(shortcut) <= len(body):
                    return Residual(graph, x, body, add.operands[out], tuple(shortcut), add, _activation(graph, add))
    return None


def _up_chain(graph: Graph, value: Value) -> tuple[list[Node], list[Value]]:
    """Upwards from a value through nodes of one operand that only the next one reads: (nodes, their operands)."""
    nodes: list[Node] = []
    operands: list[Value] = []
    while (
        value.producer is not None
        and graph.use_count(value) == 1
        and len(value.producer.inputs) == 1
        and len(nodes) < 8
    ):
        nodes.append(value.producer)
        value = value.producer.inputs[0]
        operands.append(value)
    return nodes, operands


def _activation(graph: Graph, add: Node) -> Node | None:
    following = only_user(graph, add.output)
    return following if following is not None and is_activation(following) else None


def between(graph: Graph, x: Value, out: Value, order: dict[Node, int] | None = None) -> tuple[Node, ...]:
    """The nodes that lead from `x` to `out`, in topological order, when these two are all that enters and leaves.

    None when `out` does not come from `x` alone, or others read what is between. Nodes without operands, as `constant`
    and `parameter`, belong to it when only it reads them."""
    order = {n: i for i, n in enumerate(graph.nodes)} if order is None else order
    if out.producer is None or out is x:
        return ()
    start = order[x.producer] if x.producer is not None else -1
    found: dict[Node, None] = {}
    stack = [out.producer]
    reached = False
    while stack:
        node = stack.pop()
        if node in found:
            continue
        if order[node] <= start and node.inputs:
            return ()
        found[node] = None
        for value in node.inputs:
            if value is x:
                reached = True
            elif value.producer is None:
                return ()
            else:
                stack.append(value.producer)
    if not reached:
        return ()
    for node in found:
        for value in node.outputs:
            if value is not out and (value in graph.outputs or any(user not in found for user in value.uses)):
                return ()
    if out in graph.outputs or graph.use_count(out) != 1:
        return ()
    return tuple(sorted(found, key=order.__getitem__))


def layers(graph: Graph, ops: Sequence[OpDef[Any]] = ()) -> Iterator[tuple[Graph, Node]]:
    """Nodes with weights (of these ops), with the graph in which they stand, in program order."""
    for region in graph.graphs():
        for node in region.nodes:
            if node.weights and (not ops or node.op in ops):
                yield region, node


def users_of(graph: Graph) -> dict[str, int]:
    """How many nodes use each parameter, by name."""
    count: dict[str, int] = {}
    for node in graph.walk():
        for parameter in node.weights.values():
            count[parameter.name] = count.get(parameter.name, 0) + 1
    return count


__all__ = ["FeedForward", "Residual", "between", "chain_from", "feed_forwards", "is_activation", "is_layer",
           "layers", "only_user", "residuals", "users_of"]  # fmt: skip
