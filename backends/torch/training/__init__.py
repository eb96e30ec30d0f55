"""Training torch modules: tasks, recipes, the loop, checkpoints that resume exactly, reports.

>>> import torch
>>> from archc.backends.torch.training import Recipe, load_task, train
>>> task = load_task("digits")
>>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> result = train(module, task, Recipe.for_task(task.defaults, epochs=10))
>>> result.test.metrics["accuracy"] > 0.5
True

`write_weights(path, state_arrays(module), result.metadata())` keeps them.
"""

from archc.backends.torch.training.checkpoint import load_state, state_arrays
from archc.backends.torch.training.evaluate import Evaluation, evaluate
from archc.backends.torch.training.loop import Event, OnEvent, Saved, Started, Stepped, Validated, train
from archc.backends.torch.training.nowcast import Forecaster, Jump
from archc.backends.torch.training.progress import show_progress
from archc.backends.torch.training.recipe import Recipe
from archc.backends.torch.training.registry import load_task, task_kinds
from archc.backends.torch.training.report import (
    TrainResult,
    confusion_picture,
    curve_picture,
    gallery_picture,
    stats_picture,
)
from archc.backends.torch.training.statistics import Statistics, Stats, summary
from archc.backends.torch.training.tasks import (
    CLASSIFICATION,
    NEXT_CHARACTER,
    REGRESSION,
    ArraySplit,
    Objective,
    Split,
    Task,
    TaskConfig,
    TaskKind,
)

__all__ = [
    "CLASSIFICATION",
    "NEXT_CHARACTER",
    "REGRESSION",
    "ArraySplit",
    "Evaluation",
    "Event",
    "Forecaster",
    "Jump",
    "Objective",
    "OnEvent",
    "Recipe",
    "Saved",
    "Split",
    "Started",
    "Statistics",
    "Stats",
    "Stepped",
    "Task",
    "TaskConfig",
    "TaskKind",
    "TrainResult",
    "Validated",
    "confusion_picture",
    "curve_picture",
    "evaluate",
    "gallery_picture",
    "load_state",
    "load_task",
    "show_progress",
    "state_arrays",
    "stats_picture",
    "summary",
    "task_kinds",
    "train",
]
