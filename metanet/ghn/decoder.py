"""From a vector for each weight to the weight: sums of products of functions of the coordinates along its axes.

A weight W[o, i, t] (outputs, inputs, taps) is

    W = Σ_r A_r(o) · B_r(i) · C_r(t),      r = 1 … rank

Each factor is a combination, chosen for this very weight, of basis functions of the coordinates of its axis: learned
embeddings for interchangeable elements, E(o), and for positions (u, v) cosines, cos(πa(u + ½)/n) · cos(πb(v + ½)/m). In
this basis a mirror changes the signs of odd a or b, and a transposition exchanges a and b. So the same eight
coefficients, predicted from the graph, turn a weight to the way in which its input has been turned: `_turned`.

No value is repeated to fill a shape. A matrix has rank `rank` at most; one element more is one embedding more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from archc.metanet.ghn.plan import SLOTS, Factor, Piece, WeightPlan
from archc.metanet.ghn.turns import identity, products, turned

PARTS = 8
"""Parts of a concatenation that are told apart; those beyond count as the last."""


class Decoder(nn.Module):
    """Weights from node vectors [p, hidden].

    rank    terms of the sum
    width   of embeddings of interchangeable elements
    grid    cosines along an axis of positions
    mix     bottleneck between a node's vector and the coefficients of one axis
    table   elements with a learned embedding; those beyond have fixed random ones of the same size
    """

    def __init__(self, hidden: int, rank: int, width: int, grid: int, mix: int, table: int) -> None:
        super().__init__()
        self.rank, self.width, self.grid, self.table = rank, width, grid, table
        self.index = nn.Parameter(_orthogonal(table, width, 0))
        self.label = nn.Parameter(_orthogonal(64, width, 1))
        signs = _directions(PARTS, width, 2).sign()
        signs[0] = 1.0
        self.part = nn.Parameter(signs)
        self.slots = nn.ModuleList(_SlotHead(hidden, mix) for _ in SLOTS)
        self.index_bank = nn.Parameter(0.3 * torch.randn(mix, width * rank) / math.sqrt(width * mix))
        self.grid_bank = nn.Parameter(0.3 * torch.randn(mix, grid * grid * rank) * _decay(grid, rank) / math.sqrt(mix))
        # Channel j of one layer feeds channel j of the next: what a channel means is then the same in all nets.
        self.index_mean = nn.Parameter(torch.eye(width, rank).flatten().repeat(len(SLOTS), 1))
        self.grid_mean = nn.Parameter(torch.randn(len(SLOTS), grid * grid * rank) * _decay(grid, rank))
        self.fine_bank = nn.Parameter(0.3 * torch.randn(mix, grid * grid * rank) * _decay(grid, rank) / math.sqrt(mix))
        self.fine_mean = nn.Parameter(torch.randn(len(SLOTS), grid * grid * rank) * _decay(grid, rank))
        self.gain = nn.Linear(2 * hidden, 2)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)

    def forward(self, nodes: Tensor, turns: Tensor, plans: Sequence[WeightPlan]) -> list[Tensor]:
        """The weights of `plans`, node vector by node vector; what is kept has the values that the program gives."""
        chosen = [i for i, plan in enumerate(plans) if plan.rule != "kept" and plan.size]
        # Gains and biases first: all of them are one product.
        chosen.sort(key=lambda i: not _is_row(plans[i]))
        if not chosen:
            return [_base(plan) for plan in plans]
        places = torch.tensor(chosen)
        vectors, turned_by = nodes[places], turns[places]
        of = [plans[i] for i in chosen]
        rows = sum(_is_row(plan) for plan in of)
        raw = list(torch.split(self._rows(vectors[:rows], of[:rows]), [p.size for p in of[:rows]])) if rows else []
        if rows < len(of):
            factors = [self._slot(s, vectors[rows:], turned_by[rows:], of[rows:]) for s in range(len(SLOTS))]
            raw += [_joined(parts, self.rank).reshape(-1) for parts in zip(*factors, strict=True)]
        found = dict(zip(chosen, self._scaled(raw, vectors, of), strict=True))
        return [found[i] if i in found else _base(plan) for i, plan in enumerate(plans)]

    def _scaled(self, raw: list[Tensor], vectors: Tensor, plans: Sequence[WeightPlan]) -> list[Tensor]:
        """Each weight in its own size: matrices have exactly the deviation that fan-in and gain say."""
        sizes = [plan.size for plan in plans]
        gain, shift = (0.1 * self.gain(vectors)).clamp(-0.3, 2.0).exp().unbind(1)
        matrix = torch.tensor([plan.rule == "matrix" for plan in plans])
        factor = torch.where(matrix, torch.tensor([plan.scale for plan in plans]) * gain, OFFSET * shift)
        if torch.is_grad_enabled():  # one operation for all of them, and one on the way back
            values: Tensor = _Scaled.apply(torch.cat(raw), factor, matrix, torch.tensor(sizes))  # type: ignore[no-untyped-call]
            parts: Sequence[Tensor] = torch.split(values, sizes)
        else:
            parts = [
                r * (f / (r.square().mean() + EPSILON).sqrt() if plan.rule == "matrix" else f)
                for r, f, plan in zip(raw, factor, plans, strict=True)
            ]
        return [_based(part.view(plan.shape), plan) for part, plan in zip(parts, plans, strict=True)]

    def _tables(self, s: int, vectors: Tensor) -> Tensor:
        """How each weight weighs the embeddings along one of its axes, [p, width, rank]."""
        mixed: Tensor = cast(_SlotHead, self.slots[s]).index(vectors) @ self.index_bank + self.index_mean[s]
        return mixed.view(-1, self.width, self.rank)

    def _used(self, plans: Sequence[WeightPlan], s: int) -> tuple[Tensor, int]:
        """The embeddings that plain axes use: `length` of the table of indices, and all labels after them."""
        length = max((plan.slots[s][0].size for plan in plans), default=0)
        length = min(length, len(self.index))
        return torch.cat([self.index[:length], self.label]), length

    def _rows(self, vectors: Tensor, plans: Sequence[WeightPlan]) -> Tensor:
        """The elements of weights with one plain axis, one weight after the other."""
        used, length = self._used(plans, 0)
        values = used @ self._tables(0, vectors).sum(2).t() / math.sqrt(self.rank)  # [used, p]
        return values.flatten()[_places(plans, 0, length)]

    def _slot(self, s: int, vectors: Tensor, turns: Tensor, plans: Sequence[WeightPlan]) -> list[Tensor | None]:
        """For each weight the factor of one slot, [size, rank]; None where the weight has no such axis."""
        pieces = [plan.slots[s] for plan in plans]
        found: list[Tensor | None] = [None] * len(plans)
        plain = [i for i, p in enumerate(pieces) if _is_plain(p)]
        tabled = plain + [i for i, p in enumerate(pieces) if not _is_plain(p) and _has(p, "index", "label")]
        gridded = [i for i, p in enumerate(pieces) if _has(p, "grid")]
        tables: dict[int, Tensor] = {}
        if tabled:
            mixed = self._tables(s, vectors[torch.tensor(tabled)])
            tables = dict(zip(tabled[len(plain) :], mixed[len(plain) :].unbind(0), strict=True))
        if plain:
            of = [plans[i] for i in plain]
            used, length = self._used(of, s)
            values = torch.einsum("sd,pdr->spr", used, mixed[: len(plain)]).flatten(0, 1)
            parts = torch.split(values[_places(of, s, length)], [pieces[i][0].size for i in plain])
            for i, part in zip(plain, parts, strict=True):
                found[i] = part
        grids: dict[int, list[Tensor]] = {}
        if gridded:
            rows = torch.tensor(gridded)
            own = vectors[rows]
            head = cast(_SlotHead, self.slots[s])
            turn = torch.einsum("pi,pj,ijk->pk", 0.1 * head.turn(own) + identity(), turns[rows], products())
            mixed = head.grid(own)
            shape = (len(gridded), self.grid, self.grid, self.rank)
            coarse = turned((mixed @ self.grid_bank + self.grid_mean[s]).view(shape), turn)
            pairs = [coarse.unbind(0)]
            if any(sum(f.kind == "grid" for piece in pieces[i] for f in piece.factors) > 2 for i in gridded):
                pairs.append(turned((mixed @ self.fine_bank + self.fine_mean[s]).view(shape), turn).unbind(0))
            grids = {i: [part[k] for part in pairs] for k, i in enumerate(gridded)}
        for i, p in enumerate(pieces):
            if found[i] is None:
                found[i] = self._pieces(p, tables.get(i), grids.get(i))
        return found

    def _pieces(self, pieces: tuple[Piece, ...], table: Tensor | None, grid: list[Tensor] | None) -> Tensor | None:
        parts = [self._piece(piece, table, grid) for piece in pieces if piece.factors and piece.size]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _piece(self, piece: Piece, table: Tensor | None, grid: list[Tensor] | None) -> Tensor:
        """[size, rank]: the product of the functions of all factors of an axis."""
        places = [i for i, f in enumerate(piece.factors) if f.kind == "grid"]
        sizes = [f.size for f in piece.factors]
        result: Tensor | None = None
        if places:
            assert grid is not None
            result = self._positions(piece.factors, places, sizes, grid)
        for i, factor in enumerate(piece.factors):
            if factor.kind == "grid":
                continue
            assert table is not None
            own = self._embedding(factor) @ table  # [size, rank]
            own = own.view(*(n if j == i else 1 for j, n in enumerate(sizes)), self.rank)
            result = own if result is None else result * own
        assert result is not None
        return result.reshape(-1, self.rank)

    def _positions(
        self, factors: tuple[Factor, ...], places: list[int], sizes: list[int], grid: list[Tensor]
    ) -> Tensor:
        """The function of all ordered coordinates of an axis: the last two of them are a plane, those before another,
        as places in a patch and places of patches are. One alone is the second axis of a plane."""
        pairs = [places[max(0, k - 2) : k] for k in range(len(places), 0, -2)]
        result: Tensor | None = None
        for k, pair in enumerate(pairs):
            own = grid[min(k, len(grid) - 1)]
            if len(pair) == 2:
                value = planes(sizes[pair[0]], sizes[pair[1]], self.grid) @ own.flatten(0, 1)
            else:
                value = cosines(sizes[pair[0]], self.grid) @ own[0]
            value = value.view(*(n if i in pair else 1 for i, n in enumerate(sizes)), self.rank)
            result = value if result is None else result * value
        assert result is not None
        return result

    def _embedding(self, factor: Factor) -> Tensor:
        table = self.label if factor.kind == "label" else self.index
        stop = factor.start + factor.size
        rows = table[factor.start : stop]
        if stop > len(table):
            beyond = _further(max(factor.start, len(table)), stop, self.width, factor.kind == "label")
            rows = torch.cat([rows, beyond.to(rows)])
        return rows * self.part[min(factor.part, PARTS - 1)] if factor.part else rows


class _SlotHead(nn.Module):
    """What a weight's vector says of one of its axes: at first mostly by what it is, less by where it stands."""

    def __init__(self, hidden: int, mix: int) -> None:
        super().__init__()
        self.index = nn.Linear(2 * hidden, mix)
        self.grid = nn.Linear(2 * hidden, mix)
        self.turn = nn.Linear(2 * hidden, 8)
        nn.init.zeros_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)
        with torch.no_grad():
            for layer in (self.index, self.grid):
                layer.weight[:, hidden:] *= CONTEXT


