"""What a network costs: parameters, floating-point operations, bytes of weights and of activations.

Every figure is a `Dim`: an integer, or an expression where the network has symbolic dimensions. A multiplication and an
addition count as two operations. A convolution or product counts `2 · (all letters of its contraction)`, as PyTorch's
counter does; biases are not counted there. Conditional ops count what runs on average when their choice is balanced
(`moe`), or at most (`skip`, `exit`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from archc.ir.dims import Dim, product, total
from archc.ir.graph import Graph, Node, Parameter
from archc.ir.op import Bound, Call, OpDef
from archc.ir.signature import Size, atoms
from archc.ir.types import BYTES


@dataclass(frozen=True, slots=True)
class Cost:
    """Totals of a network, or of a part of it.

    params            trained numbers
    buffers           numbers that are kept but not trained (running statistics)
    weight_bytes      bytes of both
    flops             operations of one forward pass
    activation_bytes  bytes of every node's results together: what training keeps
    """

    params: int
    buffers: int
    weight_bytes: int
    flops: Dim
    activation_bytes: Dim


def cost(graph: Graph) -> Cost:
    """The cost of a network.

    >>> from archc.ir.graph import Graph
    >>> cost(Graph("empty")).params
    0
    """
    parameters = graph.parameters().values()
    return Cost(
        params=count_params(parameters),
        buffers=sum(p.size for p in parameters if not p.trainable),
        weight_bytes=sum(p.size * BYTES[p.type.dtype] for p in parameters),
        flops=graph_flops(graph),
        activation_bytes=total(v.type.bytes for node in graph.nodes for v in node.outputs),
    )


def count_params(parameters: Iterable[Parameter]) -> int:
    """The number of trained numbers."""
    return sum(p.size for p in parameters if p.trainable)


def graph_flops(graph: Graph) -> Dim:
    """The operations of one pass through a graph or region."""
    return total(node_flops(node) for node in graph.nodes)


def node_flops(node: Node) -> Dim:
    """The operations of one node, its regions included."""
    return bound_flops(node.op, node.call, node.bound)


def bound_flops(op: OpDef[Any], call: Call[Any], bound: Bound) -> Dim:
    """The operations of an op that is applied to operand types."""
    rule = op.flops
    if rule == "contraction":
        return contraction_flops(bound)
    if isinstance(rule, int):
        return rule * bound.results[0].size if rule else 0
    assert callable(rule)
    return rule(call, bound)


def contraction_flops(bound: Bound) -> Dim:
    """`2 · product` of every letter that a weight or result has, or that two operands share."""
    seen: dict[str, int] = {}
    for tensors, weight in ((bound.signature.operands, 1), (bound.signature.weights, 2), (bound.signature.results, 2)):
        for tensor in tensors:
            names = {a.name for axis in tensor.axes for a in atoms(axis) if not isinstance(a, Size)}
            for name in names:
                seen[name] = seen.get(name, 0) + weight
    sizes = (bound.dims[name] for name, count in seen.items() if count >= 2)
    return 2 * product(product(s) if isinstance(s, tuple) else s for s in sizes)
