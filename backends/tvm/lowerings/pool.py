"""Pooling over one to three axes. Windows that `ceil_mode` adds hang over padding that is written out."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.ops.pool import AVG_POOL, MAX_POOL, pool_geometry

op = relax.op
_MAX = (op.nn.max_pool1d, op.nn.max_pool2d, op.nn.max_pool3d)
_AVG = (op.nn.avg_pool1d, op.nn.avg_pool2d, op.nn.avg_pool3d)


def _padding(n: TvmNode) -> list[int]:
    """The padding before each axis, then behind: as much as the last window needs."""
    before, after = [], []
    sizes, windows = n.node.inputs[0].type.shape[2:], n.type.shape[2:]
    for size, count, row in zip(sizes, windows, pool_geometry(n.p, n.type.rank - 2), strict=True):
        kernel, stride, pad, dilation = row
        needed = (count - 1) * stride + dilation * (kernel - 1) + 1 - pad - size
        before.append(pad)
        after.append(max(0, needed) if n.p.ceil_mode and isinstance(needed, int) else pad)
    return before + after


def _pool(n: TvmNode, functions: Any, **options: Any) -> Any:
    kernels, strides, _, dilations = (list(c) for c in zip(*pool_geometry(n.p, n.type.rank - 2), strict=True))
    function = functions[n.type.rank - 3]
    return function(n.x, kernels, strides, _padding(n), dilations, **options)


@lowering(MAX_POOL)
def _max_pool(n: TvmNode) -> Any:
    return _pool(n, _MAX)


@lowering(AVG_POOL)
def _avg_pool(n: TvmNode) -> Any:
    mean = _pool(n, _AVG, count_include_pad=n.p.count_include_pad)
    if not (n.p.ceil_mode and n.p.count_include_pad):
        return mean
    # the padding counts, but not what a last window has beyond it
    counts = np.ones((1, 1))
    sizes, windows = n.node.inputs[0].type.shape[2:], n.type.shape[2:]
    rows = pool_geometry(n.p, n.type.rank - 2)
    for size, count, (kernel, stride, pad, _) in zip(sizes, windows, rows, strict=True):
        assert isinstance(size, int)
        assert isinstance(count, int)
        start = np.arange(count) * stride - pad
        counts = counts[..., None] * (np.minimum(start + kernel, size + pad) - start)
    whole = prod(kernel for kernel, *_ in rows)
    return mean if (counts == whole).all() else op.multiply(n.emit(mean), n.const(whole / counts))
