"""Ops that carry networks: experts, skips and early exits that run on the rows that need them, and loops.

Which rows those are is known only when the network runs. A small kernel sorts the rows by where they go, the counts
become sizes (`match_cast`), and each region is lowered on as many rows as reached it, none included.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from tvm import relax, tirx

from archc.backends.tvm import equations
from archc.backends.tvm.equations import APART
from archc.backends.tvm.lower import TvmNode, lowering
from archc.backends.tvm.lowerings.elementwise import number
from archc.backends.tvm.lowerings.experts import run_experts
from archc.backends.tvm.lowerings.gating import gates
from archc.backends.tvm.lowerings.index import top_indices
from archc.backends.tvm.lowerings.rows import bind_rows, on_chosen, on_chosen_tokens, on_region
from archc.ir.dims import product
from archc.ir.graph import Graph
from archc.ir.ops.structural import EXIT, MOE, SKIP, moe_by_token, moe_regions, skip_by_token

op = relax.op


@lowering(MOE)
def _moe(n: TvmNode) -> Any:
    router, experts, shared = moe_regions(n.node.call)
    x_type = n.node.inputs[0].type
    lead = x_type.shape[:-1] if moe_by_token(n.node.call) else x_type.shape[:1]
    rest = x_type.shape[len(lead) :]
    count = product(lead)
    (logits,) = on_region(n, router, n.x)
    logits = n.emit(op.reshape(logits, n.shape([count, len(experts)])))
    rows = n.emit(op.reshape(n.x, n.shape([count, *rest])))
    index, weights, capacity = gates(n, logits, len(experts))
    total = run_experts(n, experts, rows, index, weights, capacity)
    if shared is not None:
        bind_rows(n, shared, 0, n.lowerer.dim(count))
        total = n.emit(op.add(total, *on_region(n, shared, rows)))
    return op.reshape(total, n.shape(n.type.shape))


@lowering(SKIP)
def _skip(n: TvmNode) -> Any:
    gate, body = n.node.regions
    x_type, p, by_token = n.type, n.p, skip_by_token(n.node.call)
    lead = x_type.shape[: 1 + by_token]
    (g,) = on_region(n, gate, n.x)
    if p.budget is not None:
        return _within_budget(n, body, n.emit(op.reshape(g, n.shape(lead))))
    wide = n.emit(op.reshape(g, n.shape([*lead, *[1] * (x_type.rank - len(lead))])))
    if p.mode == "soft":
        if not by_token:
            bind_rows(n, body, 0, n.lowerer.dim(x_type.shape[0]))
        (found,) = on_region(n, body, n.x)
        rest = n.emit(op.multiply(n.emit(op.subtract(n.const(1), wide)), n.x))
        return op.add(n.emit(op.multiply(wide, found)), rest)
    is_open = n.emit(op.greater(wide, n.const(p.threshold)))
    if by_token:
        return on_chosen_tokens(n, body, is_open)
    return on_chosen(n, body, is_open, n.x)


def _within_budget(n: TvmNode, body: Graph, g: Any) -> Any:
    """The body on the tokens with the largest gates, in their order."""
    length = n.type.shape[1]
    share = Fraction(repr(n.p.budget))  # in whole numbers: 0.29 * 100 in floats is below 29
    part = length * share.numerator // share.denominator
    kept: Any = max(1, part) if isinstance(part, int) else tirx.max(tirx.IntImm("int64", 1), n.lowerer.dim(part))
    bb = n.lowerer.bb
    size = tirx.Var(f"kept{n.lowerer.fresh()}", "int64")
    bb.match_cast(n.emit(relax.ShapeExpr([kept])), relax.ShapeType([size]))
    rank = bb.emit_te(lambda g: equations.rank(g, True, True), g, primfunc_name_hint="rank")
    most = op.maximum(n.size(part, "int64"), n.const(1, "int64"))
    keep = n.emit(op.less(rank, n.emit(most)))
    position = bb.emit_te(equations.count_before, keep, primfunc_name_hint="count_before")
    places = bb.emit_te(
        lambda keep, position: equations.places(keep, position, size),
        keep,
        position,
        primfunc_name_hint="places",
        primfunc_attrs=APART,
    )
    chosen = bb.emit_te(equations.take_each, n.x, places, primfunc_name_hint="take_each")
    bind_rows(n, body, 1, size)
    (found,) = on_region(n, body, chosen)
    if n.p.mode == "soft":
        wide = n.emit(op.expand_dims(n.emit(op.gather_elements(g, places, 1)), -1))
        rest = n.emit(op.multiply(n.emit(op.subtract(n.const(1), wide)), chosen))
        found = n.emit(op.add(n.emit(op.multiply(wide, found)), rest))
    return bb.emit_te(equations.put_back, found, keep, position, n.x, primfunc_name_hint="put_back")


@lowering(EXIT)
def _exit(n: TvmNode) -> Any:
    head, rest = n.node.regions
    (logits,) = on_region(n, head, n.x)
    probabilities = n.emit(op.nn.softmax(logits, axis=-1))
    classes = n.type.shape[1]
    if n.p.confidence == "max_softmax":
        sure = n.emit(op.max(probabilities, -1, keepdims=True))
    elif n.p.confidence == "margin":
        two = top_indices(n, probabilities, 2)
        values = n.emit(op.gather_elements(probabilities, two, 1))
        first, second = (n.emit(op.strided_slice(values, [1], [i], [i + 1])) for i in range(2))
        sure = n.emit(op.subtract(first, second))
    else:
        assert isinstance(classes, int)
        terms = n.emit(op.multiply(probabilities, n.emit(op.nn.log_softmax(logits, axis=-1))))
        scaled = n.emit(op.divide(n.emit(op.sum(terms, -1, keepdims=True)), n.const(math.log(classes))))
        sure = n.emit(op.add(scaled, n.const(1)))
    # a confidence that is NaN does not let go
    leaves = number(n, n.emit(op.greater_equal(sure, n.const(n.p.threshold))), "int8")
    return on_chosen(n, rest, n.emit(op.equal(n.emit(leaves), n.const(0, "int8"))), logits)
