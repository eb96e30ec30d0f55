"""Attention and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_reference.elementwise import softmax
from torch_reference.layers import affine
from torch_reference.table import Params, Weights, places, reference


def _angles(length: int, channels: int, base: float, dtype: torch.dtype) -> Tensor:
    """(T, channels / 2)"""
    return torch.tensor(
        [[t * base ** (-2 * i / channels) for i in range(channels // 2)] for t in range(length)], dtype=dtype
    )


def _rotate(x: Tensor, base: float, interleaved: bool) -> Tensor:
    angles = _angles(x.shape[-2], x.shape[-1], base, x.dtype)
    half = x.shape[-1] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    y = torch.empty_like(x)
    y[..., first] = x[..., first] * angles.cos() - x[..., second] * angles.sin()
    y[..., second] = x[..., second] * angles.cos() + x[..., first] * angles.sin()
    return y


@reference("rope")
def _rope(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _rotate(xs[0], p["base"], p["interleaved"])


@reference("positions")
def _positions(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    if p["kind"] == "learned":
        return x + (w["weight"] if x.ndim == 4 else w["weight"][: x.shape[-2]])
    angles = _angles(x.shape[-2], x.shape[-1], p["base"], x.dtype)
    return x + torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """q (n, heads, t, d), k and v (n, kv, u, …), one query at a time; a query that may see nothing gets zeros."""
    n, heads, length, d = q.shape
    u, shared = k.shape[2], heads // k.shape[1]
    scale = 1 / math.sqrt(d) if scale is None else scale
    allowed = torch.ones(n, heads, length, u, dtype=torch.bool)
    if causal:
        allowed = allowed & (torch.arange(length)[:, None] >= torch.arange(u))
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    bias = torch.zeros(n, heads, length, u, dtype=q.dtype)
    if mask is not None and mask.dtype != torch.bool:
        bias, allowed = bias + mask, allowed & (mask > -math.inf)
    y = torch.zeros(n, heads, length, v.shape[3], dtype=q.dtype)
    for i, h, t in places([n, heads, length]):
        keys = allowed[i, h, t].nonzero()[:, 0]
        if len(keys):
            scores = (k[i, h // shared, keys] * q[i, h, t]).sum(-1) * scale + bias[i, h, t, keys]
            y[i, h, t] = (softmax(scores, 0)[:, None] * v[i, h // shared, keys]).sum(0)
    return y


@reference("scaled_dot_product")
def _scaled_dot_product(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    q, k, v, *mask = xs
    return _attend(q, k, v, mask[0] if mask else None, p["causal"], p["scale"])


def _alibi_slopes(heads: int) -> list[float]:
    """Powers of 2^(-8/n); heads beyond a power of two take every second slope of twice as many."""

    def powers(n: int) -> list[float]:
        return [2 ** (-8 / n * (i + 1)) for i in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    return powers(below) + powers(2 * below)[0::2][: heads - below]


@reference("attention")
def _attention(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    q, k, v, *masks = xs
    mask = masks[0] if masks else None
    kv = p["kv_heads"] or p["heads"]

    def heads(x: Tensor, role: str, count: int) -> Tensor:
        y = affine(x, w[f"{role}_weight"], w.get(f"{role}_bias")).unflatten(2, (count, -1)).transpose(1, 2)
        if f"{role}_norm_weight" in w:
            y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + 1e-6) * w[f"{role}_norm_weight"]
        return _rotate(y, p["rope_base"], False) if p["positions"] == "rope" and role != "v" else y

    qh, kh, vh = heads(q, "q", p["heads"]), heads(k, "k", kv), heads(v, "v", kv)
    causal = p["causal"]
    if p["positions"] == "alibi":
        far = (torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])).abs()
        slopes = torch.tensor(_alibi_slopes(p["heads"]), dtype=q.dtype)
        bias = -slopes[:, None, None] * far
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, bias, torch.tensor(-math.inf, dtype=q.dtype))
        else:
            mask = bias if mask is None else bias + mask
    found = _attend(qh, kh, vh, mask, causal, p["scale"])
    if p["gate"] is not None:
        gate = torch.sigmoid(affine(q, w["gate_weight"], w.get("gate_bias")))
        found = found * gate.unflatten(2, (p["heads"], -1)).transpose(1, 2)
    return affine(found.transpose(1, 2).flatten(2), w["out_weight"], w.get("out_bias"))
