"""Arithmetic, comparisons and activations, element by element.

The kernels of `backends/tvm/cpu` give `maximum` and `minimum` PyTorch's NaN; Relax alone would drop it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.op import OpDef
from archc.ir.ops import activations as act
from archc.ir.ops import elementwise as ew
from archc.ir.ops.shape import CAST, IDENTITY
from archc.ir.types import FLOATS, NUMPY_NAMES

op = relax.op


def _plain(table: dict[OpDef[Any], Callable[..., Any]]) -> None:
    """Ops that Relax has under another name."""
    for definition, function in table.items():
        lowering(definition)(partial(_apply, function))


def _apply(function: Callable[..., Any], n: TvmNode) -> Any:
    return function(*n.args)


_plain(
    {
        ew.ADD: op.add,
        ew.SUB: op.subtract,
        ew.MUL: op.multiply,
        ew.DIV: op.divide,
        ew.POW: op.power,
        ew.MINIMUM: op.minimum,
        ew.MAXIMUM: op.maximum,
        ew.LT: op.less,
        ew.LE: op.less_equal,
        ew.GT: op.greater,
        ew.GE: op.greater_equal,
        ew.LOGICAL_AND: op.logical_and,
        ew.LOGICAL_OR: op.logical_or,
        ew.WHERE: op.where,
        ew.NEG: op.negative,
        ew.ABS: op.abs,
        ew.EXP: op.exp,
        ew.LOG: op.log,
        ew.SQRT: op.sqrt,
        ew.RSQRT: op.rsqrt,
        ew.SIN: op.sin,
        ew.COS: op.cos,
        ew.ERF: op.erf,
        ew.FLOOR: op.floor,
        ew.CEIL: op.ceil,
        act.RELU: op.nn.relu,
        act.SIGMOID: op.sigmoid,
        act.SILU: op.nn.silu,
        act.TANH: op.tanh,
        IDENTITY: lambda x: x,
        act.DROPOUT: lambda x: x,  # an artifact does not train
    }
)


@lowering(ew.EQ)
def _eq(n: TvmNode) -> Any:
    if n.node.inputs[0].type.dtype != "bool":
        return op.equal(*n.args)
    return op.equal(*(n.emit(number(n, x, "int8")) for x in n.args))  # LLVM compares bools as floats


@lowering(ew.NE)
def _ne(n: TvmNode) -> Any:
    return _no(n, _eq(n))  # TVM's own is false where one side is NaN


@lowering(ew.LOGICAL_NOT)
def _logical_not(n: TvmNode) -> Any:
    return _no(n, n.x)


def _no(n: TvmNode, x: Any) -> Any:
    """By way of a number: TVM would turn `not (a < b)` into `a >= b`, which is another thing for NaN."""
    return op.equal(n.emit(number(n, n.emit(x), "int8")), n.const(0, "int8"))


def number(n: TvmNode, x: Any, dtype: str) -> Any:
    """1 for true and 0 for false; a choice, since TVM cannot convert vectors of bools."""
    return op.where(x, n.const(1, dtype), n.const(0, dtype))


@lowering(ew.SQUARE)
def _square(n: TvmNode) -> Any:
    return op.multiply(n.x, n.x)


@lowering(ew.RECIPROCAL)
def _reciprocal(n: TvmNode) -> Any:
    return op.divide(n.const(1), n.x)


@lowering(ew.SIGN)
def _sign(n: TvmNode) -> Any:
    zero, one = n.const(0), n.const(1)
    return op.subtract(op.where(op.greater(n.x, zero), one, zero), op.where(op.less(n.x, zero), one, zero))


@lowering(ew.EXPM1)
def _expm1(n: TvmNode) -> Any:
    return _in_float32(n, n.x, _expm1_of)


@lowering(ew.LOG1P)
def _log1p(n: TvmNode) -> Any:
    return _in_float32(n, n.x, _log1p_of)


def _in_float32(n: TvmNode, x: Any, function: Callable[[TvmNode, Any], Any]) -> Any:
    """`function(n, x)`; of half floats by way of float32, since it subtracts what is nearly equal."""
    if n.dtype not in ("float16", "bfloat16"):
        return function(n, x)
    return op.astype(n.emit(function(n, n.emit(op.astype(x, "float32")))), n.dtype)


def _expm1_of(n: TvmNode, x: Any) -> Any:
    """Kahan: `(u - 1) x / log u` with `u = exp x` is precise near 0; `u - 1` is elsewhere."""
    one = n.const(1, str(x.ty.dtype))
    u = n.emit(op.exp(x))
    less = n.emit(op.subtract(u, one))
    precise = op.divide(op.multiply(less, x), op.log(u))
    near = op.less_equal(op.abs(x), one)  # not so for NaN
    return op.where(op.equal(u, one), x, op.where(near, precise, less))


def _log1p_of(n: TvmNode, x: Any) -> Any:
    """Kahan: `log(u) (x / (u - 1))` with `u = 1 + x`."""
    dtype = str(x.ty.dtype)
    one = n.const(1, dtype)
    u = n.emit(op.add(x, one))
    log = n.emit(op.log(u))
    precise = op.multiply(log, op.divide(x, op.subtract(u, one)))
    infinite = op.equal(u, n.const(float("inf"), dtype))
    return op.where(op.equal(u, one), x, op.where(infinite, log, precise))


@lowering(ew.CLAMP)
def _clamp(n: TvmNode) -> Any:
    x = n.x
    if n.p.min is not None:
        x = op.maximum(x, n.const(n.p.min))
    return x if n.p.max is None else op.minimum(x, n.const(n.p.max))


@lowering(act.RELU6)
def _relu6(n: TvmNode) -> Any:
    return op.minimum(op.maximum(n.x, n.const(0)), n.const(6))


@lowering(act.LEAKY_RELU)
def _leaky_relu(n: TvmNode) -> Any:
    return op.where(op.greater(n.x, n.const(0)), n.x, op.multiply(n.x, n.const(n.p.negative_slope)))


@lowering(act.PRELU)
def _prelu(n: TvmNode) -> Any:
    slope = n.array("weight")
    assert slope is not None
    rank = n.type.rank
    shape = (1,) * rank if slope.size == 1 else (1, slope.size) + (1,) * (rank - 2)
    return op.where(op.greater(n.x, n.const(0)), n.x, op.multiply(n.x, n.const(slope.reshape(shape))))


@lowering(act.ELU)
def _elu(n: TvmNode) -> Any:
    negative = op.multiply(n.const(n.p.alpha), n.emit(_in_float32(n, n.emit(op.minimum(n.x, n.const(0))), _expm1_of)))
    return op.where(op.greater(n.x, n.const(0)), n.x, negative)


@lowering(act.GELU)
def _gelu(n: TvmNode) -> Any:
    return op.nn.gelu_tanh(n.x) if n.p.approximate == "tanh" else op.nn.gelu(n.x)


@lowering(act.SOFTPLUS)
def _softplus(n: TvmNode) -> Any:
    scaled = n.emit(op.multiply(n.x, n.const(n.p.beta)))
    # log(1 + e^z) = max(z, 0) + log1p(e^-|z|)
    rest = _in_float32(n, n.emit(op.exp(op.negative(op.abs(scaled)))), _log1p_of)
    soft = op.add(op.maximum(scaled, n.const(0)), rest)
    return op.where(op.greater(scaled, n.const(n.p.threshold)), n.x, op.divide(soft, n.const(n.p.beta)))


@lowering(act.SOFTMAX)
def _softmax(n: TvmNode) -> Any:
    return op.nn.softmax(n.x, axis=n.p.axis)


@lowering(act.LOG_SOFTMAX)
def _log_softmax(n: TvmNode) -> Any:
    return op.nn.log_softmax(n.x, axis=n.p.axis)


@lowering(CAST)
def _cast(n: TvmNode) -> Any:
    source, target = n.node.inputs[0].type.dtype, n.p.dtype
    if source == target:
        return n.x
    if target == "bool":
        return _no(n, op.equal(n.x, n.const(0, NUMPY_NAMES[source])))
    if source == "bool":
        return number(n, n.x, NUMPY_NAMES[target])
    if source in FLOATS and target == "i8":  # out of range is undefined in C; go through a wide integer as PyTorch does
        return op.astype(op.astype(n.x, "int64"), "int8")
    return op.astype(n.x, NUMPY_NAMES[target])
