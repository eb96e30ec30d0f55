"""What the machinery of a search costs, apart from trainings and from the strategy's thinking.

    python benchmarks/engine.py --out FOLDER [--rounds 5] [--parts events,trials,replay,throughput]

events      milliseconds per logged event: alone, and one that ends a trial (synced to the disk)
trials      milliseconds per evaluation that does nothing: coordinator, log, result file, without the time of the
            strategy. In the same run, in turns: a trial of Optuna that does nothing (random choices, one report), with
            its storage in memory and in SQLite
replay      a log of 100,000 events: read, parsed, told to a strategy; and what a resume of a study takes
throughput  evaluations per minute of the digits task, 300 steps of batch 64, on two workers: accuracy only, and with
            compilation and measured latency; CPU seconds of each, and where they went

Rows are appended to FOLDER/engine.jsonl, one for each part and round; the summary is of all rows that are there.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from results import Results, Row

from archc.search.engine import run
from archc.search.evaluation import Evaluation
from archc.search.executors.inline import Inline
from archc.search.executors.pool import Pool
from archc.search.goals import parse_goals
from archc.search.records import Point, Proposal, Result
from archc.search.store import Event
from archc.search.study import Study, parse_budget

SPACE = """space small()
input  image:  f32[N, 1, 8, 8]
output logits: f32[N, 10]
rule Body = linear(range(8, 64, step = 4)) -> choose { relu | gelu | tanh } | 0.5: Body -> Body when depth < 4
logits = image -> flatten -> Body -> linear(10)
"""
DIGITS = Path(__file__).parents[1] / "examples/spaces/digits_net.arch"
TRIALS = 100
EVENTS = 100_000
DRAWN = 40


def begin(folder: Path, budget: int, space: Path | None = None, strategy: str = "random", **how: Any) -> Study:
    how = {"task": "synthetic", "goals": parse_goals(["accuracy:max", "params:min"])} | how
    if space is None:
        space = folder.with_suffix(".arch")
        space.write_text(SPACE)
    evaluation = Evaluation.model_validate(how)
    return Study.create(folder, space, evaluation=evaluation, budget=parse_budget(str(budget)), strategy=strategy)


def timed(repeats: int, do: object) -> tuple[float, float]:
    """Milliseconds of each of so many calls: wall time (the median), CPU time (the mean)."""
    walls, cpu = [], time.process_time()
    for i in range(repeats):
        start = time.perf_counter()
        do(i)  # type: ignore[operator]
        walls.append((time.perf_counter() - start) * 1e3)
    return median(walls), (time.process_time() - cpu) * 1e3 / repeats


# Parts: each yields one row per measurement


def events(folder: Path) -> list[Row]:
    rows = []
    with begin(folder / "s", 10) as study:
        proposals = [Proposal(number=i, candidate=study.space.draw(str(i))) for i in range(DRAWN)]
        reference = Result(number=0, status="finished", values={"accuracy": 0.9}, curve=curve(), samples=19200)

        def report(i: int) -> None:
            study.record(Event("report", i % DRAWN, curve()[0]))

        def finish(i: int) -> None:
            study.record(Event("finished", i, reference.model_copy(update={"number": i})))

        def propose(i: int) -> None:
            lease = Event("leased", i, {"key": f"{i:064x}", "start": None, "thought": 0.0})
            study.record(Event("proposed", i, proposals[i]), lease)

        for what, repeats, do, count in (
            ("proposed, leased", DRAWN, propose, 2),
            ("report", 1000, report, 1),
            ("finished", DRAWN, finish, 1),
        ):
            wall, cpu = timed(repeats, do)
            rows.append({"what": what, "wall_ms": wall / count, "cpu_ms": cpu / count})
    return rows


def trials(folder: Path) -> list[Row]:
    rows = []
    with begin(folder / "s", TRIALS, recipe={"points": 1}) as study:
        wall, cpu = time.perf_counter(), time.process_time()
        run(study, Inline(study.folder))
        wall, cpu = (time.perf_counter() - wall) * 1e3 / TRIALS, (time.process_time() - cpu) * 1e3 / TRIALS
        thought = study.history.overheads["thinking"] * 1e3 / TRIALS
        again = time.process_time()
        assert study.replay() == []  # the strategy's part of it, once more
        cpu -= (time.process_time() - again) * 1e3 / TRIALS
        rows.append({"what": "archc", "wall_ms": wall - thought, "cpu_ms": cpu, "thinking_ms": thought})
    return rows + optuna_trials(folder)


def optuna_trials(folder: Path) -> list[Row]:
    try:
        import optuna
    except ImportError:
        return []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = []
    for name, storage in (("memory", None), ("sqlite", f"sqlite:///{folder}/optuna.db")):
        study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(0), direction="maximize")

        def one(_: int, study: optuna.Study = study) -> None:
            trial = study.ask()
            for i in range(5):
                trial.suggest_int(f"choice{i}", 0, 3)
            trial.report(0.5, 1)
            study.tell(trial, 0.5)

        wall, cpu = time.perf_counter(), time.process_time()
        for i in range(TRIALS):
            one(i)
        wall, cpu = (time.perf_counter() - wall) * 1e3 / TRIALS, (time.process_time() - cpu) * 1e3 / TRIALS
        rows.append({"what": f"optuna, {name}", "wall_ms": wall, "cpu_ms": cpu})
    return rows


def curve() -> tuple[Point, ...]:
    return tuple(Point(samples=4800 * k, score=0.2 * k) for k in (1, 2, 3))


def replay(folder: Path) -> list[Row]:
    """Six events for each trial: proposed, leased, three reports, finished."""
    count = EVENTS // 6
    with begin(folder / "s", count, DIGITS, "evolution") as study:
        candidates = [study.space.draw(str(i)) for i in range(DRAWN)]
        log: list[Event] = [Event("opened", None, {"workers": 1})]
        for i in range(count):
            log.append(Event("proposed", i, Proposal(number=i, candidate=candidates[i % DRAWN])))
            log.append(Event("leased", i, {"key": f"{i:064x}", "start": None, "thought": 0.0}))
            log += [Event("report", i, point) for point in curve()]
            values = {"accuracy": (i * 37 % 101) / 101, "params": float(i * 53 % 997)}
            log.append(
                Event("finished", i, Result(number=i, status="finished", values=values, curve=curve(), samples=1))
            )
        wall, cpu = time.perf_counter(), time.process_time()
        for k in range(0, len(log), 1000):
            study.record(*log[k : k + 1000])
        written = time.perf_counter() - wall
    rows = []
    for readonly in (False, True):
        wall, cpu = time.perf_counter(), time.process_time()
        with Study.open(folder / "s", readonly=readonly) as study:
            opened = time.process_time() - cpu
            study.strategy()
            ready, total = time.perf_counter() - wall, time.process_time() - cpu
            row = {"what": f"{len(log):,} events", "wall_ms": ready * 1e3, "cpu_ms": total * 1e3}
            rows.append(row | {"opened_cpu_ms": opened * 1e3, "readonly": readonly, "written_ms": written * 1e3})
            megabytes = (folder / "s/study.sqlite").stat().st_size / 2**20
            rows[-1] |= {"megabytes": round(megabytes, 1), "trials": len(study.trials)}
    with begin(folder / "small", 200, recipe={"points": 3}) as study:
        run(study, Inline(study.folder))
    wall, cpu = time.perf_counter(), time.process_time()
    with Study.open(folder / "small") as study:
        study.strategy()
    took, used = time.perf_counter() - wall, time.process_time() - cpu
    return [*rows, {"what": "resume of 200 trials", "wall_ms": took * 1e3, "cpu_ms": used * 1e3}]


def throughput(folder: Path) -> list[Row]:
    rows = []
    for what, goals, budget in (
        ("accuracy", ("accuracy:max",), 120),
        ("accuracy and latency", ("accuracy:max", "latency_ms:min@cpu"), 40),
    ):
        how = {"task": "digits", "goals": parse_goals(goals), "steps": 300, "recipe": {"batch_size": 64}}
        with begin(folder / what.replace(" ", "_"), budget, DIGITS, **how) as study:
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall, cpu = time.perf_counter(), time.process_time()
            run(study, Pool(study.folder, 2))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            workers = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
            done = [e.result for e in study.ended if e.result.samples]
            parts: dict[str, float] = defaultdict(float)
            for result in done:
                for name, value in result.extra.items():
                    if name.endswith("_seconds"):
                        parts[name.removesuffix("_seconds")] += float(value) / len(done)
            row = {"what": what, "evaluations": len(done), "per_minute": 60 * len(done) / wall}
            row |= {"cpu_s": (cpu + workers) / len(done), "coordinator_cpu_ms": cpu * 1e3 / len(done)}
            row |= {"thinking_ms": study.history.overheads["thinking"] * 1e3 / len(done)}
            row |= {"measuring_s": study.history.overheads["measuring"] / len(done)}
            rows.append(row | {"parts_s": {name: round(value, 3) for name, value in sorted(parts.items())}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="events,trials,replay")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = Results(given.out / "engine.jsonl")
    for number in range(given.rounds):
        for part in given.parts.split(","):
            if any(r["part"] == part and r["round"] == number for r in rows.rows):
                continue
            folder = Path(tempfile.mkdtemp(prefix="engine-", dir=given.out))
            try:
                for row in globals()[part](folder):
                    rows.add({"part": part, "round": number, "load": round(os.getloadavg()[0], 1), **row})
            finally:
                shutil.rmtree(folder)
    summarise(rows.rows)


def summarise(rows: list[Row]) -> None:
    """The median of the rounds, and from the least to the greatest."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("round", "load") and not isinstance(value, bool):
                found[row["part"], row["what"], name].append(value)
    for (part, what, name), values in found.items():
        print(f"{part:11} {what:22} {name:20} {median(values):10.3f}  [{min(values):.3f}, {max(values):.3f}]")
    for name in ("wall_ms", "cpu_ms"):
        ours = found.get(("trials", "archc", name))
        for other in ("optuna, memory", "optuna, sqlite"):
            theirs = found.get(("trials", other, name))
            if ours and theirs:
                each = [a / b for a, b in zip(ours, theirs, strict=True)]
                ratio = median(ours) / median(theirs)
                print(
                    f"ratio       archc / {other:14} {name:8} {ratio:6.2f}  rounds [{min(each):.2f}, {max(each):.2f}]"
                )


if __name__ == "__main__":
    main()
