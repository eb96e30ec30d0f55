"""`require params < 500k`: constraints on the whole network, checked once it stands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from archc.grammar.elaborate import Elaborator
from archc.grammar.scope import Env
from archc.grammar.syntax import Call, Expr, Ref, Require, walk
from archc.grammar.values import POISON, Place
from archc.ir.cost import cost, count_params, graph_flops
from archc.ir.diagnostics import fail
from archc.ir.dims import Dim, substitute
from archc.ir.graph import Graph, Node, Value

QUANTITIES = ("params", "flops", "activation_bytes", "depth")
"""What a `require` may speak of besides the program's own names. `latency_ms(target)` needs a measurement."""


def depth(graph: Graph) -> int:
    """The number of nodes on the longest path from an input to an output, regions included."""
    reach: dict[Value, int] = {}
    for node in graph.nodes:
        before = max((reach.get(v, 0) for v in node.inputs), default=0)
        length = before + _length(node)
        reach.update(dict.fromkeys(node.outputs, length))
    return max((reach.get(v, 0) for v in graph.outputs), default=0)


def _length(node: Node) -> int:
    return 1 + max((depth(r) for r in node.regions), default=0)


def measure(graph: Graph, names: Collection[str] = QUANTITIES) -> dict[str, Any]:
    """The named quantities of a network, for one sample where its first axis is symbolic (flops and bytes of batch 1).

    >>> measure(Graph("empty"), ["params", "depth"])
    {'params': 0, 'depth': 0}
    """
    return {name: _MEASURES[name](graph) for name in QUANTITIES if name in names}


def _of_one(size: Dim, graph: Graph) -> Dim:
    batch = {s: 1 for v in graph.inputs for s in (sorted(v.type.symbols) if v.type.shape else ()) if _leads(v, s)}
    return substitute(size, batch)


_MEASURES: Mapping[str, Callable[[Graph], Any]] = {
    "params": lambda graph: count_params(graph.parameters().values()),
    "flops": lambda graph: _of_one(graph_flops(graph), graph),
    "activation_bytes": lambda graph: _of_one(cost(graph).activation_bytes, graph),
    "depth": depth,
}


def _leads(value: Value, name: str) -> bool:
    return str(value.type.shape[0]) == name


def is_measured(expr: Expr) -> bool:
    """Does a condition need a target to be measured on?"""
    return any(isinstance(n, Call) and isinstance(n.callee, Ref) and n.callee.name == "latency_ms" for n in walk(expr))


def check_requirement(e: Elaborator, item: Require, graph: Graph, env: Env, at: Place) -> None:
    """Check one requirement; one on latency is left to whoever measures.

    Raises: CompileError (E0336) when it is not met.
    """
    if is_measured(item.condition):
        return
    quantities = measure(graph, {n.name for n in walk(item.condition) if isinstance(n, Ref)})
    value = e.evaluate(item.condition, Env(env, dict(quantities)), at)
    if value is POISON or value is True:
        return
    if value is not False:
        raise fail("E0334", "a requirement is `true` or `false`", item.condition.span)
    found = ", ".join(f"{name} = {value}" for name, value in quantities.items())
    raise fail("E0336", "a requirement is not met", item.condition.span, label=found)
