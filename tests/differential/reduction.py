"""From a network on which an oracle fails to a small one on which it fails too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from archc.ir.clone import clone
from archc.ir.graph import Graph, Node, Value


def reduced(graph: Graph, fails: Callable[[Graph], bool]) -> Graph:
    """Cut inputs, outputs and nodes away while `fails` holds.

    A cut is one of: only one output (of a value anywhere), the result of a node as an input instead, a node bypassed
    by its first operand of the same type, a region of a node bypassed likewise.
    """
    found = True
    while found:
        found = False
        for smaller in _smaller(graph):
            if _size(smaller) < _size(graph) and fails(smaller):
                graph, found = smaller, True
                break
    return graph


def _size(graph: Graph) -> tuple[int, int, int]:
    return len(list(graph.walk())), len(graph.outputs), len(graph.inputs)


def _smaller(graph: Graph) -> Iterator[Graph]:
    values = [v for node in graph.nodes for v in node.outputs]
    for i in range(len(values)):
        copy, (value,) = _copied(graph, [i])
        copy.outputs, copy.output_names = [value], ["out"]
        yield _pruned(copy)
    for i in range(len(values)):
        copy, (value,) = _copied(graph, [i])
        assert value.producer is not None
        fresh = Value(f"cut{len(copy.inputs)}_{i}", value.type)
        copy.inputs.append(fresh)
        value.replace_all_uses(fresh, copy)
        yield _pruned(copy)
    for at, region in enumerate(graph.graphs()):
        for j in range(len(region.nodes)):
            copy = clone(graph)
            inner = list(copy.graphs())[at]
            node = inner.nodes[j]
            same = [v for v in node.operands if len(node.outputs) == 1 and v.type == node.outputs[0].type]
            if same:
                node.outputs[0].replace_all_uses(same[0], inner)
                yield _pruned(copy)


def _copied(graph: Graph, places: list[int]) -> tuple[Graph, list[Value]]:
    copy = clone(graph)
    values = [v for node in copy.nodes for v in node.outputs]
    return copy, [values[i] for i in places]


def _pruned(graph: Graph) -> Graph:
    """Without what no output needs."""
    for region in list(graph.graphs())[::-1]:
        kept = set(region.outputs)
        dead: list[Node] = []
        for node in reversed(region.nodes):
            if any(v in kept for v in node.outputs):
                kept.update(node.inputs)
            else:
                dead.append(node)
        region.erase(*dead)
    kept = set(graph.outputs) | {v for node in graph.nodes for v in node.inputs}
    graph.inputs = [v for v in graph.inputs if v in kept]
    return graph
