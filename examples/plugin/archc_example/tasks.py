"""The task `spirals`: points of the plane on one of two interleaved spirals.

`archc train net.arch --task 'spirals?turns=2'` for a network from f32[N, 2] to f32[N, 2].
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from pydantic import Field

from archc.backends.torch.training import CLASSIFICATION, ArraySplit, Task, TaskConfig, TaskKind
from archc.ir.types import TensorType


class SpiralsConfig(TaskConfig):
    """How many points there are in all, how far the spirals turn, and how noisy the points are."""

    seed: int = 0
    points: int = Field(1000, ge=100, le=100_000)
    turns: float = Field(1.5, gt=0)
    noise: float = Field(0.02, ge=0)


def spirals(config: SpiralsConfig) -> Task:
    rng = np.random.default_rng(config.seed)
    label = np.arange(config.points, dtype=np.int64) % 2
    radius = np.sqrt(rng.random(config.points))
    angle = 2 * np.pi * config.turns * radius + np.pi * label
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = (x + config.noise * rng.standard_normal(x.shape)).astype(np.float32)
    parts = {
        "train": slice(0, config.points * 6 // 10),
        "val": slice(config.points * 6 // 10, config.points * 8 // 10),
        "test": slice(config.points * 8 // 10, None),
    }
    return Task(
        name="spirals",
        config=config,
        inputs=(TensorType((2,), "f32"),),
        output=TensorType((2,), "f32"),
        objective=CLASSIFICATION,
        splits={name: ArraySplit((torch.tensor(x[at]),), torch.tensor(label[at])) for name, at in parts.items()},
        data_sha256=hashlib.sha256(x.tobytes() + label.tobytes()).hexdigest(),
    )


SPIRALS = TaskKind("spirals", SpiralsConfig, spirals, "points on one of two interleaved spirals")
