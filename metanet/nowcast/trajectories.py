"""Recorded training runs: what a nowcaster learns from.

One safetensors file holds the runs of one network on one task by one recipe, from several seeds:

    snapshots  f32[S, K, n]  the trained weights of each run, every `EVERY` steps from step 0 on, flat in the order of
                             `incidence.names` (that of the architecture's text)
    losses     f32[S, steps] the training loss of each step, on its own batch, before it

and, in its metadata under `archc.trajectory`, as JSON, an `Origin`: the architecture's text and parameters, the task,
its data's SHA-256, the recipe, the seeds and the cadence. The file has its own SHA-256; equal plans give equal files
on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from archc.backends.torch.training import ArraySplit, Recipe, Task, TaskConfig, load_task
from archc.backends.torch.training.datasets import array_digest
from archc.backends.torch.training.tasks import CLASSIFICATION
from archc.backends.weights import read_weights, write_weights
from archc.grammar.load import loads
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.ir.types import TensorType
from archc.metanet.nowcast.incidence import Incidence, incidence
from archc.metanet.nowcast.nets import NETS, of_split
from archc.metanet.nowcast.population import Population

EVERY = 10
"""Steps from one snapshot to the next."""

STEPS = 600
SEEDS = 4
METADATA = "archc.trajectory"

RECIPES: dict[str, dict[str, Any]] = {
    "slow": {"lr": 1e-3, "schedule": "constant"},
    "middle": {"lr": 3e-3, "schedule": "constant"},
    "fast": {"lr": 1e-2, "schedule": "constant", "batch_size": 32},
    "cosine": {"lr": 5e-3, "schedule": "cosine"},
}
"""Adam (no weight decay) in four ways, over a short warm-up."""


class Origin(BaseModel):
    """Where recorded runs come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    net: str
    text: str
    values: dict[str, int]
    task: dict[str, Any]
    recipe: dict[str, Any]
    seeds: list[int]
    every: int


@dataclass(frozen=True)
class Plan:
    """Runs to record."""

    net: str
    task: str
    recipe: str
    seeds: int = SEEDS
    steps: int = STEPS

    @property
    def file(self) -> str:
        """
        >>> Plan("mlp", "digits", "slow").file
        'mlp-digits-slow.safetensors'
        """
        return f"{self.net}-{self.task}-{self.recipe}.safetensors"


def plans() -> Iterator[Plan]:
    """What the shipped model has learnt from: two tasks, neither of which is used to judge it.

    >>> len(list(plans()))
    60
    """
    for net in of_split("train"):
        yield from (Plan(net.name, "digits", recipe) for recipe in RECIPES)
        yield from (Plan(net.name, "teacher", recipe) for recipe in ("middle", "fast"))


@dataclass(frozen=True)
class Trajectory:
    """Recorded runs, as read."""

    origin: Origin
    graph: Graph = field(repr=False)
    incidence: Incidence = field(repr=False)
    snapshots: torch.Tensor = field(repr=False)
    losses: torch.Tensor = field(repr=False)


def recipe_of(name: str, task: Task, steps: int, **options: Any) -> Recipe:
    """One of `RECIPES` for a task."""
    common = {"weight_decay": 0.0, "warmup": 0.05, "steps": steps, "epochs": 1}
    return Recipe.for_task(task.defaults, **(common | RECIPES[name] | options))


def record(plan: Plan, folder: Path) -> Path:
    """Train as planned and write the runs; a file that is there is left as it is."""
    path = folder / plan.file
    if path.exists():
        return path
    task, net = task_named(plan.task), NETS[plan.net]
    channels, size, _ = (int(str(s)) for s in task.inputs[0].shape)
    values = {"size": size, "classes": int(str(task.output.shape[-1])), "channels": channels}
    recipe = recipe_of(plan.recipe, task, plan.steps)
    runs = Population(net.graph(**values), task, recipe, range(plan.seeds))
    snapshots, losses = [runs.flat.detach().clone()], []
    for step in range(1, plan.steps + 1):
        losses.append(runs.step())
        if step % EVERY == 0:
            snapshots.append(runs.flat.detach().clone())
    arrays = {"snapshots": torch.stack(snapshots, 1).numpy(), "losses": torch.stack(losses, 1).numpy()}
    assert all(np.isfinite(a).all() for a in arrays.values()), f"{plan} diverged"
    origin = Origin(
        net=plan.net,
        text=net.text,
        values=values,
        task=task.key,
        recipe=recipe.model_dump(mode="json"),
        seeds=list(runs.seeds),
        every=EVERY,
    )
    write_weights(path, arrays, {METADATA: origin.model_dump_json()})
    return path


def read(path: Path) -> Trajectory:
    """Recorded runs from a file.

    Raises: CompileError E0835 for a file that holds none, or not those of its own architecture; E0601 and E0602 for
    one that is no sound safetensors file.
    """
    weights = read_weights(path)
    try:
        origin = Origin.model_validate(json.loads(weights.metadata[METADATA]))
        snapshots, losses = (torch.from_numpy(np.array(weights.arrays[k])) for k in ("snapshots", "losses"))
    except (KeyError, ValueError, ValidationError) as error:
        raise fail("E0835", f"{path} holds no recorded training runs", label=str(error).splitlines()[0]) from error
    graph = loads(origin.text, origin.values)
    found = incidence(graph)
    if snapshots.ndim != 3 or snapshots.shape[::2] != (len(origin.seeds), found.weights):
        label = f"needed {len(origin.seeds)} runs of {found.weights} weights, found shape {tuple(snapshots.shape)}"
        raise fail("E0835", f"{path} holds runs of another network than it says", label=label)
    if not bool(snapshots.isfinite().all()):
        raise fail("E0835", f"{path} holds weights that are not finite", help="record the runs again")
    return Trajectory(origin, graph, found, snapshots, losses)


def task_named(name: str) -> Task:
    """A task of training by name, or `teacher`, which is made here."""
    return teacher() if name == "teacher" else load_task(name)


def teacher(seed: int = 0, examples: int = 3000) -> Task:
    """Ten classes of noise: smooth random images of 8×8, judged by a random network of two layers that is not told.

    >>> task = teacher(examples=300)
    >>> str(task.inputs[0]), [len(s) for s in task.splits.values()]
    ('f32[1, 8, 8]', [200, 50, 50])
    """
    rng = np.random.Generator(np.random.Philox(seed))
    noise = rng.standard_normal((examples, 9, 9))
    x = ((noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]) / 2).astype(np.float32)
    hidden = np.tanh(x.reshape(examples, -1) @ rng.standard_normal((64, 32)) / 4)
    scores = hidden @ rng.standard_normal((32, 10))
    y = (scores - scores.mean(0)).argmax(1)
    bounds = [0, examples * 4 // 6, examples * 5 // 6, examples]
    splits = {
        split: ArraySplit((torch.from_numpy(x[a:b, None]),), torch.from_numpy(y[a:b]))
        for split, a, b in zip(("train", "val", "test"), bounds, bounds[1:], strict=False)
    }
    return Task(
        "teacher",
        TaskConfig(),
        (TensorType((1, 8, 8), "f32"),),
        TensorType((10,), "f32"),
        CLASSIFICATION,
        splits,
        array_digest(x, y),
    )
