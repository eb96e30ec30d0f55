"""How well is a network's latency predicted before it is compiled?

    python benchmarks/latency.py measure --out RUNS/latency
    python benchmarks/latency.py score --out RUNS/latency

`measure` draws networks of several spaces, compiles them for this machine's CPU (one thread, batch axis open) and times
each in `--rounds` rounds (see timing.py), rows in `OUT/*.jsonl`; it goes on where it was. Rounds of odd number are one
measurement, those of even number another, of the same artifacts: the rank correlation of the two is the ceiling.

`score` learns from the first measurement of some networks and is held against the second measurement of the others, in
folds: Spearman's ρ overall and within fifths by FLOPs, beside the ceiling on the same networks, and FLOPs alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from results import Results
from timing import compiled, latencies, timed

ROOT = Path(__file__).resolve().parent.parent
SPACES = {
    "closed": ("examples/spaces/closed.arch", 150),
    "digits_net": ("examples/spaces/digits_net.arch", 70),
    "einspace": ("examples/spaces/einspace.arch", 40),
}
BATCHES = (1, 32)
FOLDS, FIFTHS, BOOTSTRAP = 5, 5, 400
MODELS = ("predictor", "bytes", "flops")

Doubles = NDArray[np.float64]


def draws(space: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Distinct architectures of a space: name and text."""
    from archc.grammar.draw import read_space
    from archc.ir.canonical import canonical

    opened, seen, index = read_space(ROOT / SPACES[space][0]), set[str](), 0
    while len(seen) < count:
        drawn = opened.draw(seed, index)
        found = canonical(drawn.graph).hash
        if found not in seen:
            seen.add(found)
            yield f"{space}-{index}", drawn.text
        index += 1


def networks(out: Path, counts: Mapping[str, int], seed: int) -> dict[str, str]:
    """The texts by name, drawn once and kept in a file."""
    rows = Results(out / "nets.jsonl")
    known = {row["name"] for row in rows.rows}
    for space, count in counts.items():
        for name, text in draws(space, count, seed):
            if name not in known:
                rows.add({"name": name, "space": space, "text": text})
    return {row["name"]: row["text"] for row in rows.rows}


def measure(options: argparse.Namespace) -> None:
    given = (one.partition("=") for one in options.spaces)
    counts = {space: int(count or SPACES[space][1]) for space, _, count in given}
    texts = networks(options.out, counts, options.seed)
    whole = compiled(options.out / "artifacts", texts, Results(options.out / "compiled.jsonl"))
    print(f"{len(whole)} of {len(texts)} networks compiled", flush=True)
    rows = Results(options.out / "times.jsonl")
    kept = {name: texts[name] for name in whole}
    timed(options.out / "artifacts", kept, options.batches, range(options.rounds), rows, core=options.core)


def predictions(texts: list[str], ms: Doubles, batch: int, fold: Any) -> dict[str, Doubles]:
    """For each model the predictions for each network, by one that learned from the networks of the other folds."""
    from archc.search.predictor import LatencyPredictor, see_costs

    seen = [see_costs(text, batch).features for text in texts]
    found = {name: np.zeros(len(texts)) for name in ("predictor", "low", "high")}
    found |= {name: np.array([one[f"size.{name}"] for one in seen]) for name in ("bytes", "flops")}
    for k in range(int(fold.max()) + 1):
        predictor = LatencyPredictor(batch)
        for i in np.flatnonzero(fold != k):
            predictor.learn(texts[i], float(ms[i]))
        rest = np.flatnonzero(fold == k)
        told = predictor.predict([texts[i] for i in rest])
        found["predictor"][rest], found["low"][rest], found["high"][rest] = told.mean, told.low, told.high
    return found


def spearman(a: Doubles, b: Doubles) -> float:
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def within(a: Doubles, b: Doubles, groups: Any) -> float:
    """The mean over groups of their rank correlations."""
    return float(np.mean([spearman(a[groups == g], b[groups == g]) for g in np.unique(groups)]))


def score(options: argparse.Namespace) -> None:
    """Tables, and a file of all figures."""
    texts = {row["name"]: row["text"] for row in Results(options.out / "nets.jsonl").rows}
    rows = Results(options.out / "times.jsonl").rows
    rounds = range(options.rounds)
    every: dict[str, Any] = {"rounds": options.rounds}
    for batch in options.batches:
        first, second = (latencies(rows, batch, rounds[k::2]) for k in (0, 1))
        names = [n for n in texts if n in first and n in second]
        a, b = (np.array([m[n] for n in names]) for m in (first, second))
        spaces = np.array([n.rpartition("-")[0] for n in names])
        fold = np.random.Generator(np.random.Philox(options.seed)).permutation(np.arange(len(names)) % FOLDS)
        told = predictions([texts[n] for n in names], a, batch, fold)
        for which in ("all", *SPACES):
            keep = np.flatnonzero((spaces == which) | (which == "all"))
            summary = compared(a[keep], b[keep], {m: v[keep] for m, v in told.items()})
            every[f"{batch}/{which}"] = summary
            print(f"\nbatch {batch}, {which}: {len(keep)} networks; {FIFTHS} groups by FLOPs\n")
            print("| | ρ | within fifths by FLOPs |\n|---|---|---|")
            for name, line in summary["lines"].items():
                print(f"| {name} | {line[0]} | {line[1]} |")
            print(f"\n90% intervals hold {summary['coverage']:.1%}, mean width ×{summary['width']:.2f}", flush=True)
    (options.out / "latency.json").write_text(json.dumps(every, indent=1) + "\n")


def compared(a: Doubles, b: Doubles, told: dict[str, Doubles]) -> dict[str, Any]:
    """Rank correlations with the second measurement, bootstrap intervals over networks, and differences."""
    groups = np.searchsorted(np.quantile(told["flops"], np.linspace(0, 1, FIFTHS + 1)[1:-1]), told["flops"], "left")
    models = {"measured again": a, **{m: told[m] for m in MODELS}}
    rng = np.random.Generator(np.random.Philox(0))
    draws = [np.arange(len(a)), *(rng.integers(0, len(a), len(a)) for _ in range(BOOTSTRAP))]
    found = {
        m: np.array([[spearman(v[d], b[d]), within(v[d], b[d], groups[d])] for d in draws]) for m, v in models.items()
    }
    lines: dict[str, list[str]] = {m: [_interval(v[:, k]) for k in (0, 1)] for m, v in found.items()}
    for m in MODELS[:-2]:
        lines[f"{m} / measured again"] = [_interval(found[m][:, k] / found["measured again"][:, k]) for k in (0, 1)]
        lines[f"{m} − FLOPs"] = [_interval(found[m][:, k] - found["flops"][:, k]) for k in (0, 1)]
    return {
        "networks": len(a),
        "lines": lines,
        "coverage": float(((told["low"] <= b) & (b <= told["high"])).mean()),
        "width": float(np.exp(np.log(told["high"] / told["low"]).mean())),
        "quantiles_ms": np.quantile(b, [0, 0.1, 0.5, 0.9, 1]).round(4).tolist(),
    }


def _interval(values: Doubles) -> str:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), help="SPACE[=COUNT]: how many networks of which")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--core", type=int, default=None, help="the core that the timed process is pinned to")
    parser.add_argument("what", choices=("measure", "score"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (measure if options.what == "measure" else score)(options)


if __name__ == "__main__":
    main()
