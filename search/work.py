"""Kinds of work: what a worker does with a job. `train` evaluates a candidate; strategies and packages bring others.

A package adds its own by an entry point in the group `archc.work` that names a `WorkKind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from archc.search import plugins
from archc.search.records import Point, Result

if TYPE_CHECKING:
    from archc.search.executor import Job

ENTRY_POINTS = "archc.work"
SYNTHETIC = "synthetic"

Report = Callable[[Point], bool]
"""Tells a point of the learning curve; False: enough, stop."""


@dataclass(frozen=True)
class WorkKind:
    """A kind of work by name.

    run    does a job: it may write to the study's folder (temporary name, then renamed), and returns the result
    warm   loads what jobs like this one share (libraries, data) into the process that workers are forked from. It must
           start no threads
    """

    name: str
    run: Callable[[Job, Path, Report], Result]
    warm: Callable[[Job], None] | None = None


_HOMES = {
    "train": "archc.search.evaluation:evaluate",
    "oneshot": "archc.search.strategies.oneshot:evaluate",
    SYNTHETIC: "archc.search.synthetic:evaluate",
}
"""Kind of work -> the function that does it; a function `warm` beside it is its `WorkKind.warm`."""


def kinds_of_work() -> list[str]:
    """The names of all kinds of work: those of archc, then those of installed packages."""
    return plugins.names(ENTRY_POINTS, _HOMES)


def work_kind(name: str) -> WorkKind:
    """The kind of work of that name.

    Raises: CompileError (E0736) for one that is unknown or cannot be loaded.
    """
    if name in _HOMES:
        module, _, function = _HOMES[name].partition(":")
        home = import_module(module)
        return WorkKind(name, getattr(home, function), getattr(home, "warm", None))
    found = plugins.load(ENTRY_POINTS, name, _HOMES, "E0736", "kind of work", WorkKind)
    assert isinstance(found, WorkKind)
    return found


def work_of(job: Job) -> WorkKind:
    """What is to be done for a job. With the task `synthetic` nothing is trained, whatever was asked for: so every
    strategy can be run on made-up objectives."""
    return work_kind(SYNTHETIC if job.evaluation.task == SYNTHETIC else job.proposal.work)
