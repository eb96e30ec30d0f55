"""The experts of a mixture, each on the rows that were sent to it.

Experts that differ only in their weights, and treat each row by itself, run as one: the rows stand in one tensor,
sorted by expert, and a kernel multiplies each group of them by its own weights. So the number of kernels does not grow
with the number of experts, every size is known beforehand, and no row is copied to be sorted. Other experts run one
after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from tvm import relax, tirx

from archc.backends.tvm import equations
from archc.backends.tvm.cpu.grouped import MARK
from archc.backends.tvm.lower import LOWERINGS, TvmNode
from archc.backends.tvm.lowerings.rows import (
    AllRows,
    Part,
    Routes,
    bind_rows,
    channels_last,
    on_region,
    row_symbol,
    to_first,
    to_last,
)
from archc.backends.tvm.lowerings.rowwise import by_row
from archc.ir.graph import Graph, Node, Value
from archc.ir.ops.linear import LINEAR

op = relax.op


def run_experts(
    n: TvmNode, experts: Sequence[Graph], rows: Any, index: Any, weights: Any, capacity: float | None = None
) -> Any:
    """[R, …]: the sum over j of weights[r, j] times what expert index[r, j] makes of row r of `rows` [R, …].

    `index` [R, k] (i64) is -1 for none. An expert takes at most ceil(capacity R k / experts) rows, the first ones.
    """
    if n.lowerer.kind != "cpu":
        return _dense(n, experts, rows, index, weights, capacity)
    if alike(experts):
        made, slot = _Grouped(n, experts, rows, index, capacity).run()
        return _weighed(n, made, slot, weights)
    return _one_by_one(n, experts, rows, index, weights, capacity)


def _weighed(n: TvmNode, made: Any, slot: Any, weights: Any) -> Any:
    return n.lowerer.bb.emit_te(equations.weigh_rows, made, slot, weights, primfunc_name_hint="weigh_rows")


def _dense(n: TvmNode, experts: Sequence[Graph], rows: Any, index: Any, weights: Any, capacity: float | None) -> Any:
    """All experts on all rows."""
    routes = AllRows(n, index, len(experts), capacity)
    found = []
    for expert in experts:
        bind_rows(n, expert, 0, routes.counts[0])
        found += on_region(n, expert, rows)
    return _weighed(n, _joined(n, found), routes.slot, weights)


def _one_by_one(
    n: TvmNode, experts: Sequence[Graph], rows: Any, index: Any, weights: Any, capacity: float | None
) -> Any:
    """Each expert in its turn, those that have rows. Images are handed over with channels last, as for `skip`."""
    routes = Routes(n, index, len(experts), capacity)
    images = any(map(channels_last, experts)) and len(rows.ty.shape) > 2
    x = n.emit(op.permute_dims(rows, to_last(len(rows.ty.shape)))) if images else rows
    found = []
    for e, expert in enumerate(experts):
        bind_rows(n, expert, 0, routes.counts[e])
        part = Part(n, expert, expert.inputs[0].type, expert.outputs[0].type, last=images)
        found.append(part.of_destination(routes, e, x))
    made = _joined(n, found)
    rank = len(made.ty.shape)
    if not images or rank < 3:
        return _weighed(n, made, routes.slot, weights)
    total = _weighed(n, n.emit(op.permute_dims(made, to_last(rank))), routes.slot, weights)
    return n.emit(op.permute_dims(total, to_first(rank)))


def _joined(n: TvmNode, parts: list[Any]) -> Any:
    """By eights, since one kernel looks for its place among all of its operands."""
    while len(parts) > 1:
        groups = [parts[i : i + 8] for i in range(0, len(parts), 8)]
        parts = [g[0] if len(g) == 1 else n.emit(op.concat(g, axis=0)) for g in groups]
    return parts[0]


def alike(experts: Sequence[Graph]) -> bool:
    """Whether all experts are the same but for their weights, and can run as one."""
    first = experts[0]
    x = first.inputs[0]
    if (
        x.type.rank != 2
        or row_symbol(first) is None
        or not by_row(first, 1)
        or not all(map(_runs_grouped, first.nodes))
    ):
        return False
    return all(_same_but_for_weights(first, other) for other in experts[1:])


def _runs_grouped(node: Node) -> bool:
    if node.op is LINEAR:
        return node.inputs[0].type.rank == 2 and node.inputs[0].type.dtype == "f32"
    if node.op.category == "index":  # it is checked, and what is behind the last row points anywhere
        return False
    return not node.weights and not node.regions and node.op.name in LOWERINGS


def _same_but_for_weights(a: Graph, b: Graph) -> bool:
    """Whether two graphs have the same nodes in the same order, on the same values."""
    if len(a.nodes) != len(b.nodes):
        return False
    twin: dict[Value, Value] = dict(zip(a.inputs, b.inputs, strict=True))
    for left, right in zip(a.nodes, b.nodes, strict=True):
        if left.op is not right.op or left.params != right.params or len(left.inputs) != len(right.inputs):
            return False
        if any(twin[v] is not w for v, w in zip(left.inputs, right.inputs, strict=True)):
            return False
        if {k: p.type for k, p in left.weights.items()} != {k: p.type for k, p in right.weights.items()}:
            return False
        twin.update(zip(left.outputs, right.outputs, strict=True))
    return [twin[v] for v in a.outputs] == b.outputs


@dataclass
class _Grouped:
    """All experts at once."""

    n: TvmNode
    experts: Sequence[Graph]
    rows: Any
    index: Any
    capacity: float | None

    def run(self) -> tuple[Any, Any]:
        """What the experts make of the rows in their order [M, …], and where each row's result stands [R, k]."""
        n, bb, expert, count = self.n, self.n.lowerer.bb, self.experts[0], len(self.experts)
        most = self.most()
        routed = bb.emit_te(
            lambda index: equations.route(index, count, self.capacity, most), self.index, primfunc_name_hint="route"
        )
        self.order, _, self.starts, slot, self.group = (n.emit(relax.TupleGetItem(routed, i)) for i in range(5))
        formal, *captured = expert.inputs
        bind_rows(n, expert, 0, most)
        values = n.lowerer.values
        values.update(zip(captured, n.args[len(n.args) - n.node.captures :], strict=True))
        if formal in expert.outputs or any(user.op is not LINEAR for user in formal.uses):
            values[formal] = n.emit(op.take(self.rows, self.order, 0, mode="clip"))
        for i, node in enumerate(expert.nodes):
            if node.op is LINEAR:
                values[node.output] = self.linear(node, [e.nodes[i] for e in self.experts])
            else:
                n.lowerer.node(node)
        return values[expert.outputs[0]], slot

    def most(self) -> Any:
        """No more rows than this are sent anywhere, those sent twice counted twice: an int, or a variable."""
        p, bb, experts = self.n.p, self.n.lowerer.bb, len(self.experts)
        count, k = (s if isinstance(s, int) else _int(s) for s in self.index.ty.shape)
        most = count * k
        if p.capacity is not None and p.capacity * p.top_k < k:  # at least ceil(…), in whole numbers
            share = Fraction(repr(p.capacity)) * p.top_k / experts
            each = (tirx.floordiv if isinstance(count, tirx.Expr) else int.__floordiv__)(
                count * share.numerator, share.denominator
            )
            most = (tirx.min if isinstance(count, tirx.Expr) else min)(most, (each + 1) * experts)
        if isinstance(most, int):
            return most
        variable = tirx.Var(f"rows{self.n.lowerer.fresh()}", "int64")
        bb.match_cast(self.n.emit(relax.ShapeExpr([most])), relax.ShapeType([variable]))
        return variable

    def linear(self, node: Node, twins: Sequence[Node]) -> Any:
        """A layer of all experts: `node`, which is the first one's, and those of the others."""
        n, bb, weights = self.n, self.n.lowerer.bb, self.n.lowerer.weights
        formal = node.inputs[0] is self.experts[0].inputs[0]
        x, order = (self.rows, [self.order]) if formal else (n.lowerer.values[node.inputs[0]], [])
        stacked = np.stack([weights[t.weights["weight"].name].T for t in twins])
        bias = np.zeros((len(twins), stacked.shape[-1]), stacked.dtype)
        if "bias" in node.weights:
            bias = np.stack([weights[t.weights["bias"].name] for t in twins])
        return bb.emit_te(
            equations.grouped_linear,
            x,
            self.starts,
            self.group,
            n.lowerer.constant(stacked),
            n.lowerer.constant(bias),
            *order,
            primfunc_name_hint="grouped_linear",
            primfunc_attrs={MARK: True},
        )


def _int(size: Any) -> Any:
    """A size as a number where it is one."""
    return int(size.value) if isinstance(size, tirx.IntImm) else size
