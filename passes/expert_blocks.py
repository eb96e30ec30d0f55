"""Blocks that experts can take over: feed-forward blocks, bodies of residual blocks that are made of convolutions,
pairs of convolutions, single layers. Rows must not meet in them: an expert sees only those that are routed to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from archc.ir.graph import Graph, Node, Value
from archc.ir.ops.convolution import CONV
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import BATCH_NORM, INSTANCE_NORM
from archc.passes.blocks import chain_from, feed_forwards, is_activation, layers, residuals

Of = Literal["blocks", "layers"]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertBlock:
    """`nodes` compute `out` from `x` alone, row by row but for batch norms.

    ups, down  where the block has a hidden layer whose channels do not meet: the layers that make it, and the one that
               reads it
    """

    graph: Graph
    x: Value
    nodes: tuple[Node, ...]
    anchor: Node
    ups: tuple[Node, ...] = ()
    down: Node | None = None

    @property
    def out(self) -> Value:
        return self.nodes[-1].output

    @property
    def by_sample(self) -> bool:
        """Whether samples are routed, as for images, or tokens."""
        return any(n.op is CONV for n in self.nodes)

    @property
    def hidden(self) -> int:
        """How many channels the hidden layer has."""
        return int(self.ups[0].weights["weight"].shape[0])

    @property
    def has_batch_norm(self) -> bool:
        return any(n.op is BATCH_NORM for n in self.nodes)


def expert_blocks(graph: Graph, of: Of, split: bool) -> Iterator[ExpertBlock]:
    """The blocks of a graph and its regions, in program order; none overlaps another. With `split` only those that
    have a hidden layer."""
    if of == "layers":
        for region, node in layers(graph, (LINEAR, CONV)):
            yield ExpertBlock(region, node.operands[0], (node,), node)
        return
    candidates = [
        ExpertBlock(b.graph, b.x, b.nodes, b.activation, (b.gate, b.up) if b.gate else (b.up,), b.down)
        for b in feed_forwards(graph)
    ]
    if not split:
        candidates += _bodies(graph)
    candidates += _pairs(graph)
    taken: set[Node] = set()
    chosen = []
    for block in candidates:
        if taken.isdisjoint(block.nodes):
            taken.update(block.nodes)
            chosen.append(block)
    place = {node: i for i, node in enumerate(graph.walk())}
    yield from sorted(chosen, key=lambda block: place[block.anchor])


_BY_ROW = {"convolution", "norm", "activation", "arithmetic", "pool", "constant"}
_BY_ROW_OPS = {"linear", "unsqueeze", "flatten", "cast", "dropout"}
_ACROSS = {"softmax", "log_softmax"}


def _bodies(graph: Graph) -> Iterator[ExpertBlock]:
    """Bodies of residual blocks of convolutions, in which no sample sees another."""
    for block in residuals(graph):
        convolutions = [n for n in block.body if n.op is CONV]
        if convolutions and all(_by_row(n, block.x) for n in block.body):
            order = [n for n in block.body if n.output is not block.out]
            last = [n for n in block.body if n.output is block.out]
            yield ExpertBlock(block.graph, block.x, (*order, *last), convolutions[0])


def _by_row(node: Node, x: Value) -> bool:
    if node.op.name in _ACROSS or not (node.op.category in _BY_ROW or node.op.name in _BY_ROW_OPS):
        return False
    return node.op.category == "constant" or all(
        v.type.rank > 0 and v.type.shape[0] == x.type.shape[0] for v in node.outputs
    )


def _pairs(graph: Graph) -> Iterator[ExpertBlock]:
    """`convolution -> [norm] -> activation -> convolution`, with convolutions of single channels in between."""
    for region in graph.graphs():
        used: set[Node] = set()
        for node in region.nodes:
            if node.op is CONV and node.call.params.groups == 1 and node not in used:
                nodes = _pair(region, node)
                used.update(nodes)
                if nodes:
                    yield ExpertBlock(region, node.operands[0], nodes, node, (node,), nodes[-1])


def _pair(graph: Graph, up: Node) -> tuple[Node, ...]:
    nodes: list[Node] = []
    for node in chain_from(graph, up):
        nodes.append(node)
        if node is up or _keeps_channels(node):
            continue
        complete = node.op is CONV and node.call.params.groups == 1 and any(map(is_activation, nodes))
        return tuple(nodes) if complete else ()
    return ()


def _keeps_channels(node: Node) -> bool:
    """Does each channel (or, of a norm, some of them) make its own?"""
    return is_activation(node) or node.op.name == "dropout" or node.op.category == "norm" or is_depthwise(node)


def is_depthwise(node: Node) -> bool:
    """A convolution that gives each channel one of its own."""
    channels = node.operands[0].type.shape[1] if node.op is CONV else None
    return channels is not None and node.call.params.groups == channels == node.call.params.out


def is_divisible(node: Node) -> bool:
    """Can a node between the layers of a hidden layer be cut into groups of channels?"""
    by_channel = is_activation(node) or node.op.name in ("dropout", "mul") or is_depthwise(node)
    return by_channel or node.op in (BATCH_NORM, INSTANCE_NORM)


__all__ = ["ExpertBlock", "Of", "expert_blocks", "is_depthwise", "is_divisible"]
