"""What transforms are worth on a real task: accuracy and measured latency of networks before and after.

    python benchmarks/tasks.py --results tasks.jsonl [--report tasks.md --plot tasks.png] [--quick]

Two networks (`benchmarks/nets/tasks_*.arch`) learn two tasks (`digits`, `hard_digits`) from several seeds with one
recipe. With B steps as the unit, every network has 1.5 B in the end, in one of two ways:

    carried   the base learns for B steps, is transformed with its weights, and goes on for B/2
    scratch   the transformed network learns for 1.5 B from its own random start

The base itself does both, too: its `carried` is the control for the second warm-up of the learning rate. The weights
kept are those that validate best; the test split is opened once for each run, at its end. `at birth` is validation
accuracy right after the transform, before any further step, and what it was just before.

Latency is that of the compiled carried networks, 1 thread, on 32 test images, one at a time and all at once. The
networks of one task take turns, round after round; ratios to the base of the same seed are taken within a round.
Outputs are compared with torch in float64 first. Intervals are 95 % bootstrap intervals of means over seeds, of all
resamples; of five values they are known to be somewhat narrow.

Every run adds a line to the results as soon as it is done; a script that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import results
from results import Row

import archc
from archc.backends.weights import read_weights, write_weights
from archc.facade.compile import build
from archc.ir.diagnostics import CompileError
from archc.ir.dims import substitute, symbols

if TYPE_CHECKING:
    from archc.backends.torch.training import Task
    from archc.facade.model import Model

NETS = Path(__file__).parent / "nets"
TASKS = {"digits": 160, "hard_digits": 320}
"""Steps of the base, B, by task."""
VARIANTS = {
    "base": "",
    "moe": "moe(experts = 4, top_k = 2)",
    "moe split": "moe(experts = 4, top_k = 2, method = split)",
    "skip": "skip(sample, cost = 0.1, target = 0.5)",
    "glu": "glu",
    "kan": "kan(grkan) at op linear",
    "prune": "prune(0.5)",
}
RECIPE: dict[str, Any] = {"lr": 6e-3, "device": "cpu"}
BATCHES = (1, 32)
SAMPLES = 256  # training images that transforms may look at

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run. Its `steps` are those of the unit B; see the module for `arm`, where "first" is the base after
    B steps, which the carried ones start from."""

    task: str
    net: str
    variant: str
    spec: str
    arm: str
    seed: int
    steps: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self))


def runs(tasks: Mapping[str, int], nets: Sequence[str], variants: Mapping[str, str], seeds: int) -> Iterator[Run]:
    """All runs; whole seeds one after the other, so that a table can be had early. The base comes first."""
    for seed, (task, steps), net in product(range(seeds), tasks.items(), nets):
        yield Run(task, net, "base", "", "first", seed, steps)
        for (variant, spec), arm in product(variants.items(), ("carried", "scratch")):
            yield Run(task, net, variant, spec, arm, seed, steps)


class Results(results.Results):
    """Rows of trainings and of compiled networks."""

    def runs(self) -> dict[str, Row]:
        """Finished runs by key; the last word on each."""
        return {json.dumps(row["run"]): row for row in self.rows if "run" in row}

    def timed(self, task: str, net: str) -> list[Row]:
        return [row for row in self.rows if row.get("timed") == [task, net]]


