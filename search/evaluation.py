"""Evaluation: what it means to evaluate a candidate, and doing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from archc.search.goals import Goals
from archc.search.records import Record


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
    seed: int = 0
    threads: int = 1
    batch: int = Field(1, description="batch size of measured latency")
    memory_mb: int = 4096
    seconds: float = 600.0
    early_stop: bool = False
