"""Views, pieces, reductions and look-ups."""

from __future__ import annotations

from typing import Any

from archc.backends.torch.codegen import TorchNode, lowering
from archc.backends.torch.text import number, quoted
from archc.ir.types import FLOATS


def _axis(n: TorchNode) -> int:
    """The op's axis, counted from 0."""
    return n.node.call.axis(n.p.axis)


@lowering("identity")
def _(n: TorchNode) -> str:
    return n.x


@lowering("reshape")
def _(n: TorchNode) -> str:
    return f"{n.x}.reshape({', '.join(map(n.size, n.node.output.type.shape)) or '()'})"


@lowering("flatten")
def _(n: TorchNode) -> str:
    return f"{n.x}.flatten({n.p.from_}{f', {n.p.to}' if n.p.to != -1 else ''})"


@lowering("unflatten")
def _(n: TorchNode) -> str:
    return f"{n.x}.unflatten({_axis(n)}, {n.sizes(n.p.sizes)})"


@lowering("permute")
def _(n: TorchNode) -> str:
    return f"{n.x}.permute({', '.join(map(str, n.p.order)) or '()'})"


@lowering("transpose")
def _(n: TorchNode) -> str:
    return f"{n.x}.transpose({n.p.a}, {n.p.b})"


@lowering("expand")
def _(n: TorchNode) -> str:
    return f"{n.x}.expand({', '.join(map(n.size, n.p.shape)) or '()'})"


@lowering("squeeze")
def _(n: TorchNode) -> str:
    return f"{n.x}.squeeze({n.p.axis})"


@lowering("unsqueeze")
def _(n: TorchNode) -> str:
    axes = (n.p.axis,) if isinstance(n.p.axis, int) else n.p.axis
    rank = n.node.output.type.rank
    return n.x + "".join(f".unsqueeze({axis})" for axis in sorted(axis % rank for axis in axes))


@lowering("flip")
def _(n: TorchNode) -> str:
    return f"{n.x}.flip({n.p.axis})"


@lowering("concat")
def _(n: TorchNode) -> str:
    return f"torch.cat([{', '.join(n.args)}], dim={n.p.axis})"


@lowering("stack")
def _(n: TorchNode) -> str:
    return f"torch.stack([{', '.join(n.args)}], dim={n.p.axis})"


@lowering("split")
def _(n: TorchNode) -> str:
    axis = _axis(n)
    parts = ", ".join(n.size(v.type.shape[axis]) for v in n.node.outputs)
    split = f"{n.x}.split([{parts}], dim={axis})"
    return split if len(n.node.outputs) > 1 else f"{split}[0]"


@lowering("slice")
def _(n: TorchNode) -> str:
    start, stop = n.p.from_ or "", "" if n.p.to is None else n.p.to
    step = f":{n.p.step}" if n.p.step != 1 else ""
    return f"{n.x}[{':, ' * _axis(n)}{start}:{stop}{step}]"


@lowering("select")
def _(n: TorchNode) -> str:
    return f"{n.x}.select({_axis(n)}, {n.p.index})"


@lowering("pad")
def _(n: TorchNode) -> str:
    value = number(n.p.value if n.node.output.type.dtype in FLOATS else int(n.p.value))
    how = f", value={value}" if n.p.mode == "constant" else f", mode={quoted(n.p.mode)}"
    return f"F.pad({n.x}, {n.p.widths}{how if how != ', value=0.0' else ''})"


@lowering("sum", "mean", "var", "max", "min", "any", "all")
def _(n: TorchNode) -> str:
    name = {"max": "amax", "min": "amin"}.get(n.node.op.name, n.node.op.name)
    axes = n.node.call.axes(n.p.axis)
    options = ", correction=0" * (name == "var" and not n.p.unbiased) + ", keepdim=True" * n.p.keepdim
    if not axes:  # of a number: torch takes no axes to mean all
        return f"torch.{name}({n.x}, dim=(){options})" if name in ("amax", "amin", "var") else f"torch.{name}({n.x})"
    return f"{n.x}.{name}(dim={axes[0] if len(axes) == 1 else axes}{options})"


@lowering("argmax", "argmin")
def _(n: TorchNode) -> str:
    return f"{n.x}.{n.node.op.name}(dim={n.p.axis}{', keepdim=True' * n.p.keepdim})"


@lowering("cumsum")
def _(n: TorchNode) -> str:
    return f"{n.x}.cumsum(dim={n.p.axis})"


@lowering("gather", "index_select")
def _(n: TorchNode) -> str:
    index = n.index + ".long()" * (n.node.operands[1].type.dtype != "i64")
    return f"{n.x}.{n.node.op.name}({n.p.axis}, {index})"


@lowering("top_k")
def _(n: TorchNode) -> str:
    return f"{n.x}.topk({n.p.k}, dim={n.p.axis}{', largest=False' * (not n.p.largest)})"


@lowering("one_hot")
def _(n: TorchNode) -> str:
    return f"one_hot({n.ids}, {n.p.num_classes}, {n.dtype(n.p.dtype)})"


@lowering("im2col")
def _(n: TorchNode) -> str:
    from archc.ir.ops.convolution import im2col_geometry

    rows: Any = im2col_geometry(n.p)
    kernel, stride, padding = (tuple(column) for column in zip(*((k, s, p[0]) for k, s, _, p in rows), strict=True))
    return f"F.unfold({n.x}, {kernel}, padding={padding}, stride={stride}).transpose(1, 2)"


@lowering("col2im")
def _(n: TorchNode) -> str:
    return f"{n.x}.transpose(1, 2).unflatten(2, {n.sizes(n.node.output.type.shape[2:])})"


@lowering("pixel_shuffle")
def _(n: TorchNode) -> str:
    return f"F.pixel_shuffle({n.x}, {n.p.r})"
