"""Weights for one net from a trained model, with where they come from and what to expect of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from archc.backends.torch.training.checkpoint import to_array
from archc.backends.torch.training.tasks import Task
from archc.backends.weights import Array
from archc.ir.diagnostics import did_you_mean, fail
from archc.ir.graph import Graph
from archc.metanet.ghn.kind import restore
from archc.metanet.ghn.likeness import unlike
from archc.metanet.ghn.model import Ghn
from archc.metanet.ghn.nets import CALIBRATION_BATCHES, CALIBRATION_SIZE, Data, Net, accuracy, calibrate
from archc.metanet.ghn.training import predict
from archc.metanet.store import Stored

PREDICTION = "archc.prediction"
"""The metadata entry of a weights file that says how its weights were predicted, as JSON."""


@dataclass(frozen=True)
class Expected:
    """Zero-step accuracies of unseen nets of the training distribution, as the model's card has them."""

    task: str
    mean: float
    low: float
    high: float
    nets: int
    chance: float
    """The share of right answers of one who guesses among the classes."""

    @property
    def learned(self) -> bool:
        """Is it clearly more than chance?"""
        return self.mean > 1.5 * self.chance

    def __str__(self) -> str:
        return (
            f"{self.mean:.3f} is the mean over {self.nets} unseen nets of the training distribution; "
            f"8 in 10 of them lie from {self.low:.3f} to {self.high:.3f}"
        )


@dataclass(frozen=True)
class Predicted:
    """Arrays for every parameter of a net. `unlike` says in what the net is unlike those of training."""

    arrays: dict[str, Array]
    provenance: dict[str, Any]
    expected: Expected | None
    unlike: tuple[str, ...]

    def metadata(self, task: Task | None) -> dict[str, str]:
        """For the weights file: provenance, and how raw data become inputs."""
        found = {PREDICTION: json.dumps(self.provenance, sort_keys=True)}
        if task is not None:
            found["archc.preprocessing"] = task.preprocessing.model_dump_json()
        return found


def predict_weights(graph: Graph, stored: Stored, task: Task | None, model: Ghn | None = None) -> Predicted:
    """Predict all parameters of a net; with a task, its running statistics are those of training examples.

    Raises: CompileError E0820 (a weight that nobody predicts), E0822 (a task that the model does not know), E0823 (a
    broken model), E0824 (numbers that are not finite), E0615 and E0616 (the net is not one for the task), E0810 (an op
    that the model has no word for).
    """
    model = model or restore(stored)
    card = stored.card
    index = _task_index(model, task, stored)
    net = Net(graph.name, graph, model.words)
    weights = predict(model, net, index)
    statistics = "none"
    if task is not None:
        data = Data(task, index)
        data.check(net)
        weights = {**weights, **calibrate(net, weights, data)}
        if net.statistics:
            statistics = f"calibrated on {CALIBRATION_BATCHES * CALIBRATION_SIZE} training examples of {task.name}"
    elif net.statistics:
        statistics = "as initialised: there was no task to calibrate them on"
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise fail(
                "E0824",
                f"the prediction for `{name}` is not finite",
                label=f"by {card.name}, for {task.name if task else 'no task'}",
                help="the net is too unlike those that the model was trained on: train it from its initial weights",
            )
    parameters = graph.parameters()
    assert weights.keys() == parameters.keys(), "every parameter is predicted"
    expected = _expected(card.figures, task) if task is not None else None
    found = unlike(graph, card.trained.get("seen", {}))
    provenance = {
        "model": card.name,
        "sha256": stored.sha256,
        "task": task.name if task else None,
        "statistics": statistics,
        "kept": sorted(n for n, p in parameters.items() if not p.trainable and n not in net.statistics),
        "expected": vars(expected) if expected else None,
        "unlike": found,
    }
    arrays = {n: to_array(w.to(_dtype(parameters[n].type.dtype))) for n, w in weights.items()}
    return Predicted(arrays, provenance, expected, tuple(found))


def measured(graph: Graph, arrays: dict[str, Array], task: Task, model: Ghn) -> float:
    """The accuracy of these weights on the task's validation split."""
    net = Net(graph.name, graph, model.words)
    return accuracy(net, {n: torch.from_numpy(a) for n, a in arrays.items()}, Data(task), "val")


def _task_index(model: Ghn, task: Task | None, stored: Stored) -> int:
    if task is None:
        return 0
    if task.name not in model.tasks:
        known = ", ".join(model.tasks)
        raise fail(
            "E0822",
            f"`{stored.card.name}` was not trained for task `{task.name}`",
            label=f"it was trained for {known}",
            help=did_you_mean(task.name, model.tasks) or "give one of these, or train one: `archc metanet train ghn`",
        )
    return model.tasks.index(task.name)


def _expected(figures: dict[str, Any], task: Task) -> Expected | None:
    name = f"{task.name}/test"
    if name not in figures:
        return None
    low, high, nets = (figures[f"{name}/{part}"] for part in ("p10", "p90", "nets"))
    return Expected(task.name, figures[name], low, high, nets, 1 / task.output.size)  # type: ignore[operator]


def _dtype(name: str) -> torch.dtype:
    from archc.backends.torch.module import TORCH_DTYPES

    return TORCH_DTYPES[name]
