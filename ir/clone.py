"""Copies of graphs, for passes to rewrite while the original stays as it was."""

from __future__ import annotations

from archc.ir.graph import Graph, Node, Value


def clone(graph: Graph) -> Graph:
    """A graph of new values, nodes and regions; ops and parameters are shared with the original.

    >>> from archc.ir.types import TensorType
    >>> graph = Graph("g")
    >>> graph.outputs = [graph.add_input("x", TensorType((2,)))]
    >>> copy = clone(graph)
    >>> copy.outputs[0] is copy.inputs[0], copy.inputs[0] is graph.inputs[0]
    (True, False)
    """
    copies: dict[Value, Value] = {}

    def value(old: Value, producer: Node | None = None) -> Value:
        copies[old] = Value(old.name, old.type, producer, old.index, span=old.span)
        return copies[old]

    new = Graph(graph.name, [value(v) for v in graph.inputs], output_names=list(graph.output_names), span=graph.span)
    for old in graph.nodes:
        regions = tuple(clone(region) for region in old.regions)
        node = Node(
            old.op,
            old.params,
            (),
            (),
            old.bound,
            old.name,
            dict(old.weights),
            regions,
            old.captures,
            old.span,
            old.trace,
        )
        node.outputs = tuple(value(v, node) for v in old.outputs)
        node.set_inputs(tuple(copies[v] for v in old.inputs))
        new.nodes.append(node)
    new.outputs = [copies[v] for v in graph.outputs]
    return new
