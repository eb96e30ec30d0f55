"""What tests of studies share: small spaces, made-up evaluations, an executor whose workers finish in any order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from archc.search.evaluation import Evaluation
from archc.search.executor import Event, Job
from archc.search.goals import parse_goals
from archc.search.records import Point, Result
from archc.search.study import Study, parse_budget
from archc.search.vault import read_result, write_result
from archc.search.work import work_of

SPACE = """space tiny()
input x: f32[N, 4]
output y: f32[N, 2]
rule Body = linear(range(8, 64, step = 8)) -> choose { relu | gelu | tanh } | 0.5: Body -> Body when depth < 3
y = x -> Body -> linear(2)
"""
EIGHT = """space eight()
input x: f32[N, 4]
output y: f32[N, 2]
y = x -> linear(range(8, 32, step = 8)) -> choose { relu | gelu } -> linear(2)
"""
"""A space of eight architectures."""


def begin(folder: Path, text: str = SPACE, **how: Any) -> Study:
    """A study with made-up objectives; `how` are arguments of `Study.create`, or fields of the evaluation."""
    fields = {name: how.pop(name) for name in list(how) if name in Evaluation.model_fields and name != "seed"}
    goals = parse_goals(how.pop("objectives", ["accuracy:max", "params:min"]), how.pop("constraints", []))
    space = folder.with_suffix(".arch")
    space.write_text(text)
    evaluation = Evaluation(**{"task": "synthetic", "goals": goals, "steps": 10} | fields)
    budget = parse_budget(str(how.pop("budget", 20)))
    return Study.create(folder, space, evaluation=evaluation, budget=budget, **{"strategy": "random"} | how)


class Scrambled:
    """Works in this process; which of the jobs under way ends next is a throw of dice. Counts what it did."""

    def __init__(self, folder: Path, workers: int, seed: int = 0) -> None:
        self.folder, self.workers = folder, workers
        self.done: list[str] = []
        self.paused = 0
        self._dice = random.Random(seed)
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        assert len(self._jobs) <= self.workers

    def wait(self, seconds: float) -> list[Event]:
        if not self._jobs:
            return []
        job = self._jobs.pop(self._dice.randrange(len(self._jobs)))
        events: list[Event] = []

        def report(point: Point) -> bool:
            events.append(Event(key=job.key, kind="report", point=point))
            return True

        result = work_of(job).run(job, self.folder, report)
        return [*events, self.end(job, result)]

    def end(self, job: Job, result: Result) -> Event:
        assert read_result(self.folder, job.key) is None, "work that has been done is not done again"
        write_result(self.folder, job.key, result)
        self.done.append(job.key)
        return Event(key=job.key, kind="done", result=result)

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        self.paused -= 1

    def close(self) -> None:
        self._jobs.clear()


def hashes(study: Study) -> list[str]:
    return [t.proposal.candidate.hash for t in study.trials]
