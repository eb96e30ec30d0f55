"""Where the time goes: per kernel as measured, and what the compilers said before anything ran."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archc.backends import native
from archc.backends.artifact import Container
from archc.backends.runtime import Artifact
from archc.backends.weights import atomic_file

OVERHEAD = "(allocation and shapes)"  # what is left of a run: the virtual machine and its own functions
_WARM_UP = 2


@dataclass(frozen=True)
class Event:
    """One call of a kernel: when it began and how long it took (µs, from the start of the run), and on what."""

    name: str
    start_us: float
    duration_us: float
    operands: tuple[str, ...]


@dataclass(frozen=True)
class KernelTime:
    """All calls of one kernel in a run: milliseconds are the median over runs; `share` is of the sum of all rows."""

    name: str
    calls: int
    ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """A measured artifact. `total_ms` is the median run without instruments; what the kernels leave of it is the row
    `OVERHEAD`, as looking at the clock would cost the many short calls there more than they take. `events` are those of
    one run, with the clock."""

    name: str
    target: str
    threads: int
    runs: int
    total_ms: float
    kernels: tuple[KernelTime, ...]
    events: tuple[Event, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data, without the single events."""
        return {k: v for k, v in asdict(self).items() if k != "events"}

    def chrome_trace(self) -> dict[str, Any]:
        """The events of one run in Chrome's trace format, which https://ui.perfetto.dev opens."""
        events = [
            {
                "name": e.name,
                "cat": "kernel",
                "ph": "X",
                "ts": e.start_us,
                "dur": e.duration_us,
                "pid": 1,
                "tid": 1,
                "args": {"operands": ", ".join(e.operands)},
            }
            for e in self.events
        ]
        process = {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"{self.name} ({self.target})"}}
        return {"traceEvents": [process, *events], "displayTimeUnit": "ms"}

    def write_trace(self, path: Path | str) -> None:
        """Write `chrome_trace` as JSON."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.chrome_trace()))

    def chart(self, path: Path | str, *, most: int = 20) -> None:
        """A bar chart of the `most` expensive kernels, as PNG or SVG by the name's ending."""
        from matplotlib.figure import Figure  # not pyplot: no global state, no display

        shown = self.kernels[:most]
        figure = Figure(figsize=(9, 1.2 + 0.3 * len(shown)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh([k.name for k in shown], [k.ms for k in shown], color="#3b6ea5")
        axes.bar_label(bars, [f" {k.ms:.3f} ms, {k.share:.0%}" for k in shown], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set_xlabel("milliseconds per run")
        axes.set_title(
            f"{self.name} on {self.target}, {self.threads} thread{'s' * (self.threads > 1)}: {self.total_ms:.3f} ms",
            fontsize=10,
        )
        axes.tick_params(axis="y", labelsize=8)
        with atomic_file(path) as temporary:
            figure.savefig(temporary)


def profile(artifact: Artifact, inputs: Mapping[str, Any], *, runs: int = 10) -> Profile:
    """Run the artifact `runs` times and say what each kernel took. On a GPU every kernel is waited for."""
    tensors = artifact.tensors(inputs)
    machine = artifact.new_machine()
    for _ in range(_WARM_UP):
        artifact.invoke(machine, tensors)
    whole = []
    for _ in range(runs):
        start = time.perf_counter()
        artifact.invoke(machine, tensors)
        artifact.synchronise()
        whole.append(time.perf_counter() - start)

    recorder = _Recorder(artifact)
    machine["set_instrument"](native.runtime().convert_func(recorder))
    recorded = []
    for _ in range(runs):
        recorder.restart()
        artifact.invoke(machine, tensors)
        recorded.append(recorder.events)
    return Profile(
        name=artifact.manifest.name,
        target=str(artifact.manifest.target),
        threads=artifact.threads,
        runs=runs,
        total_ms=statistics.median(whole) * 1e3,
        kernels=_totals(recorded, statistics.median(whole) * 1e3),
        events=tuple(recorded[-1]),
    )


def static_report(artifact: Artifact | Container) -> dict[str, Any]:
    """What is known without running: for CUDA registers, spills and shared memory per kernel and architecture; for a
    CPU each kernel's code size; and the bytes of library and weights."""
    container = artifact.container if isinstance(artifact, Artifact) else artifact
    sizes = {section.name: section.length for section in container.manifest.sections}
    return {
        "name": container.manifest.name,
        "target": container.manifest.target.model_dump(mode="json"),
        "bytes": sizes,
        **container.report,
    }


class _Recorder:
    """What the virtual machine calls before and after each function. A function's own time leaves out its callees'."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.restart()

    def restart(self) -> None:
        self.events: list[Event] = []
        self.open: list[_Open] = []
        self.origin = time.perf_counter()

    def __call__(self, function: Any, name: str, before: bool, result: Any, *args: Any) -> int:
        now = time.perf_counter()
        if before:
            self.open.append(_Open(entered=now))
            self.open[-1].start = time.perf_counter()
            return 0
        if self.artifact.device == "cuda":
            self.artifact.synchronise()
            now = time.perf_counter()
        call = self.open.pop()
        operands = tuple(f"{a.dtype}{list(a.shape)}" for a in args if hasattr(a, "dtype") and hasattr(a, "shape"))
        own = (now - call.start - call.inner) * 1e6
        self.events.append(Event(name, (call.start - self.origin) * 1e6, own, operands))
        if self.open:  # our own looking is not the caller's time either
            self.open[-1].inner += time.perf_counter() - call.entered
        return 0


@dataclass
class _Open:
    """A call that has begun: when we were told, when it started, and what its callees have taken so far (seconds)."""

    entered: float
    start: float = 0.0
    inner: float = 0.0


def _totals(recorded: list[list[Event]], total_ms: float) -> tuple[KernelTime, ...]:
    per_run = []
    for events in recorded:
        total: dict[str, float] = {}
        for event in events:
            total[_group(event.name)] = total.get(_group(event.name), 0.0) + event.duration_us / 1e3
        per_run.append(total)
    calls = Counter(_group(e.name) for e in recorded[-1])
    medians = {name: statistics.median(run.get(name, 0.0) for run in per_run) for name in calls}
    if OVERHEAD in medians:
        medians[OVERHEAD] = max(0.0, total_ms - sum(ms for name, ms in medians.items() if name != OVERHEAD))
    whole = sum(medians.values()) or 1.0
    kernels = [KernelTime(name, calls[name], ms, ms / whole) for name, ms in medians.items()]
    return tuple(sorted(kernels, key=lambda k: (-k.ms, k.name)))


def _group(name: str) -> str:
    return OVERHEAD if name.startswith("vm.builtin.") or name == "shape_func" else name
