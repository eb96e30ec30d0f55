"""Training the nowcaster on recorded runs, and how far off it is.

What is learnt are future weights, not a lower loss: the L1 distance between predicted and true change, each parameter
in its own unit (as in NiNo). The loss of the network at the predicted point would be the nearer goal, but its gradient
goes through every recorded network and its data at every step, a hundred times the cost, and makes each model that of
the tasks it has seen. The guard of the training loop asks the loss, where it is known, at two forward passes a jump.

The last seed of each file is held out, to be judged by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archc.ir.diagnostics import fail
from archc.metanet.nowcast.model import Config, Nowcaster, Wiring, linear, scale, units
from archc.metanet.nowcast.trajectories import Trajectory

STRIDES = (1, 2)
"""Every snapshot, or every other: the model must not depend on one cadence to the letter."""


@dataclass(frozen=True)
class Recorded:
    """The runs of one file, ready to draw windows from."""

    name: str
    snapshots: Tensor  # (S, K, n)
    wiring: Wiring

    @classmethod
    def of(cls, trajectory: Trajectory, config: Config, name: str) -> Recorded:
        """Raises: CompileError E0837 for runs that are too short, or whose cadence is not the model's."""
        found, needed = trajectory.snapshots.shape[1], (config.window - 1) * max(STRIDES) + config.furthest + 1
        if found < needed:
            raise fail(
                "E0837",
                f"the runs of {name} have too few snapshots",
                label=f"needed {needed}, found {found}",
                help="record more steps, or lower `window` or `furthest`",
            )
        if trajectory.origin.every != config.every:
            label = f"needed one every {config.every} steps, found every {trajectory.origin.every}"
            raise fail("E0837", f"the runs of {name} have snapshots at another cadence", label=label)
        return cls(name, trajectory.snapshots, Wiring(trajectory.incidence))


@dataclass(frozen=True)
class Windows:
    """Histories (B, c, n) and the true changes (B, K, n) after `ahead` snapshots."""

    history: Tensor
    ahead: list[float]
    change: Tensor


def draw(runs: Recorded, config: Config, rng: np.random.Generator, count: int, held_out: bool) -> Windows:
    """Windows from random runs at random times: three horizons, the same for all."""
    seeds, length = runs.snapshots.shape[0], runs.snapshots.shape[1]
    stride = int(rng.choice(STRIDES))
    back = (config.window - 1) * stride
    most = min(config.furthest, (length - 1 - back) // stride)
    ahead = sorted({1, int(rng.integers(1, most + 1)), int(rng.integers(1, most + 1))})
    histories, changes = [], []
    for _ in range(count):
        run = runs.snapshots[seeds - 1 if held_out else int(rng.integers(max(1, seeds - 1)))]
        now = int(rng.integers(back, length - max(ahead) * stride))
        histories.append(run[now - back : now + 1 : stride])
        changes.append(torch.stack([run[now + k * stride] - run[now] for k in ahead]))
    return Windows(torch.stack(histories), [float(k) for k in ahead], torch.stack(changes))


def errors(predicted: Tensor, windows: Windows, wiring: Wiring, config: Config) -> tuple[Tensor, Tensor]:
    """Mean L1 errors (K,) over weights and over tensors, in units of drift carried on; a tensor at rest has none."""
    unit = units(windows.history, wiring)
    moving = unit > 1e-10
    ones = scale(unit.clamp(min=1e-10), wiring, torch.tensor(windows.ahead), config.window)
    off = ((predicted - windows.change) / ones).abs().clamp(max=20.0)
    alive = moving[:, wiring.tensor][:, None]
    by_weight = (off * alive).sum((0, 2)) / alive.sum().clamp(min=1)
    by_tensor = torch.stack([wiring.tensor_mean(off[:, k]) for k in range(off.shape[1])], 1)
    by_tensor = (by_tensor * moving[:, None]).sum((0, 2)) / moving.sum().clamp(min=1)
    return by_weight, by_tensor


def loss(model: Nowcaster, windows: Windows, wiring: Wiring) -> Tensor:
    """What training minimises: half of it over weights, half over tensors (or biases and gains would not be heard)."""
    by_weight, by_tensor = errors(model(windows.history, wiring, windows.ahead), windows, wiring, model.config)
    return (by_weight.mean() + by_tensor.mean()) / 2


@torch.no_grad()
def judge(model: Nowcaster, runs: Sequence[Recorded], windows: int = 8, held_out: bool = True) -> dict[str, float]:
    """Mean L1 errors over weights of the model, of linear extrapolation and of standing still, and their ratios.

    Each file gives `windows` draws, the same ones for every model.
    """
    sums = {"model": 0.0, "linear": 0.0, "still": 0.0}
    for number, own in enumerate(runs):
        rng = np.random.Generator(np.random.Philox(key=[1, number]))
        for _ in range(windows):
            drawn = draw(own, model.config, rng, 1, held_out)
            straight = torch.stack([linear(drawn.history, k) for k in drawn.ahead], 1)
            guesses = {
                "model": model(drawn.history, own.wiring, drawn.ahead),
                "linear": straight,
                "still": torch.zeros_like(straight),
            }
            for name, guess in guesses.items():
                sums[name] += float(errors(guess, drawn, own.wiring, model.config)[0].mean())
    means = {name: total / (len(runs) * windows) for name, total in sums.items()}
    return means | {"of still": means["model"] / means["still"], "of linear": means["model"] / means["linear"]}
