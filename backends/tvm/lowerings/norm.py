"""Normalisations; the others are decomposed to these."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.dims import floor_div, product
from archc.ir.ops.norm import BATCH_NORM, GROUP_NORM, INSTANCE_NORM, LAYER_NORM, RMS_NORM

op = relax.op


@lowering(BATCH_NORM)
def _batch_norm(n: TvmNode) -> Any:
    """A factor and a term for each channel, made while compiling."""
    mean, variance = n.array("running_mean"), n.array("running_var")
    assert mean is not None
    assert variance is not None
    scale, shift = n.array("weight"), n.array("bias")
    exact = np.promote_types(np.float64, mean.dtype)
    factor = (1 if scale is None else scale.astype(exact)) / np.sqrt(variance.astype(exact) + n.p.eps)
    term = (0 if shift is None else shift.astype(exact)) - mean.astype(exact) * factor
    shape = (1, -1, *[1] * (n.type.rank - 2))
    scaled = n.emit(op.multiply(n.x, n.const(factor.reshape(shape))))
    return op.add(scaled, n.const(term.reshape(shape)))


@lowering(LAYER_NORM)
def _layer_norm(n: TvmNode) -> Any:
    if n.lowerer.kind == "cpu":
        size = n.node.inputs[0].type.shape[-1]
        if isinstance(size, int):
            return op.nn.layer_norm(n.x, **_affine(n, size), axes=-1, epsilon=n.p.eps)
    return _shaped(n, _unit(n, _centred(n, n.x)), 0)


@lowering(GROUP_NORM)
def _group_norm(n: TvmNode) -> Any:
    return _grouped(n, n.p.groups)


@lowering(INSTANCE_NORM)
def _instance_norm(n: TvmNode) -> Any:
    return _grouped(n, n.type.shape[1])


def _grouped(n: TvmNode, groups: Any) -> Any:
    batch, channels, *space = n.type.shape
    if n.lowerer.kind == "cpu" and n.type.dtype in ("f32", "f64") and space and isinstance(channels, int):
        axes = list(range(2, n.type.rank))
        return op.nn.group_norm(
            n.x, **_affine(n, channels), num_groups=groups, channel_axis=1, axes=axes, epsilon=n.p.eps
        )
    rows = op.reshape(n.x, n.shape((batch, groups, floor_div(channels, groups) * product(space))))
    unit = n.emit(_unit(n, _centred(n, n.emit(rows))))
    return _shaped(n, op.reshape(unit, n.shape(n.type.shape)), len(space))


def _affine(n: TvmNode, size: int) -> dict[str, Any]:
    """Scale and shift as Relax's norms take them, with what fills the place of one that is not there."""
    gamma, beta = n.weight("weight"), n.weight("bias")
    return {
        "gamma": n.const(np.ones(size)) if gamma is None else gamma,
        "beta": n.const(np.zeros(size)) if beta is None else beta,
        "scale": gamma is not None,
        "center": beta is not None,
    }


@lowering(RMS_NORM)
def _rms_norm(n: TvmNode) -> Any:
    size = n.node.inputs[0].type.shape[-1]
    if n.lowerer.kind == "cpu" and isinstance(size, int):
        weight = n.weight("weight")
        return op.nn.rms_norm(n.x, n.const(np.ones(size)) if weight is None else weight, axes=-1, epsilon=n.p.eps)
    return _shaped(n, _unit(n, n.x), 0)


def _centred(n: TvmNode, x: Any) -> Any:
    return n.emit(op.subtract(x, n.emit(op.mean(x, -1, keepdims=True))))


def _unit(n: TvmNode, x: Any) -> Any:
    """x by its root mean square over the last axis."""
    square = n.emit(op.mean(n.emit(op.multiply(x, x)), -1, keepdims=True))
    return op.multiply(x, n.emit(op.rsqrt(n.emit(op.add(square, n.const(n.p.eps))))))


def _shaped(n: TvmNode, x: Any, trailing: int) -> Any:
    """x scaled and shifted, with `trailing` axes behind that of the weights."""
    for role, function in (("weight", op.multiply), ("bias", op.add)):
        weight = n.weight(role)
        if weight is not None:
            wide = n.emit(op.expand_dims(weight, list(range(1, 1 + trailing)))) if trailing else weight
            x = function(n.emit(x), wide)
    return x
