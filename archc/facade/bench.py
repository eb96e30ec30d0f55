"""How fast is it? An artifact against other ways to run the same network, measured side by side.

Each runner lives in a process of its own (thread pools would disturb each other) and waits while another is measured.
Runners take turns, round after round, so that a slow minute of the machine hits all of them; ratios are taken within a
round.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from archc.facade.weights import resolve
from archc.ir.diagnostics import did_you_mean, fail
from archc.ir.dims import Expr

if TYPE_CHECKING:
    from types import TracebackType

    from archc.facade.model import Model
    from archc.facade.weights import Given
    from archc.ir.graph import Graph

PEERS = ("torch", "compile", "onnxruntime")
"""What an artifact can be measured against: torch as it is, `torch.compile`, ONNX Runtime."""

ROUNDS, SECONDS = 15, 0.1
PATIENCE = 600.0  # seconds until a runner must be ready; torch.compile is slow


@dataclass(frozen=True, slots=True)
class Timing:
    """One runner. Milliseconds are the median, 10th and 90th percentile of single calls. `ratio` is how many times the
    artifact's time this runner takes (median over rounds, with its 95 % bootstrap interval), `difference` the largest
    deviation of its outputs from the artifact's, as a share of the largest output. `failure` says why there is none."""

    runner: str
    version: str = ""
    calls: int = 0
    median_ms: float = 0.0
    low_ms: float = 0.0
    high_ms: float = 0.0
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    difference: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The outcome; the artifact is the first of `timings`."""

    name: str
    target: str
    threads: int
    inputs: Mapping[str, str]
    rounds: int
    timings: tuple[Timing, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    what: Model | Path | str,
    against: Sequence[str] | str | None = None,
    *,
    weights: Given = None,
    target: str = "cpu",
    threads: int | None = None,
    batch: int | None = None,
    sizes: Mapping[str, int] | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Benchmark:
    """Measure an artifact, or a network that is compiled first, against `PEERS` (default: torch, where the weights are
    known).

    A network is compiled for `batch` examples (1); an artifact with an open batch is given so many. Every runner gets
    the same inputs and `threads`, warms up, then is called for `seconds` in each of `rounds`.

    Raises: CompileError E0027 for a peer that there is not, and what `open_sizes`, `compile` and `reference` raise.
    """
    from archc.backends.artifact import is_artifact, read_manifest
    from archc.backends.inputs import random_inputs
    from archc.backends.weights import read_weights, write_weights
    from archc.facade.compile import cores, example_sizes
    from archc.facade.model import Model, as_model
    from archc.grammar.printer import print_graph

    if isinstance(against, str):
        against = (against,)
    for peer in against or ():
        if peer not in PEERS:
            known = did_you_mean(peer, PEERS) or f"known are {', '.join(PEERS)}"
            raise fail("E0027", f"there is nothing called `{peer}` to measure against", help=known, exit_code=2)
    threads = threads or cores()
    with tempfile.TemporaryDirectory(prefix="archc-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        artifact = folder / "model.archc"
        if not isinstance(what, Model) and is_artifact(what):
            shutil.copyfile(what, artifact)
            graph, arrays = _reference(artifact, weights, demanded=against != ())
            given = example_sizes(graph, sizes, batch)
        else:
            model = as_model(what)
            given = example_sizes(model.graph, sizes, batch)
            graph, arrays = _compiled(model, artifact, weights, target, threads, batch, sizes, seed)
        manifest = read_manifest(artifact)
        if against is None:
            against = () if arrays is None else ("torch",)
        inputs = random_inputs(graph, seed, given)
        (folder / "model.arch").write_text(print_graph(graph), encoding="utf-8")
        write_weights(folder / "weights.safetensors", arrays or {})
        write_weights(folder / "inputs.safetensors", inputs)
        if "onnxruntime" in against:
            _run_once("export", folder)

        runners = [_Runner(n, folder, manifest.target.kind, threads) for n in ("archc", *against)]
        for runner in runners:
            stack.enter_context(runner)
            runner.prepare()
        if runners[0].failure:
            raise fail("E0524", f"the compiled code of `{manifest.name}` failed", label=runners[0].failure)
        for turn in range(rounds):
            for runner in [*runners[turn % len(runners) :], *runners[: turn % len(runners)]]:
                runner.measure(seconds)
        outputs = {r.name: read_weights(r.outputs).arrays for r in runners if r.outputs.exists()}
    return Benchmark(
        name=manifest.name,
        target=str(manifest.target),
        threads=threads,
        inputs={name: f"{a.dtype}{list(a.shape)}" for name, a in inputs.items()},
        rounds=rounds,
        timings=tuple(_timing(r, runners[0], outputs) for r in runners),
    )


def _compiled(
    model: Model,
    path: Path,
    weights: Given,
    target: str,
    threads: int,
    batch: int | None,
    sizes: Mapping[str, int] | None,
    seed: int,
) -> tuple[Graph, Mapping[str, Any] | None]:
    """Compile for fixed sizes where they are known; the graph and its weights."""
    from archc.facade.compile import build, fix_batch

    model = model.with_dims(sizes) if sizes else model
    if batch is not None or any(isinstance(d, Expr) for v in model.graph.inputs[:1] for d in v.type.shape[:1]):
        model = fix_batch(model, batch or 1)
    build(model, path, target, weights, seed=seed, threads=threads)
    return model.graph, resolve(model.graph, weights, seed).arrays


def _reference(path: Path, weights: Given, demanded: bool) -> tuple[Graph, Mapping[str, Any] | None]:
    from archc.backends.runtime import load
    from archc.facade.compile import reference
    from archc.facade.model import loads

    with load(path) as artifact:
        manifest = artifact.manifest
        if weights is None and not manifest.seed_initialised and not demanded:
            return loads(artifact.source).graph, None
        graph, origin = reference(artifact, weights)
        return graph, origin.arrays


class _Runner:
    """A process that runs the network in one way. It measures when asked and sleeps otherwise."""

    def __init__(self, name: str, folder: Path, device: str, threads: int) -> None:
        self.name, self.folder, self.failure, self.version = name, folder, "", ""
        self.outputs = folder / f"{name}.safetensors"
        self.rounds: list[list[float]] = []
        self.log = folder / f"{name}.log"
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*_WORKER, name, str(folder), device, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {v: str(threads) for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")},
            )

    def prepare(self) -> None:
        """Wait until the runner has warmed up."""
        reply = self._reply()
        self.version = reply.get("version", "")

    def measure(self, seconds: float) -> None:
        """Call the network for so long; the milliseconds of each call are kept."""
        if not self.failure:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
            self.rounds.append(self._reply().get("ms", []))

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        reply: dict[str, Any] = json.loads(line) if line else {"failure": self._last_words()}
        self.failure = reply.get("failure", "")
        return reply

    def _last_words(self) -> str:
        status = self.process.wait()
        said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with status {status}" + (f": {said[-1][:300]}" if said else "")

    def __enter__(self) -> _Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


_WORKER = (sys.executable, "-m", "archc.facade.bench_worker")


def _run_once(*arguments: object) -> None:
    """What a runner needs that would burden its process: it says itself what went wrong when the file is missing."""
    subprocess.run([*_WORKER, *map(str, arguments)], check=False, capture_output=True, timeout=PATIENCE)


def _timing(runner: _Runner, base: _Runner, outputs: Mapping[str, Mapping[str, Any]]) -> Timing:
    if runner.failure:
        return Timing(runner.name, runner.version, failure=runner.failure)
    import numpy as np

    calls = np.array([ms for turn in runner.rounds for ms in turn])
    low, middle, high = np.percentile(calls, [10, 50, 90])
    timing = Timing(runner.name, runner.version, len(calls), float(middle), float(low), float(high))
    if runner is base:
        return timing
    ratios = np.array([median(a) / median(b) for a, b in zip(runner.rounds, base.rounds, strict=True)])
    rng = np.random.Generator(np.random.Philox(0))
    drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    ratio_low, ratio_high = np.percentile(drawn, [2.5, 97.5])
    return replace(
        timing,
        ratio=float(np.median(ratios)),
        ratio_low=float(ratio_low),
        ratio_high=float(ratio_high),
        difference=_difference(outputs[runner.name], outputs[base.name]),
    )


def _difference(found: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    import numpy as np

    worst = 0.0
    for name, array in ours.items():
        a, b = np.asarray(found[name], np.float64), np.asarray(array, np.float64)
        where = np.isfinite(b)
        if where.any():
            worst = max(worst, float(np.abs(a - b)[where].max() / (np.abs(b[where]).max() or 1.0)))
    return worst
