"""Convolutions over one, two or three spatial axes, and the rearrangements that go with them."""

from __future__ import annotations

from typing import Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from archc.ir.dims import floor_div
from archc.ir.init import ZEROS, fan_in_uniform, fans
from archc.ir.op import BindError, Call, Dims, OpDef, Params, Weight, register


class ConvParams(Params):
    """`padding` defaults to "same" for odd kernels, `dilation * (kernel - 1) // 2`, and to 0 for even ones."""

    out: PositiveInt
    kernel: PositiveInt | tuple[PositiveInt, ...]
    stride: PositiveInt | tuple[PositiveInt, ...] = 1
    padding: NonNegativeInt | tuple[NonNegativeInt, ...] | None = None
    dilation: PositiveInt | tuple[PositiveInt, ...] = 1
    groups: PositiveInt = 1
    causal: bool = False
    bias: bool = True
    init: str | None = None

    @model_validator(mode="after")
    def _out_in_groups(self) -> Self:
        if self.out % self.groups:
            raise ValueError(f"out = {self.out} is not divisible by groups = {self.groups}")
        return self


def per_axis(value: int | tuple[int, ...], rank: int, what: str) -> tuple[int, ...]:
    """One number for every spatial axis."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise BindError("E0302", f"`{what}` needs {rank} numbers, one for each spatial axis", label=f"found {value}")
    return value


def conv_geometry(p: ConvParams, rank: int) -> list[tuple[int, int, int, tuple[int, int]]]:
    """(kernel, stride, dilation, (before, after)) for each spatial axis."""
    kernels, strides = per_axis(p.kernel, rank, "kernel"), per_axis(p.stride, rank, "stride")
    dilations = per_axis(p.dilation, rank, "dilation")
    given = None if p.padding is None else per_axis(p.padding, rank, "padding")
    rows = []
    for i, (k, s, dil) in enumerate(zip(kernels, strides, dilations, strict=True)):
        reach = dil * (k - 1)
        pad = given[i] if given else reach // 2 if k % 2 else 0
        rows.append((k, s, dil, (reach, 0) if p.causal else (pad, pad)))
    return rows


def _conv_sizes(call: Call[ConvParams], dims: Dims) -> Dims:
    space = dims["s"]
    assert isinstance(space, tuple)
    rows = conv_geometry(call.params, len(space))
    window = tuple(
        floor_div(size + before + after - dil * (k - 1) - 1, s) + 1
        for size, (k, s, dil, (before, after)) in zip(space, rows, strict=True)
    )
    return {"o": call.params.out // call.params.groups, "kernel": tuple(r[0] for r in rows), "window": window}


CONV = register(
    OpDef(
        name="conv",
        doc="Convolution (cross-correlation) over the axes behind the channel axis 1; one to three of them.",
        line="x:float[n, groups.i, *s!]; weight[groups.o, i, *kernel!] bias[groups.o] -> [n, groups.o, *window!]",
        params=ConvParams,
        sizes=_conv_sizes,
        weights={
            "weight": Weight(lambda p, shape: fan_in_uniform(fans(shape)[0]), main=True),
            "bias": Weight(ZEROS, when="bias"),
        },
        flops="contraction",
        example="conv(8, kernel = 3, groups = 2)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="convolution",
    )
)
