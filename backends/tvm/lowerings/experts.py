"""The experts of a mixture, each on the rows that were sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from archc.backends.tvm import equations
from archc.backends.tvm.lower import TvmNode
from archc.backends.tvm.lowerings.rows import bind_rows, on_region, routes_of
from archc.ir.graph import Graph

op = relax.op


def run_experts(
    n: TvmNode, experts: Sequence[Graph], rows: Any, index: Any, weights: Any, capacity: float | None = None
) -> Any:
    """[R, …]: the sum over j of weights[r, j] times what expert index[r, j] makes of row r of `rows` [R, …].

    `index` [R, k] (i64) is -1 for none. An expert takes at most ceil(capacity R k / experts) rows, the first ones.
    """
    routes = routes_of(n, index, len(experts), capacity)
    found = []
    for e, expert in enumerate(experts):
        bind_rows(n, expert, 0, routes.counts[e])
        found += on_region(n, expert, routes.rows(rows, e))
    made = found[0] if len(found) == 1 else n.emit(op.concat(found, axis=0))
    return n.lowerer.bb.emit_te(equations.weigh_rows, made, routes.slot, weights, primfunc_name_hint="weigh_rows")
