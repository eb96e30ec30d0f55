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

import torch
from torch import Tensor, nn

from archc.metanet.ghn.plan import SLOTS, Factor, Piece, WeightPlan

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
        self.index = nn.Parameter(_directions(table, width, 0))
        self.label = nn.Parameter(_directions(64, width, 1))
        signs = _directions(PARTS, width, 2).sign()
        signs[0] = 1.0
        self.part = nn.Parameter(signs)
        self.slots = nn.ModuleDict({slot: _SlotHead(hidden, mix) for slot in SLOTS})
        self.index_bank = nn.Parameter(torch.randn(mix, width * rank) / math.sqrt(width * mix))
        self.grid_bank = nn.Parameter(torch.randn(mix, grid * grid * rank) * _decay(grid, rank) / math.sqrt(mix))
        self.index_mean = nn.Parameter(torch.randn(len(SLOTS), width * rank) / math.sqrt(width))
        self.grid_mean = nn.Parameter(torch.randn(len(SLOTS), grid * grid * rank) * _decay(grid, rank))
        self.gain = nn.Linear(hidden, 2)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.gain.bias)

    def forward(self, nodes: Tensor, plans: Sequence[WeightPlan]) -> list[Tensor]:
        """The weights of `plans`, node vector by node vector; nothing for those that are kept."""
        chosen = [i for i, plan in enumerate(plans) if plan.rule != "kept" and plan.size]
        found: dict[int, Tensor] = {}
        if chosen:
            vectors = nodes[torch.tensor(chosen)]
            of = [plans[i] for i in chosen]
            factors = [self._slot(s, vectors, of) for s in range(len(SLOTS))]
            raw = [_joined([f[k] for f in factors], self.rank) for k in range(len(of))]
            found = dict(zip(chosen, self._scaled(raw, vectors, of), strict=True))
        return [found[i] if i in found else _base(plan) for i, plan in enumerate(plans)]

    def _scaled(self, raw: list[Tensor], vectors: Tensor, plans: Sequence[WeightPlan]) -> list[Tensor]:
        """Each weight in its own size: matrices have exactly the deviation that fan-in and gain say."""
        sizes = [plan.size for plan in plans]
        segment = torch.repeat_interleave(torch.arange(len(plans)), torch.tensor(sizes))
        flat = torch.cat([r.reshape(-1) for r in raw])
        square = flat.new_zeros(len(plans)).index_add(0, segment, flat.square()) / torch.tensor(sizes)
        gain, shift = self.gain(vectors).clamp(-4.0, 4.0).exp().unbind(1)
        matrix = torch.tensor([plan.rule == "matrix" for plan in plans])
        scale = torch.tensor([plan.scale for plan in plans])
        factor = torch.where(matrix, scale * gain / (square + 1e-8).sqrt(), OFFSET * shift)
        base = torch.tensor([plan.base for plan in plans])
        values = flat * factor[segment] + base[segment]
        return [
            _with_values(part.view(plan.shape), plan) for part, plan in zip(values.split(sizes), plans, strict=True)
        ]

    def _slot(self, s: int, vectors: Tensor, plans: Sequence[WeightPlan]) -> list[Tensor | None]:
        """For each weight the factor of one slot, [size, rank]; None where the weight has no such axis."""
        head = self.slots[SLOTS[s]]
        pieces = [plan.slots[s] for plan in plans]
        tabled = [i for i, p in enumerate(pieces) if any(f.kind != "grid" for piece in p for f in piece.factors)]
        gridded = [i for i, p in enumerate(pieces) if any(f.kind == "grid" for piece in p for f in piece.factors)]
        tables: dict[int, Tensor] = {}
        if tabled:
            mixed = head.index(vectors[tabled]) @ self.index_bank + self.index_mean[s]
            tables = dict(zip(tabled, mixed.view(len(tabled), self.width, self.rank).unbind(0), strict=True))
        grids: dict[int, Tensor] = {}
        if gridded:
            own = vectors[gridded]
            mixed = (head.grid(own) @ self.grid_bank + self.grid_mean[s]).view(-1, self.grid, self.grid, self.rank)
            grids = dict(zip(gridded, _turned(mixed, head.turn(own)).unbind(0), strict=True))
        return [self._pieces(p, tables.get(i), grids.get(i)) for i, p in enumerate(pieces)]

    def _pieces(self, pieces: tuple[Piece, ...], table: Tensor | None, grid: Tensor | None) -> Tensor | None:
        parts = [self._piece(piece, table, grid) for piece in pieces if piece.factors and piece.size]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _piece(self, piece: Piece, table: Tensor | None, grid: Tensor | None) -> Tensor:
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

    def _positions(self, factors: tuple[Factor, ...], places: list[int], sizes: list[int], grid: Tensor) -> Tensor:
        """The function of all ordered coordinates of an axis; the last two of them are taken together."""
        last = places[-2:]
        rows = cosines(sizes[last[0]], self.grid)
        if len(last) == 2:
            wide = cosines(sizes[last[1]], self.grid)
            value = torch.einsum("ua,vb,abr->uvr", rows, wide, grid)
        else:
            value = rows @ grid[:, 0]
        result = value.view(*(n if i in last else 1 for i, n in enumerate(sizes)), self.rank)
        for k, i in enumerate(places[:-2]):  # a third coordinate has a function of its own, from the same coefficients
            other = cosines(sizes[i], self.grid) @ grid[:, k + 1 if k + 1 < self.grid else -1]
            result = result * other.view(*(n if j == i else 1 for j, n in enumerate(sizes)), self.rank)
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
    """What a weight's vector says of one of its axes."""

    def __init__(self, hidden: int, mix: int) -> None:
        super().__init__()
        self.index = nn.Linear(hidden, mix)
        self.grid = nn.Linear(hidden, mix)
        self.turn = nn.Linear(hidden, 8)
        nn.init.normal_(self.turn.weight, std=0.1 / math.sqrt(hidden))
        nn.init.zeros_(self.turn.bias)
        with torch.no_grad():
            self.turn.bias[0] = 1.0


