"""Warm starts: trainings that begin with weights that a hypernetwork predicts from the graph."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from archc.backends.torch.training import Task
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.metanet.ghn.kind import restore
from archc.metanet.ghn.prediction import predict_weights
from archc.metanet.store import Stored, load

if TYPE_CHECKING:
    from archc.metanet.ghn.model import Ghn

UNKNOWN = ("E0810", "E0820", "E0824")
"""What a hypernetwork says of a net that it cannot predict: that net starts afresh."""


@lru_cache(maxsize=1)
def hypernetwork(source: str) -> tuple[Stored, Ghn]:
    """A hypernetwork by file or by name. Raises: CompileError E0801, E0802, E0823."""
    stored = load(source, "ghn")
    return stored, restore(stored)


def check(source: str, task: Task) -> None:
    """See that there is such a hypernetwork, and that it knows the task.

    Raises: CompileError E0801, E0802, E0823 for the file, E0822 for the task.
    """
    from archc.grammar.load import loads

    stored, model = hypernetwork(source)
    if task.name not in model.tasks:
        predict_weights(loads("arch probe()\ninput x: f32[N, 2]\noutput y: f32[N, 2]\ny = x\n"), stored, task, model)


def predicted(graph: Graph, source: str, task: Task) -> tuple[dict[str, Any], str]:
    """Predicted weights by parameter name, and what is to be said of them: `predicted`, or why there are none.

    Raises: CompileError as `check`.
    """
    stored, model = hypernetwork(source)
    try:
        return dict(predict_weights(graph, stored, task, model).arrays), "predicted"
    except CompileError as error:
        first = error.diagnostics[0]
        if first.code not in UNKNOWN:
            raise
        return {}, f"afresh: {first.code}: {first.message}"
