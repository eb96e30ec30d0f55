"""Predicting ahead while a network trains: a nowcaster bound to one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from archc.backends.torch.training import Recipe
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.nowcast.incidence import Incidence, incidence
from archc.metanet.nowcast.kind import model_of
from archc.metanet.nowcast.model import Config, Nowcaster, Wiring, linear
from archc.metanet.store import load

LINEAR = "linear"
"""The name of linear extrapolation, which needs no file."""

SHIPPED = "nowcast-small"
"""The one that comes with archc."""

DEFAULT_EVERY, DEFAULT_START, DEFAULT_AHEAD = 50, 50, 12


@dataclass(frozen=True)
class Forecaster:
    """What the training loop asks: `names` of the weights in a flat vector, how many snapshots (`window`) and how far
    apart (`every` steps), and `predict`. `sha256` names the model's file; linear extrapolation has none.

    >>> from archc.metanet.nowcast.nets import NETS
    >>> straight = forecaster(NETS["mlp"].graph(), "linear")
    >>> history = torch.arange(5.0)[None, :, None].expand(1, 5, 3466)
    >>> straight.predict(history, [2, 4])[0, :, 0]
    tensor([2., 4.])
    """

    incidence: Incidence = field(repr=False)
    sha256: str | None = None
    model: Nowcaster | None = field(default=None, repr=False)
    wiring: Wiring | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        return self.incidence.names

    @property
    def window(self) -> int:
        return (self.model.config if self.model else Config()).window

    @property
    def every(self) -> int:
        return (self.model.config if self.model else Config()).every

    @property
    def furthest(self) -> int:
        return (self.model.config if self.model else Config()).furthest

    @torch.no_grad()
    def predict(self, history: Tensor, ahead: Sequence[float]) -> Tensor:
        """The changes of each weight, f32[S, K, n], so many snapshots after the last of f32[S, window, n], oldest
        first."""
        assert history.shape[1:] == (self.window, self.incidence.weights)
        if self.model is None or self.wiring is None:
            return torch.stack([linear(history, k) for k in ahead], 1)
        return cast(Tensor, self.model(history, self.wiring, list(ahead)))


def forecaster(graph: Graph, source: Path | str) -> Forecaster:
    """A nowcaster for a network: `linear`, the name of one that comes with archc, or a file.

    Raises: CompileError E0801, E0802 (no such model), E0835 (a damaged one), E0836, E0838 (a network it cannot take).
    """
    found = incidence(graph)
    if source == LINEAR:
        return Forecaster(found)
    stored = load(source, "nowcast")
    return Forecaster(found, stored.sha256, model_of(stored), Wiring(found))


def pinned(recipe: Recipe, found: Forecaster) -> Recipe:
    """The recipe with all that nowcasting leaves open filled in, the hash of the model's file too: equal recipes then
    give equal weights, whatever a name stands for later.

    Raises: CompileError E0839 when the recipe names another file than the one that was found, or goes further ahead
    than the model has learnt.

    >>> from archc.metanet.nowcast.nets import NETS
    >>> pinned(Recipe(nowcast="linear"), forecaster(NETS["mlp"].graph(), "linear")).nowcast_every
    50
    """
    if recipe.nowcast_sha256 not in (None, found.sha256):
        raise fail(
            "E0839",
            f"`{recipe.nowcast}` is not the nowcasting model of this recipe",
            label=f"needed SHA-256 {(recipe.nowcast_sha256 or '')[:12]}…, found {(found.sha256 or 'none')[:12]}…",
            help="train with the model that the recipe was made with, or leave out `nowcast_sha256`",
        )
    ahead = recipe.nowcast_ahead or min(DEFAULT_AHEAD, found.furthest)
    if ahead > found.furthest:
        raise fail(
            "E0839",
            f"`{recipe.nowcast}` does not look {ahead} snapshots ahead",
            label=f"it has learnt {found.furthest}",
            help=f"lower `nowcast_ahead` to {found.furthest}",
        )
    open_fields = {"nowcast_every": DEFAULT_EVERY, "nowcast_start": DEFAULT_START}
    filled = {name: value for name, value in open_fields.items() if getattr(recipe, name) is None}
    return recipe.model_copy(update={**filled, "nowcast_sha256": found.sha256, "nowcast_ahead": ahead})