OFFSET = 0.1
"""How far an untrained model moves gains and biases from where they start."""


def _turned(grid: Tensor, turn: Tensor) -> Tensor:
    """Coefficients [p, K, K, R] as combinations of their eight turns, by [p, 8]: identity, mirror v,
    mirror u, both; then the same of the transposed."""
    size = grid.shape[1]
    signs = 1.0 - 2.0 * (torch.arange(size) % 2)
    ones = torch.ones(size)
    plain = torch.stack([torch.outer(a, b) for a in (ones, signs) for b in (ones, signs)])  # [4, K, K]
    first, second = (turn[:, k : k + 4] @ plain.view(4, -1) for k in (0, 4))
    shape = (-1, size, size, 1)
    return grid * first.view(shape) + grid.transpose(1, 2) * second.view(shape)


def _joined(factors: list[Tensor | None], rank: int) -> Tensor:
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


def _base(plan: WeightPlan) -> Tensor:
    """The values that the program gives."""
    return _with_values(torch.full(plan.shape, plan.base), plan)


def _with_values(value: Tensor, plan: WeightPlan) -> Tensor:
    init = plan.parameter.init
    if init.kind != "values":
        return value
    return value + torch.tensor(init.values, dtype=value.dtype).view(plan.shape)


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


def _decay(grid: int, rank: int) -> Tensor:
    """Deviations of coefficients by frequency: smooth functions first; the sum of squares is 1."""
    a = torch.arange(grid)
    size = 1.0 / (1.0 + 0.5 * (a[:, None] ** 2 + a**2)).sqrt()
    size = size / size.square().sum().sqrt()
    return size.view(-1, 1).expand(-1, rank).reshape(-1)
