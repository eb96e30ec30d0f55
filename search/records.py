"""What a study writes down: candidates, proposals, reports, results. Frozen, plain data, the same in the log, between
processes and in exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Production = int | float
"""What a choice of a space came to (see `archc.grammar.choices`)."""


class Record(BaseModel):
    """Plain data that cannot change."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Candidate(Record):
    """An architecture, and where it comes from.

    text      the whole program, concrete: `.arch`
    hash      its canonical SHA-256: equal architectures have equal hashes
    origin    `draw`, `seed` (a net of the user's), `mutation/KIND`, `crossover`, `transform/PASS`
    trace     path of a choice -> production; None for what stands outside of the space (a seed, a transform's result)
    parents   numbers of the trials that it was made of
    inherit   the trial whose trained weights it starts from, as `origin` maps them; None: a fresh start
    """

    text: str
    hash: str
    origin: str = "draw"
    trace: Mapping[str, Production] | None = None
    parents: tuple[int, ...] = ()
    inherit: int | None = None


class Proposal(Record):
    """What a strategy asks for: trial `number`, on a share of the whole training (`fidelity` in (0, 1]).

    `continues` names the trial whose training goes on (of the same candidate, at a lower fidelity). `work` says what is
    done: `train`, or another kind of work that a strategy brings (`archc.search.work`).
    """

    number: int
    candidate: Candidate
    fidelity: float = Field(1.0, gt=0, le=1)
    continues: int | None = None
    work: str = "train"


class Point(Record):
    """A validation on the way: after `samples` training samples, the score (larger is better)."""

    samples: int
    score: float


class Result(Record):
    """What came of a trial.

    status    `finished`; `stopped` before its end, by its learning curve; `infeasible`, and `reason` says why
    values    objective or quantity -> value, selected on validation; of an infeasible one what is known of it
    reason    one word: `params`, `flops`, … (a constraint), `memory`, `time`, `crash`, `diverged`, `invalid`
    samples   training samples that this trial itself spent; 0 for a duplicate
    shares    the trial whose result this is, when the same work had been done before
    weights   SHA-256 of the trained weights' file in the study's vault
    """

    number: int
    status: Literal["finished", "stopped", "infeasible"]
    values: Mapping[str, float] = {}
    reason: str = ""
    message: str = ""
    curve: tuple[Point, ...] = ()
    samples: int = 0
    seconds: float = 0.0
    shares: int | None = None
    weights: str | None = None
    artifact: str | None = None
    extra: Mapping[str, float | str] = {}
