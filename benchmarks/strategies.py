"""Every strategy on the closed space, replayed on the table of all its trainings: exact regret against budget.

    python benchmarks/strategies.py --out RUNS/strategies
    python benchmarks/strategies.py --out RUNS/strategies --report docs/images/strategies.png

The table (`benchmarks/closed.py`, `benchmarks/closed_table.py`) has each of 1,024 architectures trained from two seeds
on four tasks. A replay with an even seed sees the validation accuracies of training seed 0, one with an odd seed those
of training seed 1. It selects what validates best of what it trained to the end. The quality of that is its test
accuracy when trained from the *other* seed: nothing of that training was seen. Regret is the best quality that any of
the 1,024 has, minus this. The best validated of all 1,024 has regret, too: what a search that trained all would have.

Budget counts training samples in whole trainings: a rung of a ninth costs a ninth, going on from there the rest, a
training that is stopped early what was trained. What was trained before costs nothing. Trials come one after another.

Intervals are 95% bootstrap intervals of means over search seeds (10,000 resamples); they say nothing of other training
seeds than the two. Paired differences are between equal search seeds. Resumable: a row for each replay in
`OUT/replays.jsonl`. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from closed import TASKS, space, traces
from closed_table import CHECKPOINTS, CHOICES, TABLE, Table, load
from numpy.typing import NDArray
from results import Results

from archc.search.early import hopeless
from archc.search.goals import parse_goals
from archc.search.records import Candidate, Point, Result
from archc.search.strategy import Strategy, strategy_kind
from archc.search.table import TableSpace

GRID = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Budgets at which the selection is judged."""
GOALS = parse_goals(["accuracy:max"])
RESAMPLES = 10_000
GAINS = ("over random mean", "over best of as many", "minus random at 256")


@dataclass(frozen=True)
class Case:
    """A strategy with options; `budget` is as far as it is replayed, `seeds` how often, and `early` whether trainings
    are stopped by their curves (`archc.search.early`)."""

    name: str
    options: Mapping[str, Any]
    budget: int = 96
    seeds: int = 100
    early: bool = False


CASES: dict[str, Case] = {
    "random": Case("random", {}, 256),
    "evolution": Case("evolution", {}),
    "nsga2": Case("nsga2", {}),
    "local": Case("local", {}),
    "asha": Case("halving", {}),
    "halving": Case("halving", {"asynchronous": False, "width": 27}),
    "asha, mutations": Case("halving", {"mutate": 0.5}),
    "surrogate": Case("surrogate", {}, seeds=20),
    "surrogate, forest": Case("surrogate", {"model": "forest"}, seeds=10),
    "tpe": Case("tpe", {}, seeds=20),
}
ABLATIONS: dict[str, Case] = {
    "random, with repetitions": Case("random", {"distinct": False}, seeds=50),
    "evolution, with repetitions": Case("evolution", {"distinct": False}, seeds=50),
    "random, stopped early": Case("random", {}, seeds=50, early=True),
    "evolution, stopped early": Case("evolution", {}, seeds=50, early=True),
    "evolution, crossover": Case("evolution", {"crossover": 0.5}, seeds=50),
    "evolution, population 50": Case("evolution", {"population": 50, "tournament": 10}, seeds=50),
    "evolution, population 10": Case("evolution", {"population": 10, "tournament": 3}, seeds=50),
}


@dataclass(frozen=True)
class View:
    """What the table says of a task to a search that trains from one seed, and what it is judged by."""

    space: TableSpace
    seen: NDArray[np.float64]  # [architectures, checkpoints]: validation
    truth: NDArray[np.float64]  # [architectures]: test, of the other seed


@lru_cache(maxsize=8)
def candidates(task: str) -> tuple[Candidate, ...]:
    """The space's architectures, in the table's order."""
    from archc.backends.torch.training import load_task

    found, open_space = [], space(load_task(TASKS[task]))
    for trace in traces():
        drawn = open_space.redraw(dict(zip(CHOICES, trace, strict=True)))
        found.append(Candidate(text=drawn.text, hash=drawn.hash, trace=drawn.trace))
    return tuple(found)


def view(table: Table, task: str, seed: int) -> View:
    at = table.tasks.index(task)
    return View(TableSpace(candidates(task)), table.curves[at, seed], table.test[at, 1 - seed])


