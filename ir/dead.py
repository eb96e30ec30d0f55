"""Dead code: nodes whose results nobody reads, and captures that no region reads."""

from __future__ import annotations

from archc.ir.graph import Graph, Node


def has_dead_code(graph: Graph) -> bool:
    """Is there something that no output needs?"""
    return any(dead_nodes(g) or any(map(unread_captures, g.nodes)) for g in graph.graphs())


def remove_dead_code(graph: Graph) -> bool:
    """Remove what no output needs, regions first, so that a capture nobody reads frees its producer. Returns whether
    there was any."""
    changed = False
    for node in graph.nodes:
        for region in node.regions:
            changed |= remove_dead_code(region)
        changed |= _drop_captures(node)
    dead = dead_nodes(graph)
    if dead:
        graph.erase(*dead)
    return changed or bool(dead)


def dead_nodes(graph: Graph) -> list[Node]:
    """The nodes that no output of this graph needs, the last first."""
    needed = set(graph.outputs)
    dead = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            dead.append(node)
        else:
            needed.update(node.inputs)
    return dead


def unread_captures(node: Node) -> list[int]:
    """Which of the captured inputs stand unused in every region."""
    if not node.captures:
        return []
    return [
        i
        for i in range(node.captures)
        if all(not region.use_count(region.inputs[i - node.captures]) for region in node.regions)
    ]


def _drop_captures(node: Node) -> bool:
    first, unused = len(node.operands), unread_captures(node)
    if not unused:
        return False
    for region in node.regions:
        formals = len(region.inputs) - node.captures
        region.inputs = [v for i, v in enumerate(region.inputs) if i - formals not in unused]
    node.captures -= len(unused)
    node.set_inputs(tuple(v for i, v in enumerate(node.inputs) if i - first not in unused))
    return True
