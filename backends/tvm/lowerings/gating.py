"""Which experts get which rows, and with what weight: the gates of `moe`."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from archc.backends.tvm import equations
from archc.backends.tvm.lower import TvmNode
from archc.backends.tvm.lowerings.index import top_indices

op = relax.op


def gates(n: TvmNode, logits: Any, experts: int) -> tuple[Any, Any, float | None]:
    """From logits [R, E]: the experts of each row [R, k] (i64, -1 for none), their gates [R, k], and what share of the
    rows the first to come may take, where that is limited.

    Gates that sum to 1 over the chosen are the softmax of logarithms of scores, in which nothing underflows.
    """
    p = n.p
    if p.temperature != 1:
        logits = n.emit(op.divide(logits, n.const(p.temperature, str(logits.ty.dtype))))
    logs = n.emit(_log_sigmoid(n, logits) if p.score == "sigmoid" else op.nn.log_softmax(logits, axis=-1))
    if p.routing == "expert":
        return (*_chosen_by_experts(n, logits if p.score == "sigmoid" else logs, logs, experts), None)
    index = top_indices(n, logits, p.top_k)
    chosen = n.emit(op.gather_elements(logs, index, 1))
    return index, n.emit(op.nn.softmax(chosen, axis=-1) if p.normalize else op.exp(chosen)), p.capacity


def _log_sigmoid(n: TvmNode, x: Any) -> Any:
    """min(x, 0) - log(1 + e^-|x|)."""
    zero, one = (n.const(value, str(x.ty.dtype)) for value in (0, 1))
    rest = op.log(op.add(one, op.exp(op.negative(op.abs(x)))))
    return op.subtract(op.minimum(x, zero), rest)


def _chosen_by_experts(n: TvmNode, order: Any, logs: Any, experts: int) -> tuple[Any, Any]:
    """Each expert takes the rows of which `order` [R, E] is largest; k is then the number of experts."""
    each = n.emit(op.permute_dims(order, [1, 0]))
    place = n.lowerer.bb.emit_te(lambda x: equations.rank(x, True, True), each, primfunc_name_hint="rank")
    place = n.emit(op.permute_dims(place, [1, 0]))
    share = n.p.capacity, n.p.top_k, experts
    index = n.lowerer.bb.emit_te(lambda place: _served(place, *share), place, primfunc_name_hint="served")
    if not n.p.normalize:
        return index, n.emit(op.exp(logs))
    dtype = str(logs.ty.dtype)
    is_served = n.emit(op.greater_equal(index, n.const(0, "int64")))
    lowest = n.const(tirx.min_value(dtype).value, dtype)
    return index, n.emit(op.nn.softmax(n.emit(op.where(is_served, logs, lowest)), axis=-1))


def _served(place: te.Tensor, capacity: float, top_k: int, experts: int) -> te.Tensor:
    """[R, E]: the expert, where the row's place [R, E] in its order is within its capacity, else -1."""
    rows = tirx.Cast("float64", place.shape[0])
    limit = tirx.const(capacity, "float64") * rows * tirx.const(float(top_k), "float64")
    limit = limit / tirx.const(float(experts), "float64")
    return te.compute(
        place.shape,
        lambda r, e: tirx.Select(tirx.Cast("float64", place(r, e)) < limit, e, tirx.IntImm("int64", -1)),
        name="served",
    )
