"""What can be an objective or a constraint: quantities by name.

A package adds its own by an entry point in the group `archc.objectives` that names an `ObjectiveKind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.grammar.requirements import measure
from archc.ir.cost import cost
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.search import plugins
from archc.search.goals import Constraint, Goals, Objective

if TYPE_CHECKING:
    from archc.backends.torch.training import Task

ENTRY_POINTS = "archc.objectives"
LATENCY = "latency_ms"
"""Measured by the coordinator, of the compiled network, on the target that the goal names."""


@dataclass(frozen=True)
class Context:
    """What a candidate is judged by. Before its training `metrics` and `weights` are empty.

    metrics   the task's metrics over the validation split
    weights   trained weights by parameter name
    folder    the study's
    """

    graph: Graph
    task: Task
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class ObjectiveKind:
    """A quantity by name. What does not need training (`trained=False`) is known before it: a constraint on it costs
    nothing. `measured` is what the coordinator measures on a target, from the compiled network."""

    name: str
    doc: str
    larger_is_better: bool
    measure: Callable[[Context], float]
    trained: bool = True
    measured: bool = False


def _metric(name: str, doc: str, larger_is_better: bool) -> ObjectiveKind:
    return ObjectiveKind(name, doc, larger_is_better, lambda context: context.metrics[name])


def _size(name: str, doc: str) -> ObjectiveKind:
    return ObjectiveKind(name, doc, False, lambda context: float(measure(context.graph, (name,))[name]), trained=False)


def _unmeasured(context: Context) -> float:
    raise AssertionError("latency is measured by the coordinator")


_KINDS = (
    _metric("accuracy", "share of the validation split that is classified rightly", True),
    _metric("loss", "the task's loss over the validation split", False),
    _metric("bits_per_char", "of text: cross entropy of the next character, in bits", False),
    _metric("mean_absolute_error", "of regression", False),
    _size("params", "trained numbers"),
    _size("flops", "operations of a forward pass on one example"),
    _size("activation_bytes", "bytes of all results of a forward pass on one example"),
    _size("depth", "nodes on the longest path"),
    ObjectiveKind(
        "weight_bytes",
        "bytes of parameters and running statistics",
        False,
        lambda context: float(cost(context.graph).weight_bytes),
        trained=False,
    ),
    ObjectiveKind(
        LATENCY, "milliseconds of the compiled network, on the target after `@`", False, _unmeasured, measured=True
    ),
)
_OWN = {kind.name: kind for kind in _KINDS}


def objectives() -> list[str]:
    """The names of all quantities: those of archc, then those of installed packages.

    >>> objectives()[:3]
    ['accuracy', 'loss', 'bits_per_char']
    """
    return plugins.names(ENTRY_POINTS, _OWN)


def objective_kind(name: str) -> ObjectiveKind:
    """The quantity of that name. Raises: CompileError (E0721) for one that is unknown or cannot be loaded."""
    if name in _OWN:
        return _OWN[name]
    found = plugins.load(ENTRY_POINTS, name, _OWN, "E0721", "quantity", ObjectiveKind)
    assert isinstance(found, ObjectiveKind)
    return found


def goals_of(goals: Goals) -> list[tuple[Objective | Constraint, ObjectiveKind]]:
    """Objectives and constraints, each with what it speaks of."""
    every: list[Objective | Constraint] = [*goals.objectives, *goals.constraints]
    return [(goal, objective_kind(goal.name)) for goal in every]


def check_goals(goals: Goals, task: Task) -> None:
    """See that what is asked for can be had on a task.

    Raises: CompileError: E0721 for an unknown quantity, E0722 for a metric that the task has not, or a target that is
    missing or makes no sense.
    """
    metrics = {name for name, kind in _OWN.items() if kind.trained and not kind.measured}
    offered = metrics_of(task)
    for goal, kind in goals_of(goals):
        if kind.name in metrics - offered:
            raise fail(
                "E0722",
                f"task `{task.name}` has no `{goal.name}`",
                help=f"it has {', '.join(f'`{name}`' for name in sorted(offered))}",
            )
        if kind.measured and goal.target is None:
            raise fail("E0722", f"`{goal.name}` is measured on a target", help=f"write `{goal.name}@cpu`")
        if not kind.measured and goal.target is not None:
            raise fail("E0722", f"`{goal.name}` is the same on every target", help=f"write `{goal.name}`")


def metrics_of(task: Task) -> set[str]:
    """The metrics that a task has: those of one example."""
    import torch

    examples = task.splits["val"].batch(torch.arange(1))[1]
    return set(task.objective.metrics(torch.zeros(1, *_shape(task)), examples))


def _shape(task: Task) -> tuple[int, ...]:
    return tuple(int(str(size)) for size in task.output.shape)
