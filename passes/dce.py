"""Dead code elimination: nodes whose results nobody reads, and captures that no region reads, go.

y = relu(x)                      y = relu(x)
z = exp(x)             →         return y
return y
"""

from __future__ import annotations

from archc.ir.graph import Graph, Node
from archc.passes.manager import Context, Pass


def remove_dead_code(graph: Graph, context: Context) -> bool:
    """Remove what no output needs, regions first, so that a capture nobody reads frees its producer."""
    changed = False
    for node in graph.nodes:
        for region in node.regions:
            changed |= remove_dead_code(region, context)
        changed |= _drop_captures(node)
    needed = set(graph.outputs)
    dead = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            dead.append(node)
        else:
            needed.update(node.inputs)
    if dead:
        graph.erase(*dead)
    return changed or bool(dead)


def _drop_captures(node: Node) -> bool:
    """Drop the captured inputs that stand unused in every region."""
    first = len(node.operands)
    unused = [
        i
        for i in range(node.captures)
        if all(not region.use_count(region.inputs[i - node.captures]) for region in node.regions)
    ]
    if not unused:
        return False
    for region in node.regions:
        formals = len(region.inputs) - node.captures
        region.inputs = [v for i, v in enumerate(region.inputs) if i - formals not in unused]
    node.captures -= len(unused)
    node.set_inputs(tuple(v for i, v in enumerate(node.inputs) if i - first not in unused))
    return True


DCE = Pass("dce", remove_dead_code)