CONTEXT = 0.2
"""Weight of a place's vector in an untrained model, that of a role being 1: nets share most of what they begin with."""

EPSILON = 1e-8

PLAIN = 64
"""An axis of so many embeddings or fewer is looked up together with those of other weights."""

OFFSET = 0.1
"""How far an untrained model moves gains and biases from where they start."""


def _joined(factors: Sequence[Tensor | None], rank: int) -> Tensor:
    """Σ_r of the products of the slots' factors."""
    there = [f for f in factors if f is not None]
    if not there:  # a number
        return torch.ones(())
    if len(there) == 1:
        return there[0].sum(1) / math.sqrt(rank)
    first, *rest = there
    product = rest[0]
    for other in rest[1:]:
        product = (product.unsqueeze(1) * other).reshape(-1, rank)
    return first @ product.t()


class _Scaled(torch.autograd.Function):
    """Segments of a vector, each times its factor; those of matrices are first brought to a mean square of 1."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, factor: Tensor, matrix: Tensor, sizes: Tensor) -> Tensor:
        segment = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        square = flat.new_zeros(len(sizes)).index_add_(0, segment, flat.square()) / sizes
        inverse = torch.where(matrix, (square + EPSILON).rsqrt(), 1.0)
        ctx.save_for_backward(flat, factor, inverse, matrix, sizes, segment)
        return flat * (factor * inverse)[segment]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        flat, factor, inverse, matrix, sizes, segment = ctx.saved_tensors
        grad = grads[0]
        along = flat.new_zeros(len(sizes)).index_add_(0, segment, grad * flat)
        # y = a·x/s with s² the mean square of x: dx = a/s · (dy - x · (dy·x) / (n s²))
        pulled = torch.where(matrix, factor * inverse**3 * along / sizes, 0.0)
        return grad * (factor * inverse)[segment] - flat * pulled[segment], along * inverse, None, None


def _is_plain(pieces: tuple[Piece, ...]) -> bool:
    """Is an axis one run of embeddings that a table may hold?"""
    return (
        len(pieces) == 1
        and len(pieces[0].factors) == 1
        and pieces[0].factors[0].kind != "grid"
        and (pieces[0].size <= PLAIN)
    )


def _is_row(plan: WeightPlan) -> bool:
    return _is_plain(plan.slots[0]) and len(plan.shape) == 1


def _has(pieces: tuple[Piece, ...], *kinds: str) -> bool:
    return any(factor.kind in kinds for piece in pieces for factor in piece.factors)


def _places(plans: Sequence[WeightPlan], s: int, length: int) -> Tensor:
    """Where the elements of plain axes stand in [used, weights], flattened: axis after axis."""
    count, found = len(plans), []
    for p, plan in enumerate(plans):
        first = length if plan.slots[s][0].factors[0].kind == "label" else 0
        found.append(np.arange(first, first + plan.slots[s][0].size) * count + p)
    return torch.from_numpy(np.concatenate(found))


def _base(plan: WeightPlan) -> Tensor:
    """The values that the program gives."""
    return _based(torch.zeros(plan.shape), plan)


def _based(value: Tensor, plan: WeightPlan) -> Tensor:
    if plan.parameter.init.kind == "values":
        return value + torch.tensor(plan.parameter.init.values, dtype=value.dtype).view(plan.shape)
    return value + plan.base if plan.base else value


@lru_cache(maxsize=512)
def cosines(size: int, count: int) -> Tensor:
    """[size, count]: √2·cos(πa(u + ½)/size), 1 for a = 0; 0 for those that `size` positions cannot tell apart.

    >>> cosines(4, 3).shape, bool((cosines(2, 3)[:, 2] == 0).all())
    (torch.Size([4, 3]), True)
    """
    a = torch.arange(count)
    u = torch.arange(size, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi * u[:, None] * a / size) * torch.where(a > 0, math.sqrt(2.0), 1.0)
    return torch.where(a < size, waves, 0.0).float()


@lru_cache(maxsize=512)
def planes(rows: int, columns: int, count: int) -> Tensor:
    """[rows · columns, count²]: products of the cosines along two axes."""
    u, v = cosines(rows, count), cosines(columns, count)
    return torch.einsum("ua,vb->uvab", u, v).reshape(rows * columns, count * count)


@lru_cache(maxsize=64)
def _further(start: int, stop: int, width: int, label: bool) -> Tensor:
    """Embeddings of elements that the table does not hold: each is its own, whatever else is asked for."""
    block = 256
    rows = []
    for k in range(start // block, (stop + block - 1) // block):
        rows.append(torch.randn(block, width, generator=torch.Generator().manual_seed(2 * k + label)))
    first = start // block * block
    return torch.cat(rows)[start - first : stop - first]


def _directions(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1000 + seed))


def _orthogonal(count: int, width: int, seed: int) -> Tensor:
    """Rows of deviation 1; `width` of them in a row are orthogonal."""
    blocks = [torch.linalg.qr(_directions(width, width, 10 * seed + k))[0] for k in range(-(-count // width))]
    return math.sqrt(width) * torch.cat(blocks)[:count]


def _decay(grid: int, rank: int) -> Tensor:
    """Deviations of coefficients by frequency: smooth functions first, but not the sum; their squares add up to 1."""
    a = torch.arange(grid)
    size = 1.0 / (1.0 + 0.1 * (a[:, None] ** 2 + a**2)).sqrt()
    size[0, 0] *= 0.3  # the sum of all pixels tells little
    size = size / size.square().sum().sqrt()
    return size.view(-1, 1).expand(-1, rank).reshape(-1)
