"""Replacing ops by the simpler ones they are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.op import OpDef


def decompose(graph: Graph, keep: Callable[[OpDef[Any]], bool]) -> bool:
    """Rewrite nodes by their ops' decompositions, again and again, until `keep` holds for what is left.

    An op that has no decomposition, or none for these types, stays. What replaces a node stands where it stood; the
    one that gives its result takes its name, and all take its span. Regions are rewritten too. Returns whether
    anything changed.

    >>> import archc.ir.ops
    >>> from archc.ir.op import REGISTRY
    >>> from archc.ir.types import TensorType
    >>> graph = Graph("g")
    >>> x = graph.add_input("x", TensorType((2, 3, 8, 8)))
    >>> graph.outputs = [graph.add(REGISTRY["norm"], [x], REGISTRY["norm"].params(), name="norm").output]
    >>> decompose(graph, lambda op: op.name != "norm")
    True
    >>> graph.nodes
    [Node(norm: batch_norm)]
    """
    changed = [_decompose_region(region, keep) for region in list(graph.graphs())]
    return any(changed)


def _decompose_region(graph: Graph, keep: Callable[[OpDef[Any]], bool]) -> bool:
    originals = graph.nodes
    waiting, graph.nodes = originals[::-1], []
    replaced: dict[Value, Value] = {}
    while waiting:
        node = waiting.pop()
        start = len(graph.nodes)
        results = [] if keep(node.op) or node.op.decompose is None else _expand(graph, node)
        if not results:
            graph.nodes.append(node)
            continue
        waiting += graph.nodes[start:][::-1]
        del graph.nodes[start:]
        for old, new in zip(node.outputs, results, strict=True):
            assert old.type == new.type, f"{node} decomposes into {new.type}, should be {old.type}"
            old.replace_all_uses(new, graph)
            replaced[old] = new
        node.set_inputs(())
    for node in originals:
        _pass_on_name(node, replaced, set(originals))
    return bool(replaced)


def _expand(graph: Graph, node: Node) -> list[Value]:
    assert node.op.decompose is not None
    start = len(graph.nodes)
    results = list(node.op.decompose(GraphBuilder(graph, node), node))
    assert results or len(graph.nodes) == start, f"{node} began to decompose and did not end"
    return results


def _pass_on_name(node: Node, replaced: dict[Value, Value], originals: set[Node]) -> None:
    """Give the name of a replaced node to the one that now makes its first result."""
    value = node.outputs[0] if node.outputs else None
    if value not in replaced:
        return
    while value in replaced:
        value = replaced[value]
    heir = value.producer if value is not None else None
    if heir is None or heir in originals or heir.outputs[0] is not value:
        return  # the result is an operand, or what another node had made already
    heir.name = node.name
    for i, output in enumerate(heir.outputs):
        output.name = node.name if i == 0 else f"{node.name}.{i}"
