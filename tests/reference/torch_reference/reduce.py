"""Reductions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_reference.table import Params, Weights, first_nan, reference


def _axes(p: Params, x: Tensor) -> list[int]:
    axis = p["axis"]
    if axis is None:
        return list(range(x.ndim))
    return [a % x.ndim for a in ([axis] if isinstance(axis, int) else axis)]


def _fold(p: Params, x: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine the elements along the axes one after the other."""
    for axis in _axes(p, x):
        slices = x.split(1, axis)
        total = slices[0]
        for piece in slices[1:]:
            total = function(total, piece)
        x = total
    return x if p["keepdim"] else x.reshape([s for i, s in enumerate(x.shape) if i not in _axes(p, x)])


def _count(p: Params, x: Tensor) -> int:
    return math.prod(x.shape[a] for a in _axes(p, x))


@reference("sum")
def _sum(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    x = xs[0] if xs[0].is_floating_point() else xs[0].long()
    return _fold(p, x, lambda a, b: a + b)


@reference("mean")
def _mean(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _sum(p, xs, w) / _count(p, xs[0])


@reference("var")
def _var(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    centred = x - _mean({**p, "keepdim": True}, xs, w)
    return _sum(p, [centred * centred], w) / torch.tensor(_count(p, x) - p["unbiased"], dtype=x.dtype)


@reference("max")
def _max(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _fold(p, xs[0], lambda a, b: first_nan(a, b, torch.where(a > b, a, b)))


@reference("min")
def _min(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _fold(p, xs[0], lambda a, b: first_nan(a, b, torch.where(a < b, a, b)))


@reference("any")
def _any(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _fold(p, xs[0], lambda a, b: a | b)


@reference("all")
def _all(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _fold(p, xs[0], lambda a, b: a & b)


def _argument(p: Params, x: Tensor, better: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    axis = p["axis"] % x.ndim
    slices = x.unbind(axis)
    best, index = slices[0], torch.zeros_like(slices[0], dtype=torch.int64)
    for i, piece in enumerate(slices[1:], start=1):
        wins = better(piece, best)
        best, index = torch.where(wins, piece, best), torch.where(wins, torch.tensor(i), index)
    return index.unsqueeze(axis) if p["keepdim"] else index


@reference("argmax")
def _argmax(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _argument(p, xs[0], lambda a, b: a > b)


@reference("argmin")
def _argmin(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _argument(p, xs[0], lambda a, b: a < b)


@reference("cumsum")
def _cumsum(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    x = xs[0] if xs[0].is_floating_point() else xs[0].long()
    return torch.stack(list(itertools.accumulate(x.unbind(p["axis"]), lambda a, b: a + b)), p["axis"])
