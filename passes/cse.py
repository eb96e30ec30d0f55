"""Common subexpression elimination: of several nodes that compute the same, one remains.

    a = relu(x)                      a = relu(x)
    b = relu(x)            →         y = add(a, a)
    y = add(a, b)

The same: one op, equal parameters, the same operands (in any order where the op commutes) and the same weights. Nodes
that carry regions, and in training those that draw numbers or keep running estimates, stay.
"""

from __future__ import annotations

from collections.abc import Hashable

from archc.ir.graph import Graph, Node
from archc.passes.manager import Context, Pass


def merge_equal_nodes(graph: Graph, context: Context) -> bool:
    """Merge equal nodes, in each region on its own. The first of them keeps its name."""
    changed = False
    for region in list(graph.graphs()):
        first: dict[Hashable, Node] = {}
        merged = []
        for node in region.nodes:
            key = _key(node, context)
            known = first.setdefault(key, node) if key is not None else node
            if known is not node:
                for old, new in zip(node.outputs, known.outputs, strict=True):
                    old.replace_all_uses(new, region)
                merged.append(node)
        if merged:
            region.erase(*merged)
            changed = True
    return changed


def _key(node: Node, context: Context) -> Hashable | None:
    keeps_state = node.op.training_only or any(not p.trainable for p in node.weights.values())
    if node.regions or (context.training and keeps_state):
        return None
    operands = tuple(map(id, node.operands))
    if node.op.commutative:
        operands = tuple(sorted(operands))
    # spelled out, parameters tell 0.0 from -0.0, which are equal numbers
    weights = tuple((role, id(p)) for role, p in node.weights.items())
    return node.op.name, repr(node.params), operands, weights


CSE = Pass("cse", merge_equal_nodes)
