"""The accuracy surrogate against `params`, FLOPs and a random forest, on trained networks.

    python benchmarks/pool.py --out RUNS/pool --split train --count 200 --seed 1 --start kaiming --lr 0.01 --steps 200
    python benchmarks/surrogate.py --pool RUNS/pool/pool.jsonl --out RUNS/surrogate

Networks are split at random, 70% to learn from and 30% to predict, `--splits` times; every model has the same splits.
Kendall's τ between prediction and test accuracy, over all predicted networks and over the third of them that is best;
the share of accuracies inside the 90% intervals, and their mean width. The random forest (200 trees) reads the same
features of the graph as the surrogate, without the neighbourhoods. `gp` is the surrogate; `features` has its features
alone, `labels` its neighbourhoods alone. Means over splits with a 95% interval: a bootstrap over networks of the τ of
each, splits of one pool being far from independent. Resumable: one line a split in `OUT/surrogate.jsonl`. Seeds are the
numbers of the splits. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import Results

from archc.grammar.load import loads
from archc.metanet.surrogate import Surrogate
from archc.metanet.surrogate.features import Seen, see, table

MODELS = ("gp", "features", "labels", "forest", "params", "flops", "both")
LEARNED = 0.7
BOOTSTRAP = 200


def read(paths: Sequence[Path], step: int) -> tuple[list[Seen], np.ndarray]:
    """The networks of pools and their test accuracies after `step` steps; of several runs of a net the first."""
    seen, accuracies, known = [], [], set()
    for path in paths:
        for row in Results(path).rows:
            if step in row["grid"] and row["text"] not in known:
                known.add(row["text"])
                seen.append(see(loads(row["text"])))
                accuracies.append(row["test"][row["grid"].index(step)])
    return seen, np.array(accuracies)


def without(one: Seen, what: str) -> Seen:
    """What is left of a network when features, or all neighbourhoods, are taken away."""
    if what == "features":
        return Seen({"size.params": 1.0}, one.labels)
    return Seen(one.features, tuple({"op": 1} for _ in one.labels))


def predictions(seen: Sequence[Seen], truth: np.ndarray, learned: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    """Every model's predictions for the networks of `rest`."""
    from sklearn.ensemble import RandomForestRegressor

    columns = sorted({name for one in seen for name in one.features})
    x = table(seen, columns)
    found: dict[str, Any] = {
        "params": x[rest, columns.index("size.params")].tolist(),
        "flops": x[rest, columns.index("size.flops")].tolist(),
    }
    kinds = {
        "gp": seen,
        "features": [without(s, "labels") for s in seen],
        "labels": [without(s, "features") for s in seen],
    }
    for name, pool in kinds.items():
        begun = time.process_time()
        surrogate = Surrogate()
        surrogate.fit([pool[i] for i in learned], truth[learned].tolist())
        told = surrogate.predict([pool[i] for i in rest])
        found[name] = told.mean.tolist()
        if name == "gp":
            found |= {"low": told.low.tolist(), "high": told.high.tolist(), "seconds": time.process_time() - begun}
    forest = RandomForestRegressor(200, min_samples_leaf=2, max_features=0.33, random_state=0, n_jobs=1)
    found["forest"] = forest.fit(x[learned], truth[learned]).predict(x[rest]).tolist()
    found["both"] = ((np.array(found["gp"]) + np.array(found["forest"])) / 2).tolist()
    return found


def tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's τ-b; 0 where all of a or of b are equal."""
    x, y = np.sign(a[:, None] - a[None, :]), np.sign(b[:, None] - b[None, :])
    pairs = float((x != 0).sum()) * float((y != 0).sum())
    return float((x * y).sum()) / pairs**0.5 if pairs else 0.0


