"""Training a hypernetwork: each step predicts weights for a few nets and learns from how they do on a batch of data.

The loss is the mean over nets of the task's own loss. Nothing of a net is ever trained: only the hypernetwork that
made its weights. Step and seed decide which nets and which examples come, so that a run that was interrupted goes on as
if it had not been, byte for byte on the same machine.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from archc.backends.torch.training.checkpoint import to_array, to_tensor
from archc.backends.weights import read_weights, write_weights
from archc.ir.diagnostics import fail
from archc.metanet.ghn.nets import Data, Net, accuracy
from archc.metanet.ghn.subject import Subject

SAVE_SECONDS = 60.0
LOG_SECONDS = 20.0
"""CPU seconds between lines of the log."""


class Predictor(Protocol):
    """What is trained here: a hypernetwork, or a baseline with the same outputs."""

    def __call__(self, nets: Sequence[Subject], tasks: Sequence[int], /) -> list[dict[str, Tensor]]: ...
    def parameters(self) -> Any: ...
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class TrainConfig(BaseModel):
    """How a hypernetwork is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, description="steps to train for")
    minutes: float | None = Field(None, gt=0, description="minutes of CPU time to train for; the first end counts")
    nets: int = Field(4, ge=1, description="nets of a step")
    batch: int = Field(64, ge=2, description="examples that each of them sees")
    lr: float = Field(2e-3, gt=0, description="the highest learning rate, of AdamW")
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    net_clip: float = Field(1.0, gt=0, description="largest norm of the gradient of one net, by its weights")
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the run")
    seed: int = Field(0, ge=0)

    def rate(self, progress: float) -> float:
        """The learning rate at a share of the run: a linear rise, then half a cosine down to a hundredth."""
        if progress < self.warmup:
            return self.lr * (0.05 + 0.95 * progress / self.warmup)
        rest = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest)))


@dataclass
class Progress:
    """How far a run has come. `batches` counts batches of examples that nets saw, `skipped` nets whose loss was not
    finite; `log` has a row for about every `LOG_SECONDS` of CPU time."""

    step: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    batches: int = 0
    skipped: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


Say = Callable[[str], None]


