"""What training reports: a result as plain data, and pictures of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from archc.backends.preprocessing import Preprocessing
from archc.backends.torch.training.evaluate import Evaluation, Feed, evaluating, main_output
from archc.backends.torch.training.recipe import Recipe
from archc.backends.torch.training.tasks import Task
from archc.backends.weights import Array, atomic_file


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training run. `test` is None while it is unfinished; `history` has a row per epoch."""

    task: Mapping[str, Any]
    recipe: Recipe
    preprocessing: Preprocessing = field(repr=False)
    parameters: int
    history: tuple[dict[str, Any], ...] = field(repr=False)
    best_epoch: int | None
    val: Evaluation
    test: Evaluation | None
    seconds: float
    finished: bool
    device: str
    threads: int
    torch_version: str
    nowcasts: Mapping[str, int] | None = None
    """Jumps that were kept and refused, and the forward passes that judging them cost; None without nowcasting."""

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def confusion(self) -> Array | None:
        """Counts by (true, predicted) over the test split, or over validation while there is no test."""
        return (self.test or self.val).confusion

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "task": dict(self.task),
            "recipe": self.recipe.model_dump(mode="json"),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "parameters": self.parameters,
            "history": list(self.history),
            "best_epoch": self.best_epoch,
            "val": self.val.to_json(),
            "test": self.test and self.test.to_json(),
            "seconds": self.seconds,
            "finished": self.finished,
            "device": self.device,
            "threads": self.threads,
            "torch": self.torch_version,
            **({"nowcasts": dict(self.nowcasts)} if self.nowcasts is not None else {}),
        }

    def metadata(self) -> dict[str, str]:
        """What to write into the weights file: where they come from, and how to feed a network that has them.

        `archc.preprocessing` is read when an artifact is compiled. Times are left out: equal runs give equal files.
        """
        scores = {e.split: e.to_json()["metrics"] for e in (self.val, self.test) if e is not None}
        parts = {
            "task": dict(self.task),
            "recipe": self.recipe.model_dump(mode="json"),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "metrics": scores,
            "training": {"torch": self.torch_version, "device": self.device, "threads": self.threads},
        }
        return {f"archc.{name}": json.dumps(value, sort_keys=True) for name, value in parts.items()}


def confusion_picture(result: TrainResult | Evaluation, path: Path | str) -> None:
    """Draw which class was taken for which, as .png or .svg. The result must have a confusion matrix."""
    confusion = result.confusion
    assert confusion is not None, "only a task with one label per example has a confusion matrix"
    labels = result.preprocessing.labels if isinstance(result, TrainResult) else tuple(map(str, range(len(confusion))))
    k = len(confusion)
    side = min(12.0, 2.5 + 0.4 * k)
    figure, axes = _figure(side, side)
    share = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if k <= 30:
        for true, predicted in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if share[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, str(confusion[true, predicted]), ha="center", va="center", color=colour)
        turned = max(map(len, labels)) > 3
        axes.set_xticks(range(k), labels, rotation=60 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(k), labels)
    correct, total = int(np.trace(confusion)), int(confusion.sum())
    axes.set(xlabel="predicted", ylabel="true", title=f"{correct} of {total} right ({correct / max(1, total):.1%})")
    _write(figure, path)


