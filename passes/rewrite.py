"""Local rewriting: a rule looks at one node and may give values that replace its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.op import OpDef

Rule = Callable[[GraphBuilder, Node], Sequence[Value] | None]
"""What replaces a node's results, or None to leave it; new nodes are written with the builder."""


def producer(value: Value, op: OpDef[Any]) -> Node | None:
    """The node that makes a value, if it is one of `op`."""
    node = value.producer
    return node if node is not None and node.op is op else None


def rewrite(graph: Graph, rule: Rule) -> bool:
    """Offer every node, regions included, to a rule, operands before their users. Returns whether anything changed.

    New nodes stand where the replaced one stood, and the one that makes its first result takes its name.
    """
    names = {node.name for node in graph.walk()}
    changed = [_rewrite_region(region, rule, names) for region in list(graph.graphs())]
    return any(changed)


def _rewrite_region(graph: Graph, rule: Rule, names: set[str]) -> bool:
    nodes, graph.nodes = graph.nodes, []
    changed = False
    for node in nodes:
        start = len(graph.nodes)
        results = rule(GraphBuilder(graph, node), node)
        if results is None:
            assert len(graph.nodes) == start, f"a rule wrote nodes for {node} and did not use them"
            graph.nodes.append(node)
            continue
        changed = True
        for old, new in zip(node.outputs, results, strict=True):
            assert old.type == new.type, f"{node} would be replaced by {new.type}, should be {old.type}"
            old.replace_all_uses(new, graph)
        node.set_inputs(())
        _name(graph.nodes[start:], node.name, results[0], names)
    return changed


def _name(made: Sequence[Node], name: str, result: Value, names: set[str]) -> None:
    for node in made:
        if node is result.producer and result.index == 0:
            rename(node, name)
            continue
        base, count = node.name, 1
        while node.name in names:
            rename(node, f"{base}_{count}")
            count += 1
        names.add(node.name)


def rename(node: Node, name: str) -> None:
    """Give a node another name, and its results theirs."""
    node.name = name
    for i, output in enumerate(node.outputs):
        output.name = name if i == 0 else f"{name}.{i}"
