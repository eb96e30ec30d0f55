"""Executors: where jobs run. One process, a pool of processes, a Ray cluster: the study cannot tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from archc.search.evaluation import Evaluation
from archc.search.records import Point, Proposal, Record, Result


class Job(Record):
    """All that a worker needs to know. Plain data, no state: whoever gets it does the same work.

    key       address of the work (`archc.search.keys.train_key`): its result file is `results/KEY.json` of the study
    start     SHA-256 of the weights in the study's vault to start from: of the trial that the proposal `continues`, or
              else of the parent that the candidate inherits from. None: a fresh start
    parent    the program that `start` are the weights of, where that is the parent
    curves    learning curves of earlier trials: what early stopping judges this one by
    """

    key: str
    proposal: Proposal
    evaluation: Evaluation
    start: str | None = None
    parent: str | None = None
    curves: tuple[tuple[Point, ...], ...] = ()
    options: Mapping[str, Any] = {}


class Event(Record):
    """News of a job: a point of its learning curve, its result, or that it was lost with its worker and may be tried
    again (`message` says what happened)."""

    key: str
    kind: Literal["report", "done", "lost"]
    point: Point | None = None
    result: Result | None = None
    message: str = ""


class Executor(Protocol):
    """Runs jobs. Its workers write files of the study's folder (temporary name, then renamed), never its log."""

    workers: int

    def submit(self, job: Job) -> None:
        """Start a job; at most `workers` are under way."""

    def wait(self, seconds: float) -> list[Event]:
        """News, as soon as there is some; nothing after so many seconds."""

    def pause(self) -> None:
        """Stop all workers where they are, so that something can be measured on a quiet machine."""

    def resume(self) -> None:
        """Let them go on."""

    def close(self) -> None:
        """End all workers, and what they started."""
