"""Fronts found with measured latency, against fronts found with FLOPs in its place.

    python benchmarks/latency.py measure --out RUNS/fronts --spaces closed=300 --batches 32 --rounds 6
    python benchmarks/fronts.py --nets RUNS/fronts --table benchmarks/data/closed.npz --out RUNS/fronts/fronts.json

The space is those networks of the closed one that were compiled and timed (the first draws of seed 0). Accuracies are
those of the closed table (`hard_digits`), latencies the least medians of rounds (`timing.py`). NSGA-II searches it
twice from each seed, with equal options and budgets: for accuracy and measured latency, and for accuracy and FLOPs.
Both see the validation accuracies of one training seed and, if at all, the latencies of the rounds of even number.
Each front is judged by what neither has seen: test accuracy from the other training seed, and latency from the rounds
of odd number, in which all networks were timed interleaved. The hypervolume reaches to accuracy 0.1 and the slowest
network's latency, as a share of that of the front of all networks, so judged. Intervals: bootstrap over search seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from closed_table import load
from results import Results
from timing import latencies

from archc.grammar.load import loads
from archc.ir.canonical import canonical
from archc.search.goals import parse_goals
from archc.search.pareto import front, hypervolume
from archc.search.records import Candidate, Result
from archc.search.strategy import strategy_kind
from archc.search.table import TableSpace

GOALS = {
    "latency": parse_goals(["accuracy:max", "latency_ms:min@cpu"]),
    "flops": parse_goals(["accuracy:max", "flops:min"]),
}
CHANCE = 0.1


def searched(space: TableSpace, values: dict[str, dict[str, float]], which: str, seed: int, budget: int) -> list[str]:
    """The front of a search, by hashes: what of all that it tried none dominates, as it saw it."""
    kind = strategy_kind("nsga2")
    strategy = kind.make(space, GOALS[which], seed, kind.options(population=16))
    tried: list[tuple[str, tuple[float, ...]]] = []
    for number in range(budget):
        proposal = strategy.ask(number)
        if proposal is None:
            break
        strategy.proposed(proposal)
        result = Result(number=number, status="finished", values=values[proposal.candidate.hash])
        strategy.tell(result)
        tried.append((proposal.candidate.hash, GOALS[which].losses(result)))
    return [tried[i][0] for i in front([losses for _, losses in tried])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="hard_digits")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    table = load(options.table, partial=True)
    task = table.tasks.index(options.task)
    number = {h: i for i, h in enumerate(table.hashes[task])}
    rows = Results(options.nets / "times.jsonl").rows
    rounds = sorted({row["round"] for row in rows})
    seen, judged = (latencies(rows, options.batch, rounds[k::2]) for k in (0, 1))
    candidates, at, names = [], [], []
    for row in Results(options.nets / "nets.jsonl").rows:
        digest = canonical(loads(row["text"])).hash
        if digest in number and row["name"] in seen and row["name"] in judged:
            i = number[digest]
            candidates.append(Candidate(text=row["text"], hash=digest, trace=table.trace(i)))
            at.append(i)
            names.append(row["name"])
    space, hashes = TableSpace(candidates), [c.hash for c in candidates]
    place = {h: k for k, h in enumerate(hashes)}
    slowest = max(judged[n] for n in names)
    found: dict[str, Any] = {"networks": len(names), "budget": options.budget, "rows": []}
    for seed in range(options.seeds):
        training = seed % 2
        values = {
            h: {
                "accuracy": float(table.accuracy[task, training, i]),
                "flops": float(table.flops[task, i]),
                "latency_ms@cpu": seen[n],
            }
            for h, i, n in zip(hashes, at, names, strict=True)
        }
        truth = np.array([[-table.test[task, 1 - training, i], judged[n]] for i, n in zip(at, names, strict=True)])
        whole = hypervolume(truth, (-CHANCE, slowest))
        line: dict[str, Any] = {"seed": seed}
        for which in GOALS:
            chosen = [place[h] for h in searched(space, values, which, seed, options.budget)]
            line[which] = hypervolume(truth[chosen], (-CHANCE, slowest)) / whole
            line[f"{which}, members"] = len(chosen)
        found["rows"].append(line)
        print(line, flush=True)
    gains = np.array([r["latency"] - r["flops"] for r in found["rows"]])
    draws = np.random.Generator(np.random.Philox(0)).choice(gains, (10_000, len(gains))).mean(1)
    found["latency minus flops"] = [float(gains.mean()), *np.quantile(draws, [0.025, 0.975]).tolist()]
    flops = [float(table.flops[task, i]) for i in at]
    ranks = [np.argsort(np.argsort(v)) for v in (flops, [judged[n] for n in names], [seen[n] for n in names])]
    found["rank correlation"] = {
        "flops, latency": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "latency, measured again": float(np.corrcoef(ranks[1], ranks[2])[0, 1]),
    }
    print(json.dumps({k: v for k, v in found.items() if k != "rows"}, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
