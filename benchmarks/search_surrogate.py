"""Surrogates against sizes as predictors of accuracy, on the closed space.

    python benchmarks/search_surrogate.py --table benchmarks/data/closed.npz --out RUNS/search_surrogate

In each split a model learns the validation accuracies (training seed 0) of some networks, and ranks others; the truth
is their test accuracy from training seed 1. Kendall's τ over all of the others and over the third that is best in
truth, mean over splits, with 95% intervals of a bootstrap over networks. `seed 0` is the validation accuracy of the
networks themselves: what a whole training tells. The models are those of `archc.search.learners`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from closed import space, traces
from closed_table import CHOICES, load
from numpy.typing import NDArray
from surrogate import tau

from archc.backends.torch.training import load_task
from archc.search.learners import Forest, Process, ranked
from archc.search.predictor import see_text

NETWORKS, BOOTSTRAP = 400, 300
MODELS = ("process", "forest", "params", "flops", "seed 0")

Doubles = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--learned", type=int, default=96)
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = load(options.table)
    begun = time.process_time()
    rng = np.random.Generator(np.random.Philox(0))
    chosen = np.sort(rng.permutation(len(traces()))[:NETWORKS])
    opened = space(load_task("hard_digits"))  # tasks differ in the first and last layer's width alone
    drawn = [opened.redraw(dict(zip(CHOICES, traces()[i], strict=True))) for i in chosen]
    seen = [see_text(one.text) for one in drawn]
    every: dict[str, Any] = {"networks": NETWORKS, "learned": options.learned, "splits": options.splits}
    print("| task | | τ | τ in the top third |\n|---|---|---|---|")
    for t, task in enumerate(table.tasks):
        told, truth = table.accuracy[t, 0, chosen], table.test[t, 1, chosen]
        scores: dict[str, list[Any]] = {m: [] for m in MODELS}
        for split in range(options.splits):
            order = np.random.Generator(np.random.Philox(split)).permutation(NETWORKS)
            own, rest = order[: options.learned], order[options.learned :]
            guesses = {"params": table.params[t, chosen[rest]], "flops": table.flops[t, chosen[rest]]}
            guesses["seed 0"] = told[rest]
            for name, model in (("process", Process(ranked)), ("forest", Forest(ranked))):
                model.learn([seen[i] for i in own], -told[own])
                guesses[name] = -model.predict([seen[i] for i in rest])[0]
            best = truth[rest] >= np.quantile(truth[rest], 2 / 3)
            draws = [np.arange(len(rest)), *(rng.integers(0, len(rest), len(rest)) for _ in range(BOOTSTRAP))]
            for name, guess in guesses.items():
                scores[name].append([[tau(guess[d], truth[rest][d]), _top(guess, truth[rest], best, d)] for d in draws])
        every[task] = {}
        for name in MODELS:
            means = np.mean(scores[name], 0)
            cells = []
            for k in (0, 1):
                low, high = np.quantile(means[1:, k], [0.025, 0.975])
                cells.append(f"{means[0, k]:.2f} [{low:.2f}, {high:.2f}]")
            every[task][name] = cells
            print(f"| {task} | {name} | {cells[0]} | {cells[1]} |", flush=True)
    every["cpu_seconds"] = round(time.process_time() - begun)
    (options.out / "search_surrogate.json").write_text(json.dumps(every, indent=1) + "\n")
    print(f"\n{every['cpu_seconds']} CPU s")


def _top(guess: Doubles, truth: Doubles, best: Any, drawn: Any) -> float:
    keep = drawn[best[drawn]]
    return tau(guess[keep], truth[keep])


if __name__ == "__main__":
    main()