def curve_picture(result: TrainResult, path: Path | str) -> None:
    """Draw losses and the other validation metrics by epoch, as .png or .svg."""
    metrics = [name for name in result.val.metrics if name != "loss"]
    figure, panels = _figure(4.5 * (1 + len(metrics)), 3.5, columns=1 + len(metrics))
    panels = np.atleast_1d(panels)
    epochs = [row["epoch"] for row in result.history]
    curves = [(panels[0], "train_loss", "training"), (panels[0], "val_loss", "validation")]
    curves += [(panel, f"val_{name}", "validation") for panel, name in zip(panels[1:], metrics, strict=True)]
    for panel, key, label in curves:
        values = [math.nan if row[key] is None else row[key] for row in result.history]
        panel.plot(epochs, values, label=label, marker="." if len(epochs) < 40 else "")
    for panel, name in zip(panels, ["loss", *metrics], strict=True):
        if result.best_epoch is not None:
            panel.axvline(result.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {result.best_epoch}")
        panel.set(xlabel="epoch", title=name.replace("_", " "))
        panel.legend()
    _write(figure, path)


_STATS = {
    "open": ("share of open gates", "viridis"),
    "left": ("share of samples that leave early", "viridis"),
    "load": ("share of rows, for each expert", "magma"),
    "entropy": ("entropy of routers", "viridis"),
}


def stats_picture(result: TrainResult, path: Path | str) -> None:
    """Draw how rows went in validation, by layer and epoch, as .png or .svg: gates, exits, and the load of experts. The
    history must have such numbers.
    """
    rows = [row for row in result.history if "stats" in row]
    assert rows, "only a network with experts, gates or exits has statistics"
    seen = [row["stats"]["val"] for row in rows]
    sizes = {name: np.size(value) for stats in seen for name, value in stats.items()}
    grids = {}
    for what in _STATS:  # what nothing has reached in an epoch is left white
        layers = {name: [np.broadcast_to(stats.get(name, math.nan), size) for stats in seen]
                  for name, size in sizes.items() if name.endswith(f".{what}")}  # fmt: skip
        if layers:
            grids[what] = layers
    heights = [1.2 + 0.22 * sum(len(values[0]) for values in layers.values()) for layers in grids.values()]
    figure, panels = _figure(8.0, min(60.0, sum(heights)), rows=len(grids), height_ratios=heights)
    for panel, (what, layers) in zip(np.atleast_1d(panels), grids.items(), strict=True):
        title, colours = _STATS[what]
        grid = np.concatenate([np.stack(values, axis=1) for values in layers.values()])  # (layers and experts, epochs)
        ends = np.cumsum([len(values[0]) for values in layers.values()])
        picture = panel.imshow(grid, aspect="auto", cmap=colours, vmin=0, vmax=None if what == "load" else 1,
                               interpolation="nearest")  # fmt: skip
        figure.colorbar(picture, ax=panel)
        for end in ends[:-1] if what == "load" else ():
            panel.axhline(end - 0.5, color="white")
        middles = [end - (len(values[0]) + 1) / 2 for end, values in zip(ends, layers.values(), strict=True)]
        panel.set_yticks(middles, [name.rpartition(".")[0] for name in layers], fontsize=8)
        step = max(1, len(rows) // 10)
        panel.set_xticks(range(0, len(rows), step), [row["epoch"] for row in rows[::step]])
        panel.set(xlabel="epoch", title=title)
    _write(figure, path)


def gallery_picture(
    module: nn.Module, task: Task, path: Path | str, *, count: int = 25, split: str = "test", device: str = "cpu"
) -> None:
    """Draw held-out images, spread evenly over the split, with predicted labels; a wrong one is red and names the
    true one. For image tasks.
    """
    assert task.preprocessing.kind == "image", f"task `{task.name}` has no labelled images"
    examples = task.splits[split]
    count = min(count, len(examples))
    rows = torch.arange(count) * len(examples) // count
    raw, targets = examples.batch(rows)
    module.to(device)
    with evaluating(module):
        inputs, _ = Feed(task, torch.device(device)).batch(split, rows, None, None)
        predicted = main_output(module(*inputs)).argmax(-1).cpu()
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    figure, panels = _figure(1.4 * columns, 1.6 * lines, columns, lines)
    flat = np.atleast_1d(panels).ravel()
    for panel in flat:
        panel.axis("off")
    for panel, image, true, guess in zip(flat, raw[0], targets.tolist(), predicted.tolist(), strict=False):
        pixels = np.clip(image.float().numpy() * task.preprocessing.scale, 0, 1).transpose(1, 2, 0)
        panel.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
        said = task.labels[guess] if guess == true else f"{task.labels[guess]} (is {task.labels[true]})"
        panel.set_title(said, fontsize=9, color="black" if guess == true else "red")
    _write(figure, path)


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _write(figure: Any, path: Path | str) -> None:
    import matplotlib

    suffix = Path(path).suffix.lstrip(".").lower()
    assert suffix in {"png", "svg"}, f"a picture is .png or .svg, not `{path}`"
    # A fixed salt and no date: the same picture is the same file.
    with matplotlib.rc_context({"svg.hashsalt": "archc"}), atomic_file(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