class Bench:
    """The runs of one results file, with weights and artifacts of the runs in a folder beside it."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.folder = results.path.with_suffix(".files")
        self.folder.mkdir(exist_ok=True)
        self._tasks: dict[str, Task] = {}

    def task(self, name: str) -> Task:
        from archc.backends.torch.training import load_task

        if name not in self._tasks:
            self._tasks[name] = load_task(name)
        return self._tasks[name]

    def images(self, task: str, split: str, count: int) -> Any:
        """The first images of a split, as the network sees them: [count, 1, size, size]."""
        import torch

        found = self.task(task)
        raw, _ = found.splits[split].batch(torch.arange(count))
        return found.preprocessing.apply(raw[0].numpy())

    def base(self, run: Run) -> Model:
        size = self.task(run.task).inputs[0].shape[-1]
        return archc.load(NETS / f"tasks_{run.net}.arch", size=size)

    def place(self, run: Run, suffix: str) -> Path:
        name = "-".join((run.task, run.net, run.variant.replace(" ", "_"), run.arm, str(run.seed), str(run.steps)))
        return self.folder / (name + suffix)

    # -- training -----------------------------------------------------------------------------------------------------

    def go(self, planned: Sequence[Run]) -> None:
        """What has not been done yet, or did not work."""
        for number, run in enumerate(planned, start=1):
            done = self.results.runs().get(run.key)
            if done is not None and "failure" not in done:
                continue
            start = time.perf_counter()
            try:
                row = self.learn(run)
            except CompileError as e:
                row = {"failure": f"{e.diagnostics[0].code}: {e.diagnostics[0].message}"}
            except Exception as e:  # what goes wrong with one variant is a finding, and is told in the table
                row = {"failure": f"{type(e).__name__}: {str(e)[:300]}"}
            self.results.add({"run": asdict(run), **row, "seconds": round(time.perf_counter() - start, 1)})
            told = row.get("failure") or f"validation {row['val']:.4f}"
            where = f"{run.task} {run.net} {run.variant} {run.arm} {run.seed}"
            print(f"{number:4d}/{len(planned)} {where:40s} {told}", flush=True)

    def learn(self, run: Run) -> Row:
        """Train one network for its part of the budget; what is to go on, or to be timed, is kept as files."""
        model, weights, row = self.start(run)
        steps = {"first": run.steps, "carried": run.steps // 2, "scratch": run.steps + run.steps // 2}[run.arm]
        trained = archc.train(
            model, self.task(run.task), weights=weights, steps=steps, threads=1, seed=run.seed, **RECIPE
        )
        result = trained.result
        assert result.test is not None
        if run.arm != "scratch":
            self.place(run, ".arch").write_text(model.text(), encoding="utf-8")
            write_weights(self.place(run, ".safetensors"), trained.weights.arrays, trained.weights.metadata)
        flops = substitute(model.cost.flops, dict.fromkeys(symbols(model.cost.flops), 1))
        assert isinstance(flops, int)
        return row | {
            "val": result.val.metrics["accuracy"],
            "test": result.test.metrics["accuracy"],
            "epoch": [result.best_epoch, len(result.history)],
            "train_seconds": round(result.seconds, 2),
            "params": model.cost.params,
            "flops": flops,
            "stats": result.val.stats,
        }

    def start(self, run: Run) -> tuple[Model, Arrays | None, Row]:
        """The network and the weights that a run begins with, and what is known of it then."""
        from archc.backends.torch.training import evaluate

        base = self.base(run)
        if run.arm == "first":
            return base, None, {}
        if run.arm == "scratch":
            return archc.transform(base, run.spec).model if run.spec else base, None, {}
        first = Run(run.task, run.net, "base", "", "first", run.seed, run.steps)
        weights: Arrays = read_weights(self.place(first, ".safetensors")).arrays
        before = self.results.runs()[first.key]["val"]
        if not run.spec:
            return base, weights, {"birth": [before, before]}
        data = {base.graph.inputs[0].name: self.images(run.task, "train", SAMPLES)}
        changed = archc.transform(base, run.spec, weights=weights, data=data)
        assert changed.weights is not None
        module = changed.model.to_torch(changed.weights)
        after = evaluate(module, self.task(run.task), "val").metrics["accuracy"]
        (step,) = changed.steps
        checks = [c.relative for c in changed.checks if c.mode == "eval" and c.format == "f64"]
        return changed.model, changed.weights, {
            "birth": [before, after],
            "contract": changed.contract.eval,
            "difference": max(checks, default=0.0),
            "sites": len(step.found.sites),
            "refused": [f"{r.anchor.name}: {r.reason}" for r in step.found.refusals],
        }  # fmt: skip

    # -- latency ------------------------------------------------------------------------------------------------------

    def time(self, task: str, net: str, own: Sequence[Run], rounds: int, seconds: float) -> None:
        """Latencies of the carried networks of one task and base, interleaved; nothing when they are known."""
        finished = self.results.runs()
        own = [r for r in own if "val" in finished.get(r.key, {})]
        known = {(row["variant"], row["seed"], row["batch"]) for row in self.results.timed(task, net)}
        if {(r.variant, r.seed, b) for r in own for b in BATCHES} <= known:
            return
        for batch in BATCHES:
            images = parts(self.images(task, "test", max(BATCHES)), batch)
            compiled = [(r, self.compile(r, batch, images)) for r in own]
            runners = {r: archc.load_artifact(path, threads=1) for r, path in compiled if path is not None}
            name = next(iter(runners.values())).manifest.inputs[0].name
            times: dict[Run, list[float]] = {r: [] for r in runners}
            order = list(runners)
            for turn in range(-1, rounds):
                for r in order[turn % len(order) :] + order[: turn % len(order)]:
                    taken = clock(runners[r], name, images, seconds)
                    times[r] += [taken] if turn >= 0 else []  # the first round warms up
            for r, artifact in runners.items():
                (base,) = (b for b in order if (b.variant, b.seed) == ("base", r.seed))
                ratio = float(np.median(np.array(times[r]) / np.array(times[base])))
                row = {"timed": [task, net], "variant": r.variant, "seed": r.seed, "batch": batch, "rounds": rounds}
                self.results.add({**row, "ms": float(np.median(times[r])), "ratio": ratio})
                artifact.close()
            print(f"latency {task} {net} batch {batch}: {len(order)} networks, {rounds} rounds", flush=True)

    def compile(self, run: Run, batch: int, images: Sequence[Any]) -> Path | None:
        """The artifact of a run, for a batch size, whose outputs are those of torch in float64 up to 1e-4 of the
        largest. None, and a line, when it cannot be had."""
        import torch

        path = self.place(run, f".b{batch}.archc")
        if path.exists():
            return path
        model = archc.load(self.place(run, ".arch"))
        weights = read_weights(self.place(run, ".safetensors")).arrays
        try:
            build(model, path.with_suffix(".new"), weights=weights, threads=1, batch=batch, cache=False)
            with torch.no_grad():
                x = torch.from_numpy(np.concatenate(images)).double()
                wanted = model.to_torch(weights).double().eval()(x).numpy()
            with archc.load_artifact(path.with_suffix(".new"), threads=1) as artifact:
                found = [artifact(part) for part in images]
            error = float(np.abs(np.concatenate(found) - wanted).max() / np.abs(wanted).max())
            if error > 1e-4:
                raise ValueError(f"compiled outputs are off by {error:.1e} of the largest")
        except Exception as e:  # a finding as well
            failure = f"{type(e).__name__}: {str(e)[:300]}"
            self.results.add({"uncompiled": asdict(run), "batch": batch, "failure": failure})
            print(f"{path.name}: {failure}", flush=True)
            return None
        path.with_suffix(".new").rename(path)
        return path


def parts(x: Any, batch: int) -> list[Any]:
    return [np.ascontiguousarray(x[i : i + batch]) for i in range(0, len(x), batch)]


def clock(artifact: Any, name: str, images: Sequence[Any], seconds: float) -> float:
    """Milliseconds of one call: the median over all, each image as often as any other."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        for x in images:
            start = time.perf_counter()
            artifact.run({name: x})
            taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e3


