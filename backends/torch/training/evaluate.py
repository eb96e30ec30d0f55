"""Running a module on a task's data: the fit of the two, batches as the network sees them, metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from archc.backends.preprocessing import Array
from archc.backends.torch.training.recipe import Recipe
from archc.backends.torch.training.statistics import Statistics, Stats
from archc.backends.torch.training.tasks import CLASSIFICATION, Batch, Split, Task
from archc.ir.diagnostics import fail
from archc.ir.types import NUMPY_NAMES, TensorType

EVALUATION_BATCH = 256


@runtime_checkable
class WithAux(Protocol):
    """What a module may offer beside `forward`: the outputs and named tensors that training adds to the loss.

    `loss/NAME` is a scalar to add as it is (expert balance, z-loss, cost of open gates); `exit/NAME` are outputs of an
    early exit, judged like the main output; `stat/NAME` says how rows went, and is no part of the loss.
    """

    def forward_with_aux(self, *inputs: Tensor) -> tuple[Tensor | tuple[Tensor, ...], dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Evaluation:
    """Metrics over one split. `confusion[true, predicted]` counts, for tasks with one label per example; `stats` tell
    how rows went through experts, gates and exits (see `statistics`)."""

    split: str
    examples: int
    metrics: dict[str, float]
    confusion: Array | None = field(default=None, repr=False)
    stats: Stats = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        confusion = None if self.confusion is None else self.confusion.tolist()
        told = {"split": self.split, "examples": self.examples, "metrics": metrics, "confusion": confusion}
        return {**told, "stats": self.stats} if self.stats else told


class Feed:
    """A task's splits on a device, as batches that are ready for the network."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.device = device
        self._splits: dict[str, Split] = {}
        self._affine: dict[int, tuple[Tensor, Tensor]] = {}

    def split(self, name: str) -> Split:
        if name not in self._splits:
            assert name in self.task.splits, f"no split `{name}`"
            self._splits[name] = self.task.splits[name].to(self.device)
        return self._splits[name]

    def batch(self, split: str, indices: Tensor, rng: np.random.Generator | None, recipe: Recipe | None) -> Batch:
        """Examples by number, varied by `rng` as the recipe says, preprocessed."""
        inputs, targets = self.split(split).batch(indices, rng)
        if rng is not None and recipe is not None and self.task.preprocessing.kind == "image":
            inputs = tuple(augment(x, rng, recipe.shift, recipe.flip) for x in inputs)
        return tuple(self._prepare(x) for x in inputs), targets

    def _prepare(self, raw: Tensor) -> Tensor:
        """`Preprocessing.apply`, on the device."""
        if self.task.preprocessing.is_identity:
            return raw
        if raw.ndim not in self._affine:
            factor, offset = (torch.from_numpy(a).to(self.device) for a in self.task.preprocessing.affine(raw.ndim))
            self._affine[raw.ndim] = factor, offset
        factor, offset = self._affine[raw.ndim]
        return raw.float() * factor + offset


