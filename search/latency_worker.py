"""The process of a stopwatch: `python -m archc.search.latency_worker PARENT`.

A line of JSON on stdin tells what to measure, one on stdout what came of it. It loads neither torch nor the compiler.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from archc.backends.artifact import dim_value
from archc.backends.runtime import Artifact, load
from archc.backends.weights import numpy_dtype
from archc.ir.diagnostics import CompileError
from archc.search.processes import die_with

WARM_UP = 0.02  # seconds, at least
BURST = 0.002  # seconds, and at least `LEAST_CALLS`
LEAST_CALLS, MOST_DISTURBED = 3, 12
LEAST_REPEATS = 7
TOLERANCE = 0.01
"""The standard error of a median, as a share of it, that is good enough."""
_SYMBOL = 7  # size of a symbol that is not the batch


def main(parent: int) -> None:
    die_with(parent)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        os.sched_setaffinity(0, order["cores"])
        measured = measure(order["artifacts"], order["batch"], order["threads"], order["seconds"])
        print(json.dumps({"measured": measured, "cores": order["cores"]}), file=replies, flush=True)


def measure(artifacts: list[str], batch: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of each, in turns; `seconds` of this process's own time are for each."""
    runners = [_runner(path, batch, threads) for path in artifacts]
    able = [r for r in runners if isinstance(r, _Runner)]
    gc.collect()
    gc.disable()
    try:
        end = time.process_time() + seconds * len(able)
        turn = 0
        while able and (turn < LEAST_REPEATS or time.process_time() < end):
            for runner in [*able[turn % len(able) :], *able[: turn % len(able)]]:
                runner.burst()
            turn += 1
            if turn >= LEAST_REPEATS:
                able = [r for r in able if not r.is_known()]
    finally:
        gc.enable()
    return [r if isinstance(r, dict) else r.told() for r in runners]


class _Runner:
    """An artifact with its inputs, warmed up."""

    def __init__(self, artifact: Artifact, batch: int) -> None:
        self.call = _call(artifact, batch)
        self.repeats: list[float] = []
        self.calls = self.disturbed = 0
        end = time.perf_counter() + WARM_UP
        self.call()
        while time.perf_counter() < end:
            self.call()

    def burst(self) -> None:
        """Call a few times; one repeat more. Who came between has taken the caches: the first call does not count, and
        neither does one in which the kernel gave the core to somebody else, as long as there are others."""
        self.call()
        calm: list[float] = []
        disturbed: list[float] = []
        end = time.process_time() + BURST
        while len(calm) < LEAST_CALLS or time.process_time() < end:
            before = _interruptions()
            begin = time.perf_counter()
            self.call()
            taken = (time.perf_counter() - begin) * 1e3
            (calm if _interruptions() == before else disturbed).append(taken)
            if len(disturbed) >= MOST_DISTURBED:
                break
        self.repeats.append(median(calm or disturbed))
        self.calls += len(calm or disturbed)
        self.disturbed += len(disturbed)

    def is_known(self) -> bool:
        """Whether the median is. Its standard error, from the median deviation: that of a normal distribution."""
        values = np.array(self.repeats)
        middle = np.median(values)
        deviation = 1.4826 * np.median(np.abs(values - middle))
        return bool(1.2533 * deviation / np.sqrt(len(values)) < TOLERANCE * middle)

    def told(self) -> dict[str, Any]:
        return {"repeats": self.repeats, "calls": self.calls, "disturbed": self.disturbed}


def _interruptions() -> int:
    """How often the kernel has taken a core from this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _runner(path: str, batch: int, threads: int) -> _Runner | dict[str, Any]:
    """What is ready to be measured, or why there is nothing to measure."""
    try:
        return _Runner(load(Path(path), threads=threads), batch)
    except CompileError as error:
        found = error.diagnostics[0]
        return {"failure": f"{found.code}: {found.message}" + (f" ({found.label})" if found.label else "")}


def _call(artifact: Artifact, batch: int) -> Callable[[], Any]:
    """On the CPU the whole call: checks, the program, outputs copied. On a GPU the data are there already."""
    inputs = random_inputs(artifact, batch)
    if artifact.device == "cpu":
        return lambda: artifact.run(inputs)
    tensors, machine = artifact.tensors(inputs), artifact.new_machine()

    def call() -> None:
        artifact.invoke(machine, tensors)
        artifact.synchronise()

    return call


def random_inputs(artifact: Artifact, batch: int) -> Mapping[str, Any]:
    """Standard normal floats, valid indices and coin flips; the first symbol is the batch."""
    rng = np.random.Generator(np.random.Philox(0))
    sizes: dict[str, int] = {}
    inputs = {}
    for port in artifact.manifest.inputs:
        for dim in port.dims:
            if isinstance(dim, str) and dim.isidentifier():
                sizes.setdefault(dim, _SYMBOL if sizes else batch)
    for port in artifact.manifest.inputs:
        shape = [d if isinstance(d, int) else dim_value(d, sizes) or 0 for d in port.dims]
        if port.dtype.startswith(("f", "bf")):
            inputs[port.name] = rng.standard_normal(shape).astype(numpy_dtype(port.dtype))
        else:
            inputs[port.name] = rng.integers(0, port.below or 2, shape).astype(numpy_dtype(port.dtype))
    return inputs


if __name__ == "__main__":
    main(int(sys.argv[1]))
