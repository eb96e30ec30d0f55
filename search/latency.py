"""Latency of compiled networks, measured one call at a time in a process that does nothing else.

A `Stopwatch` keeps a child process (`archc.search.latency_worker`) on cores of its own. It takes a number of artifacts
at once: they take turns, burst after burst, so that a slow moment of the machine hits all of them, until each median is
known well enough or its time is up. Who trains on the same machine meanwhile is to be paused: `Executor.pause`.

All repeats are kept. What is told of them does not move with a few that were disturbed: median, 10th and 90th
percentile, and a bootstrap interval of the median.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from archc.search.processes import Companion, Ended, Words, ending
from archc.search.records import Record

SECONDS = 0.25
"""Of processor time, for one artifact, at most."""
PATIENCE = 120.0
"""Seconds, for one artifact, until the measuring process counts as hanging."""
_DRAWS = 1000


class Latency(Record):
    """What one call takes. Milliseconds.

    repeats    each the median of a burst of calls, in the order in which they were made
    disturbed  calls in which the kernel gave the core to another process; they are left out while there are others
    interval   of the median: 95 %, bootstrapped over the repeats
    failure    why there is nothing to tell; then all numbers are 0
    """

    median_ms: float = 0.0
    low_ms: float = 0.0
    high_ms: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    repeats: tuple[float, ...] = ()
    calls: int = 0
    disturbed: int = 0
    batch: int = 1
    threads: int = 1
    cores: tuple[int, ...] = ()
    failure: str = ""

    @property
    def spread(self) -> float:
        """From the 10th to the 90th percentile, as a share of the median."""
        return (self.high_ms - self.low_ms) / self.median_ms if self.median_ms else 0.0


def summarise(repeats: Sequence[float], **more: Any) -> Latency:
    """The latency that repeats tell, in milliseconds.

    >>> found = summarise([1.0, 1.1, 0.9, 1.0, 50.0])
    >>> found.median_ms, found.interval[0] >= 0.9
    (1.0, True)
    """
    import numpy as np

    values = np.array(repeats)
    low, middle, high = np.percentile(values, [10, 50, 90])
    rng = np.random.Generator(np.random.Philox(0))
    medians = np.median(rng.choice(values, (_DRAWS, len(values))), axis=1)
    least, most = np.percentile(medians, [2.5, 97.5])
    return Latency(
        median_ms=float(middle),
        low_ms=float(low),
        high_ms=float(high),
        interval=(float(least), float(most)),
        repeats=tuple(map(float, values)),
        **more,
    )


class Stopwatch:
    """A process that measures. It is started when it is first needed, and again after an artifact has crashed it.

    `cores` are those it may use, by default all that this process may: it takes the last ones, as many as threads.

    >>> with Stopwatch() as stopwatch:                                             # doctest: +SKIP
    ...     small, large = stopwatch.measure([Path("small.archc"), Path("large.archc")])
    """

    def __init__(self, cores: Sequence[int] | None = None) -> None:
        self.cores = sorted(os.sched_getaffinity(0)) if cores is None else list(cores)
        self._child: Companion | None = None

    def measure(
        self,
        artifacts: Sequence[Path],
        *,
        batch: int = 1,
        threads: int = 1,
        seconds: float = SECONDS,
        patience: float = PATIENCE,
    ) -> list[Latency]:
        """The latency of each artifact, on random inputs. One that cannot be loaded, crashes or hangs has a `failure`,
        and the others do not suffer from it."""
        if not artifacts:
            return []
        order = {"artifacts": [str(p) for p in artifacts], "batch": batch, "threads": threads, "seconds": seconds}
        answer = self._ask(order | {"cores": self.cores[-threads:]}, patience * len(artifacts))
        if isinstance(answer, str):
            if len(artifacts) == 1:
                return [Latency(batch=batch, threads=threads, failure=answer)]
            how: dict[str, Any] = {"batch": batch, "threads": threads, "seconds": seconds, "patience": patience}
            return [self.measure([one], **how)[0] for one in artifacts]  # which one was it?
        here: dict[str, Any] = {"batch": batch, "threads": threads, "cores": tuple(answer["cores"])}
        return [Latency(**one, **here) if "failure" in one else summarise(**one, **here) for one in answer["measured"]]

    def _ask(self, order: Words, patience: float) -> Words | str:
        """The answer of the measuring process; or how it ended."""
        fresh = self._child is None
        child = self._child = self._child or Companion("archc.search.latency_worker", os.getpid())
        try:
            child.tell(**order)
            answers = child.hear(patience)
        except Ended as ended:
            self._child = None
            if not fresh:  # it may have died while it had nothing to do
                return self._ask(order, patience)
            return f"the measuring process {ending(ended.args[0])}"
        if not answers:
            self.close()
            return f"no answer within {patience:g} s"
        return answers[0]

    def close(self) -> None:
        """End the measuring process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measure(artifacts: Sequence[Path], **options: Any) -> list[Latency]:
    """`Stopwatch.measure` with a process of its own."""
    with Stopwatch() as stopwatch:
        return stopwatch.measure(artifacts, **options)
