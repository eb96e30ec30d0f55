"""Convolutions and their transposes, over one to three axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.ops.convolution import CONV, CONV_TRANSPOSE, conv_geometry, conv_transpose_geometry

op = relax.op
_CONV = (op.nn.conv1d, op.nn.conv2d, op.nn.conv3d)
_CONV_TRANSPOSE = (op.nn.conv1d_transpose, op.nn.conv2d_transpose, op.nn.conv3d_transpose)


@lowering(CONV)
def _conv(n: TvmNode) -> Any:
    return convolved(n, n.weight("weight"))


def convolved(n: TvmNode, filters: Any, scale: Any = None) -> Any:
    """x convolved with `filters`, each channel times its `scale`, and the node's bias."""
    rank = n.type.rank - 2
    _, strides, dilations, pads = (list(column) for column in zip(*conv_geometry(n.p, rank), strict=True))
    padding = [before for before, _ in pads] + [after for _, after in pads]
    function = _CONV[rank - 1]
    y = function(n.x, filters, strides=strides, padding=padding, dilation=dilations, groups=n.p.groups)
    if scale is not None:
        y = op.multiply(n.emit(y), n.const(scale.reshape(1, -1, *[1] * rank)))
    return _biased(n, y)


def _biased(n: TvmNode, y: Any) -> Any:
    bias = n.array("bias")
    if bias is None:
        return y
    return op.add(n.emit(y), n.const(bias.reshape(1, -1, *[1] * (n.type.rank - 2))))


@lowering(CONV_TRANSPOSE)
def _conv_transpose(n: TvmNode) -> Any:
    rank = n.type.rank - 2
    rows = conv_transpose_geometry(n.p, rank)
    _, strides, padding, extra, dilations = (list(column) for column in zip(*rows, strict=True))
    reaches = [dilation * (kernel - 1) for kernel, _, _, _, dilation in rows]
    cropped = any(reach < pad for reach, pad in zip(reaches, padding, strict=True))
    # PyTorch takes an extra row beyond the stride where the dilation is larger still; TVM does not
    beyond = any(e >= stride for e, stride in zip(extra, strides, strict=True))
    if n.dtype != "float32" or cropped or beyond or n.lowerer.kind != "cpu":
        return _biased(n, _spread_and_convolve(n))
    y = _CONV_TRANSPOSE[rank - 1](
        n.x,
        n.weight("weight"),
        strides=strides,
        padding=padding * 2,
        output_padding=extra,
        dilation=dilations,
        groups=n.p.groups,
    )
    return _biased(n, y)


def _spread_and_convolve(n: TvmNode) -> Any:
    """The same by a convolution: the input spread by the stride, the kernel mirrored."""
    weight = n.array("weight")
    assert weight is not None
    rank, groups = n.type.rank - 2, n.p.groups
    inputs, outputs, *kernel = weight.shape
    mirrored = np.flip(weight, axis=tuple(range(2, 2 + rank))).reshape(groups, inputs // groups, outputs, *kernel)
    filters = mirrored.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *kernel)
    x, shape = n.x, list(n.node.inputs[0].type.shape)
    dilations = []
    for i, (k, stride, pad, extra, dilation) in enumerate(conv_transpose_geometry(n.p, rank)):
        axis, size, reach = 2 + i, shape[2 + i], dilation * (k - 1)
        dilations.append(dilation)
        if stride > 1:  # zeros between the elements
            apart = n.emit(op.reshape(x, n.shape([*shape[: axis + 1], 1, *shape[axis + 1 :]])))
            padded = n.emit(op.nn.pad(apart, _widths(len(shape) + 1, axis + 1, 0, stride - 1)))
            shape[axis] = size * stride
            x = n.emit(op.reshape(padded, n.shape(shape)))
        # behind the last element stand stride - 1 zeros already
        before, after = reach - pad, reach - pad + extra - (stride - 1)
        if before > 0 or after > 0:  # first, so that there is always enough to cut off
            x = n.emit(op.nn.pad(x, _widths(len(shape), axis, max(0, before), max(0, after))))
            shape[axis] = shape[axis] + max(0, before) + max(0, after)
        low, high = max(0, -before), shape[axis] - max(0, -after)
        if low or high != shape[axis]:
            x = n.emit(n.piece(x, axis, low, high))
            shape[axis] = high - low
    return _CONV[rank - 1](x, n.const(filters), dilation=dilations, groups=groups)


def _widths(rank: int, axis: int, before: int, after: int) -> Sequence[int]:
    widths = [0] * (2 * rank)
    widths[2 * axis], widths[2 * axis + 1] = before, after
    return widths