def replay(strategy: Strategy, view: View, budget: float, early: bool = False) -> dict[str, Any]:
    """A study on the table: what would be selected at each budget of the grid."""
    spent, number, best = 0.0, 0, (-1.0, -1.0)
    done: dict[tuple[str, float], Result] = {}
    curves: list[tuple[Point, ...]] = []
    path: list[tuple[float, float]] = []  # spent, quality of the selection
    while number < 10 * budget:
        proposal = strategy.ask(number)
        if proposal is None:
            break
        strategy.proposed(proposal)
        work = (proposal.candidate.hash, proposal.fidelity)
        row = view.space.index[work[0]]
        if work in done:
            result = done[work].model_copy(update={"number": number, "samples": 0, "shares": done[work].number})
        else:
            before = 0.0 if proposal.continues is None else strategy.proposals[proposal.continues].fidelity  # type: ignore[attr-defined]
            result, cost = trained(number, view.seen[row], before, proposal.fidelity, curves, early)
            if spent + cost > budget + 1e-9:
                break
            spent += cost
            done[work] = result
        score = (proposal.fidelity if result.status == "finished" else 0.0, result.values["accuracy"])
        if score > best:
            best = score
            path.append((spent, float(view.truth[row])))
        strategy.tell(result)
        number += 1
    found = []
    for limit in GRID:
        reached = [quality for at, quality in path if at <= limit + 1e-9]
        found.append(reached[-1] if reached and limit <= budget else None)
    return {"quality": found, "trials": number, "duplicates": number - len(done), "spent": spent}


def trained(
    number: int,
    curve: NDArray[np.float64],
    before: float,
    until: float,
    curves: list[tuple[Point, ...]],
    early: bool,
) -> tuple[Result, float]:
    """A training that the table holds, from one share of the whole to another, and what it costs."""
    points: list[Point] = []
    for share, score in zip(CHECKPOINTS, curve, strict=True):
        if share > until + 1e-6:
            break
        points.append(Point(samples=round(1800 * share), score=float(score)))
        if early and share < until - 1e-6 and hopeless(points, curves):
            values = {"accuracy": float(score)}
            return Result(number=number, status="stopped", values=values, curve=tuple(points)), share - before
    curves.append(tuple(points))
    values = {"accuracy": points[-1].score}
    return Result(number=number, status="finished", values=values, curve=tuple(points)), until - before


def run(results: Results, table: Table, cases: Mapping[str, Case], tasks: Sequence[str], seeds: int) -> None:
    done = {(row["task"], row["case"], row["seed"]) for row in results.rows}
    for task in tasks:
        views = [view(table, task, seed) for seed in range(2)]
        for name, case in cases.items():
            kind = strategy_kind(case.name)
            for seed in range(min(seeds, case.seeds)):
                if (task, name, seed) in done:
                    continue
                seen = views[seed % 2]
                begun = time.process_time()
                strategy = kind.make(seen.space, GOALS, seed, kind.options(**case.options))
                found = replay(strategy, seen, case.budget, case.early)
                seconds = round(time.process_time() - begun, 4)
                results.add({"task": task, "case": name, "seed": seed, **found, "seconds": seconds})
            print(task, name, flush=True)


# The report


@dataclass(frozen=True)
class Mean:
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 1, sign: str = "") -> str:
        return f"{self.mean:{sign}.{digits}f} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"


def mean(values: NDArray[np.float64]) -> Mean:
    rng = np.random.Generator(np.random.Philox(0))
    drawn = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Mean(float(values.mean()), float(low), float(high))


def ahead(differences: NDArray[np.float64]) -> bool:
    """Whether the interval of the mean excludes parity, and less."""
    return not np.isnan(differences).any() and mean(differences).low > 0


def qualities(results: Results, task: str, case: str) -> NDArray[np.float64]:
    """Seeds by budgets, in percent; NaN beyond the budget of the case."""
    rows = sorted((r for r in results.rows if (r["task"], r["case"]) == (task, case)), key=lambda r: r["seed"])
    return 100 * np.array([[np.nan if q is None else q for q in r["quality"]] for r in rows], np.float64)


