"""Jumps in training: a forecaster predicts the weights ahead, and training goes on from there if that is no worse.

Snapshots of the trained weights are taken every `forecaster.every` steps. Every `nowcast_every` steps, once the window
is full, the step's batch is judged first (no gradient, as training runs the network, with the same random numbers): the
loss where the run stands, then the loss at the predicted weights, `nowcast_ahead` snapshots ahead, then, where that is
worse, at a third of the way in time, and once more. The first place that is no worse is where the step starts. So a
jump costs two to four forward passes and the forecast; all are counted. The optimiser keeps its state, running
estimates of norms stay as they are, and the window starts anew from the place that was reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from archc.backends.torch.training.recipe import Recipe
from archc.ir.diagnostics import fail

TRIES = 3


class Forecaster(Protocol):
    """What predicts weights: `archc.metanet.nowcast.forecast` has some."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are predicted, in the order of the flat vector."""

    @property
    def window(self) -> int:
        """Snapshots that are looked at."""

    @property
    def every(self) -> int:
        """Steps from one snapshot to the next."""

    @property
    def sha256(self) -> str | None:
        """Of the model's file."""

    def predict(self, history: Tensor, ahead: Sequence[float]) -> Tensor:
        """The changes f32[1, K, n], so many snapshots after the last of f32[1, window, n], oldest first."""


@dataclass(frozen=True)
class Jump:
    """A jump that was tried: `ahead` is how far it was taken, in snapshots, 0 when it was refused."""

    step: int
    ahead: float
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.ahead > 0


def horizons(ahead: int) -> list[float]:
    """How far jumps are tried: the whole way, a third of it, a ninth.

    >>> horizons(12), horizons(2)
    ([12.0, 4.0, 1.0], [2.0, 1.0])
    """
    return sorted({float(max(1, round(ahead / 3**k))) for k in range(TRIES)}, reverse=True)


class Nowcasting:
    """The jumps of one run: its window of snapshots, and what was counted."""

    def __init__(self, module: nn.Module, forecaster: Forecaster, recipe: Recipe, steps: int) -> None:
        assert recipe.nowcast is not None
        for field in ("nowcast_every", "nowcast_start", "nowcast_ahead"):
            assert getattr(recipe, field) is not None, f"`{field}` is left open: `pin` the recipe first"
        self.forecaster = forecaster
        self.period, self.start = recipe.nowcast_every or 0, recipe.nowcast_start or 0
        self.horizons = horizons(recipe.nowcast_ahead or 1)
        own: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
        if missing := [n for n in forecaster.names if n not in own]:
            label = "the nowcaster is bound to another network"
            raise fail("E0836", f"the network has no parameter `{missing[0]}` to predict", label=label)
        self.weights = [own[name] for name in forecaster.names]
        span = (forecaster.window - 1) * forecaster.every
        first = max(self.start, span)
        if self.period < span or first >= steps:
            what = f"`nowcast_every` is {self.period}" if self.period < span else f"the run has {steps} steps"
            raise fail(
                "E0837",
                "nowcasting would never see enough snapshots",
                label=f"{what}, and the model looks at {forecaster.window} snapshots, {forecaster.every} steps apart",
                help=f"needed: at least {span} steps from jump to jump, and a run of more than {first}",
            )
        self.window: list[Tensor] = []
        self.kept = self.refused = self.forwards = 0

    @torch.no_grad()
    def before_step(self, step: int, judge: Callable[[], float]) -> Jump | None:
        """To be called before each step: takes snapshots, and a jump when one is due. `judge` gives the loss."""
        if step % self.forecaster.every == 0:
            self.window = [*self.window, self._flat()][-self.forecaster.window :]
        due = step % self.period == 0 and step >= self.start and len(self.window) == self.forecaster.window
        return self._jump(step, judge) if due else None

    def _jump(self, step: int, judge: Callable[[], float]) -> Jump:
        own = self.window[-1]
        changes = self.forecaster.predict(torch.stack(self.window)[None], self.horizons)[0]
        before, after = judge(), math.inf
        self.forwards += 1
        for ahead, change in zip(self.horizons, changes, strict=True):
            self._put(own + change)
            after = judge()
            self.forwards += 1
            if after <= before:  # never so for what is not a number
                self.kept += 1
                self.window = [self._flat()]
                return Jump(step, ahead, before, after)
        self._put(own)
        self.refused += 1
        return Jump(step, 0.0, before, after)

    def counts(self) -> dict[str, int]:
        return {"kept": self.kept, "refused": self.refused, "forwards": self.forwards}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, beside `counts`."""
        return {str(age): snapshot for age, snapshot in enumerate(self.window)}

    def restore(self, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `counts` and `tensors`. Raises ValueError and KeyError for what cannot be."""
        window = [tensors[str(age)] for age in range(len(tensors))]
        if len(window) > self.forecaster.window or any(s.shape != self._flat().shape for s in window):
            raise ValueError("the snapshots are of another network")
        self.window = [s.to(self.weights[0].device) for s in window]
        self.kept, self.refused, self.forwards = (int(counts[key]) for key in ("kept", "refused", "forwards"))

    def _flat(self) -> Tensor:
        return torch.cat([w.detach().reshape(-1) for w in self.weights])

    def _put(self, flat: Tensor) -> None:
        parts = torch.split(flat, [w.numel() for w in self.weights])
        for weight, part in zip(self.weights, parts, strict=True):
            weight.copy_(part.view(weight.shape))
