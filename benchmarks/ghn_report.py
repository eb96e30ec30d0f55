"""The tables of parameter prediction, from what `ghn.py` and `pool.py` have written.

    python benchmarks/ghn_report.py --runs RUNS/ghn --pool RUNS/pool [--page docs/prediction.md]

With `--page` the tables are put into the page, between `<!-- tables -->` and `<!-- end of tables -->`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paired import Interval, mean_interval, paired

Row = Mapping[str, Any]
Key = tuple[str, int, int]
"""A view, its rounds of messages, and its rounds of turns."""

NAMES = {
    "graph": "GHN",
    "table": "(1) graph-free table",
    "context": "(2) context-keyed table",
    "shuffled": "(3) GHN, shuffled edges",
    "ordered": "(4) ordered list",
    "bag": "(4) bag of nodes",
}


class Runs:
    """Finished runs by view, rounds and seed, and what was measured on the way."""

    def __init__(self, folder: Path) -> None:
        self.done: dict[Key, dict[int, Row]] = {}
        self.snapshots: dict[Key, dict[int, dict[int, list[float]]]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            for row in (row for row in rows if row.get("finished")):
                key = (row["view"], row["rounds"], row["turns"])
                self.done.setdefault(key, {})[row["seed"]] = row
                steps = {r["step"]: r["test"] for r in rows if "step" in r}
                self.snapshots.setdefault(key, {})[row["seed"]] = steps

    @property
    def main(self) -> Key:
        """The hypernetwork that the others are compared with: three rounds, and the most turns."""
        return max(key for key in self.done if key[:2] == ("graph", 3))

    def models(self) -> list[Key]:
        """Views in the order of `NAMES`, by rounds."""
        return sorted(self.done, key=lambda k: (k[1:] != self.main[1:], list(NAMES).index(k[0]), k[1:]))

    def accuracies(self, key: Key, split: str = "test") -> list[list[float]]:
        """[seeds, nets] after the whole run."""
        return [self.done[key][seed]["accuracy"][split] for seed in sorted(self.done[key])]

    def common(self, a: Key, b: Key) -> list[int]:
        """The seeds that both have."""
        return sorted(self.done[a].keys() & self.done[b].keys())

    def difference(self, a: Key, b: Key, split: str = "test") -> Interval:
        """After equal CPU time."""
        seeds = self.common(a, b)
        return paired(*([self.done[key][s]["accuracy"][split] for s in seeds] for key in (a, b)))

    def after_equal_batches(self, a: Key, b: Key) -> tuple[int, Interval] | None:
        """After the largest number of steps that all runs of both were judged at."""
        seeds = self.common(a, b)
        steps = [set(self.snapshots[key][s]) for key in (a, b) for s in seeds]
        common = set.intersection(*steps)
        if not common:
            return None
        last = max(common)
        return last, paired(*([self.snapshots[key][s][last] for s in seeds] for key in (a, b)))


def label(key: Key, main: Key) -> str:
    view, rounds, turns = key
    return NAMES[view] if key[1:] == main[1:] else f"{NAMES[view]}, {rounds} rounds, {turns} of turns"


def zero_step(runs: Runs) -> Iterator[str]:
    """The primary claim."""
    yield "| model | seeds | zero-step accuracy, % | GHN − model, points | the same after equal batches (steps) |"
    yield "|---|---:|---:|---:|---:|"
    for key in runs.models():
        rows = runs.accuracies(key)
        cells = [label(key, runs.main), str(len(rows)), str(mean_interval(rows))]
        if key == runs.main:
            cells += ["", ""]
        else:
            equal = runs.after_equal_batches(runs.main, key)
            cells += [str(runs.difference(runs.main, key)), f"{equal[1]} ({equal[0]})" if equal else "–"]
        yield f"| {' | '.join(cells)} |"


def costs(runs: Runs) -> Iterator[str]:
    yield "| model | parameters | steps by seed | CPU minutes by seed | nets skipped |"
    yield "|---|---:|---:|---:|---:|"
    for key in runs.models():
        rows = [runs.done[key][s] for s in sorted(runs.done[key])]
        steps = ", ".join(str(r["steps"]) for r in rows)
        minutes = ", ".join(f"{r['cpu_seconds'] / 60:.2f}" for r in rows)
        skipped = sum(r["skipped"] for r in rows)
        yield f"| {label(key, runs.main)} | {rows[0]['parameters']:,} | {steps} | {minutes} | {skipped} |"


def splits(runs: Runs) -> Iterator[str]:
    names = list(next(iter(runs.done[runs.main].values()))["accuracy"])
    yield f"| model | {' | '.join(name.replace('_', '-') for name in names)} |"
    yield f"|---|{'---:|' * len(names)}"
    for key in runs.models():
        means = [f"{100 * np.mean(runs.accuracies(key, split)):.1f}" for split in names]
        yield f"| {label(key, runs.main)} | {' | '.join(means)} |"
    worst = [f"{100 * np.min(runs.accuracies(runs.main, split)):.1f}" for split in names]
    yield f"| GHN, the worst net | {' | '.join(worst)} |"


def twins(runs: Runs) -> Iterator[str]:
    yield "| model | own weights, % | the twin's weights, % | cost, points |"
    yield "|---|---:|---:|---:|"
    for key in runs.models():
        rows = [runs.done[key][s]["twins"] for s in sorted(runs.done[key])]
        own, twin = ([[pair[k] for pair in row] for row in rows] for k in ("own", "twin"))
        yield f"| {label(key, runs.main)} | {mean_interval(own)} | {mean_interval(twin)} | {paired(own, twin)} |"


def matrices(runs: Runs) -> Iterator[str]:
    yield "| model | rank, share of full | values that occur once, share |"
    yield "|---|---:|---:|"
    for key in runs.models():
        rows = [row["matrices"] for row in runs.done[key].values()]
        rank, unique = (np.mean([row[k] for row in rows]) for k in ("rank", "unique"))
        yield f"| {label(key, runs.main)} | {rank:.2f} | {unique:.3f} |"


# -- trained nets -----------------------------------------------------------------------------------------------------


class Pool:
    """Rows of `pool.py`: training runs by split, start and learning rate."""

    def __init__(self, folder: Path) -> None:
        path = folder / "pool.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines if line.endswith("}")]

    def curve(self, split: str, start: str, lr: float, measure: str) -> tuple[list[int], dict[str, list[float]]]:
        """The numbers of steps, and by net its accuracies there."""
        rows = [r for r in self.rows if (r["split"], r["start"], r["lr"]) == (split, start, lr)]
        grid = min((r["grid"] for r in rows), key=len, default=[])
        return grid, {r["name"]: [r[measure][r["grid"].index(step)] for step in grid] for r in rows}

    def starts(self, split: str = "test") -> list[str]:
        return list(dict.fromkeys(r["start"] for r in self.rows if r["split"] == split))

    def tuned(self, start: str, step: int) -> tuple[float, dict[float, float]]:
        """The rate with the best mean validation accuracy on validation nets after `step` steps; the means of all."""
        means = {}
        for lr in sorted({r["lr"] for r in self.rows if r["split"] == "val" and r["start"] == start}):
            grid, curves = self.curve("val", start, lr, "val")
            means[lr] = float(np.mean([curve[grid.index(step)] for curve in curves.values()]))
        return max(means, key=lambda lr: means[lr]), means


def finetuned(pool: Pool, steps: Sequence[int] = (0, 10, 50, 200)) -> Iterator[str]:
    """Curves of all starts at the rate that is best for each after the most steps; mean, and the worst net."""
    yield f"| start | rate | nets | {' | '.join(f'{s} steps' for s in steps)} |"
    yield f"|---|---:|---:|{'---:|' * len(steps)}"
    for start in pool.starts():
        lr, _ = pool.tuned(start, max(steps))
        grid, curves = pool.curve("test", start, lr, "test")
        if not curves:
            continue
        table = 100 * np.array([[curve[grid.index(s)] for s in steps] for curve in curves.values()])
        cells = [f"{mean:.1f} ({least:.1f})" for mean, least in zip(table.mean(0), table.min(0), strict=True)]
        yield f"| {start_name(start)} | {lr:g} | {len(curves)} | {' | '.join(cells)} |"


def start_name(start: str) -> str:
    return {"kaiming": "Kaiming", "aware": "architecture-aware"}.get(start, "predicted (GHN)")


def worth(runs: Runs, pool: Pool) -> Iterator[str]:
    """How many steps of Adam reach the mean that the GHN has without any."""
    yield "| start | GHN's mean on these nets, % | fewest steps of tuned Adam (rate) |"
    yield "|---|---:|---:|"
    for start in (s for s in pool.starts() if s in ("kaiming", "aware")):
        best: tuple[float, float] | None = None
        order: list[str] = []
        goal, told = 0.0, ""
        for lr in sorted({r["lr"] for r in pool.rows if r["split"] == "test" and r["start"] == start}):
            grid, curves = pool.curve("test", start, lr, "test")
            order = list(curves)
            goal = float(np.mean([row[: len(order)] for row in runs.accuracies(runs.main)]))
            last = float(np.mean([curve[-1] for curve in curves.values()]))
            told = f"not within {grid[-1]}: {100 * last:.1f} % there ({lr:g})"
            if (steps := crossing(grid, np.mean(list(curves.values()), 0), goal)) is not None:
                best = min(best or (steps, lr), (steps, lr))
        if best:
            told = f"{best[0]:.0f} ({best[1]:g})"
        yield f"| {start_name(start)}, {len(order)} nets | {100 * goal:.1f} | {told} |"


def crossing(grid: Sequence[int], means: Sequence[float], goal: float) -> float | None:
    """Where a curve first reaches a height, between the points that are known; None where it does not.

    >>> crossing([0, 10, 20], [0.1, 0.2, 0.4], 0.3)
    15.0
    """
    for i, value in enumerate(means):
        if value >= goal:
            if i == 0:
                return float(grid[0])
            share = (goal - means[i - 1]) / (value - means[i - 1])
            return float(grid[i - 1] + share * (grid[i] - grid[i - 1]))
    return None


def page(runs: Runs, pool: Pool, nearest: Row | None, more: Runs | None) -> str:
    parts = [
        ("Zero-step accuracy on unseen nets of the same distribution", zero_step(runs)),
        ("Wiring twins", twins(runs)),
        ("All splits, means in %", splits(runs)),
        ("What the runs cost", costs(runs)),
        ("Predicted matrices", matrices(runs)),
    ]
    if nearest is not None:
        parts.insert(1, ("Nearest trained architecture", nearest_table(runs, nearest)))
    if pool.starts():
        parts += [("Fine-tuning: mean test accuracy in % (worst net)", finetuned(pool))]
        parts += [("What a prediction is worth in steps of Adam", worth(runs, pool))]
    if more is not None and more.done:
        parts += [
            ("The whole distribution: zero-step accuracy", zero_step(more)),
            ("The whole distribution: wiring twins", twins(more)),
            ("The whole distribution: all splits, means in %", splits(more)),
            ("The whole distribution: what the runs cost", costs(more)),
        ]
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts)


def nearest_table(runs: Runs, nearest: Row) -> Iterator[str]:
    accuracy = nearest["test"]
    ours = [row[: len(accuracy)] for row in runs.accuracies(runs.main)]
    yield "| | nets | zero-step accuracy, % | GHN − nearest, points |"
    yield "|---|---:|---:|---:|"
    name, gap = f"(5) nearest of {nearest['pool']} trained nets", paired(ours, [accuracy] * len(ours))
    yield f"| {name} | {len(accuracy)} | {mean_interval([accuracy])} | {gap} |"


BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--more", type=Path, help="runs on the whole distribution")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(arguments)
    found = options.pool / "nearest.json"
    nearest = json.loads(found.read_text()) if found.exists() else None
    text = page(Runs(options.runs), Pool(options.pool), nearest, Runs(options.more) if options.more else None)
    if options.page is None:
        print(text)
        return
    before, rest = options.page.read_text().split(BEGIN)
    options.page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