def figures(results: Results, table: Table) -> dict[str, Any]:
    """What is told of each task and case."""
    found: dict[str, Any] = {}
    at = {budget: i for i, budget in enumerate(GRID)}
    for task in dict.fromkeys(row["task"] for row in results.rows):
        place = table.tasks.index(task)
        truth = 100 * table.test[place, ::-1]  # as searches of even and odd seeds are judged
        best, average = truth.max(1), float(truth.mean())
        validated = [float(truth[s, table.curves[place, s, :, -1].argmax()]) for s in range(2)]
        random = qualities(results, task, "random")
        told: dict[str, Any] = {
            "best": float(best.mean()),
            "mean": average,
            "regret of all": float(np.mean([best[s] - validated[s] for s in range(2)])),
            "cases": {},
        }
        for case in dict.fromkeys(row["case"] for row in results.rows if row["task"] == task):
            quality = qualities(results, task, case)
            rows = [r for r in results.rows if (r["task"], r["case"]) == (task, case)]
            oracle = best[np.arange(len(quality)) % 2]
            regret = {b: vars(mean(oracle - quality[:, i])) for b, i in at.items() if not np.isnan(quality[:, i]).any()}
            ours, paired = quality[:, at[96]], random[: len(quality)]
            told["cases"][case] = {
                "seeds": len(quality),
                "regret": regret,
                GAINS[0]: vars(mean(100 * (ours - average) / average)),
                GAINS[1]: vars(mean(100 * (ours - paired[:, at[96]]) / paired[:, at[96]])),
                GAINS[2]: vars(mean(ours - paired[:, at[256]])),
                "ahead from": next(
                    (b for b, i in at.items() if b <= 96 and ahead(quality[:, i] - paired[:, at[256]])), None
                ),
                "thinking": float(np.mean([r["seconds"] / r["trials"] for r in rows])),
            }
        found[task] = told
    return found


def tables(found: Mapping[str, Any]) -> str:
    """The figures as tables in Markdown: a row for each case, a column for each task."""

    def table(title: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        cases = dict.fromkeys(case for told in found.values() for case in told["cases"])
        cells = [[cell(t["cases"][case]) if case in t["cases"] else "" for t in found.values()] for case in cases]
        rows = [["", *found], ["---"] * (len(found) + 1), *([c, *told] for c, told in zip(cases, cells, strict=True))]
        return ["", f"{title}:", "", *("| " + " | ".join(row) + " |" for row in rows)]

    lines = [
        f"- `{task}`: best test accuracy {told['best']:.1f}%, mean {told['mean']:.1f}%; "
        f"regret of the best validated of all {told['regret of all']:.1f}"
        for task, told in found.items()
    ]
    for budget in (32, 96):
        lines += table(f"Regret at {budget}", lambda one, budget=budget: Mean(**one["regret"][budget]).text())
    for gain in GAINS:
        lines += table(f"At 96, {gain}", lambda one, gain=gain: Mean(**one[gain]).text(1, "+"))
    lines += table("Ahead of random at 256 from", lambda one: str(one["ahead from"] or "-"))
    lines += table("Seeds; ms of CPU a proposal", lambda one: f"{one['seeds']}; {1000 * one['thinking']:.1f}")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Any], path: Path, cases: Sequence[str]) -> None:
    """Regret against budget, a panel for each task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.6), squeeze=False)
    for axis, (task, told) in zip(axes[0], found.items(), strict=True):
        for case in cases:
            if case in told["cases"]:
                regret = told["cases"][case]["regret"]
                budgets = [int(b) for b in regret]
                (line,) = axis.plot(budgets, [r["mean"] for r in regret.values()], label=case, linewidth=1.3)
                bounds = [[r[k] for r in regret.values()] for k in ("low", "high")]
                axis.fill_between(budgets, *bounds, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.axhline(told["regret of all"], color="black", linestyle=":", linewidth=1, label="best validated of all")
        axis.set(title=task, xscale="log", xlabel="whole trainings")
        axis.set_xticks([8, 16, 32, 64, 128, 256], labels=["8", "16", "32", "64", "128", "256"])
        axis.minorticks_off()
    axes[0][0].set_ylabel("regret, points of test accuracy")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=TABLE, help="or a folder of rows, of which whole tasks are taken")
    parser.add_argument("--tasks", default="", help="some of the tasks, in place of all")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--cases", default="", help="some of the cases, separated by `;`, in place of all")
    parser.add_argument("--report", type=Path, help="a picture; tables are printed")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results, table = Results(options.out / "replays.jsonl"), load(options.table)
    if options.report is None:
        cases = CASES | ABLATIONS
        if options.cases:
            cases = {name: cases[name] for name in options.cases.split(";")}
        tasks = options.tasks.split(",") if options.tasks else table.tasks
        run(results, table, cases, tasks, options.seeds)
        return
    found = figures(results, table)
    print(tables(found), end="")
    draw(found, options.report, list(CASES))
    options.report.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
