"""The verifier: what holds in every graph between two passes. A violation is a mistake of ours, not of the user."""

from __future__ import annotations

from collections import Counter

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.op import bind


class VerifyError(AssertionError):
    """A graph is not well formed; the message names the node."""


def verify(graph: Graph) -> None:
    """Check order, use lists, types, weights, names and regions.

    Raises: VerifyError at the first violation.
    """
    names: set[str] = set()
    parameters: dict[str, Parameter] = {}
    _verify_region(graph, names, parameters)
    _need(len(graph.outputs) == len(graph.output_names), graph.name, "outputs and their names run in step")


def _verify_region(graph: Graph, names: set[str], parameters: dict[str, Parameter]) -> None:
    defined: set[Value] = set(graph.inputs)
    _need(len(defined) == len(graph.inputs), graph.name, "an input stands twice")
    uses: dict[Value, Counter[Node]] = {v: Counter() for v in graph.inputs}
    for node in graph.nodes:
        for value in node.inputs:
            _need(value in defined, node.name, "reads {} before it is defined, or from outside its region", value)
            uses[value][node] += 1
        for i, value in enumerate(node.outputs):
            _need(value.producer is node and value.index == i, node.name, "a result does not know its producer")
            uses[value] = Counter()
        defined.update(node.outputs)
        _verify_node(node, names, parameters)
    for value, users in uses.items():
        _need(users == value.uses, value.name, "use list {} should be {}", value.uses, users)
    for value in graph.outputs:
        _need(value in defined, graph.name, "output {} is not defined in the graph", value)


def _verify_node(node: Node, names: set[str], parameters: dict[str, Parameter]) -> None:
    _need(node.name not in names, node.name, "two nodes have this name")
    names.add(node.name)
    bound = bind(node.op, node.call)
    _need(bound.results == tuple(v.type for v in node.outputs), node.name, "results should be {}", bound.results)
    _need(bound.weights.keys() == node.weights.keys(), node.name, "weights should be {}", bound.weights)
    for role, spec in bound.weights.items():
        parameter = node.weights[role]
        _need(parameter.type.shape == spec.type.shape, node.name, "{} should be {}", parameter, spec.type)
        _need(parameters.setdefault(parameter.name, parameter) is parameter, node.name, "two are named {}", parameter)
    lines = node.op.region_lines(node.call) if node.op.region_lines else ()
    _need(len(lines) == len(node.regions), node.name, "has {} regions, should have {}", len(node.regions), len(lines))
    for region in node.regions:
        inner = region.inputs[len(region.inputs) - node.captures :] if node.captures else []
        for captured, value in zip(node.captured, inner, strict=True):
            _need(captured.type == value.type, node.name, "capture {} should be {}", value, captured.type)
        _verify_region(region, names, parameters)


def _need(holds: bool, where: str, message: str, *details: object) -> None:
    if not holds:  # the message is spelled out only now: a graph is verified after every pass
        raise VerifyError(f"{where}: {message.format(*details)}")
