"""Layers: linear maps, convolutions, pools, norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_reference.table import Params, Weights, places, reference


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = (x.unsqueeze(-2) * weight).sum(-1)  # (…, 1, i) * (o, i)
    return y if bias is None else y + bias


@reference("linear")
def _linear(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return affine(xs[0], w["weight"], w.get("bias"))


@reference("tied_linear")
def _tied_linear(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return affine(xs[0], w["weight"], None)


@reference("bilinear")
def _bilinear(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    x, z = xs
    y = torch.stack([((x.unsqueeze(-1) * z.unsqueeze(-2)) * m).sum((-1, -2)) for m in w["weight"]], -1)
    return y + w["bias"] if "bias" in w else y


@reference("embedding")
def _embedding(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.stack([w["weight"][int(i)] for i in xs[0].flatten()]).reshape(*xs[0].shape, -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)  # (…, m, k, 1) * (…, 1, k, p)


@reference("matmul")
def _matmul(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    y = _product(*xs)
    return y / math.sqrt(xs[0].shape[-1]) if p["scaled"] else y


@reference("einsum")
def _einsum(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    """Align every operand on all letters, multiply, and sum over those that the result lacks."""
    left, result = p["equation"].replace(" ", "").split("->")
    terms = left.split(",")
    dots = max(x.ndim - len(t.replace("...", "")) if "..." in t else 0 for t, x in zip(terms, xs, strict=True))
    rest = "".join(chr(0x3B1 + i) for i in range(dots))  # letters for the axes behind the dots
    terms, result = [t.replace("...", rest) for t in terms], result.replace("...", rest)
    letters = "".join(dict.fromkeys(result + "".join(terms)))
    product = torch.ones((), dtype=xs[0].dtype)
    for term, x in zip(terms, xs, strict=True):
        for repeated in [a for a in letters if term.count(a) > 1]:
            while term.count(repeated) > 1:
                i, j = term.index(repeated), term.rindex(repeated)
                x, term = x.diagonal(dim1=i, dim2=j), term[:i] + term[i + 1 : j] + term[j + 1 :] + repeated
        x = x.permute([term.index(a) for a in letters if a in term])
        product = product * x.reshape(
            [x.shape[sorted(term, key=letters.index).index(a)] if a in term else 1 for a in letters]
        )
    extra = list(range(len(result), len(letters)))
    return product.sum(extra) if extra else product


def _per_axis(value: Any, rank: int) -> list[int]:
    return [value] * rank if isinstance(value, int) else list(value)


def _zero_pad(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes, each by its (before, after)."""
    for axis, (left, right) in enumerate(pads, start=x.ndim - len(pads)):
        shape = list(x.shape)
        parts = [x]
        for width, at in ((left, 0), (right, 2)):
            shape[axis] = width
            parts.insert(at, torch.full(shape, value, dtype=x.dtype))
        x = torch.cat(parts, axis)
    return x