def summary(rows: Sequence[dict[str, Any]], truth: np.ndarray) -> dict[str, Any]:
    """Means over splits, and bootstrap intervals over networks."""
    best_of = [truth[r["rest"]] >= np.quantile(truth[r["rest"]], 2 / 3) for r in rows]

    def score(row: dict[str, Any], best: np.ndarray, model: str, chosen: np.ndarray) -> tuple[float, float]:
        y, p = truth[row["rest"]], np.array(row[model])
        keep = chosen[best[chosen]]
        return tau(p[chosen], y[chosen]), tau(p[keep], y[keep])

    found: dict[str, Any] = {"networks": len(truth), "splits": len(rows), "models": {}}
    rng = np.random.Generator(np.random.Philox(0))
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(BOOTSTRAP)]
    place = [{n: i for i, n in enumerate(r["rest"])} for r in rows]
    means, samples = {}, {}
    for model in MODELS:
        own = [score(r, b, model, np.arange(len(r["rest"]))) for r, b in zip(rows, best_of, strict=True)]
        means[model] = np.mean(own, 0)
        drawn = []
        for d in draws:
            chosen = [np.array([p[n] for n in d if n in p]) for p in place]
            drawn.append(np.mean([score(r, b, model, c) for r, b, c in zip(rows, best_of, chosen, strict=True)], 0))
        samples[model] = np.array(drawn)
    for model in MODELS:
        low, high = np.quantile(samples[model], [0.025, 0.975], axis=0)
        ahead = np.quantile(samples["gp"] - samples[model], [0.025, 0.975], axis=0)
        found["models"][model] = {
            name: {
                "mean": round(float(means[model][k]), 3),
                "interval": [round(float(low[k]), 3), round(float(high[k]), 3)],
                "gp_minus_this": round(float(means["gp"][k] - means[model][k]), 3),
                "its_interval": [round(float(ahead[0, k]), 3), round(float(ahead[1, k]), 3)],
            }
            for k, name in enumerate(("tau", "tau_top_third"))
        }
    inside = [
        [low <= truth[n] <= high for n, low, high in zip(r["rest"], r["low"], r["high"], strict=True)] for r in rows
    ]
    found["coverage"] = round(float(np.mean([np.mean(i) for i in inside])), 3)
    found["coverage_of_splits"] = [round(float(np.quantile([np.mean(i) for i in inside], q)), 3) for q in (0.05, 0.95)]
    found["width"] = round(float(np.mean([np.mean(np.array(r["high"]) - r["low"]) for r in rows])), 3)
    found["fit_seconds"] = round(float(np.median([r["seconds"] for r in rows])), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--step", type=int, default=200, help="accuracy after so many steps")
    options = parser.parse_args()
    begun = time.process_time()
    options.out.mkdir(parents=True, exist_ok=True)
    seen, truth = read(options.pool, options.step)
    spread = np.quantile(truth, [0, 0.25, 0.5, 0.75, 1]).round(3).tolist()
    print(f"{len(truth)} networks; accuracy min, quartiles, max: {spread}")
    results = Results(options.out / f"surrogate-{len(truth)}-{options.step}.jsonl")
    done = {row["split"] for row in results.rows}
    for split in range(options.splits):
        if split in done:
            continue
        order = np.random.Generator(np.random.Philox(split)).permutation(len(truth))
        cut = round(LEARNED * len(truth))
        rest = np.sort(order[cut:])
        row = {"split": split, "rest": rest.tolist(), **predictions(seen, truth, np.sort(order[:cut]), rest)}
        results.add(row)
    found = summary(results.rows[: options.splits], truth)
    print("| model | τ | τ in the top third | surrogate minus it | in the top third |\n|---|---|---|---|---|")
    for model, told in found["models"].items():
        cells = [f"{t['mean']:.2f} [{t['interval'][0]:.2f}, {t['interval'][1]:.2f}]" for t in told.values()]
        ahead = [
            f"{t['gp_minus_this']:+.2f} [{t['its_interval'][0]:+.2f}, {t['its_interval'][1]:+.2f}]"
            for t in told.values()
        ]
        print(f"| {model} | {' | '.join(cells)} | {' | '.join(ahead if model != 'gp' else ['', ''])} |")
    low, high = found["coverage_of_splits"]
    print(
        f"\n90% intervals: {found['coverage']:.1%} inside (5th and 95th percentile of splits {low:.1%}, {high:.1%}), "
        f"mean width {found['width']:.3f}; a fit takes {found['fit_seconds']} CPU s; "
        f"this script {time.process_time() - begun:.0f} CPU s"
    )
    (options.out / "surrogate.json").write_text(json.dumps(found | {"accuracy": spread}, indent=1) + "\n")


if __name__ == "__main__":
    main()
