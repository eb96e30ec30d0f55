"""Convolutions, pools and upsampling over one to three spatial axes."""

from __future__ import annotations

from typing import Any

from archc.backends.torch.codegen import TorchNode, lowering
from archc.backends.torch.lowerings.linear import dequantised
from archc.backends.torch.text import quoted
from archc.ir.ops.convolution import conv_geometry, conv_transpose_geometry, per_axis
from archc.ir.ops.pool import pool_geometry
from archc.ir.types import FLOATS


def _rank(n: TorchNode) -> int:
    """The number of spatial axes."""
    return n.node.operands[0].type.rank - 2


def _one(values: tuple[int, ...]) -> str:
    """One number where all axes agree."""
    return str(values[0] if len(set(values)) == 1 else values)


def _options(defaults: dict[str, int], **values: tuple[int, ...]) -> str:
    return "".join(f", {k}={_one(v)}" for k, v in values.items() if set(v) != {defaults[k]})


_CONV = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


@lowering("conv", "quantized_conv")
def _(n: TorchNode) -> str:
    kernel, stride, dilation, pads = zip(*conv_geometry(n.p, _rank(n)), strict=True)
    x, padding = n.x, tuple(before for before, _ in pads)
    if n.p.causal:  # torch pads both sides alike, and counts widths from the last axis
        widths = tuple(w for before, after in reversed(pads) for w in (before, after))
        x, padding = f"F.pad({x}, {widths})", (0,) * len(kernel)
    options = _options(_CONV, stride=stride, padding=padding, dilation=dilation, groups=(n.p.groups,))
    weight = n.weight if n.node.op.name == "conv" else dequantised(n)
    return f"F.conv{_rank(n)}d({x}, {weight}, {n.bias}{options})"


@lowering("conv_transpose")
def _(n: TorchNode) -> str:
    _, stride, padding, extra, dilation = zip(*conv_transpose_geometry(n.p, _rank(n)), strict=True)
    options = _options(
        _CONV, stride=stride, padding=padding, output_padding=extra, groups=(n.p.groups,), dilation=dilation
    )
    return f"F.conv_transpose{_rank(n)}d({n.x}, {n.weight}, {n.bias}{options})"


@lowering("max_pool", "avg_pool")
def _(n: TorchNode) -> str:
    kernel, stride, padding, dilation = zip(*pool_geometry(n.p, _rank(n)), strict=True)
    options = f", {_one(stride)}" if stride != kernel else ""
    options += _options(_CONV, padding=padding, dilation=dilation) + ", ceil_mode=True" * n.p.ceil_mode
    if n.node.op.name == "avg_pool" and not n.p.count_include_pad:
        options += ", count_include_pad=False"
    return f"F.{n.node.op.name}{_rank(n)}d({n.x}, {_one(kernel)}{options})"


@lowering("adaptive_avg_pool")
def _(n: TorchNode) -> str:
    return f"F.adaptive_avg_pool{_rank(n)}d({n.x}, {per_axis(n.p.size, _rank(n), 'size')})"


@lowering("global_avg_pool", "global_max_pool")
def _(n: TorchNode) -> str:
    axes: Any = tuple(range(2, 2 + _rank(n)))
    function = "mean" if n.node.op.name == "global_avg_pool" else "amax"
    return f"{n.x}.{function}(dim={_one(axes)}{', keepdim=True' * n.p.keepdim})"


@lowering("upsample")
def _(n: TorchNode) -> str:
    factors = per_axis(n.p.factor, _rank(n), "factor")
    if n.node.operands[0].type.dtype not in FLOATS:  # torch interpolates floats only
        return n.x + "".join(f".repeat_interleave({f}, dim={i})" for i, f in enumerate(factors, 2) if f != 1)
    mode = n.p.mode if n.p.mode == "nearest" else {1: "linear", 2: "bilinear", 3: "trilinear"}[_rank(n)]
    corners = ", align_corners=True" * n.p.align_corners
    return f"F.interpolate({n.x}, scale_factor={_one(factors)}, mode={quoted(mode)}{corners})"