def _same(kernel: Sequence[int], dilation: Sequence[int], padding: Any) -> list[int]:
    if padding is not None:
        return _per_axis(padding, len(kernel))
    return [d * (k - 1) // 2 if k % 2 else 0 for k, d in zip(kernel, dilation, strict=True)]


@reference("conv")
def _conv(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,), weight = xs, w["weight"]
    rank, groups = x.ndim - 2, p["groups"]
    kernel, stride, dilation = (_per_axis(p[name], rank) for name in ("kernel", "stride", "dilation"))
    if p["causal"]:
        pads = [(d * (k - 1), 0) for k, d in zip(kernel, dilation, strict=True)]
    else:
        pads = [(pad, pad) for pad in _same(kernel, dilation, p["padding"])]
    x = _zero_pad(x, pads)
    size = [(s - d * (k - 1) - 1) // t + 1 for s, k, d, t in zip(x.shape[2:], kernel, dilation, stride, strict=True)]
    xg = x.reshape(len(x), groups, -1, *x.shape[2:])
    wg = weight.reshape(groups, -1, *weight.shape[1:])  # (g, o, i, …)
    y = torch.zeros(len(x), groups, wg.shape[1], *size, dtype=x.dtype)
    for place in places(kernel):
        at = zip(place, dilation, stride, size, strict=True)
        window = xg[(..., *(slice(k * d, k * d + (n - 1) * t + 1, t) for k, d, t, n in at))]
        y = y + torch.einsum("ngi...,goi->ngo...", window, wg[(..., *place)])
    y = y.reshape(len(x), -1, *size)
    return y + w["bias"].reshape(-1, *[1] * rank) if "bias" in w else y


def _dequantised(p: Params, w: Weights, shape: Sequence[int]) -> Tensor:
    """One element after the other: a code, its scale and its zero."""
    codes = w["weight"].flatten(1)
    size = math.prod(shape[1:])
    made = torch.zeros(shape[0], size, dtype=w["scale"].dtype)
    scale = w["scale"].reshape(shape[0], -1)
    for row, column in places(made.shape):
        code = int(codes[row, column // 2 if p["bits"] == 4 else column])
        if p["bits"] == 4:
            half = (code % 256) // 16 if column % 2 else code % 16
            code = half - 16 if half > 7 else half
        run = column * scale.shape[1] // size
        zero = w["zero"].reshape(scale.shape)[row, run] if "zero" in w else 0
        made[row, column] = (code - zero) * scale[row, run]
    return made.reshape(tuple(shape))


@reference("quantized_linear")
def _quantized_linear(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return affine(xs[0], _dequantised(p, w, (p["out"], xs[0].shape[-1])), w.get("bias"))


@reference("quantized_conv")
def _quantized_conv(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    kernel = _per_axis(p["kernel"], xs[0].ndim - 2)
    shape = (p["out"], xs[0].shape[1] // p["groups"], *kernel)
    return _conv(p, xs, {**w, "weight": _dequantised(p, w, shape)})


@reference("conv_transpose")
def _conv_transpose(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,), weight = xs, w["weight"]
    rank, groups = x.ndim - 2, p["groups"]
    kernel, stride, dilation = (_per_axis(p[name], rank) for name in ("kernel", "stride", "dilation"))
    padding, extra = (_per_axis(p[name], rank) for name in ("padding", "output_padding"))
    full = [
        (s - 1) * t + d * (k - 1) + 1 + e
        for s, t, d, k, e in zip(x.shape[2:], stride, dilation, kernel, extra, strict=True)
    ]
    xg = x.reshape(len(x), groups, -1, *x.shape[2:])
    wg = weight.reshape(groups, -1, *weight.shape[1:])  # (g, i, o, …)
    y = torch.zeros(len(x), groups, wg.shape[2], *full, dtype=x.dtype)
    for place in places(kernel):
        at = zip(place, dilation, stride, x.shape[2:], strict=True)
        window = (..., *(slice(k * d, k * d + (n - 1) * t + 1, t) for k, d, t, n in at))
        y[window] += torch.einsum("ngi...,gio->ngo...", xg, wg[(..., *place)])
    y = y[(..., *(slice(pad, n - pad) for n, pad in zip(full, padding, strict=True)))]
    y = y.reshape(len(x), -1, *y.shape[3:])
    return y + w["bias"].reshape(-1, *[1] * rank) if "bias" in w else y


@reference("im2col")
def _im2col(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    kernel, stride = _per_axis(p["kernel"], 2), _per_axis(p["stride"], 2)
    x = _zero_pad(xs[0], [(pad, pad) for pad in _same(kernel, [1, 1], p["padding"])])
    (k, l), (s, t), (h, width) = kernel, stride, x.shape[2:]
    rows = [
        x[:, :, i : i + k, j : j + l].reshape(len(x), -1)
        for i in range(0, h - k + 1, s)
        for j in range(0, width - l + 1, t)
    ]
    return torch.stack(rows, 1)


@reference("col2im")
def _col2im(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    count = x.shape[1]
    h = p["h"] or (count // p["w"] if p["w"] else math.isqrt(count))
    return x.transpose(1, 2).reshape(len(x), x.shape[2], h, count // h)


@reference("pixel_shuffle")
def _pixel_shuffle(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,), r = xs, p["r"]
    n, c, h, width = x.shape
    y = torch.empty(n, c // (r * r), h * r, width * r, dtype=x.dtype)
    for i, j in places([r, r]):
        y[:, :, i::r, j::r] = x[:, i * r + j :: r * r]
    return y


@reference("upsample")
def _upsample(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    for axis, factor in enumerate(_per_axis(p["factor"], x.ndim - 2), start=2):
        size = x.shape[axis]
        planes = x.unbind(axis)
        made = []
        for i in range(size * factor):
            if p["mode"] == "nearest":
                made.append(planes[i // factor])
                continue
            if p["align_corners"]:
                at = i * (size - 1) / max(size * factor - 1, 1)
            else:
                at = max((i + 0.5) / factor - 0.5, 0)
            low = min(int(at), size - 1)
            made.append(planes[low] * (1 - at + low) + planes[min(low + 1, size - 1)] * (at - low))
        x = torch.stack(made, axis)
    return x


def _windows(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> list[tuple[list[int], int]]:
    """For each window: the elements that it sees, and how many places (padding included) it has."""
    reach = dilation * (kernel - 1) + 1
    count = (size + 2 * pad - reach + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (count - 1) * stride >= size + pad:
        count -= 1
    found = []
    for i in range(count):
        start = i * stride - pad
        places = range(start, start + reach, dilation)
        found.append(([q for q in places if 0 <= q < size], min(start + kernel, size + pad) - start))
    return found


def _pool(p: Params, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    rank = x.ndim - 2
    kernel, padding, dilation = (_per_axis(v, rank) for v in (p["kernel"], p["padding"], p.get("dilation", 1)))
    stride = kernel if p["stride"] is None else _per_axis(p["stride"], rank)
    axes = [_windows(*row, p["ceil_mode"]) for row in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)]
    y = torch.empty(*x.shape[:2], *map(len, axes), dtype=x.dtype)
    for place in places([len(a) for a in axes]):
        window = x
        for axis, i in enumerate(place):
            window = window.index_select(axis + 2, torch.tensor(axes[axis][i][0]))
        size = math.prod(axes[axis][i][1] for axis, i in enumerate(place))
        y[(..., *place)] = function(window.flatten(2), size)
    return y


@reference("max_pool")
def _max_pool(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _pool(p, xs[0], lambda window, size: window.amax(2))


@reference("avg_pool")
def _avg_pool(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    real = not p["count_include_pad"]
    return _pool(p, xs[0], lambda window, size: window.sum(2) / (window.shape[2] if real else size))


@reference("adaptive_avg_pool")
def _adaptive_avg_pool(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    for axis, new in enumerate(_per_axis(p["size"], x.ndim - 2), start=2):
        old = x.shape[axis]
        spans = [(math.floor(i * old / new), math.ceil((i + 1) * old / new)) for i in range(new)]
        x = torch.stack([x.narrow(axis, a, b - a).mean(axis) for a, b in spans], axis)
    return x


def _global(p: Params, x: Tensor) -> tuple[Tensor, list[int]]:
    return x.flatten(2), [*x.shape[:2], *[1] * (x.ndim - 2) * p["keepdim"]]


@reference("global_avg_pool")
def _global_avg_pool(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    flat, shape = _global(p, xs[0])
    return (flat.sum(2) / flat.shape[2]).reshape(shape)


@reference("global_max_pool")
def _global_max_pool(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    flat, shape = _global(p, xs[0])
    return flat.amax(2).reshape(shape)


def _along(v: Tensor, axis: int, rank: int) -> Tensor:
    """A vector laid along one axis of a tensor of `rank`."""
    return v.reshape([-1 if i == axis else 1 for i in range(rank)])


def _scale_shift(y: Tensor, w: Weights, axis: int) -> Tensor:
    if "weight" in w:
        y = y * _along(w["weight"], axis, y.ndim)
    return y + _along(w["bias"], axis, y.ndim) if "bias" in w else y


def _standard(x: Tensor, axes: list[int], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + eps)


@reference("batch_norm")
def _batch_norm(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    mean, var = (_along(w[name], 1, x.ndim) for name in ("running_mean", "running_var"))
    return _scale_shift((x - mean) / torch.sqrt(var + p["eps"]), w, 1)


@reference("layer_norm")
def _layer_norm(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _scale_shift(_standard(xs[0], [-1], p["eps"]), w, xs[0].ndim - 1)


@reference("group_norm")
def _group_norm(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    parts = [_standard(part, list(range(1, part.ndim)), p["eps"]) for part in xs[0].chunk(p["groups"], 1)]
    return _scale_shift(torch.cat(parts, 1), w, 1)


@reference("instance_norm")
def _instance_norm(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _scale_shift(_standard(xs[0], list(range(2, xs[0].ndim)), p["eps"]), w, 1)


@reference("rms_norm")
def _rms_norm(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    return _scale_shift(x / torch.sqrt((x * x).mean(-1, keepdim=True) + p["eps"]), w, x.ndim - 1)


@reference("norm")
def _norm(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _batch_norm(p, xs, w) if xs[0].ndim == 4 else _layer_norm(p, xs, w)
