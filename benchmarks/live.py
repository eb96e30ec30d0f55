"""Strategies live, on a large space: what comes of 96 evaluations, and of 256 random ones.

    python benchmarks/live.py --out RUNS/live [--tasks digits]
    python benchmarks/live.py --out RUNS/live --ablations
    python benchmarks/live.py --out RUNS/live --report docs/images/live.png

The space is `examples/spaces/digits_net.arch`: einspace's kinds of choices without a bound on depth but its costs, so
that good architectures are rare, and cheap enough to train some thousands. Each study (task, seed, strategy) is one of
`archc.search` as a user would run it, one worker in this process. An evaluation is a whole training; budgets are
counted in them. Strategies with equal seeds begin with the same draws, and what one study has trained another does not
train again: it is counted all the same.

At each budget of the grid the network is taken that validates best, and trained three times from other seeds; its
quality is the mean test accuracy of these. Nothing else opens the test split, but for the mean of random architectures:
the first 16 draws of each seed, trained from another seed.

Intervals: 95% of a bootstrap over search seeds, and over trainings within them (10,000 resamples); of three seeds that
is a rough figure. Differences are between equal seeds. Resumable: studies are, and a row of each test stands in
`OUT/tests.jsonl`. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results import Results, Row

from archc.backends.torch.training import load_task
from archc.search.engine import run
from archc.search.evaluation import Evaluation, final_test
from archc.search.executors.inline import Inline
from archc.search.goals import parse_goals
from archc.search.history import Trial
from archc.search.study import Budget, Study

SPACE = Path(__file__).parent.parent / "examples" / "spaces" / "digits_net.arch"
TASKS = {"hard_digits": "hard_digits", "digits": "digits"}
SEEDS = (0, 1, 2)
STEPS = 120
MAX_FLOPS = 300_000
RECIPE: dict[str, Any] = {"lr": 0.01, "batch_size": 32, "keep": "last", "device": "cpu"}
RESAMPLES = 10_000
GRID = (24, 48, 96, 256)
DRAWS = 16
"""Random architectures that are tested, for their mean."""


@dataclass(frozen=True)
class Arm:
    """A strategy with options, and what is particular about its evaluations."""

    strategy: str
    options: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    budget: int = 96
    dedupe: bool = True


ARMS = {
    "random": Arm("random", budget=256),
    "evolution": Arm("evolution"),
    "asha, mutations": Arm("halving", {"mutate": 0.5}),
}
ABLATIONS = {
    "evolution, with repetitions": Arm("evolution", {"distinct": False}, dedupe=False),
    "evolution, weights inherited": Arm("evolution", {"inherit": "always"}),
    "evolution, stopped early": Arm("evolution", evaluation={"early_stop": True}),
    "evolution, architecture-aware": Arm("evolution", evaluation={"architecture_aware": True}),
}


def evaluation_of(task: str, seed: int, arm: Arm) -> Evaluation:
    goals = parse_goals(["accuracy:max"])
    return Evaluation(task=TASKS[task], goals=goals, steps=STEPS, recipe=RECIPE, seed=10 * seed, **arm.evaluation)


def study(out: Path, task: str, seed: int, name: str, arm: Arm) -> Study:
    """The study of an arm, run to its end."""
    folder = out / "studies" / f"{task}-{seed}-{name.replace(', ', '-').replace(' ', '_')}"
    if folder.exists():
        found = Study.open(folder)
    else:
        data = load_task(TASKS[task])
        channels, side, _ = data.inputs[0].shape
        found = Study.create(
            folder,
            SPACE,
            evaluation=evaluation_of(task, seed, arm),
            budget=Budget(evaluations=arm.budget),
            strategy=arm.strategy,
            options=arm.options,
            seed=seed,
            dedupe=arm.dedupe,
            values={"channels": channels, "side": side, "classes": data.output.shape[0], "max_flops": MAX_FLOPS},
        )
    if not found.complete:
        (out / "shared").mkdir(exist_ok=True)
        own = "inherit" in arm.options or not arm.dedupe  # needs the weights where the study looks for them
        run(found, Inline(folder if own else out / "shared"))
    return found


def selected(found: Study, budget: float) -> Trial | None:
    """Of what was trained whole within a budget, the best in validation."""
    best, samples = None, 0
    for number in found.history.told:
        trial = found.trials[number]
        assert trial.result is not None
        samples += trial.result.samples
        if samples > budget * found.config.whole + 1:
            break
        if trial.result.status != "finished" or trial.proposal.fidelity < 1:
            continue
        if best is None or accuracy(trial) > accuracy(best):
            best = trial
    return best


def accuracy(trial: Trial) -> float:
    assert trial.result is not None
    return trial.result.values["accuracy"]


def search(out: Path, tests: Results, tasks: Sequence[str], arms: dict[str, Arm]) -> None:
    """Run studies, and test what they select."""
    for seed in SEEDS:
        for task in tasks:
            for name, arm in arms.items():
                begun = time.process_time()
                with study(out, task, seed, name, arm) as found:
                    spent = time.process_time() - begun
                    for budget in GRID:
                        if budget <= arm.budget and (best := selected(found, budget)) is not None:
                            judge(tests, found, best, {"task": task, "seed": seed, "arm": name, "budget": budget}, 3)
                    for number in range(DRAWS if name == "random" else 0):
                        at = {"task": task, "seed": seed, "arm": "draw", "budget": number}
                        judge(tests, found, found.trials[number], at, 1)
                print(f"{task} {seed} {name}: {spent:.0f} s of searching", flush=True)


def judge(tests: Results, found: Study, trial: Trial, at: Row, repeats: int) -> None:
    """Add a row of test accuracies, trained from other seeds, unless there is one; equal trainings are done once."""
    if any(at.items() <= row.items() for row in tests.rows):
        return
    evaluation = found.config.evaluation.model_copy(update={"early_stop": False})
    work = {
        "task": at["task"],
        "seed": at["seed"],
        "hash": trial.proposal.candidate.hash,
        "aware": evaluation.architecture_aware,
    }
    same = (row for row in tests.rows if work.items() <= row.items() and len(row["tests"]) >= repeats)
    known = next(same, None)
    if known is None:
        told = [one["accuracy"] for one in final_test(trial.proposal.candidate, evaluation, repeats)]
    else:
        told = known["tests"][:repeats]
    tests.add(at | work | {"validation": accuracy(trial), "number": trial.number, "tests": told})


# The report


class Sample:
    """Resamples of search seeds, and of trainings within them, the same seeds for all arms."""

    def __init__(self, seeds: int) -> None:
        self._rng = np.random.Generator(np.random.Philox(0))
        self._seeds = self._rng.integers(0, seeds, (RESAMPLES, seeds, 1))

    def __call__(self, tests: Sequence[Sequence[float]]) -> tuple[float, NDArray[np.float64]]:
        """The mean, in percent, and the means of the resamples."""
        table = 100 * np.asarray(tests, np.float64)
        trainings = self._rng.integers(0, table.shape[1], (*self._seeds.shape[:2], table.shape[1]))
        return float(table.mean()), table[self._seeds, trainings].mean((1, 2))


def interval(mean: float, drawn: NDArray[np.float64], sign: str = "") -> str:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def report(rows: Sequence[Row]) -> str:
    """Tables in Markdown, of the seeds that all arms of a task have."""
    lines: list[str] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = {(r["arm"], r["budget"], r["seed"]): r["tests"] for r in rows if r["task"] == task}
        arms = [arm for arm in dict.fromkeys(arm for arm, _, _ in here) if arm != "draw"]
        last = {arm: max(b for a, b, _ in here if a == arm) for arm in arms}
        seeds = [s for s in SEEDS if all((arm, last[arm], s) in here for arm in ("random", "evolution"))]
        mean = 100 * float(np.mean([t for (arm, _, s), t in here.items() if arm == "draw" and s in seeds]))
        lines += [
            f"\n`{task}`, {len(seeds)} seeds; mean test accuracy of random architectures {mean:.1f}%\n",
            "| strategy | seeds | test accuracy at 24, % | at 48 | at 96 | at 256 | over the random mean, % "
            "| minus random at 96 | minus random at 256 |",
            "|---" * 9 + "|",
        ]
        for arm in arms:
            own = [s for s in seeds if (arm, last[arm], s) in here]
            if not own:
                continue
            sample = Sample(len(own))
            at = {b: sample([here[arm, b, s] for s in own]) for b in GRID if b <= last[arm]}
            random = {b: sample([here["random", b, s] for s in own]) for b in (96, 256)}
            cells = [interval(*at[b]) if b in at else "" for b in GRID]
            ours = at[96]
            cells.append(interval(100 * (ours[0] - mean) / mean, 100 * (ours[1] - mean) / mean, "+"))
            for other in random.values():
                cells.append("" if arm == "random" else interval(ours[0] - other[0], ours[1] - other[1], "+"))
            lines.append(f"| {arm} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Quality against budget, a panel for each task; points are seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for arm in ARMS:
            own = [row for row in rows if row["task"] == task and row["arm"] == arm]
            budgets = sorted({row["budget"] for row in own})
            means = [np.mean([100 * np.mean(r["tests"]) for r in own if r["budget"] == b]) for b in budgets]
            (line,) = axis.plot(budgets, means, label=arm)
            points = [(row["budget"], 100 * np.mean(row["tests"])) for row in own]
            axis.scatter(*zip(*points, strict=True), color=line.get_color(), s=9)
        axis.set(title=task, xscale="log", xlabel="whole trainings")
        axis.set_xticks(GRID, labels=[str(b) for b in GRID])
        axis.minorticks_off()
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--arms", default="", help="some of them, separated by `;`, in place of all")
    parser.add_argument("--ablations", action="store_true", help="the ablations, in place of the strategies")
    parser.add_argument("--report", type=Path, help="a picture; tables are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    tests = Results(options.out / "tests.jsonl")
    if options.report is not None:
        print(report(tests.rows), end="")
        draw(tests.rows, options.report)
        options.report.with_suffix(".json").write_text(json.dumps(tests.rows) + "\n", encoding="utf-8")
        return
    arms = ABLATIONS if options.ablations else ARMS
    if options.arms:
        arms = {name: (ARMS | ABLATIONS)[name] for name in options.arms.split(";")}
    search(options.out, tests, options.tasks.split(","), arms)


if __name__ == "__main__":
    main()
