"""The graph as networkx sees it: a view for drawing, dominators, matching and explaining cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(graph: Graph) -> nx.MultiDiGraph[Any]:
    """A directed multigraph: one node per `Node` (attributes `op`, `type`, `name`) and per input and output; one edge
    for each use, with the `type` of the value and its `position` among the user's inputs.

    Inputs are the nodes `("input", name)`, outputs `("output", name)`; regions stay inside their node.
    """
    import networkx as nx

    view: nx.MultiDiGraph[Any] = nx.MultiDiGraph(name=graph.name)
    for value in graph.inputs:
        view.add_node(("input", value.name), name=value.name, type=value.type, op=None)
    for node in graph.nodes:
        view.add_node(node, name=node.name, type=node.outputs[0].type, op=node.op.name)

    def key(value: Any) -> Any:
        return value.producer if value.producer is not None else ("input", value.name)

    for node in graph.nodes:
        for position, value in enumerate(node.inputs):
            view.add_edge(key(value), node, type=value.type, position=position)
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        view.add_node(("output", name), name=name, type=value.type, op=None)
        view.add_edge(key(value), ("output", name), type=value.type, position=0)
    return view