def main() -> None:
    from tasks_report import draw, page, table  # beside this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; weights and artifacts go beside it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--timed-seeds", type=int, default=5, help="compile and time the networks of so many seeds")
    parser.add_argument("--task", action="append", choices=TASKS, help="default: all")
    parser.add_argument("--net", action="append", choices=("conv", "mixer"), help="default: all")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="beside the base; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="of latency")
    parser.add_argument("--seconds", type=float, default=0.05, help="of each network in each round")
    parser.add_argument("--quick", action="store_true", help="one seed, digits, the mixer, 20 steps: does it run?")
    parser.add_argument("--train-only", action="store_true", help="no latencies yet")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the tables; then nothing is run")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    variants = {v: VARIANTS[v] for v in ("base", *(arguments.variant or list(VARIANTS)[1:]))}
    tasks = {t: TASKS[t] for t in arguments.task or TASKS}
    nets, seeds, rounds = arguments.net or ["conv", "mixer"], arguments.seeds, arguments.rounds
    if arguments.quick:
        tasks, nets, seeds, rounds = {"digits": 20}, ["mixer"], 1, 2
    bench = Bench(Results(arguments.results))
    planned = list(runs(tasks, nets, variants, seeds))
    if not (arguments.report or arguments.plot) or arguments.quick:
        bench.go(planned)
        if not arguments.train_only:
            for task, net in product(tasks, nets):
                own = [r for r in planned if (r.task, r.net, r.arm) == (task, net, "carried")]
                own = [r for r in own if r.seed < arguments.timed_seeds]
                bench.time(task, net, own, rounds, arguments.seconds)
    if arguments.plot:
        draw(bench.results.rows, arguments.plot)
    if arguments.report:
        picture = arguments.plot and os.path.relpath(arguments.plot, arguments.report.parent)
        old = arguments.report.read_text(encoding="utf-8") if arguments.report.exists() else ""
        arguments.report.write_text(page(bench.results.rows, old, picture), encoding="utf-8")
    print(table(bench.results.rows))


if __name__ == "__main__":
    main()
