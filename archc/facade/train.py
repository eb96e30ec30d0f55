"""Training: `archc.train`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.facade.model import Model, as_model
from archc.facade.weights import Given
from archc.ir.diagnostics import fail

if TYPE_CHECKING:
    from torch import nn

    from archc.backends.torch.module import ArchModule
    from archc.backends.torch.training import Task, TrainResult
    from archc.backends.weights import Weights


@dataclass(frozen=True)
class Trained:
    """A trained network: `weights` go into `archc.compile`, and say how raw data are prepared; `result` holds scores,
    history and confusion matrix; `module` is the network in torch."""

    weights: Weights = field(repr=False)
    result: TrainResult
    module: ArchModule = field(repr=False)
    task: Task = field(repr=False)


def train(
    model: Model | Path | str,
    task: str | Task,
    out: Path | str | None = None,
    *,
    weights: Given = None,
    resume: bool = False,
    report: Path | str | None = None,
    threads: int | None = None,
    progress: bool = False,
    seed: int = 0,
    **recipe: Any,
) -> Trained:
    """Train a network on a task (`"digits"`, `"images:FOLDER"`, …; see `archc train --help`).

    `nowcast=True` (the model that comes with archc), or `nowcast="m.safetensors"`, predicts the weights ahead.
    `recipe` are fields of `archc.backends.torch.training.Recipe` (`epochs`, `lr`, …) over the task's own defaults.
    Weights start from `weights`, else from `seed`. With `out` the trained weights are written there, and the state of
    the run beside it while it lasts: Ctrl-C loses nothing, `resume` goes on. `report` names a folder for pictures;
    `progress` shows on stderr how it goes.

    Raises: CompileError E061x when model, task and recipe do not fit, E0801, E0802 and E0835-E0839 for a nowcasting
    model that is not sound or does not fit, KeyboardInterrupt after saving.
    """
    import torch

    from archc.backends.torch.training import Recipe, load_task, show_progress, state_arrays
    from archc.backends.torch.training import train as run
    from archc.backends.weights import Weights, write_weights

    model = as_model(model)
    task = load_task(task) if isinstance(task, str) else task
    if isinstance(recipe.get("nowcast"), bool):
        from archc.metanet.nowcast.forecast import SHIPPED

        recipe["nowcast"] = SHIPPED if recipe["nowcast"] else None
    options = Recipe.for_task(task.defaults, seed=seed, **recipe)
    for place in (out, report):
        if place is not None:
            _demand_folder(Path(place).parent)  # told now, not after an hour of training
    forecaster = None
    if options.nowcast is not None:
        from archc.metanet.nowcast.forecast import forecaster as bind
        from archc.metanet.nowcast.forecast import pinned

        forecaster = bind(model.graph, options.nowcast)
        options = pinned(options, forecaster)
    if threads:
        torch.set_num_threads(threads)
    module = model.to_torch(weights, seed)
    checkpoint = checkpoint_path(out) if out else None
    with show_progress(quiet=not progress) as on_event:
        result = run(
            module, task, options, forecaster=forecaster, checkpoint=checkpoint, resume=resume, on_event=on_event
        )
    module.cpu()
    trained = Weights(state_arrays(module), result.metadata())
    if out:
        write_weights(out, trained.arrays, trained.metadata)
    if report:
        write_report(Trained(trained, result, module, task), Path(report))
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return Trained(trained, result, module, task)


def checkpoint_path(out: Path | str) -> Path:
    """Where the state of an unfinished run stands.

    >>> str(checkpoint_path("w.safetensors"))
    'w.checkpoint.safetensors'
    """
    return Path(out).with_suffix(".checkpoint.safetensors")


def _demand_folder(folder: Path) -> None:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        why = "it cannot be written to" if folder.exists() else "there is no such folder"
        raise fail("E0608", f"cannot write to `{folder}`", label=why, help="choose another place, or make the folder")


def write_report(trained: Trained, folder: Path) -> list[Path]:
    """`result.json`, the learning curve; where there are such, the confusion matrix, how rows went through experts,
    gates and exits, and held-out pictures with predictions; the files written."""
    from archc.backends.torch.training import confusion_picture, curve_picture, gallery_picture, stats_picture
    from archc.backends.weights import atomic_file

    folder.mkdir(parents=True, exist_ok=True)
    result, task = trained.result, trained.task
    files = [folder / "result.json", folder / "curve.png"]
    with atomic_file(files[0]) as temporary:
        temporary.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    curve_picture(result, files[1])
    if result.confusion is not None:
        files.append(folder / "confusion.png")
        confusion_picture(result, files[-1])
    if any("stats" in row for row in result.history):
        files.append(folder / "routing.png")
        stats_picture(result, files[-1])
    if task.preprocessing.kind == "image":
        files.append(folder / "gallery.png")
        gallery_picture(trained.module, task, files[-1])
    return files


def gallery(module: nn.Module, task: Task, path: Path | str, count: int = 25) -> None:
    """Draw held-out images of an image task with what a module predicts, as .png or .svg; wrong ones in red."""
    from archc.backends.torch.training import gallery_picture

    gallery_picture(module, task, path, count=count)
