"""Latencies of many small networks: compiled once each, timed in rounds, in a child process pinned to one core.

A child that takes too long to compile something, or dies of it, is replaced, and the network is left out. Every round
times all networks once, in another order, so that what disturbs the machine for a while disturbs all alike; a round's
figure is the median of a burst of calls, and a network's the least of its rounds: the quietest moment.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from results import Results

CALLS = 5
"""Calls of a burst at least."""


def _serve(pipe: Connection, core: int | None) -> None:
    """Answer requests until the pipe is closed."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    loaded: dict[Any, Any] = {}
    while True:
        try:
            name, *given = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_compile(*given) if name == "compile" else _burst(loaded, *given))
        except Exception as error:  # told to the parent, which writes it down
            pipe.send({"failure": f"{type(error).__name__}: {str(error)[:200]}"})


def _compile(text: str, path: Path) -> dict[str, Any]:
    from archc.backends.initial import InitialWeights
    from archc.backends.tvm.compile import compile_graph
    from archc.backends.tvm.targets import parse_target
    from archc.grammar.load import loads

    begun = time.process_time()
    graph = loads(text)
    compile_graph(graph, InitialWeights(graph, 0), path, spec=parse_target("cpu", threads=1))
    return {"seconds": round(time.process_time() - begun, 3), "bytes": path.stat().st_size}


def _burst(loaded: dict[Any, Any], path: Path, shapes: Mapping[str, tuple[int, ...]], seconds: float) -> dict[str, Any]:
    """Milliseconds of the calls in so many seconds: whole calls, with checks of the inputs and outputs copied."""
    from archc.backends.runtime import load

    key = (path, tuple(shapes.items()))
    if key not in loaded:
        rng = np.random.Generator(np.random.Philox(0))
        inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        loaded[key] = load(path, threads=1), inputs
    artifact, inputs = loaded[key]
    artifact.run(inputs)
    times: list[float] = []
    begun = time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds or len(times) < (CALLS if taken < 10 * seconds else 1):
        start = time.perf_counter()
        artifact.run(inputs)
        times.append((time.perf_counter() - start) * 1e3)
    return {"median": median(times), "least": min(times), "calls": len(times)}


class Child:
    """A process that compiles and times; started when it is needed, replaced when it fails."""

    def __init__(self, core: int | None = None) -> None:
        self.core = core
        self.process: Any = None

    def ask(self, *request: Any, seconds: float = 60.0) -> dict[str, Any]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.core), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(request)
            if self.pipe.poll(seconds):
                found: dict[str, Any] = self.pipe.recv()
                return found
            failure = f"no answer in {seconds:g} s"
        except (EOFError, BrokenPipeError):
            failure = "the process died"
        self.close()
        return {"failure": failure}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


@cache
def shapes_of(text: str, batch: int) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes, with `batch` for every open axis."""
    from archc.grammar.load import loads

    return {v.name: tuple(d if isinstance(d, int) else batch for d in v.type.shape) for v in loads(text).inputs}


def compiled(folder: Path, texts: Mapping[str, str], rows: Results) -> list[str]:
    """Compile what has not been compiled; the names of what could be, and their rows in `rows`."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {row["name"]: row for row in rows.rows}
    child = Child()
    try:
        for name, text in texts.items():
            path = folder / f"{name}.archc"
            if name not in known or ("failure" not in known[name] and not path.exists()):
                known[name] = {"name": name, **child.ask("compile", text, path)}
                rows.add(known[name])
    finally:
        child.close()
    return [name for name in texts if "failure" not in known[name]]


def timed(
    folder: Path,
    texts: Mapping[str, str],
    batches: Sequence[int],
    rounds: Sequence[int],
    rows: Results,
    seconds: float = 0.006,
    core: int | None = None,
) -> None:
    """Time every network in every round that has not been; one row for each (name, batch, round)."""
    done = {(row["name"], row["batch"], row["round"]) for row in rows.rows}
    child = Child(core)
    try:
        for number in rounds:
            jobs = [(name, batch) for name in texts for batch in batches if (name, batch, number) not in done]
            for at in np.random.Generator(np.random.Philox(number)).permutation(len(jobs)).tolist():
                name, batch = jobs[at]
                told = child.ask("burst", folder / f"{name}.archc", shapes_of(texts[name], batch), seconds)
                rows.add({"name": name, "batch": batch, "round": number, **told})
    finally:
        child.close()


def latencies(rows: Sequence[Mapping[str, Any]], batch: int, rounds: Sequence[int]) -> dict[str, float]:
    """Name -> milliseconds: the least of the medians of these rounds."""
    found: dict[str, float] = {}
    for row in rows:
        if row["batch"] == batch and row["round"] in rounds and "median" in row:
            found[row["name"]] = min(row["median"], found.get(row["name"], float("inf")))
    return found
