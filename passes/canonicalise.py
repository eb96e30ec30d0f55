"""Canonicalisation: what does nothing goes, and views of views become one.

    a = flatten(x)                            b = reshape(x, shape=[N, 4, 6])
    b = unflatten(a, axis=1, sizes=[4, 6])
    c = transpose(b, a=1, b=2)          →     return b
    d = permute(c, order=[0, 2, 1])
    return d

Of the views, `reshape` and `permute` remain. A cast of a cast that lost nothing is one cast; what broadcasts by itself
needs no `expand` before it. Outside training, dropout goes too; inside, only dropout of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.op import BindError, Call, OpDef, bind
from archc.ir.ops.activations import DROPOUT
from archc.ir.ops.convolution import UPSAMPLE, per_axis
from archc.ir.ops.pieces import CONCAT, PAD, SLICE, SPLIT
from archc.ir.ops.pool import MAX_POOL, pool_geometry
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
from archc.ir.types import FLOATS, INTEGERS
from archc.passes.manager import Context, Pass
from archc.passes.rewrite import producer, rewrite

RESHAPES = (RESHAPE, FLATTEN, UNFLATTEN, SQUEEZE, UNSQUEEZE)
PERMUTES = (PERMUTE, TRANSPOSE)
NOTHING_IF_SAME_TYPE: tuple[OpDef[Any], ...] = (*RESHAPES, CAST, EXPAND, SLICE, PAD, CONCAT, SPLIT)
"""Ops that return their only operand when the type is the same before and after."""


def canonicalise(graph: Graph, context: Context) -> bool:
    """Apply the rules below once to every node; a chain of views collapses in one go."""

    def rule(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
        if _does_nothing(node, context):
            return node.operands[:1]
        if node.op in NOTHING_IF_SAME_TYPE and [v.type for v in node.operands] == [v.type for v in node.outputs]:
            return node.operands
        if node.op in RESHAPES:
            return _reshape(b, node)
        if node.op in PERMUTES:
            return _permute(b, node)
        if node.op is CAST:
            return _cast(b, node)
        return _broadcast(b, node) if node.op.elementwise and len(node.operands) > 1 else None

    return rewrite(graph, rule)


def _does_nothing(node: Node, context: Context) -> bool:
    if node.op is IDENTITY or (node.op.training_only and not context.training):
        return True
    p = node.call.params
    if node.op is DROPOUT:
        return bool(p.p == 0)
    if node.op is MAX_POOL:
        rows = pool_geometry(p, node.call.rank - 2)
        return all((kernel, stride) == (1, 1) for kernel, stride, *_ in rows)
    if node.op is UPSAMPLE:  # not "bilinear": 0 times an infinite neighbour is NaN; and a mean of one turns -0 into 0
        return p.mode == "nearest" and set(per_axis(p.factor, node.call.rank - 2, "factor")) == {1}
    return False


def _reshape(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A reshape of a reshape is a reshape of the first operand."""
    (x,), before = node.operands, producer(node.operands[0], RESHAPE)
    source = before.operands[0] if before is not None else x
    if source.type == node.output.type:
        return [source]
    if before is None and node.op is RESHAPE:
        return None
    return [b(RESHAPE, source, shape=node.output.type.shape)]


def permutation(node: Node) -> list[int]:
    """Axis `i` of the result of a `permute` or `transpose` is this axis of its operand."""
    call = node.call
    if node.op is TRANSPOSE:
        return swapped(call.rank, call.axis(call.params.a), call.axis(call.params.b))
    return [call.axis(a) for a in call.params.order]


def _permute(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A permutation of a permutation is one; one that keeps every place is none."""
    (x,), order = node.operands, permutation(node)
    before = producer(x, PERMUTE)
    if before is not None:
        inner = permutation(before)
        x, order = before.operands[0], [inner[a] for a in order]
    if order == sorted(order):
        return [x]
    if before is None and node.op is PERMUTE:
        return None
    return [b(PERMUTE, x, order=tuple(order))]


_HOLDS = {
    "bool": {"i8", "i32", "i64", "f16", "bf16", "f32", "f64"},
    "i8": {"i32", "i64", "f16", "bf16", "f32", "f64"},
    "i32": {"i64", "f64"},
    "f16": {"f32", "f64"},
    "bf16": {"f32", "f64"},
    "f32": {"f64"},
}
"""dtype -> those that hold each of its numbers."""


def _cast(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A cast of a cast that lost nothing. Floats that may be too large for an integer stay: what becomes of them is
    said nowhere, and differs between widths."""
    before = producer(node.operands[0], CAST)
    if before is None:
        return None
    (x,), between, last = before.operands, before.output.type.dtype, node.output.type.dtype
    first = x.type.dtype
    if between not in _HOLDS.get(first, ()):
        return None
    if between in FLOATS and last in INTEGERS and first != last and last not in _HOLDS.get(first, ()):
        return None
    return [x if first == last else b(CAST, x, dtype=last)]


def _broadcast(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """An elementwise op on an expanded tensor, where the others give the result its shape without that."""
    operands = list(node.operands)
    for i, value in enumerate(operands):
        before = producer(value, EXPAND)
        if before is None:
            continue
        narrow = [*operands[:i], before.operands[0], *operands[i + 1 :]]
        try:
            bound = bind(node.op, Call(node.params, tuple(v.type for v in narrow)))
        except BindError:
            continue
        if bound.results == (node.output.type,):
            operands = narrow
    if operands == list(node.operands):
        return None
    return [b(node.op, *operands, **dict(node.params))]


CANONICALISE = Pass("canonicalise", canonicalise)
