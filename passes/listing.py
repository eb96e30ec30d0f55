"""A graph as lines of text, one for each node: for dumps and tests. (Programs are written by the printer.)"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archc.ir.dims import Expr
from archc.ir.graph import Graph, Node
from archc.ir.op import Params


def listing(graph: Graph) -> str:
    """The nodes of a graph in order; regions are indented below their node.

    >>> import archc.ir.ops
    >>> from archc.ir.op import REGISTRY
    >>> from archc.ir.types import TensorType
    >>> graph = Graph("tiny")
    >>> x = graph.add_input("x", TensorType((2, 4)))
    >>> head = graph.add(REGISTRY["linear"], [x], REGISTRY["linear"].params(out=3, bias=False), name="head")
    >>> graph.outputs, graph.output_names = [head.output], ["y"]
    >>> print(listing(graph))
    tiny(x: f32[2, 4])
      head = linear(x, out=3, bias=false; weight=head.weight) : f32[2, 3]
      return head
    """
    return "\n".join(_lines(graph, graph.name, ""))


def _lines(graph: Graph, title: str, indent: str) -> Iterator[str]:
    yield f"{indent}{title}({', '.join(f'{v.name}: {v.type}' for v in graph.inputs)})"
    for node in graph.nodes:
        yield f"{indent}  {_line(node)}"
        for region in node.regions:
            yield from _lines(region, region.name or "region", indent + "    ")
    yield f"{indent}  return {', '.join(v.name for v in graph.outputs)}"


def _line(node: Node) -> str:
    arguments = ", ".join([*(v.name for v in node.inputs), *_fields(node.params)])
    weights = "".join(f"; {role}={p.name}" for role, p in node.weights.items())
    results = ", ".join(v.name for v in node.outputs)
    types = ", ".join(str(v.type) for v in node.outputs)
    return f"{results} = {node.op.name}({arguments}{weights}) : {types}"


def _fields(params: Params) -> Iterator[str]:
    for name, field in type(params).model_fields.items():
        value = getattr(params, name)
        if field.is_required() or value != field.default:
            yield f"{name.rstrip('_')}={_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    return str(value) if isinstance(value, int | float | Expr) else repr(value)
