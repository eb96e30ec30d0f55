"""Transposed convolutions: the gradients of convolutions, which enlarge images."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from archc.backends.tvm.cpu.conv import Window, attributes_of, block_of, convolution, pack_filters, padded_input
from archc.backends.tvm.cpu.loops import Machine
from archc.backends.tvm.cpu.phases import Phases, by_phase

Expr = Any


def as_convolution(weight: np.ndarray, attributes: Any) -> tuple[np.ndarray, Window] | None:
    """Relax's transposed convolution by `weight` [I, O / groups, *k] as a convolution by the mirrored kernel
    [O, I / groups, *k] over an input spread by the stride; None where padding beyond the kernel crops the result.
    """
    inputs, outputs, *kernel = weight.shape
    rank, groups = len(kernel), int(attributes.groups)
    mirrored = np.flip(weight, axis=tuple(range(2, 2 + rank)))
    grouped = mirrored.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    filters = np.ascontiguousarray(grouped.reshape(groups * outputs, inputs // groups, *kernel))
    padding = [int(p) for p in attributes.padding]
    reach = [(k - 1) * int(d) for k, d in zip(kernel, attributes.dilation, strict=True)]
    extra = [int(p) for p in attributes.output_padding]
    before = tuple(r - p for r, p in zip(reach, padding[:rank], strict=True))
    after = tuple(r - p + e for r, p, e in zip(reach, padding[rank:], extra, strict=True))
    if min((*before, *after)) < 0:
        return None
    window = Window(
        strides=(1,) * rank,
        before=before,
        after=after,
        dilation=tuple(int(d) for d in attributes.dilation),
        spread=tuple(int(s) for s in attributes.strides),
    )
    return filters, window


def transposed_convolution(
    builder: relax.BlockBuilder, x: relax.Expr, weight: np.ndarray, window: Window, groups: int, machine: Machine
) -> relax.Expr:
    """`convolution` of a spread input, without multiplying by the zeros between (dilated and depthwise ones do)."""
    outputs, inputs, *kernel = weight.shape
    if all(s == 1 for s in window.spread) or any(d > 1 for d in window.dilation) or (groups == outputs and inputs == 1):
        return convolution(builder, x, weight, window, groups, machine)
    own = outputs // groups
    block = block_of(own, machine)
    phases = [Phases.of(*at) for at in zip(kernel, window.spread, window.before, strict=True)]
    packed = pack_filters(by_phase(weight, phases), groups, block)
    once = (1,) * len(kernel)
    plain = Window(
        strides=once,
        before=tuple(p.before for p in phases),
        after=tuple(p.after(zeros) for p, zeros in zip(phases, window.after, strict=True)),
        dilation=once,
        spread=once,
    )

    def equation(x: te.Tensor, packed: te.Tensor) -> te.Tensor:
        padded = padded_input(x, plain)
        n, *spatial, _ = x.shape
        sides = zip(spatial, kernel, window.spread, window.before, window.after, strict=True)
        extents = [(s - 1) * stride + lo + hi - k + 2 for s, k, stride, lo, hi in sides]
        taps = [te.reduce_axis((0, p.most), name="tap") for p in phases]
        channel = te.reduce_axis((0, inputs), name="channel")

        def term(*at: Expr) -> Expr:
            batch, *place, o = at
            rest = [tirx.indexmod(p, phase.stride) for p, phase in zip(place, phases, strict=True)]
            where = [
                tirx.indexdiv(p, phase.stride) + t + phase.shift(r)
                for p, t, phase, r in zip(place, taps, phases, rest, strict=True)
            ]
            group, inside = tirx.indexdiv(o, own), tirx.indexmod(o, own)
            column = (group, tirx.indexdiv(inside, block), *rest, *taps, channel, tirx.indexmod(inside, block))
            return te.sum(padded[(batch, *where, group * inputs + channel)] * packed[column], axis=[*taps, channel])

        attributes = {
            "archc.kernel": "conv",
            "own": own,
            "taps": kernel,
            "phases": list(window.spread),
            "zeros": list(window.before),
            **attributes_of(plain),
        }
        return te.compute((n, *extents, outputs), term, name="conv", attrs=attributes)

    return builder.call_te(
        equation, x, relax.const(packed), primfunc_name_hint="conv_transposed", primfunc_attrs={"op_pattern": 4}
    )
