"""All that is known of an operator, for `archc ops NAME` and docs/reference.md: read off its declaration, and off its
example, which is elaborated."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

from archc.grammar.calls import in_words, positional_order, written_call, written_fields
from archc.grammar.parser import parse
from archc.grammar.program import Program
from archc.grammar.syntax import Bind
from archc.grammar.values import Tensor, spell, tensors_of
from archc.ir.cost import graph_flops
from archc.ir.dims import substitute
from archc.ir.graph import Graph, Node
from archc.ir.op import OpDef


@dataclass(frozen=True)
class Parameter:
    """A parameter in the language's words; `default` is None when it is required."""

    name: str
    kind: str
    default: str | None


@dataclass(frozen=True)
class WeightFact:
    """A weight: when there is one, and its shape and initialiser in the example."""

    role: str
    when: str
    shape: str
    init: str
    trained: bool


@dataclass(frozen=True)
class OpPage:
    """`signature` and `example` are lines; `notes` is what the declaration of the parameters says of them."""

    name: str
    family: str
    doc: str
    call: str
    signature: tuple[str, ...]
    notes: str
    parameters: tuple[Parameter, ...]
    weights: tuple[WeightFact, ...]
    example: tuple[str, ...]
    paper: str


def op_page(op: OpDef[Any]) -> OpPage:
    """
    >>> import archc.ir.ops
    >>> from archc.ir.op import REGISTRY
    >>> page = op_page(REGISTRY["linear"])
    >>> page.call, page.parameters[0].kind, page.weights[1].when
    ('linear(out, bias = true, init = none)', 'a positive whole number', '`bias`')
    """
    graph = example_graph(op) if op.example else None
    node = next((n for n in graph.nodes if n.op is op), None) if graph is not None else None
    fields = written_fields(op.params)
    parameters = []
    for name in positional_order(op):
        info = fields[name]
        kind = in_words(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)
        parameters.append(Parameter(name, kind, None if info.is_required() else spell(info.default)))
    return OpPage(
        op.name,
        op.category,
        op.doc,
        written_call(op),
        _signature(op, node),
        inspect.cleandoc(op.params.__dict__.get("__doc__") or ""),
        tuple(parameters),
        tuple(_weight(op, role, node) for role in op.weights),
        _example(op, graph) if graph is not None else (),
        op.paper or "",
    )


def example_graph(op: OpDef[Any]) -> Graph:
    """The registry's example of an operator, applied to its inputs."""
    names = "xyzw"[: len(op.example_inputs)]
    lines = ["arch example()", *(f"input {n}: {t}" for n, t in zip(names, op.example_inputs, strict=True))]
    fed = names if len(names) == 1 else f"({', '.join(names)})"
    return _Example(parse("\n".join([*lines, "output r: f32[1]", f"r = {fed} -> ({op.example})"]))).elaborate()


class _Example(Program):
    """A program whose outputs have the types of what they are bound to."""

    def _check_output(self, name: str, item: Bind) -> None:
        for i, tensor in enumerate(t for t in tensors_of(self.env.names[name]) or () if isinstance(t, Tensor)):
            key = f"{name}{i}" if i else name
            self.outputs[key] = self.outputs[name]
            self.results[key] = (tensor.value, item.value.span)


def _signature(op: OpDef[Any], node: Node | None) -> tuple[str, ...]:
    if isinstance(op.line, str):
        return (op.line,)
    operands = ", ".join(op.operand_names) or "none"
    if node is None:
        return (f"operands {operands}; the rest depends on ranks and parameters",)
    return (f"operands {operands}; for the example below:", str(node.bound.signature))


def _weight(op: OpDef[Any], role: str, node: Node | None) -> WeightFact:
    weight = op.weights[role]
    when = "from a `share`" if weight.tied else f"`{weight.when}`" if weight.when else "always"
    spec = node.bound.weights.get(role) if node is not None else None
    return WeightFact(role, when, str(spec.type) if spec else "", str(spec.init) if spec else "", weight.trainable)


def _example(op: OpDef[Any], graph: Graph) -> tuple[str, ...]:
    fed = f"({', '.join(op.example_inputs)})" if len(op.example_inputs) > 1 else op.example_inputs[0]
    lines = [f"{fed} -> {op.example}", f"{' ' * len(fed)} => {', '.join(str(v.type) for v in graph.outputs)}"]
    flops = substitute(graph_flops(graph), {"N": 1})
    return (*lines, f"{' ' * len(fed)}    {flops} FLOPs") if flops else tuple(lines)
