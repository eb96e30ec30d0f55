"""Shape operators and look-ups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_reference.table import DTYPES, Params, Weights, places, reference


@reference("cast")
def _cast(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].to(DTYPES[p["dtype"]])


@reference("reshape")
def _reshape(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].reshape(p["shape"])


@reference("flatten")
def _flatten(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    first, last = p["from"] % x.ndim, p["to"] % x.ndim
    return x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


@reference("unflatten")
def _unflatten(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].unflatten(p["axis"], p["sizes"])


@reference("flip")
def _flip(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.stack(xs[0].unbind(p["axis"])[::-1], p["axis"])


@reference("permute")
def _permute(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].permute(p["order"])


@reference("transpose")
def _transpose(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].transpose(p["a"], p["b"])


@reference("expand")
def _expand(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].expand(p["shape"])


@reference("squeeze")
def _squeeze(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].squeeze(p["axis"])


@reference("unsqueeze")
def _unsqueeze(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    axes = [p["axis"]] if isinstance(p["axis"], int) else p["axis"]
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@reference("concat")
def _concat(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.cat(xs, p["axis"])


@reference("stack")
def _stack(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.stack(xs, p["axis"])


@reference("split")
def _split(p: Params, xs: list[Tensor], w: Weights) -> tuple[Tensor, ...]:
    parts, size = p["parts"], xs[0].shape[p["axis"]]
    sizes = [size // parts] * parts if isinstance(parts, int) else parts
    ends = list(itertools.accumulate(sizes))
    return tuple(xs[0].narrow(p["axis"], end - n, n) for n, end in zip(sizes, ends, strict=True))


@reference("slice")
def _slice(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    places = range(xs[0].shape[p["axis"]])[p["from"] : p["to"] : p["step"]]
    return xs[0].index_select(p["axis"], torch.tensor(list(places), dtype=torch.int64))


@reference("select")
def _select(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0].unbind(p["axis"])[p["index"]]


def _border(i: int, size: int, mode: str) -> int | None:
    """The index inside an axis that stands for index `i`, which may lie outside; None: the fill value."""
    if 0 <= i < size:
        return i
    if mode == "reflect":
        return -i if i < 0 else 2 * (size - 1) - i
    if mode == "replicate":
        return 0 if i < 0 else size - 1
    return i % size if mode == "circular" else None


@reference("pad")
def _pad(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    for k, (left, right) in enumerate(_pairs(p["widths"])):
        axis = x.ndim - 1 - k
        places = [_border(i, x.shape[axis], p["mode"]) for i in range(-left, x.shape[axis] + right)]
        fill = torch.full_like(x.narrow(axis, 0, 1), p["value"])
        x = torch.cat([fill if i is None else x.narrow(axis, i, 1) for i in places], axis)
    return x


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]


@reference("gather")
def _gather(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    x, index = xs
    axis = p["axis"] % x.ndim
    result = torch.empty(index.shape, dtype=x.dtype)
    for place in places(index.shape):
        result[place] = x[(*place[:axis], int(index[place]), *place[axis + 1 :])]
    return result


@reference("index_select")
def _index_select(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.stack([xs[0].select(p["axis"], int(i)) for i in xs[1]], p["axis"])


@reference("top_k")
def _top_k(p: Params, xs: list[Tensor], w: Weights) -> tuple[Tensor, Tensor]:
    rows = xs[0].movedim(p["axis"], -1)
    values = torch.empty(*rows.shape[:-1], p["k"], dtype=rows.dtype)
    indices = torch.empty(values.shape, dtype=torch.int64)
    for place in places(rows.shape[:-1]):
        row = rows[place].tolist()
        order = sorted(range(len(row)), key=lambda i: row[i], reverse=p["largest"])[: p["k"]]
        indices[place] = torch.tensor(order)
        values[place] = rows[place][order]
    return values.movedim(-1, p["axis"]), indices.movedim(-1, p["axis"])


@reference("one_hot")
def _one_hot(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return (xs[0].unsqueeze(-1) == torch.arange(p["num_classes"])).to(DTYPES[p["dtype"]])
