"""Normalisations; the others are decomposed to these."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.ops.norm import BATCH_NORM, LAYER_NORM, RMS_NORM

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
            gamma, beta = n.weight("weight"), n.weight("bias")
            return op.nn.layer_norm(
                n.x,
                n.const(np.ones(size)) if gamma is None else gamma,
                n.const(np.zeros(size)) if beta is None else beta,
                axes=-1,
                epsilon=n.p.eps,
                scale=gamma is not None,
                center=beta is not None,
            )
    centred = n.emit(op.subtract(n.x, n.emit(op.mean(n.x, -1, keepdims=True))))
    return _scaled(n, centred)


@lowering(RMS_NORM)
def _rms_norm(n: TvmNode) -> Any:
    size = n.node.inputs[0].type.shape[-1]
    if n.lowerer.kind == "cpu" and isinstance(size, int):
        weight = n.weight("weight")
        return op.nn.rms_norm(n.x, n.const(np.ones(size)) if weight is None else weight, axes=-1, epsilon=n.p.eps)
    return _scaled(n, n.x)


def _scaled(n: TvmNode, x: Any) -> Any:
    """x by its root mean square, scaled and shifted."""
    square = n.emit(op.mean(n.emit(op.multiply(x, x)), -1, keepdims=True))
    y = op.multiply(x, n.emit(op.rsqrt(n.emit(op.add(square, n.const(n.p.eps))))))
    for role, function in (("weight", op.multiply), ("bias", op.add)):
        weight = n.weight(role)
        y = y if weight is None else function(n.emit(y), weight)
    return y
