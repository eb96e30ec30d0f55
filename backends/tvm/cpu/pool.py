"""Pooling in channels-last layout: a vector of channels at a time, NaN kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx

from archc.backends.tvm.cpu.emit import index

Expr = Any


def pool(
    builder: relax.BlockBuilder,
    x: relax.Expr,
    kind: str,
    extents: Sequence[Expr],
    attributes: Any,
) -> relax.Expr:
    """x [n, *s, c] to [n, *extents, c]; `kind` is "max" or "avg", `attributes` those of the Relax operator."""
    size = [int(v) for v in attributes.pool_size]
    strides, dilation = [int(v) for v in attributes.strides], [int(v) for v in attributes.dilation]
    padding = [int(v) for v in attributes.padding]
    before, after = padding[: len(size)], padding[len(size) :]
    counts_padding = bool(attributes.count_include_pad)

    def equation(x: te.Tensor) -> te.Tensor:
        n, *spatial, channels = x.shape
        taps = [te.reduce_axis((0, k), name="tap") for k in size]
        outside = tirx.const(-math.inf if kind == "max" else 0.0, x.dtype)

        def window(*at: Expr) -> Expr:
            batch, *place, c = at
            where = [p * s + t * d - lo for p, s, t, d, lo in zip(place, strides, taps, dilation, before, strict=True)]
            value = x[(batch, *where, c)]
            if any(padding) or bool(attributes.ceil_mode):
                inside = [tirx.all(w >= 0, w < extent) for w, extent in zip(where, spatial, strict=True)]
                value = tirx.if_then_else(tirx.all(*inside), value, outside)
            return te.max(value, axis=taps) if kind == "max" else te.sum(value, axis=taps)

        pooled = te.compute((n, *extents, channels), window, name="window")
        if kind == "max":
            return pooled

        def mean(*at: Expr) -> Expr:
            count: Expr = index(1)
            for p, s, k, lo, hi, extent in zip(at[1:-1], strides, size, before, after, spatial, strict=True):
                start = p * s - lo
                end = tirx.min(start + k, extent + (hi if counts_padding else 0))
                count = count * (end - (start if counts_padding else tirx.max(start, index(0))))
            return pooled(*at) / tirx.Cast(x.dtype, count)

        return te.compute(pooled.shape, mean, name="average")

    return builder.call_te(equation, x, primfunc_name_hint=f"{kind}_pool")
