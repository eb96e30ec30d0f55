"""Addresses of work: what a training, and what compiled code, follow from. Equal addresses, equal results.

Names, the order of statements and whatever else leaves the canonical form of a network alone are no part of them.
"""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.ir.canonical import canonical
from archc.ir.graph import Graph

if TYPE_CHECKING:
    from archc.backends.torch.training import Recipe, Task
    from archc.search.evaluation import Evaluation

VERSION = 1
"""Of the training itself: raised when the same recipe comes to mean another training."""
DTYPE = "f32"
"""In which networks train (where their programs say nothing else)."""


def train_key(network: str, evaluation: Evaluation, fidelity: float = 1.0, start: str | None = None) -> str:
    """The address of a training: of the network with this canonical hash, in this way, on this share of the whole, from
    these weights (their SHA-256). It names the data by their content, so the task is loaded, once.

    Raises: CompileError E0610-E0617 for a task or a recipe that there is not, E0720 for a recipe without its use in
    searches.
    """
    return _digest(network=network, how=_how(evaluation.model_dump_json()), fidelity=fidelity, start=start)


@lru_cache(maxsize=16)
def _how(text: str) -> str:
    """All that a training follows from besides the network, its share and its start: the same for a whole search."""
    from archc.search.evaluation import Evaluation

    evaluation = Evaluation.model_validate_json(text)
    return _digest(
        version=VERSION,
        task=task_of(evaluation).key,
        recipe=recipe_of(evaluation).model_dump(mode="json"),
        evaluation=evaluation.model_dump(mode="json", exclude={"task", "recipe"}),
        start=_model(evaluation.warm_start),
        dtype=DTYPE,
        torch=version("torch"),
    )


def _model(source: str | None) -> str | None:
    """The content of the hypernetwork that trainings begin with."""
    if source is None:
        return None
    from archc.search.warm import hypernetwork

    return hypernetwork(source)[0].sha256


def code_key(graph: Graph, target: str, batch: int = 1, threads: int = 1, weights: str | None = None) -> str:
    """The address of compiled code on this machine: of a network with these weights (their SHA-256), for a target.

    Raises: CompileError E0501-E0504 for a target that there is not.
    """
    from archc.backends.cache import cache_key
    from archc.backends.tvm.targets import parse_target

    spec = parse_target(target, threads=threads).model_dump(mode="json")
    network = canonical(graph).hash
    return cache_key(network=network, target=spec, cpu=processor(), batch=batch, threads=threads, weights=weights)


@cache
def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def recipe_of(evaluation: Evaluation) -> Recipe:
    """The whole recipe of an evaluation: the task's defaults, what the evaluation says, its seed and its steps."""
    from archc.backends.torch.training import Recipe
    from archc.search.training import check_recipe

    given = {**task_of(evaluation).defaults, **evaluation.recipe}
    settled: dict[str, Any] = {"steps": evaluation.steps, "seed": evaluation.seed, "device": "cpu", "keep": "last"}
    return check_recipe(Recipe.for_task(given, **settled))


def task_of(evaluation: Evaluation) -> Task:
    """The task of an evaluation."""
    return load_once(evaluation.task)


@lru_cache(maxsize=4)
def load_once(spec: str) -> Task:
    """A task by its name; the last few are kept."""
    from archc.backends.torch.training import load_task

    return load_task(spec)


def _digest(**facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
