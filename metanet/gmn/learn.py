"""Learning to say numbers of networks from their weights: the loop, its state on disk, and how well it went."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from archc.backends.torch.training.recipe import counter_rng
from archc.backends.weights import Array, read_weights, write_weights
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.gmn.batch import Collator
from archc.metanet.gmn.model import Gmn, GmnConfig, vocabulary_sizes

Say = Callable[[str], None]


class LearnConfig(BaseModel):
    """How a metanetwork learns: AdamW, a rate that rises for a tenth of the steps and falls to 0 as a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(20, ge=1, description="passes over the networks")
    batch: int = Field(32, ge=1, description="networks in a step")
    lr: float = Field(2.5e-3, gt=0, description="the highest learning rate")
    weight_decay: float = Field(0.02, ge=0)
    seed: int = Field(0, ge=0)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        rising = max(1, steps // 10)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(eq=False)
class Examples:
    """Networks, as the collator's columns, and what is to be said of each: `targets` [n, outputs]."""

    graphs: Sequence[Graph]
    columns: Sequence[Tensor] = field(repr=False)
    targets: Array = field(repr=False)

    def __len__(self) -> int:
        return len(self.graphs)


@dataclass(eq=False)
class Regressor:
    """A metanetwork that says numbers of networks, in their own units: targets are learned centred and scaled."""

    model: Gmn
    collator: Collator
    mean: Tensor
    spread: Tensor

    @torch.no_grad()
    def predict(self, graphs: Sequence[Graph], columns: Sequence[Tensor], batch: int = 64) -> Array:
        """[n, outputs]."""
        self.model.eval()
        found = []
        for first in range(0, len(graphs), batch):
            said, _ = self.model(self.collator.join(graphs[first : first + batch], columns[first : first + batch]))
            found.append(said * self.spread + self.mean)
        return np.asarray(torch.cat(found).numpy())


def optimiser_of(model: nn.Module, config: LearnConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98))


def step(model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """One step, the gradient's norm cut to 1."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()


def learn(
    train: Examples,
    config: LearnConfig,
    shape: GmnConfig,
    collator: Collator,
    state: Path | None = None,
    say: Say = lambda line: None,
    watch: Callable[[Regressor, int], str] | None = None,
) -> tuple[Regressor, list[dict[str, Any]]]:
    """A metanetwork that has learned from examples, and its log, an entry an epoch.

    `state` is where every epoch's end is kept, and where an interrupted run is taken up. A run that was interrupted
    ends as one that was not, up to how many threads add.
    """
    torch.manual_seed(config.seed)
    model = Gmn(shape, *vocabulary_sizes(collator.words))
    targets = torch.from_numpy(train.targets).float()
    mean, spread = targets.mean(0), targets.std(0, unbiased=False).clamp(min=1e-6)
    regressor = Regressor(model, collator, mean, spread)
    optimiser = optimiser_of(model, config)
    per_epoch = math.ceil(len(train) / config.batch)
    steps = per_epoch * config.epochs
    log: list[dict[str, Any]] = []
    if state is not None and state.exists():
        log = _resume(state, model, optimiser, config, shape, len(train))
        say(f"goes on after epoch {len(log)}")
    for epoch in range(len(log), config.epochs):
        begun, total = time.process_time(), 0.0
        model.train()
        torch.manual_seed(config.seed * 1000 + epoch)
        order = counter_rng(config.seed, "order", epoch).permutation(len(train))
        for k in range(per_epoch):
            rows = order[k * config.batch : (k + 1) * config.batch]
            batch = collator.join([train.graphs[i] for i in rows], [train.columns[i] for i in rows])
            said, _ = model(batch)
            loss = nn.functional.smooth_l1_loss(said, (targets[rows] - mean) / spread)
            step(model, optimiser, loss, config.rate(epoch * per_epoch + k, steps))
            total += float(loss.detach()) * len(rows)
        entry = {"epoch": epoch + 1, "loss": total / len(train), "cpu_seconds": time.process_time() - begun}
        log.append(entry)
        if state is not None:
            _keep(state, model, optimiser, config, shape, len(train), log)
        seen = f", {watch(regressor, epoch)}" if watch else ""
        say(f"epoch {epoch + 1}: loss {entry['loss']:.4f}{seen}")
    return regressor, log


def _origin(config: LearnConfig, shape: GmnConfig, nets: int) -> dict[str, Any]:
    return {"config": config.model_dump(), "shape": shape.model_dump(), "nets": nets}


def _keep(
    path: Path, model: Gmn, optimiser: torch.optim.Optimizer, config: LearnConfig, shape: GmnConfig, nets: int,
    log: list[dict[str, Any]],
) -> None:  # fmt: skip
    arrays = {f"model/{n}": p.detach().numpy() for n, p in model.state_dict().items()}
    for name, p in model.named_parameters():
        moments = optimiser.state.get(p, {})
        arrays |= {f"{k}/{name}": np.asarray(v.numpy()) for k, v in moments.items()}
    origin = json.dumps(_origin(config, shape, nets), sort_keys=True)
    write_weights(path, arrays, {"archc.gmn.state": origin, "log": json.dumps(log)})


def _resume(
    path: Path, model: Gmn, optimiser: torch.optim.Optimizer, config: LearnConfig, shape: GmnConfig, nets: int
) -> list[dict[str, Any]]:
    read = read_weights(path)
    if read.metadata.get("archc.gmn.state") != json.dumps(_origin(config, shape, nets), sort_keys=True):
        message = f"{path} is the state of another run"
        raise fail("E0833", message, help="train with the options it was begun with, or begin anew without `--resume`")
    model.load_state_dict({n: torch.from_numpy(np.array(read.arrays[f"model/{n}"])) for n in model.state_dict()})
    for name, p in model.named_parameters():
        if f"step/{name}" in read.arrays:
            optimiser.state[p] = {
                k: torch.from_numpy(np.array(read.arrays[f"{k}/{name}"])) for k in ("step", "exp_avg", "exp_avg_sq")
            }
    log: list[dict[str, Any]] = json.loads(read.metadata["log"])
    return log


def scores(predicted: Array, true: Array) -> dict[str, float]:
    """How well numbers were said: Kendall's τ (−1 … 1), R² (1 is perfect, 0 the mean) and the mean absolute error.

    >>> scores(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    {'tau': 1.0, 'r2': 1.0, 'mae': 0.0}
    """
    from scipy.stats import kendalltau

    if not np.isfinite(predicted).all():
        raise ValueError("a prediction is not finite")
    around = float(((true - true.mean()) ** 2).sum())
    r2 = 1 - float(((predicted - true) ** 2).sum()) / around if around else math.nan
    tau = float(kendalltau(predicted, true).statistic)
    return {"tau": tau, "r2": r2, "mae": float(np.abs(predicted - true).mean())}
