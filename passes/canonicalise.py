"""Canonicalisation: what does nothing goes, and views of views become one.

    a = flatten(x)                            b = reshape(x, shape=[N, 4, 6])
    b = unflatten(a, axis=1, sizes=[4, 6])
    c = transpose(b, a=1, b=2)          →     return b
    d = permute(c, order=[0, 2, 1])
    return d

Of the views, `reshape` and `permute` remain. Outside training, dropout goes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.op import OpDef
from archc.ir.ops.constants import CONSTANT
from archc.ir.ops.elementwise import DIV, MUL, NEG, SUB
from archc.ir.ops.pieces import CONCAT, PAD, SLICE, SPLIT
from archc.ir.ops.shape import (
    CAST,
    EXPAND,
    FLATTEN,
    IDENTITY,
    PERMUTE,
    RESHAPE,
    SQUEEZE,
    TRANSPOSE,
    UNFLATTEN,
    UNSQUEEZE,
    swapped,
)
from archc.passes.manager import Context, Pass
from archc.passes.rewrite import rewrite

RESHAPES = (RESHAPE, FLATTEN, UNFLATTEN, SQUEEZE, UNSQUEEZE)
PERMUTES = (PERMUTE, TRANSPOSE)
NOTHING_IF_SAME_TYPE: tuple[OpDef[Any], ...] = (*RESHAPES, CAST, EXPAND, SLICE, PAD, CONCAT, SPLIT)
"""Ops that return their only operand when the type is the same before and after."""


def canonicalise(graph: Graph, context: Context) -> bool:
    """Apply the rules below once to every node; a chain of views collapses in one go."""

    def rule(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
        if node.op is IDENTITY or (node.op.training_only and not context.training):
            return node.operands[:1]
        if node.op in NOTHING_IF_SAME_TYPE and [v.type for v in node.operands] == [v.type for v in node.outputs]:
            return node.operands
        if node.op in RESHAPES:
            return _reshape(b, node)
        if node.op in PERMUTES:
            return _permute(b, node)
        return _neutral(node)

    return rewrite(graph, rule)


def _producer(value: Value, ops: Sequence[OpDef[Any]]) -> Node | None:
    return value.producer if value.producer is not None and value.producer.op in ops else None


def _reshape(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A reshape of a reshape is a reshape of the first operand."""
    (x,), before = node.operands, _producer(node.operands[0], (RESHAPE,))
    source = before.operands[0] if before is not None else x
    if source.type == node.output.type:
        return [source]
    if before is None and node.op is RESHAPE:
        return None
    return [b(RESHAPE, source, shape=node.output.type.shape)]


def _order(node: Node) -> list[int]:
    call = node.call
    if node.op is TRANSPOSE:
        return swapped(call.rank, call.axis(call.params.a), call.axis(call.params.b))
    return [call.axis(a) for a in call.params.order]


def _permute(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A permutation of a permutation is one; one that keeps every place is none."""
    (x,), order = node.operands, _order(node)
    before = _producer(x, (PERMUTE,))
    if before is not None:
        inner = _order(before)
        x, order = before.operands[0], [inner[a] for a in order]
    if order == sorted(order):
        return [x]
    if before is None and node.op is PERMUTE:
        return None
    return [b(PERMUTE, x, order=tuple(order))]


def _neutral(node: Node) -> Sequence[Value] | None:
    """x · 1, x / 1, x - 0 and -(-x) are x, exactly. (x + 0 is not: it turns -0 into 0.)"""
    if node.op is NEG:
        before = _producer(node.operands[0], (NEG,))
        return before.operands if before is not None else None
    if node.op not in (MUL, DIV, SUB):
        return None
    neutral = 0 if node.op is SUB else 1
    pairs = [(0, 1), (1, 0)] if node.op is MUL else [(0, 1)]
    for kept, other in pairs:
        constant = _producer(node.operands[other], (CONSTANT,))
        if constant is not None and node.operands[kept].type == node.output.type:
            value = constant.call.params.value
            if value == neutral and str(value)[0] != "-":
                return [node.operands[kept]]
    return None


CANONICALISE = Pass("canonicalise", canonicalise)
