"""Reductions along axes."""

from __future__ import annotations

from typing import Any

from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.backends.tvm.lowerings.elementwise import number
from archc.ir.dims import product
from archc.ir.ops import reduce
from archc.ir.types import FLOATS

op = relax.op


def _reduction_axes(n: TvmNode) -> list[int]:
    return list(n.node.call.axes(n.p.axis))


def _operand(n: TvmNode) -> Any:
    """The operand in the result's dtype: sums of integers are made in i64."""
    source = n.node.inputs[0].type.dtype
    if source == "bool":
        return n.emit(number(n, n.x, n.dtype))
    return n.x if source in FLOATS else n.emit(op.astype(n.x, n.dtype))


@lowering(reduce.SUM)
def _sum(n: TvmNode) -> Any:
    return op.sum(_operand(n), _reduction_axes(n), n.p.keepdim)


@lowering(reduce.MEAN)
def _mean(n: TvmNode) -> Any:
    return op.mean(n.x, _reduction_axes(n), n.p.keepdim)


@lowering(reduce.MAX)
def _max(n: TvmNode) -> Any:
    return op.max(n.x, _reduction_axes(n), n.p.keepdim)


@lowering(reduce.MIN)
def _min(n: TvmNode) -> Any:
    return op.min(n.x, _reduction_axes(n), n.p.keepdim)


@lowering(reduce.CUMSUM)
def _cumsum(n: TvmNode) -> Any:
    return op.cumsum(_operand(n), axis=n.p.axis % n.type.rank, dtype=n.dtype)


@lowering(reduce.ANY, reduce.ALL)
def _any_all(n: TvmNode) -> Any:
    function = op.max if n.node.op is reduce.ANY else op.min
    found = n.emit(function(n.emit(number(n, n.x, "int8")), _reduction_axes(n), n.p.keepdim))
    return op.greater(found, n.const(0, "int8"))


@lowering(reduce.VAR)
def _var(n: TvmNode) -> Any:
    axes = _reduction_axes(n)
    centred = n.emit(op.subtract(n.x, n.emit(op.mean(n.x, axes, keepdims=True))))
    total = n.emit(op.sum(n.emit(op.multiply(centred, centred)), axes, n.p.keepdim))
    count = product(n.node.inputs[0].type.shape[a] for a in axes)
    if count - n.p.unbiased == 0:
        return op.multiply(total, n.const(float("nan")))
    divisor = n.size(count - n.p.unbiased)  # of an open size that is 0: 0 / 0, not 0 / -1
    return op.divide(total, divisor if isinstance(count, int) else n.emit(op.maximum(divisor, n.const(0))))


@lowering(reduce.ARGMAX)
def _argmax(n: TvmNode) -> Any:
    return first_extreme(n, n.x, n.p.axis, op.max, n.p.keepdim)


@lowering(reduce.ARGMIN)
def _argmin(n: TvmNode) -> Any:
    return first_extreme(n, n.x, n.p.axis, op.min, n.p.keepdim)


def first_extreme(n: TvmNode, x: Any, axis: int, function: Any, keepdim: bool) -> Any:
    """The index of the first largest (or smallest) element; NaN beats all, as in PyTorch."""
    source = n.node.inputs[0].type
    axis %= source.rank
    best = n.emit(function(x, axis, keepdims=True))
    hit = op.equal(x, best)
    if source.dtype in FLOATS:
        hit = op.logical_or(n.emit(hit), n.emit(n.isnan(x)))
    size = source.shape[axis]
    places = n.arange(size, axis, source.rank)
    return op.min(n.emit(op.where(n.emit(hit), places, n.size(size, "int64"))), axis, keepdims=keepdim)
