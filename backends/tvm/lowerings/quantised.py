"""Layers with quantised weights: the weights made floats in the network, and the plain layer on those.

Kernels for a CPU recognise this and read the codes themselves (`archc.backends.tvm.cpu.quantised`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.backends.tvm.lowerings.convolution import convolved
from archc.ir.ops.quantised import QUANTIZED_CONV, QUANTIZED_LINEAR, codes_shape, unpack

op = relax.op


def _codes(n: TvmNode) -> Any:
    """[out, inputs] as int8, one code each."""
    stored = n.array("weight")
    assert stored is not None
    out, *rest = codes_shape(n.node)
    return unpack(stored.reshape(out, -1), n.p.bits, int(np.prod(rest)))


@lowering(QUANTIZED_LINEAR)
def _quantized_linear(n: TvmNode) -> Any:
    """x times `(q - zero) * scale` [runs, inputs of a run, out]."""
    codes, scale, zero = _codes(n).T, n.array("scale"), n.array("zero")
    assert scale is not None
    inputs, out = codes.shape
    runs = scale.reshape(out, -1).shape[1]

    def spread(array: Any) -> Any:
        return n.const(array.reshape(out, runs, 1).transpose(1, 2, 0))

    weight = n.emit(op.astype(n.const(codes.reshape(runs, -1, out), "int8"), n.dtype))
    if zero is not None:
        weight = n.emit(op.subtract(weight, spread(zero)))
    weight = n.emit(op.multiply(weight, spread(scale)))
    y = n.emit(op.matmul(n.x, n.emit(op.reshape(weight, [inputs, out]))))
    bias = n.weight("bias")
    return y if bias is None else op.add(y, bias)


@lowering(QUANTIZED_CONV)
def _quantized_conv(n: TvmNode) -> Any:
    """A convolution with the codes, each channel then multiplied by its scale; in half precision the other way round,
    as sums of codes may be too large."""
    scale = n.array("scale")
    assert scale is not None
    shape = codes_shape(n.node)
    filters = n.emit(op.astype(n.const(_codes(n).reshape(shape), "int8"), n.dtype))
    if n.dtype in ("float32", "float64"):
        return convolved(n, filters, scale)
    return convolved(n, n.emit(op.multiply(filters, n.const(scale.reshape(-1, *[1] * (len(shape) - 1))))))
