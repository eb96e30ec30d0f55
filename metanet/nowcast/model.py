"""The model: from the last snapshots of each weight, where it will be k snapshots later.

After NiNo (Knyazev et al. 2025, Accelerating Training with Neuron Interaction and Nowcasting Networks,
https://arxiv.org/abs/2409.04434), with one difference that matters: there are no positions of any kind (NiNo's
Laplacian eigenvectors tell neurons of one layer apart), so that the predicted change commutes exactly with every
permutation of the certified group.

Scale-free: of each parameter (a tensor), the unit is the mean absolute change over the window, so that the model sees
how its weights moved, in units of how far they go. What it says is in units of that change carried on for k snapshots
at the same speed: 1 in the direction of the drift is linear extrapolation.

    x      (n, S, F)  per weight: its c - 1 earlier places relative to the last, and its value relative to its tensor
    e      (n, S, h)  x embedded; `rounds` times
                          node   mean over the weights that touch it, one mean by side (feeds it, is read by it)
                          tensor mean over its weights
                          e     += relu(A e + Σ B_side node + C tensor) D
    change (S, n)     unit · k / (c - 1) · head(e, k)

With `rounds = 0` no weight knows of any other but for its tensor's unit: the graph-free version (WNN+ in the paper).
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from archc.metanet.nowcast.incidence import Incidence


class Config(BaseModel):
    """What builds an empty model.

    >>> Config(rounds=0).window
    5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(5, ge=2, le=32, description="snapshots that are looked at, c")
    every: int = Field(10, ge=1, description="optimiser steps from one to the next")
    furthest: int = Field(12, ge=1, le=100, description="snapshots ahead that it has learnt to look, at most")
    hidden: int = Field(32, ge=4, le=512, description="width")
    rounds: int = Field(2, ge=0, le=8, description="of message passing; 0: graph-free")


class Wiring:
    """The hypergraph as sparse matrices: what the model gathers and scatters by.

    up    (2 M + T, n): means over the weights that touch each node, by side, and over those of each tensor
    down  (n, 2 M + T): to each weight the sum of what its nodes, by side, and its tensor send
    """

    def __init__(self, incidence: Incidence) -> None:
        self.nodes, self.tensors = incidence.nodes, len(incidence.names)
        self.tensor = torch.from_numpy(incidence.tensor)
        n = incidence.weights
        weights = torch.arange(n)
        places, users = [self.tensor + 2 * self.nodes], [weights]
        for side, slot in zip(incidence.sides, incidence.slots, strict=True):
            node = torch.from_numpy(slot)
            places.append(node[node < self.nodes] + side * self.nodes)
            users.append(weights[node < self.nodes])
        place, user = torch.cat(places), torch.cat(users)
        shape = (2 * self.nodes + self.tensors, n)
        counts = torch.bincount(place, minlength=shape[0]).float()
        self.up = _Sparse(place, user, 1 / counts[place], shape)
        self.down = _Sparse(user, place, torch.ones(len(place)), shape[::-1])
        self.sizes = counts[2 * self.nodes :]
        self.traits = _traits(incidence)

    def tensor_mean(self, x: Tensor) -> Tensor:
        """(S, n) -> (S, T): the mean over the weights of each parameter."""
        return x.new_zeros(len(x), self.tensors).index_add(1, self.tensor, x) / self.sizes


class _Sparse:
    """A constant matrix by rows, and its transpose for the gradient (torch would transpose it at every step)."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
            coo = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=True)
            self.matrix = coo.coalesce().to_sparse_csr()
            self.transposed = coo.t().coalesce().to_sparse_csr()

    def __call__(self, x: Tensor) -> Tensor:
        """(columns, S, h) -> (rows, S, h)."""
        flat: Tensor = _Product.apply(self.matrix, self.transposed, x.reshape(len(x), -1))  # type: ignore[no-untyped-call]
        return flat.view(-1, *x.shape[1:])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ gradients[0]


TRAITS = 6


def _traits(incidence: Incidence) -> Tensor:
    """What is known of a parameter whatever its values, (T, TRAITS): its rank and its extents."""
    rows = []
    for shape in incidence.shapes:
        size = torch.tensor(shape).prod().item() if shape else 1
        rank = [float(len(shape) == r) for r in (1, 2)] + [float(len(shape) > 2), float(len(shape) == 0)]
        fan = size / shape[0] if shape else 1
        rows.append([*rank, 0.2 * torch.tensor(float(size)).log().item(), 0.2 * torch.tensor(float(fan)).log().item()])
    return torch.tensor(rows)


class _Round(nn.Module):
    """One exchange between weights, the nodes that they touch, and the tensors that they are of."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.own = nn.Linear(hidden, hidden)
        self.node = nn.Linear(2 * hidden, 2 * hidden, bias=False)
        self.tensor = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, e: Tensor, wiring: Wiring) -> Tensor:
        x = self.norm(e)  # (n, S, h)
        parts = [wiring.nodes, wiring.nodes, wiring.tensors]
        feeding, reading, tensors = torch.split(wiring.up(x), parts)
        nodes = self.node(F.relu(torch.cat([feeding, reading], -1))).chunk(2, -1)
        message = self.own(x) + wiring.down(torch.cat([*nodes, self.tensor(tensors)]))
        return cast(Tensor, e + self.out(F.relu(message)))


