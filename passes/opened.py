"""An attention opened into what it is made of, for transforms that act on its projections or on its product."""

from __future__ import annotations

from archc.ir.graph import Graph, GraphBuilder, Node
from archc.ir.ops.attention import ATTENTION, SCALED_DOT_PRODUCT
from archc.ir.ops.linear import LINEAR
from archc.passes.editing import Editor
from archc.passes.rewrite import rename


def open_attention(graph: Graph, attention: Node, editor: Editor) -> dict[str, Node]:
    """Write the projections, the product and what stands between in place of an `attention` node, which is left dead.

    The parameters are the old ones, by their old names. Returns the linear maps by role (`q`, `k`, `v`, `out`, `gate`),
    named `attn.q` and so on, and the product as `product`. `editor` knows the names that are taken.
    """
    start = len(graph.nodes)
    assert ATTENTION.decompose is not None
    (result,) = ATTENTION.decompose(GraphBuilder(graph, attention), attention)
    made = graph.nodes[start:]
    parts: dict[str, Node] = {}
    role_of = {p: role.removesuffix("_weight") for role, p in attention.weights.items() if role.endswith("_weight")}
    for node in made:
        if node.op is LINEAR:
            parts[role_of[node.weights["weight"]]] = node
        elif node.op is SCALED_DOT_PRODUCT:
            parts["product"] = node
    called = {node: role for role, node in parts.items()}
    for node in made:
        rename(node, editor.free(f"{attention.name}.{called.get(node, node.op.name)}"))
    attention.output.replace_all_uses(result, graph)
    return parts
