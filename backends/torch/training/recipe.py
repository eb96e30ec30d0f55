"""A recipe: everything, besides network and data, that decides what training yields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from archc.backends.torch.training.options import build

Decay = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel):
    """A frozen training recipe; equal recipes on equal data, threads and versions give equal weights.

    Weight decay spares parameters of fewer than two axes (biases, gains). The rate rises linearly over the first
    `warmup` share of the steps, then falls as half a cosine to `final_lr * lr` (Loshchilov & Hutter,
    https://arxiv.org/abs/1608.03983).

    >>> Recipe(epochs=3).epochs
    3
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum")
    lr: float = Field(3e-3, gt=0, description="the highest learning rate")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="of AdamW")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    epochs: int = Field(30, ge=1)
    steps: int | None = Field(None, ge=1, description="stop after so many steps, in place of `epochs`")
    batch_size: int = Field(64, ge=1)
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: float = Field(0.0, ge=0, le=1, description="share of `lr` that is left at the end")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    shift: int = Field(0, ge=0, le=64, description="images: move by up to so many pixels, each way")
    flip: bool = Field(False, description="images: mirror left and right, every other time")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an average of the weights, used in their place")
    exit_weight: float = Field(0.3, ge=0, description="weight of the loss of each early exit")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation")
    keep: Literal["best", "last"] = Field(
        "best", description="the weights that validate best, or the last ones: gates close late, and cost accuracy"
    )
    nowcast: str | None = Field(
        None, description="a nowcasting model, that comes with archc or a file, or `linear`: predicts the weights ahead"
    )
    nowcast_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the model's file; filled in, and no other is then taken"
    )
    nowcast_every: int | None = Field(None, ge=1, description="steps from jump to jump; none: 50")
    nowcast_start: int | None = Field(None, ge=0, description="steps before the first jump; none: 50")
    nowcast_ahead: int | None = Field(None, ge=1, le=100, description="snapshots ahead at most; none: 12")
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda when there is one")

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.keep == "last" and self.patience is not None:
            raise ValueError("`patience` waits for better weights, and `keep = last` keeps none of them")
        return self

    @model_validator(mode="after")
    def _nowcast_of_what(self) -> Self:
        given = [n for n in type(self).model_fields if n.startswith("nowcast_") and getattr(self, n) is not None]
        if given and self.nowcast is None:
            raise ValueError(f"`{given[0]}` says how, and `nowcast` names no model")
        return self

    @classmethod
    def for_task(cls, defaults: Mapping[str, Any], **options: Any) -> Recipe:
        """The task's own defaults, with `options` over them. Raises E0617 for an option that is unknown or wrong.

        >>> Recipe.for_task({"shift": 1}, clip=None)  # doctest: +ELLIPSIS
        Recipe(optimiser='adamw', ... clip=None, label_smoothing=0.0, shift=1, ...)
        """
        return build(cls, {**defaults, **options}, "E0617", "the recipe")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`.

        >>> r = Recipe(lr=1.0, warmup=0.5)
        >>> [round(r.rate(s, 8), 2) for s in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        if self.schedule == "constant":
            return self.lr
        progress = (step - rising) / max(1, steps - rising)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


_PURPOSES = ("order", "augment", "split", "compose")


def counter_rng(
    seed: int, purpose: Literal["order", "augment", "split", "compose"], *counter: int
) -> np.random.Generator:
    """Random numbers that depend on nothing but their address: the same after a resume as before.

    >>> bool(counter_rng(0, "order", 3).integers(1000) == counter_rng(0, "order", 3).integers(1000))
    True
    """
    assert len(counter) <= 2, "two words of the counter are ours; Philox counts in the other two"
    high = [*counter, 0, 0][:2]
    return np.random.Generator(np.random.Philox(key=[seed, _PURPOSES.index(purpose)], counter=[0, 0, *high]))
