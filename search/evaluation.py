"""Evaluation: what it means to evaluate a candidate, and doing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from archc.search.goals import Goals
from archc.search.records import Candidate, Record, Result

if TYPE_CHECKING:
    from archc.search.executor import Job
    from archc.search.work import Report


class Evaluation(Record):
    """How candidates are evaluated; a part of the address of every result.

    `recipe` are fields of `archc.backends.torch.training.Recipe` over the task's own defaults, `steps` those of a whole
    training (fidelity 1). Limits are those of one job: `memory_mb` resident, `seconds` of wall time.
    """

    task: str
    goals: Goals
    steps: int = Field(300, ge=1)
    recipe: Mapping[str, Any] = {}
    architecture_aware: bool = Field(False, description="initialisation and learning rate by topology")
    warm_start: str | None = Field(
        None, description="a hypernetwork, by file or name (`ghn-small`), whose predicted weights trainings begin with"
    )
    seed: int = 0
    threads: int = 1
    batch: int = Field(1, description="batch size of measured latency")
    memory_mb: int = 4096
    seconds: float = 600.0
    early_stop: bool = False

    @property
    def has_own_start(self) -> bool:
        """Whether a training begins with other weights than those that the program draws."""
        return self.architecture_aware or self.warm_start is not None


def evaluate(job: Job, folder: Path, report: Report) -> Result:
    """Evaluate a candidate for the study in a folder: build it, check what can be known without training, train it on
    its share of the whole, judge it on the validation split, keep its weights in the vault, and compile it where a
    latency is asked for (the coordinator measures it). The test split stays closed.

    A candidate that is no solution comes back as infeasible: `invalid` (no program, does not fit the task, cannot be
    compiled), the name of a constraint, or `diverged`. What else is raised is nobody's candidate's fault.
    """
    from archc.search.trial import Trial

    return Trial(job, folder, report).run()


def warm(job: Job) -> None:
    """Load what all evaluations of a study share: torch, the task's data, and the compiler if a latency is asked for.

    Raises: CompileError E0610-E0617, E0720-E0722 for what cannot be evaluated at all.
    """
    from archc.search.trial import prepare

    prepare(job.evaluation)


def final_test(candidate: Candidate, evaluation: Evaluation, repeats: int = 3) -> list[dict[str, float]]:
    """Train a candidate anew from some seeds, each on the whole of the training, and open the test split once for each:
    its metrics. For what a search has chosen, and for nothing that a search still hears of.

    Seeds follow that of the evaluation, which the search has seen: none of them is it.
    """
    from archc.search.trial import tested

    return [tested(candidate, evaluation, evaluation.seed + 1 + turn) for turn in range(repeats)]
