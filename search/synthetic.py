"""Made-up objectives: the task `synthetic`. Nothing is trained; values follow from the candidate's hash.

For tests of strategies, stores and executors, and for measuring what the machinery itself costs. `recipe` of the
evaluation holds the fields of `Synthetic`: how long a job takes, and what goes wrong in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from archc.search.executor import Job
from archc.search.records import Point, Record, Result
from archc.search.work import Report

Fault = Literal["memory", "segfault", "abort", "exit", "exception", "hang", "endless", "kill", "children", "disk"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


class Synthetic(Record):
    """How a synthetic job goes.

    takes     seconds, at fidelity 1
    points    of its learning curve
    faults    fault -> share of the candidates that suffer it, chosen by their hashes, on every try
    once      a folder where each faulty candidate leaves a mark, and does not fail when it finds it
    megabytes that `memory` takes, and `disk` writes
    trace     whether every beginning of work is noted in the study's file `trace`: address, nanoseconds since 1970
    """

    takes: float = 0.0
    points: int = Field(3, ge=1)
    faults: Mapping[Fault, float] = {}
    once: str | None = None
    megabytes: int = 1 << 20
    trace: bool = False


def chance(*address: object) -> float:
    """A number in [0, 1) that follows from its address.

    >>> chance("accuracy", "ab12") == chance("accuracy", "ab12") != chance("accuracy", "ab13")
    True
    """
    text = "/".join(map(str, address)).encode()
    return int.from_bytes(blake2b(text, digest_size=6).digest(), "little") / 2**48


def evaluate(job: Job, folder: Path, report: Report) -> Result:
    """Sleep, report, fail as asked. The values are the same wherever and whenever the job runs."""
    how = Synthetic.model_validate(job.evaluation.recipe)
    if how.trace:
        with open(folder / "trace", "ab", buffering=0) as file:
            file.write(f"{job.key} {time.time_ns()}\n".encode())
    candidate, goals = job.proposal.candidate.hash, job.evaluation.goals
    values = {o.key: chance(o.key, job.evaluation.seed, candidate) for o in goals.objectives}
    values |= {c.key: chance(c.key, job.evaluation.seed, candidate) for c in goals.constraints if c.key not in values}
    score = next(iter(values.values()))
    samples = max(how.points, round(64 * job.evaluation.steps * job.proposal.fidelity))
    curve = []
    for turn in range(1, how.points + 1):
        time.sleep(how.takes * job.proposal.fidelity / how.points)
        if turn == (how.points + 1) // 2 and (fault := _fault(how, candidate)):
            _suffer(fault, how, folder)
        curve.append(Point(samples=samples * turn // how.points, score=score * turn / how.points))
        if not report(curve[-1]):
            return Result(
                number=job.proposal.number,
                status="stopped",
                values=values,
                curve=tuple(curve),
                samples=curve[-1].samples,
            )
    return Result(number=job.proposal.number, status="finished", values=values, curve=tuple(curve), samples=samples)


def _fault(how: Synthetic, candidate: str) -> Fault | None:
    place = chance("fault", candidate)
    for fault, share in how.faults.items():
        place -= share
        if place < 0:
            if how.once is not None:
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(Path(how.once) / candidate, os.O_CREAT | os.O_EXCL))
                    return fault
                return None
            return fault
    return None


def _suffer(fault: Fault, how: Synthetic, folder: Path) -> None:
    """Do what is wrong; returns only after what can be survived."""
    if fault == "memory":
        taken = []
        for _ in range(how.megabytes):
            taken.append(b"\1" * (1 << 20))
    elif fault == "segfault":
        ctypes.string_at(0)
    elif fault == "abort":
        os.abort()
    elif fault == "exit":
        os._exit(3)
    elif fault == "exception":
        raise RuntimeError("the synthetic job raises what it was asked to raise")
    elif fault == "hang":
        time.sleep(1e6)
    elif fault == "endless":
        while True:
            pass
    elif fault == "kill":
        os.kill(os.getpid(), 9)
    elif fault == "children":  # one that outlives its parent, unless somebody ends the whole group
        if os.fork() == 0:
            time.sleep(1e6)
        os._exit(3)
    elif fault == "disk":
        with open(folder / ".synthetic", "wb") as file:
            for _ in range(how.megabytes):
                file.write(b"\1" * (1 << 20))
                file.flush()
