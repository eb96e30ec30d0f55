"""What learning-curve early stopping saves and costs, replayed on the table of the closed space.

    python benchmarks/early_stop.py [--table benchmarks/data/closed.npz] [--report early_stop.md]

A random search of 128 networks, 100 seeds, on each task, without early stopping and with each of some rules. What a
rule saves is counted in training samples. Quality is the mean accuracy, over the table's seeds, of the network that the
search chose by one seed's validation; regret is what is missing to the best network of the space. *Same trials*: all
128, on fewer samples. *Same budget*: what is saved is spent on further networks. Intervals: 95 %, bootstrapped over
seeds, of the difference to the search that stops nothing, on the same networks in the same order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from closed_table import TABLE, Floats, Table, load
from numpy.typing import NDArray

from archc.search.early import Rule, falls_short

TRIALS, SEEDS = 128, 100
RULES = {
    "median": Rule(kind="median"),
    "median, after 1/3": Rule(kind="median", grace=0.2),
    "extrapolate, doubt 0.5": Rule(doubt=0.5),
    "extrapolate, doubt 1": Rule(doubt=1.0),
    "extrapolate, doubt 1.6": Rule(),
    "extrapolate, doubt 1.6, after 1/3": Rule(grace=0.2),
    "extrapolate, doubt 2.5": Rule(doubt=2.5),
}


def search(
    curves: Floats, shares: Floats, order: NDArray[np.int64], rule: Rule | None, budget: float
) -> tuple[int, float]:
    """The network with the best last score, and how many whole trainings it took; ends with the order or the budget."""
    whole: list[int] = []
    spent = 0.0
    for number in order:
        curve = curves[number]
        seen = stopped(curve, shares, curves[whole], rule) if rule is not None else len(curve)
        spent += shares[seen - 1]
        if spent > budget + 1e-9:
            break
        if seen == len(curve):
            whole.append(int(number))
    return max(whole, key=lambda number: float(curves[number, -1])), spent


def stopped(curve: Floats, shares: Floats, whole: Floats, rule: Rule) -> int:
    """After which validation a rule stops a training; their number when it does not."""
    for k in range(len(curve) - 1):
        judges = len(whole) >= rule.warmup and shares[k] >= rule.grace
        if judges and falls_short(curve[k], curve[: k + 1].max(), whole[:, k], whole[:, -1], rule):
            return k + 1
    return len(curve)


def compare(table: Table, task: int, rule: Rule, seeds: int = SEEDS) -> dict[str, Floats]:
    """Per seed: the share of samples saved, and by how much accuracy differs, with the same trials and budget."""
    quality, shares = table.accuracy[task].mean(0), table.checkpoints
    found: dict[str, list[float]] = {"saved": [], "same trials": [], "same budget": [], "regret": []}
    for seed in range(seeds):
        order = np.random.Generator(np.random.Philox(seed)).permutation(quality.size)
        curves = table.curves[task, seed % 2]
        plain, _ = search(curves, shares, order[:TRIALS], None, np.inf)
        fewer, spent = search(curves, shares, order[:TRIALS], rule, np.inf)
        more, _ = search(curves, shares, order, rule, TRIALS)
        found["saved"].append(1 - spent / TRIALS)
        found["same trials"].append(quality[fewer] - quality[plain])
        found["same budget"].append(quality[more] - quality[plain])
        found["regret"].append(quality.max() - quality[plain])
    return {name: np.array(values) for name, values in found.items()}


def interval(values: Floats) -> str:
    """Mean and 95 % bootstrap interval, in points of accuracy."""
    rng = np.random.Generator(np.random.Philox(0))
    means = rng.choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * values.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def report(table: Table, rules: dict[str, Rule], seeds: int = SEEDS) -> str:
    lines = []
    for task, name in enumerate(table.tasks):
        lines += [f"### {name}", "", "| rule | samples saved | same trials | same budget |", "|---|---|---|---|"]
        for label, rule in rules.items():
            found = compare(table, task, rule, seeds)
            saved = f"{100 * found['saved'].mean():.0f} %"
            cells = [label, saved, interval(found["same trials"]), interval(found["same budget"])]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"Regret of the search that stops nothing: {100 * found['regret'].mean():.2f}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    text = report(load(options.table), RULES, options.seeds)
    print(text)
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