def augment(images: Tensor, rng: np.random.Generator, shift: int, flip: bool) -> Tensor:
    """Move each image (N, C, H, W) by up to `shift` pixels each way, filling with 0, and mirror half of them.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> moved = augment(x, np.random.default_rng(0), shift=1, flip=False)
    >>> moved.shape == x.shape, bool((moved == x).all())
    (True, False)
    """
    n, _, height, width = images.shape
    if shift:
        padded = nn.functional.pad(images, (shift,) * 4)
        moves = torch.from_numpy(rng.integers(0, 2 * shift + 1, (2, n)))
        rows = (moves[0, :, None] + torch.arange(height)).to(images.device)
        columns = (moves[1, :, None] + torch.arange(width)).to(images.device)
        each = torch.arange(n, device=images.device)[:, None, None]
        # Indices split by a slice put the indexed axes in front: (N, H, W, C).
        images = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    if flip:
        mirrored = torch.from_numpy(rng.random(n) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def main_output(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output that the task judges: the only one, or the first."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def run_with_aux(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The main output, and what the module offers beside it."""
    if not isinstance(module, WithAux):
        return main_output(module(*inputs)), {}
    outputs, aux = module.forward_with_aux(*inputs)
    return main_output(outputs), aux


@contextmanager
def keeping_modes(module: nn.Module) -> Iterator[None]:
    """After the block, every submodule is in the mode (training or evaluation) that it was in before."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, for the block."""
    with keeping_modes(module), torch.no_grad():
        module.eval()
        yield


def check_fit(module: nn.Module, task: Task, feed: Feed) -> None:
    """Try two examples. Raises E0615 when the module cannot take them, E0616 when its output is not the task's."""
    rows = torch.arange(min(2, len(task.splits["train"])))
    inputs, _ = feed.batch("train", rows, None, None)
    needed = ", ".join(_batched(spec) for spec in task.inputs)
    size = getattr(task.config, "size", None)
    try:
        with evaluating(module):
            outputs = module(*inputs)
    # A module is any code at all; that it fails on the task's inputs is what there is to say.
    except Exception as error:
        raise fail(
            "E0615",
            f"the network does not take the inputs of task `{task.name}`",
            label=f"needed {needed}; the network says: {str(error).strip() or repr(error)}",
            help="give the architecture an input of this type"
            + (f"; `?size=…` scales the pictures to another size than {size}" if size else ""),
        ) from error
    first = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    shape = (len(rows), *task.output.shape)
    if not isinstance(first, Tensor):
        found = type(first).__name__
    elif tuple(first.shape) == shape and first.dtype.is_floating_point:
        return
    else:
        dtype = next((short for short, long in NUMPY_NAMES.items() if f"torch.{long}" == str(first.dtype)), first.dtype)
        found = f"{dtype}[{', '.join(['N', *map(str, first.shape[1:])])}]"
    classes = f", one per class ({len(task.labels)})" if task.labels else ""
    raise fail(
        "E0616",
        f"the network's output is not that of task `{task.name}`",
        label=f"needed {_batched(task.output)}, found {found}",
        help=f"end the architecture with {task.output.shape[-1]} outputs{classes}, "
        "or `--set` the parameter that counts them"
        if task.output.shape
        else None,
    )


def _batched(spec: TensorType) -> str:
    return f"{spec.dtype}[{', '.join(['N', *map(str, spec.shape)])}]"


def evaluate(
    module: nn.Module, task: Task, split: str = "test", *, device: str | torch.device = "cpu", feed: Feed | None = None
) -> Evaluation:
    """Loss and metrics of a module over a split (`train`, `val`, `test`), in evaluation mode.

    The module is moved to `device` and keeps its mode. Raises E0615 and E0616 when it does not fit the task.
    """
    if feed is None:
        module.to(device)
        feed = Feed(task, torch.device(device))
        check_fit(module, task, feed)
    examples = len(feed.split(split))
    sums: dict[str, Tensor] = {}
    statistics = Statistics()
    elements = 0
    counts = None
    with evaluating(module):
        for start in range(0, examples, EVALUATION_BATCH):
            rows = torch.arange(start, min(start + EVALUATION_BATCH, examples))
            inputs, targets = feed.batch(split, rows, None, None)
            outputs, aux = run_with_aux(module, inputs)
            statistics.add(aux, len(rows))
            for name, values in task.objective.metrics(outputs, targets).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + values.double().sum().cpu()
            elements += targets.numel()
            if task.objective is CLASSIFICATION and targets.ndim == 1 and task.labels:
                k = len(task.labels)
                cells = torch.bincount(targets * k + outputs.argmax(-1), minlength=k * k).cpu().reshape(k, k)
                counts = cells if counts is None else counts + cells
    metrics = {name: float(total) / elements for name, total in sums.items()}
    confusion = None if counts is None else counts.numpy()
    return Evaluation(split, examples, metrics, confusion, statistics.means())
