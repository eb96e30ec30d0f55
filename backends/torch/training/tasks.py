"""Tasks: what is learned. A task brings data, loss, metrics and the rule from raw data to network input.

The records and the objectives; `registry.load_task` finds a task by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from archc.backends.preprocessing import Preprocessing
from archc.ir.diagnostics import fail
from archc.ir.types import TensorType

Batch = tuple[tuple[Tensor, ...], Tensor]


class Split(Protocol):
    """Examples by number. `batch` gives raw inputs and targets; with `rng` (training) it may vary them."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, rng: np.random.Generator | None = None) -> Batch: ...

    def to(self, device: torch.device) -> Split: ...


@dataclass(frozen=True)
class ArraySplit:
    """Examples that stand in tensors, along their first axis.

    >>> split = ArraySplit((torch.arange(6).reshape(3, 2),), torch.tensor([0, 1, 0]))
    >>> len(split), split.batch(torch.tensor([2]))[0][0].tolist()
    (3, [[4, 5]])
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor, rng: np.random.Generator | None = None) -> Batch:
        indices = indices.to(self.targets.device)
        return tuple(x[indices] for x in self.inputs), self.targets[indices]

    def to(self, device: torch.device) -> ArraySplit:
        return ArraySplit(tuple(x.to(device) for x in self.inputs), self.targets.to(device))


@dataclass(frozen=True)
class Objective:
    """Loss and metrics.

    `loss(outputs, targets, label_smoothing)` is a scalar, the mean over the batch. `metrics(outputs, targets)` gives
    one value per element, any shape; they are averaged over a whole split. It must contain `loss` and `primary`, by
    which validation chooses.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    metrics: Callable[[Tensor, Tensor], dict[str, Tensor]]
    primary: str
    larger_is_better: bool

    def score(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """What validation maximises: the primary metric, and among equals the smaller loss."""
        value, loss = metrics[self.primary], metrics["loss"]
        if not (math.isfinite(value) and math.isfinite(loss)):
            return (-math.inf, -math.inf)
        return (value if self.larger_is_better else -value, -loss)


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    flat = F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), label_smoothing=label_smoothing, reduction=reduction
    )
    return flat if reduction == "mean" else flat.reshape(targets.shape)


def _classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"loss": _cross_entropy(logits, targets, reduction="none"), "accuracy": logits.argmax(-1) == targets}


def _language_metrics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    metrics = _classification_metrics(logits, targets)
    return {**metrics, "bits_per_char": metrics["loss"] / math.log(2)}


def _squared_error(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return F.mse_loss(outputs, targets)


def _regression_metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"loss": (outputs - targets) ** 2, "mean_absolute_error": (outputs - targets).abs()}


# Logits stand on the last axis: (N, K) against i64 (N,), or (N, T, K) against (N, T).
CLASSIFICATION = Objective(_cross_entropy, _classification_metrics, "accuracy", True)
NEXT_CHARACTER = Objective(_cross_entropy, _language_metrics, "bits_per_char", False)
REGRESSION = Objective(_squared_error, _regression_metrics, "loss", False)


class TaskConfig(BaseModel):
    """The options of a task; subclasses add fields. `path` is what follows the colon in `NAME:PATH`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Task:
    """Data and goal. `inputs` and `output` are types of one example, without the batch axis.

    `splits` holds `train`, `val` and `test`; `data_sha256` names the data; `defaults` are recipe options that suit it.
    """

    name: str
    config: TaskConfig
    inputs: tuple[TensorType, ...]
    output: TensorType
    objective: Objective
    splits: Mapping[str, Split] = field(repr=False)
    data_sha256: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            if not len(self.splits[split]):
                raise fail(
                    "E0614",
                    f"task `{self.name}` has nothing in its `{split}` split",
                    help="give it more data, or a larger share for this split",
                )

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the logits; empty when there are none."""
        return self.preprocessing.labels

    @property
    def key(self) -> dict[str, Any]:
        """What decides the task's data and goal, as plain data: a part of the address of a training result."""
        config = self.config.model_dump(mode="json", exclude={"path"})  # the content's hash stands for the path
        return {"task": self.name, "config": config, "data": self.data_sha256, "primary": self.objective.primary}


@dataclass(frozen=True)
class TaskKind:
    """A family of tasks: a name, its options and how to build one from them. The object behind an entry point."""

    name: str
    config: type[TaskConfig]
    build: Callable[[Any], Task]
    doc: str