class Trainer:
    """Trains a predictor on nets for tasks.

    pools  for each task its data and its nets; a step takes one task, and `config.nets` of its nets
    state  where the state of the run is saved, every minute and at its end; None for nowhere
    """

    def __init__(
        self,
        model: Predictor,
        pools: Sequence[tuple[Data, Sequence[Net]]],
        config: TrainConfig,
        state: Path | None = None,
        origin: Mapping[str, Any] | None = None,
        say: Say = lambda line: None,
    ) -> None:
        assert config.steps or config.minutes, "a run has an end"
        self.model, self.pools, self.config, self.state, self.say = model, pools, config, state, say
        self.origin = {"train": config.model_dump(mode="json"), **(origin or {})}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim > 1]
        spared = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.progress = Progress()
        self.team = Team()
        self._recent: list[float] = []

    @property
    def share(self) -> float:
        """How much of the run is done."""
        config, done = self.config, self.progress
        by_steps = done.step / config.steps if config.steps else 0.0
        by_time = done.cpu_seconds / (60 * config.minutes) if config.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def run(self) -> Progress:
        """Train to the end. Ctrl-C saves the state and raises KeyboardInterrupt."""
        saved = logged = time.process_time()
        cpu, wall = time.process_time() - self.progress.cpu_seconds, time.monotonic() - self.progress.wall_seconds
        try:
            while self.team.agreed(self.share) < 1.0:
                self.step()
                now = time.process_time()
                self.progress.cpu_seconds, self.progress.wall_seconds = now - cpu, time.monotonic() - wall
                if now - logged > LOG_SECONDS or self.share >= 1.0:
                    logged = now
                    self._log()
                if now - saved > SAVE_SECONDS:
                    saved = now
                    self.save()
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()
        return self.progress

    def step(self) -> None:
        """One step: on several machines each takes its share of the nets, and gradients are averaged."""
        number = self.progress.step
        data, nets = self.chosen(number)
        rate = self.config.rate(self.team.agreed(self.share))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.config.seed * 1_000_003 + number)  # dropout and routing noise
        self.optimiser.zero_grad(set_to_none=True)
        mine = list(enumerate(nets))[self.team.rank :: self.team.size]
        predicted = self.model([net.subject for _, net in mine], [data.index] * len(mine)) if mine else []
        outputs: list[Tensor] = []
        pulls: list[Tensor] = []
        for (k, net), weights in zip(mine, predicted, strict=True):
            inputs, targets = data.batch("train", self.config.batch, 0, self.config.seed, number, k)
            pull = self._pull(net, weights, data, inputs, targets)
            if pull is None:
                self.progress.skipped += 1
                continue
            outputs += [weights[name] for name in pull]
            pulls += [grad / len(nets) for grad in pull.values()]
        if outputs:
            torch.autograd.backward(outputs, pulls)
        self.team.sum_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], self.config.clip)
        if bool(norm.isfinite()):
            self.optimiser.step()
        else:
            self.progress.skipped += len(nets)
        self.progress.step += 1
        self.progress.batches += len(nets)

    def _pull(
        self, net: Net, weights: dict[str, Tensor], data: Data, inputs: tuple[Tensor, ...], targets: Tensor
    ) -> dict[str, Tensor] | None:
        """The gradient of a net's loss by its predicted weights, of norm `net_clip` at most: no net speaks for the
        others. None when loss or gradient is not finite."""
        leaves = {n: w.detach().requires_grad_(True) for n, w in weights.items() if w.requires_grad}
        net.module.train()
        loss = data.task.objective.loss(net.run({**weights, **leaves}, inputs), targets, 0.0)
        names = list(leaves)
        grads = torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True)
        found = {n: g for n, g in zip(names, grads, strict=True) if g is not None}
        norm = float(torch.stack([g.square().sum() for g in found.values()]).sum().sqrt())
        if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            return None
        self._recent.append(float(loss.detach()))
        scale = min(1.0, self.config.net_clip / (norm + 1e-9))
        return {n: g * scale for n, g in found.items()}

    def chosen(self, step: int) -> tuple[Data, list[Net]]:
        """The task and the nets of a step."""
        rng = np.random.Generator(np.random.Philox(key=[self.config.seed, 5], counter=[0, 0, 0, step]))
        data, nets = self.pools[int(rng.integers(len(self.pools)))]
        picked = rng.choice(len(nets), size=min(self.config.nets, len(nets)), replace=False)
        return data, [nets[int(i)] for i in picked]

    def _log(self) -> None:
        done = self.progress
        loss = float(np.mean(self._recent)) if self._recent else float("nan")
        self._recent.clear()
        done.log.append(
            {"step": done.step, "cpu_minutes": round(done.cpu_seconds / 60, 3), "loss": round(loss, 4),
             "skipped": done.skipped}
        )  # fmt: skip
        self.say(
            f"step {done.step}: loss {loss:.3f}, {done.cpu_seconds / 60:.1f} CPU minutes"
            + (f", {done.skipped} nets skipped" if done.skipped else "")
        )

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state of the run; one of several processes does."""
        if self.state is None or self.team.rank:
            return
        tensors = {f"model/{name}": t for name, t in self.model.state_dict().items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{name}": t for name, t in moments.items()}
        text = {"archc.ghn.run": json.dumps({"origin": self.origin, "progress": vars(self.progress),
                                             "recent": self._recent})}  # fmt: skip
        write_weights(self.state, {name: to_array(t) for name, t in tensors.items()}, text)

    def resume(self) -> None:
        """Go on from the saved state.

        Raises: CompileError E0821 when it is of another run, E0601 and E0602 when it cannot be read.
        """
        assert self.state is not None
        stored = read_weights(self.state)
        try:
            run = json.loads(stored.metadata["archc.ghn.run"])
            origin, progress, recent = run["origin"], Progress(**run["progress"]), list(run["recent"])
        except (KeyError, TypeError, ValueError) as error:
            raise fail("E0821", f"`{self.state}` is no state of a training run", label=str(error)) from error
        if origin != json.loads(json.dumps(self.origin)):
            names = sorted(k for k in {*origin, *self.origin} if origin.get(k) != self.origin.get(k))
            raise fail(
                "E0821",
                f"`{self.state}` is the state of another run",
                label=f"they differ in {', '.join(names)}",
                help="give the options it was begun with, or leave out `--resume` to begin anew",
            )
        groups: dict[str, dict[str, Tensor]] = {}
        model: dict[str, Tensor] = {}
        for name, array in stored.arrays.items():
            kind, _, rest = name.partition("/")
            if kind == "model":
                model[rest] = to_tensor(array)
            else:
                place, _, moment = rest.partition("/")
                groups.setdefault(place, {})[moment] = to_tensor(array)
        self.model.load_state_dict(model)
        state = self.optimiser.state_dict()
        state["state"] = {int(place): moments for place, moments in groups.items()}
        self.optimiser.load_state_dict(state)
        self.progress, self._recent = progress, recent


class Team:
    """The processes of a run: one, or those that `torchrun` started, which talk over gloo."""

    def __init__(self) -> None:

        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")

    def agreed(self, share: float) -> float:
        """What the first process says."""
        if self.size == 1:
            return share
        value = torch.tensor([share], dtype=torch.float64)
        torch.distributed.broadcast(value, 0)
        return float(value)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes."""
        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        torch.distributed.all_reduce(flat)
        for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)


def predict(model: Predictor, net: Net, task: int) -> dict[str, Tensor]:
    """The weights of one net, without gradients."""
    with torch.no_grad():
        return model([net.subject], [task])[0]


def accuracies(
    model: Predictor, nets: Sequence[Net], data: Data, split: str = "val", limit: int | None = None
) -> list[float]:
    """The zero-step accuracy of each net with predicted weights (see `archc.metanet.ghn.nets.accuracy`)."""
    return [accuracy(net, predict(model, net, data.index), data, split, limit) for net in nets]