class Nowcaster(nn.Module):
    """The model, graph-free or not.

    >>> from archc.metanet.nowcast.incidence import incidence
    >>> from archc.metanet.nowcast.nets import NETS
    >>> wiring = Wiring(incidence(NETS["mlp"].graph()))
    >>> history = torch.randn(2, 5, 3466)  # two runs, five snapshots, oldest first
    >>> Nowcaster(Config())(history, wiring, [1.0, 8.0]).shape  # the change, for each run and horizon
    torch.Size([2, 2, 3466])
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.embed = nn.Linear(config.window + 1, hidden)
        self.traits = nn.Linear(TRAITS + 2, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.rounds = nn.ModuleList([_Round(hidden) for _ in range(config.rounds)])
        self.ahead = nn.Linear(2, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, history: Tensor, wiring: Wiring, ahead: list[float]) -> Tensor:
        """The change of each weight, f32[S, len(ahead), n], from its history f32[S, c, n], oldest first."""
        features, levels, unit = self.features(history, wiring)
        e = self.embed(features) + self.traits(levels)[wiring.tensor]  # (n, S, h)
        e = e + self.mix(F.relu(e))
        for exchange in self.rounds:
            e = exchange(e, wiring)
        k = torch.tensor(ahead, dtype=history.dtype)
        keys = self.ahead(torch.stack([k.log(), k / self.config.furthest], -1))  # (K, h)
        own = self.hidden(F.relu(e))
        said = torch.stack([self.head(F.relu(own + key)).squeeze(-1).T for key in keys], 1)  # (S, K, n)
        return said * scale(unit, wiring, k, self.config.window)

    def features(self, history: Tensor, wiring: Wiring) -> tuple[Tensor, Tensor, Tensor]:
        """Per weight (n, S, c + 1), per tensor (T, S, TRAITS + 2), and the unit of each tensor (S, T)."""
        last = history[:, -1]
        earlier = history[:, :-1] - last[:, None]
        unit = units(history, wiring)
        size = wiring.tensor_mean(last.abs())
        per_weight = 1 / unit.clamp(min=1e-12)[:, wiring.tensor]
        place = last / size.clamp(min=1e-12)[:, wiring.tensor]
        slope = _slope(history) * per_weight
        features = torch.stack([*(earlier * per_weight[:, None]).unbind(1), slope, place], -1)
        speed = (unit.clamp(min=1e-12) / size.clamp(min=1e-12)).log()
        rough = wiring.tensor_mean(history.diff(dim=1).abs().mean(1)) / unit.clamp(min=1e-12)
        levels = torch.cat([wiring.traits.expand(len(history), -1, -1), torch.stack([0.3 * speed, rough], -1)], -1)
        return features.clamp(-20, 20).transpose(0, 1), levels.clamp(-20, 20).transpose(0, 1), unit


def units(history: Tensor, wiring: Wiring) -> Tensor:
    """The mean absolute change over the window, by tensor: (S, T)."""
    return wiring.tensor_mean((history[:, -1] - history[:, 0]).abs())


def scale(unit: Tensor, wiring: Wiring, ahead: Tensor, window: int) -> Tensor:
    """(S, K, n): what 1 means, for each horizon."""
    return unit[:, wiring.tensor][:, None] * (ahead / (window - 1))[None, :, None]


def _slope(history: Tensor) -> Tensor:
    """The change over the window by the line of least squares, (S, n)."""
    c = history.shape[1]
    t = torch.arange(c, dtype=history.dtype) - (c - 1) / 2
    return (history * (t / (t * t).sum() * (c - 1))[None, :, None]).sum(1)


def linear(history: Tensor, ahead: float) -> Tensor:
    """Linear extrapolation by least squares, f32[S, n]: the baseline that has learnt nothing.

    >>> linear(torch.tensor([[[0.0], [1.0], [2.0]]]), 2.0)
    tensor([[2.]])
    """
    return _slope(history) * (ahead / (history.shape[1] - 1))
