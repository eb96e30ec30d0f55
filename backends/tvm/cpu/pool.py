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


def adaptive_average(builder: relax.BlockBuilder, x: relax.Expr, extents: Sequence[Expr]) -> relax.Expr:
    """x [n, *s, c] to [n, *extents, c]: the mean over [floor(i s / e), ceil((i + 1) s / e))."""

    def equation(x: te.Tensor) -> te.Tensor:
        n, *spatial, channels = x.shape
        # the longest window; shorter ones skip their last tap
        longest = [
            tirx.floordiv(s + e - 1, e) + (0 if _divides(s, e) else 1) for s, e in zip(spatial, extents, strict=True)
        ]
        taps = [te.reduce_axis((0, k), name="tap") for k in longest]

        def start(p: Expr, s: Expr, e: Expr) -> Expr:
            return tirx.floordiv(p * s, e)

        def end(p: Expr, s: Expr, e: Expr) -> Expr:
            return tirx.floordiv((p + 1) * s + e - 1, e)

        def window(*at: Expr) -> Expr:
            batch, *place, c = at
            sides = list(zip(place, spatial, extents, taps, strict=True))
            where = [start(p, s, e) + t for p, s, e, t in sides]
            value = x[(batch, *where, c)]
            inside = [w < end(p, s, e) for w, (p, s, e, _) in zip(where, sides, strict=True) if not _divides(s, e)]
            if inside:
                value = tirx.if_then_else(tirx.all(*inside), value, tirx.const(0.0, x.dtype))
            return te.sum(value, axis=taps)

        total = te.compute((n, *extents, channels), window, name="window")

        def mean(*at: Expr) -> Expr:
            count: Expr = index(1)
            for p, s, e in zip(at[1:-1], spatial, extents, strict=True):
                count = count * (end(p, s, e) - start(p, s, e))
            return total(*at) / tirx.Cast(x.dtype, count)

        return te.compute(total.shape, mean, name="average")

    return builder.call_te(equation, x, primfunc_name_hint="adaptive_average")


def _divides(extent: Expr, parts: Expr) -> bool:
    if int(parts) == 1:
        return True
    return isinstance(extent, tirx.IntImm) and int(extent) % int(parts) == 0
