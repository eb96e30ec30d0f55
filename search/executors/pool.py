"""A pool of processes on this machine: the executor that is used unless another is asked for.

A job runs in a process that is forked for it (`archc.search.worker`). What happens to one that fails:

| what                                      | event                                                          |
|-------------------------------------------|----------------------------------------------------------------|
| more memory than `memory_mb`              | infeasible: `memory`                                           |
| longer than `seconds`                     | infeasible: `time`                                             |
| no report for `patience` seconds          | lost once, then infeasible: `time`                             |
| segmentation fault, abort, unasked exit   | lost once, then infeasible: `crash`, the signal named          |
| killed from outside                       | lost, `KILLS` times in all, then infeasible: `crash`           |
| a diagnostic / another exception          | infeasible: `invalid` / `crash`                                |
| no room to write                          | CompileError E0728 from `wait`: the study stops, and can go on |
| what all jobs share cannot be loaded      | its diagnostic from `wait`, or E0737                           |
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from archc.ir.diagnostics import CompileError, fail
from archc.search.executor import Event, Job
from archc.search.processes import Companion, Ended, Words, end_group, ending
from archc.search.records import Point, Result
from archc.search.store import full
from archc.search.vault import make, read_result, write_result
from archc.search.worker import THREADS

PATIENCE = 300.0
"""Seconds without a report until a job counts as hanging."""
KILLS = 5
_STARTS = 3  # times in a row that the process of the workers may end before it has done anything
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_CLOSING = 10.0


@dataclass
class _Running:
    job: Job
    slot: int
    process: int | None = None
    curve: list[Point] = field(default_factory=list)
    failed: Words = field(default_factory=dict)


class Pool:
    """Processes on this machine, forked from one that has imported what they need.

    `cores` are those that jobs are given, in turns, `threads` each; by default all that this process may use. Where
    they do not suffice for all workers, nobody is bound to any.
    """

    def __init__(
        self, folder: Path, workers: int | None = None, *, cores: list[int] | None = None, patience: float = PATIENCE
    ) -> None:
        self.folder, self.patience = folder, patience
        make(folder)
        self.cores = sorted(os.sched_getaffinity(0)) if cores is None else cores
        self.workers = workers or len(self.cores)
        self._running: dict[str, _Running] = {}
        self.losses: Counter[str] = Counter()
        self._nursery: Companion | None = None
        self._rest = b""
        self._starts = 0
        self._events: list[Event] = []
        self._paused = False

    def submit(self, job: Job) -> None:
        assert len(self._running) < self.workers, "more jobs than workers"
        assert job.key not in self._running, "the same work twice at once"
        slot = min(set(range(self.workers)) - {r.slot for r in self._running.values()})
        self._running[job.key] = _Running(job, slot)
        self._order(do="run", job=job.model_dump(mode="json"), cores=self._cores(slot, job.evaluation.threads))

    def wait(self, seconds: float) -> list[Event]:
        """News, as soon as there is some.

        Raises: CompileError E0728 when a worker finds no room to write, E0737 when workers cannot be started, and what
        loading the task raises.
        """
        end = time.monotonic() + seconds
        while not self._events and self._running:
            left = max(0.0, end - time.monotonic())
            if not self._read(left) and not left:
                break
        events, self._events = self._events, []
        return events

    def pause(self) -> None:
        """Stop all workers. When this returns they stand still."""
        if self._nursery is None:
            return
        self._paused = False
        self._order(do="pause")
        while not self._paused and self._nursery is not None:
            self._read(1.0)

    def resume(self) -> None:
        if self._nursery is not None:
            self._order(do="resume")

    def close(self) -> None:
        """End all workers, and what they started. What they were at is given up."""
        if self._nursery is not None:
            self._nursery.end(_CLOSING)
            self._nursery = None
        self._end_running()
        self._running.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cores(self, slot: int, threads: int) -> list[int]:
        if self.workers * threads > len(self.cores):
            return []
        return self.cores[slot * threads : (slot + 1) * threads]

    def _order(self, **words: Any) -> None:
        if self._nursery is None:
            self._starts += 1
            quiet = dict.fromkeys(THREADS, "1")  # it must have no threads, as it forks
            self._nursery = Companion("archc.search.worker", self.folder, self.patience, env=quiet)
        try:
            self._nursery.tell(**words)
        except Ended as ended:
            self._bury(ended.args[0])

    def _read(self, seconds: float) -> bool:
        """Take in what workers say; whether there was anything."""
        if self._nursery is None:
            return False
        try:
            said = self._nursery.hear(seconds)
        except Ended as ended:
            self._bury(ended.args[0])
            return True
        for words in said:
            self._hear(words)
        return bool(said)

    def _hear(self, said: Words) -> None:
        if said["kind"] == "paused":
            self._paused = True
            return
        running = self._running.get(said["key"])
        if running is None:
            return
        match said["kind"]:
            case "started":
                running.process = said["process"]
            case "report":
                running.curve.append(Point.model_validate(said["point"]))
                self._events.append(Event(key=said["key"], kind="report", point=running.curve[-1]))
            case "failed":
                running.failed = said
            case "ended":
                del self._running[said["key"]]
                self._starts = 0
                self._judge(running, said)

    def _judge(self, running: _Running, said: Words) -> None:
        """What came of a job whose process has ended."""
        job, status, verdict = running.job, said["status"], said["verdict"]
        if (result := read_result(self.folder, job.key)) is not None:
            self._events.append(Event(key=job.key, kind="done", result=result))
            return
        limits, last = job.evaluation, _telling(said["words"])
        if running.failed:
            what, code, message = (running.failed[name] for name in ("what", "code", "message"))
            if what == "disk":
                raise full(self.folder, message)
            if what == "setup":
                raise fail(code, message) if code else _unable(message)
            told = f"{code}: {message}" if code else message
            self._infeasible(running, "invalid" if what == "invalid" else "crash", told, said["seconds"])
        elif verdict == "memory":
            message = f"more than {limits.memory_mb} MB of resident memory"
            self._infeasible(running, "memory", message, said["seconds"])
        elif verdict == "time":
            self._infeasible(running, "time", f"longer than {limits.seconds:g} s", said["seconds"])
        else:
            how = ending(status) if not verdict else f"no report within {self.patience:g} s"
            self.losses[job.key] += 1
            outside = not verdict and -status in _FROM_OUTSIDE
            times = KILLS if outside else 2
            message = f"{how}: {last}" if last and not outside else how
            if self.losses[job.key] < times:
                self._events.append(Event(key=job.key, kind="lost", message=message))
            else:
                self._infeasible(running, "time" if verdict else "crash", f"{message} ({times} times)", said["seconds"])

    def _infeasible(self, running: _Running, reason: str, message: str, seconds: float) -> None:
        """A result for what its own process can tell no more."""
        job, curve = running.job, tuple(running.curve)
        result = Result(
            number=job.proposal.number,
            status="infeasible",
            reason=reason,
            message=message,
            curve=curve,
            samples=curve[-1].samples if curve else 0,
            seconds=seconds,
        )
        write_result(self.folder, job.key, result)
        self._events.append(Event(key=job.key, kind="done", result=result))

    def _bury(self, status: int) -> None:
        """The process of the workers has ended, and they with it: all are lost, but for those that were through.

        Raises: CompileError E0737 when it never gets to do anything.
        """
        self._nursery = None
        self._end_running()
        gone, self._running = self._running, {}
        for key in gone:
            result = read_result(self.folder, key)
            if result is not None:
                self._events.append(Event(key=key, kind="done", result=result))
            else:
                message = f"with the process of the workers: {ending(status)}"
                self._events.append(Event(key=key, kind="lost", message=message))
        if self._starts >= _STARTS:
            raise _unable(f"{_STARTS} times in a row: {ending(status)}")

    def _end_running(self) -> None:
        """Groups whose heads died with their parent may have members that did not."""
        for running in self._running.values():
            if running.process is not None:
                end_group(running.process)


def _unable(why: str) -> CompileError:
    return fail(
        "E0737",
        "worker processes cannot be started",
        label=why,
        help="what they say is on standard error; `archc doctor` tells what works here",
    )


def _telling(words: str) -> str:
    """What tells most of the last words: of a fault, what and where; else the last line.

    >>> _telling('loading\\nFatal Python error: Aborted\\n\\nThread 0x7:\\n  File "a.py", line 3 in run\\nExtensions')
    'Fatal Python error: Aborted, File "a.py", line 3 in run'
    """
    lines = words.splitlines()
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    where = [line.strip() for line in lines if line.startswith('  File "')]
    return ", ".join([*fatal[:1], *where[:1]]) if fatal else (lines or [""])[-1]
