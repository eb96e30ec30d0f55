"""Normalisations as tensor equations: mean and variance in two passes (E[x²] − E[x]² cancels), then scale and shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx

from archc.backends.tvm.cpu.emit import product

Expr = Any


def layer_norm(
    builder: relax.BlockBuilder,
    x: relax.Expr,
    scale: relax.Expr | None,
    shift: relax.Expr | None,
    count: int,
    epsilon: float,
    *,
    centre: bool = True,
) -> relax.Expr:
    """Over the last `count` axes; without `centre` it is RMS norm. `scale`, `shift`: over those axes."""

    def equation(x: te.Tensor, *affine: te.Tensor) -> te.Tensor:
        lead, inner = list(x.shape[: len(x.shape) - count]), list(x.shape[len(x.shape) - count :])
        whole = _float(product(inner), x.dtype)
        mean = _mean(x, lead, inner, whole) if centre else None

        def deviation(lead_at: Sequence[Expr], at: Sequence[Expr]) -> Expr:
            value = x[(*lead_at, *at)]
            return value if mean is None else value - mean(*lead_at)

        axes = [te.reduce_axis((0, d), name="k") for d in inner]
        squares = te.compute(
            lead, lambda *i: te.sum(deviation(i, axes) * deviation(i, axes), axis=axes), name="squares"
        )

        def normal(*i: Expr) -> Expr:
            lead_at, at = i[: len(lead)], i[len(lead) :]
            value = deviation(lead_at, at) * tirx.rsqrt(squares(*lead_at) / whole + _float(epsilon, x.dtype))
            terms = list(affine)
            if scale is not None:
                value = value * terms.pop(0)(*at)
            return value if shift is None else value + terms.pop(0)(*at)

        return te.compute(x.shape, normal, name="normal")

    given = [a for a in (scale, shift) if a is not None]
    return builder.call_te(equation, x, *given, primfunc_name_hint="layer_norm" if centre else "rms_norm")


def group_norm(
    builder: relax.BlockBuilder,
    x: relax.Expr,
    scale: relax.Expr | None,
    shift: relax.Expr | None,
    groups: int,
    channel_axis: int,
    epsilon: float,
) -> relax.Expr:
    """Over the channels of a group and all axes but batch and channel; x is [n, c, *s] or [n, *s, c]."""

    def equation(x: te.Tensor, *affine: te.Tensor) -> te.Tensor:
        n, channels = x.shape[0], x.shape[channel_axis]
        each = channels // groups
        spatial = [d for axis, d in enumerate(x.shape) if axis not in (0, channel_axis)]
        last = channel_axis == len(x.shape) - 1
        whole = _float(product([*spatial, each]), x.dtype)

        def at(batch: Expr, group: Expr, own: Expr, place: Sequence[Expr]) -> Expr:
            channel = group * each + own
            return x[(batch, *place, channel)] if last else x[(batch, channel, *place)]

        def over() -> tuple[Any, list[Any]]:
            return te.reduce_axis((0, each), name="own"), [te.reduce_axis((0, d), name="k") for d in spatial]

        own, place = over()
        total = te.compute(
            (n, groups), lambda b, g: te.sum(at(b, g, own, place), axis=_ordered(own, place, last)), name="total"
        )
        mean = te.compute((n, groups), lambda b, g: total(b, g) / whole, name="mean")
        own2, place2 = over()

        def square(b: Expr, g: Expr) -> Expr:
            value = at(b, g, own2, place2) - mean(b, g)
            return te.sum(value * value, axis=_ordered(own2, place2, last))

        squares = te.compute((n, groups), square, name="squares")
        factor = te.compute(
            (n, groups),
            lambda b, g: tirx.rsqrt(squares(b, g) / whole + _float(epsilon, x.dtype)),
            name="factor",
        )

        def normal(*i: Expr) -> Expr:
            channel = i[channel_axis]
            group = tirx.indexdiv(channel, each)
            value = (x[i] - mean(i[0], group)) * factor(i[0], group)
            terms = list(affine)
            if scale is not None:
                value = value * terms.pop(0)(channel)
            return value if shift is None else value + terms.pop(0)(channel)

        return te.compute(x.shape, normal, name="normal")

    given = [a for a in (scale, shift) if a is not None]
    return builder.call_te(equation, x, *given, primfunc_name_hint="group_norm")


def _ordered(own: Any, place: list[Any], channels_last: bool) -> list[Any]:
    return [*place, own] if channels_last else [own, *place]


def _mean(x: te.Tensor, lead: list[Expr], inner: list[Expr], whole: Expr) -> te.Tensor:
    axes = [te.reduce_axis((0, d), name="k") for d in inner]
    total = te.compute(lead, lambda *i: te.sum(x[(*i, *axes)], axis=axes), name="total")
    return te.compute(lead, lambda *i: total(*i) / whole, name="mean")


def _float(value: Expr, dtype: str) -> Expr:
    return tirx.const(float(value), dtype) if isinstance(value, int | float) else tirx.Cast(dtype, value)
