"""What a graph metanetwork can tell from weights, against weight statistics, sizes, training losses and a plain MLP.

    python benchmarks/gmn.py --zoo zoo --inr inr --out gmn [--jobs zoo] [--seeds 3] [--report gmn.md]

`benchmarks/zoo.py` and `benchmarks/inr.py` make the data. Four tasks:

    random     test accuracy and generalisation gap of the zoo's nets; a fifth of all nets, by the seed, are unseen
    family     the same; every net of the families `residual` and `cnn` is unseen, and the seed is the model's alone
    classify   which digit an implicit representation shows; test images are unseen
    edit       change the weights so that the picture is the dilated one; test images are unseen

Every job writes one JSON file as soon as it is done; a script that was killed goes on with what is missing. Times are
CPU seconds of training. Intervals are 95 % bootstrap intervals: test nets are drawn anew within each seed, the same for
both sides of a difference, and the mean over seeds is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archc.backends.weights import Array, read_weights, write_weights
from archc.metanet.gmn import baselines, inr_tasks
from archc.metanet.gmn.batch import Collator
from archc.metanet.gmn.equivariance import deviation
from archc.metanet.gmn.families import MAX_PARAMETERS
from archc.metanet.gmn.inr import read_inrs
from archc.metanet.gmn.learn import Examples, LearnConfig, learn, scores
from archc.metanet.gmn.model import GmnConfig, parameters_of
from archc.metanet.gmn.zoo import Net, read_zoo
from archc.metanet.symmetry import apply, sample

UNSEEN = ("residual", "cnn")
TARGETS = ("test accuracy", "generalisation gap")
ZOO_METHODS = ("gmn", "statnn", "statnn+arch", "statnn+arch+loss", "loss", "arch", "params+flops", "mlp", "mlp+aug")
COMPARED = ("statnn", "statnn+arch", "loss", "statnn+arch+loss")
INR_METHODS = ("gmn", "gmn+pictures", "gmn+edit", "gmn+across", "gmn+edit+across", "mlp", "mlp+aug", "statnn")
GMN = GmnConfig()
LEARN = LearnConfig(epochs=16, lr=2.5e-3)
INR_GMN = GmnConfig()
STEPS = {("classify", "gmn"): 700, ("edit", "gmn"): 400, ("classify", "mlp"): 3000, ("edit", "mlp"): 1500}
COPIES = 4
RESAMPLES = 300

Job = tuple[str, str, int]
Row = dict[str, Any]


def jobs(seeds: int) -> Iterable[Job]:
    """(task, method, seed), the first seed of everything before the second."""
    for seed in range(seeds):
        for method in ZOO_METHODS:
            yield "random", method, seed
        for method in INR_METHODS:
            yield "classify", method, seed
        for method in ("gmn", "mlp", "mlp+aug"):
            yield "edit", method, seed
        for method in ZOO_METHODS:
            yield "family", method, seed
    yield "edit", "no change", 0


class Data:
    """The data sets, read once and only where they are needed."""

    def __init__(self, zoo: Path, inr: Path) -> None:
        self.zoo, self.inr = zoo, inr
        self.collator = Collator()
        self.known: dict[str, Array] = {}

    @cached_property
    def nets(self) -> list[Net]:
        return read_zoo(self.zoo)

    @cached_property
    def targets(self) -> Array:
        return np.array([(n.record.test_accuracy, n.record.gap) for n in self.nets])

    def features(self, kind: str) -> Array:
        """[nets, …]: statistics, architecture, sizes or what training ended with."""
        if kind not in self.known:
            self.known[kind] = self._features(kind)
        return self.known[kind]

    def _features(self, kind: str) -> Array:
        nets = self.nets
        if kind == "statistics":
            return np.stack([baselines.statistics(n.weights) for n in nets])
        if kind == "loss":
            return np.array([(n.record.train_loss, n.record.train_accuracy) for n in nets])
        rule = {"arch": baselines.architecture, "sizes": baselines.sizes}[kind]
        known = {id(n.architecture): rule(n.architecture.graph) for n in nets}
        return np.stack([known[id(n.architecture)] for n in nets])

    def split(self, task: str, seed: int) -> tuple[Array, Array]:
        """Numbers of the nets to learn from, and of the unseen ones."""
        nets = self.nets
        if task == "family":
            unseen = np.array([n.family in UNSEEN for n in nets])
            return np.flatnonzero(~unseen), np.flatnonzero(unseen)
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(nets))
        return np.sort(order[len(nets) // 5 :]), np.sort(order[: len(nets) // 5])


FEATURES = {
    "statnn": ("statistics",),
    "statnn+arch": ("statistics", "arch"),
    "statnn+arch+loss": ("statistics", "arch", "loss"),
    "loss": ("loss",),
    "arch": ("arch",),
    "params+flops": ("sizes",),
}


def zoo_job(data: Data, task: str, method: str, seed: int, out: Path) -> Row:
    train, unseen = data.split(task, seed)
    y, nets = data.targets, data.nets
    begun = time.process_time()
    extra: Row = {}
    if method in FEATURES:
        x = np.concatenate([data.features(kind) for kind in FEATURES[method]], 1)
        begun = time.process_time()
        predicted = baselines.boosted(x[train], y[train], seed)(x[unseen])
    elif method == "gmn":
        graphs = [n.architecture.graph for n in nets]
        columns = [data.collator.column(g, n.weights) for g, n in zip(graphs, nets, strict=True)]
        examples = Examples([graphs[i] for i in train], [columns[i] for i in train], y[train])
        shape = GMN.model_copy(update={"changes": True})  # a head that is not trained, for the deviation
        state = out / f"{task} {method} {seed}.state"
        regressor, log = learn(examples, LEARN.model_copy(update={"seed": seed}), shape, data.collator, state, _say)
        predicted = regressor.predict([graphs[i] for i in unseen], [columns[i] for i in unseen])
        extra = {"parameters": parameters_of(regressor.model), "losses": [entry["loss"] for entry in log]}
        extra["cpu_seconds"] = sum(entry["cpu_seconds"] for entry in log)
        extra["deviation"] = deviations(regressor.model, data.collator, nets)
        state.unlink(missing_ok=True)
    else:
        predicted, extra["parameters"] = flat_zoo(data, train, unseen, method == "mlp+aug", seed)
    row = {"cpu_seconds": time.process_time() - begun, "predicted": predicted.tolist(), "true": y[unseen].tolist()}
    for k, target in enumerate(TARGETS):
        row[target] = scores(predicted[:, k], y[unseen][:, k])
    return row | extra


def deviations(model: Any, collator: Collator, nets: list[Net]) -> Row:
    """The largest deviation from equivariance over one net of each architecture."""
    one = {n.architecture.name: n for n in nets}
    found = [deviation(model, collator, n.architecture.graph, n.weights, k) for k, n in enumerate(one.values())]
    return {"nets": len(found), "said": max(d.said for d in found), "change": max(d.change for d in found)}


def flat_zoo(data: Data, train: Array, unseen: Array, augment: bool, seed: int) -> tuple[Array, int]:
    """A plain MLP on all weights in a row, zeros behind up to the largest net: (predictions, its parameters). With
    `augment` it sees each net in `COPIES` orders of its hidden units besides its own."""
    nets = data.nets
    y = torch.from_numpy(data.targets).float()
    mean, spread = y[train].mean(0), y[train].std(0)
    weights = [n.weights for n in nets]
    versions = [baselines.padded([weights[i] for i in train], MAX_PARAMETERS)]
    for copy in range(COPIES if augment else 0):
        moved = []
        for i in train:
            axes = data.collator.arrays(nets[i].architecture.graph).axes
            moved.append(apply(axes, sample(axes, 10_000 * copy + int(i)), weights[i]))
        versions.append(baselines.padded(moved, MAX_PARAMETERS))
    rows = torch.from_numpy(np.arcsinh(np.stack(versions)))

    def draw(rng: Any, step: int) -> Any:
        own = rng.integers(0, len(train), 64)
        return rows[rng.integers(0, len(versions), 64), own], (y[train][own] - mean) / spread

    torch.manual_seed(seed)
    model = baselines.flat_mlp(MAX_PARAMETERS, 2, 128)
    baselines.fit_flat(draw, model, 1500, 2e-3, torch.nn.functional.smooth_l1_loss, seed)
    with torch.no_grad():
        said = model(torch.from_numpy(np.arcsinh(baselines.padded([weights[i] for i in unseen], MAX_PARAMETERS))))
    return np.asarray((said * spread + mean).numpy()), parameters_of(model)


def inr_job(data: Data, task: str, method: str, seed: int, out: Path) -> Row:
    train, test = read_inrs(data.inr, "train"), read_inrs(data.inr, "test")
    aim: Any = task
    begun = time.process_time()
    if method == "no change":
        judged = inr_tasks.judge(aim, None, test, "test")
        return {"cpu_seconds": 0.0, "judged": judged.tolist()}
    if method == "statnn":
        rng = torch.Generator().manual_seed(seed)
        rows, labels = [], []
        tensors = {n: torch.from_numpy(np.array(w)) for n, w in train.weights.items()}
        for copy in range(COPIES + 1):
            seen = inr_tasks.augmented(tensors, rng) if copy else tensors
            rows.append(_statistics(seen))
            labels.append(train.label)
        predict = baselines.boosted_classes(np.concatenate(rows), np.concatenate(labels), seed)
        judged = predict(_statistics({n: torch.from_numpy(np.array(w)) for n, w in test.weights.items()})) == test.label
        return {"cpu_seconds": time.process_time() - begun, "judged": judged.astype(float).tolist()}
    torch.manual_seed(seed)
    graphs, pictures, augment = method.startswith("gmn"), method == "gmn+pictures", method != "mlp"
    shape = INR_GMN.model_copy(update={"across": "across" in method})
    model = inr_tasks.OnGraphs(aim, shape, pictures) if graphs else inr_tasks.OnRows(aim)
    rate, kind = (4e-3, "gmn") if graphs else (1e-3, "mlp")
    if "gmn+edit" in method and isinstance(
        model, inr_tasks.OnGraphs
    ):  # begins with the states of the one that learned to edit
        edited = read_weights(out / f"edit gmn {seed}.safetensors").arrays
        model.gmn.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in edited.items()}, strict=False)
    recipe = inr_tasks.Recipe(
        STEPS[task, kind], 32, rate, augment and not graphs, augment, augment, 10.0 * pictures, seed
    )
    losses = inr_tasks.train(aim, model, train, recipe)
    row: Row = {"cpu_seconds": time.process_time() - begun, "parameters": parameters_of(model),
                "losses": [float(np.mean(part)) for part in np.array_split(losses, 10)]}  # fmt: skip
    row["judged"] = inr_tasks.judge(aim, model, test, "test").tolist()
    if isinstance(model, inr_tasks.OnGraphs):
        found = [
            deviation(model.gmn, model.collator, model.graph, {n: w[k] for n, w in test.weights.items()}, k)
            for k in range(20)
        ]
        row["deviation"] = {"nets": 20, "said": max(d.said for d in found), "change": max(d.change for d in found)}
        arrays = {n: p.numpy() for n, p in model.gmn.state_dict().items()}
        write_weights(out / f"{task} {method} {seed}.safetensors", arrays)
    return row


def _statistics(weights: dict[str, torch.Tensor]) -> Array:
    arrays = {n: w.numpy() for n, w in weights.items()}
    count = len(next(iter(arrays.values())))
    return np.stack([baselines.statistics({n: a[k] for n, a in arrays.items()}) for k in range(count)])


def _say(line: str) -> None:
    print(f"    {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("zoo", "inr", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--jobs", default="", help="only those whose name holds one of these words, by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options.zoo, options.inr)
    wanted = options.jobs.split(",")
    for task, method, seed in jobs(options.seeds):
        name = f"{task} {method} {seed}"
        path = options.out / f"{name}.json"
        if path.exists() or not any(word in name for word in wanted):
            continue
        run: Callable[..., Row] = zoo_job if task in ("random", "family") else inr_job
        row = {"task": task, "method": method, "seed": seed, **run(data, task, method, seed, options.out)}
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(row))
        os.replace(temporary, path)
        print(f"{name}: {row['cpu_seconds']:.0f} s {_brief(row)}", flush=True)
    if options.report:
        options.report.write_text(report([json.loads(p.read_text()) for p in sorted(options.out.glob("*.json"))]))


def _brief(row: Row) -> str:
    if "judged" in row:
        return f"mean {np.mean(row['judged']):.4f}"
    return ", ".join(f"{t}: τ {row[t]['tau']:.3f} R² {row[t]['r2']:.3f}" for t in TARGETS)


def report(rows: list[Row]) -> str:
    """Tables in Markdown."""
    lines: list[str] = []
    for task, of in (("random", ZOO_METHODS), ("family", ZOO_METHODS)):
        own = {m: [r for r in rows if (r["task"], r["method"]) == (task, m)] for m in of}
        if not own["gmn"]:
            continue
        lines += ["", f"**{task}**: {len(own['gmn'][0]['true'])} unseen nets", ""]
        lines.append("| method | seeds | accuracy τ | accuracy R² | gap τ | gap R² | CPU s |")
        lines.append("|---|---:|---:|---:|---:|---:|---:|")
        for method, found in own.items():
            if found:
                cells = [_cell([r[t][m] for r in found]) for t in TARGETS for m in ("tau", "r2")]
                seconds = np.mean([r["cpu_seconds"] for r in found])
                lines.append(f"| {method} | {len(found)} | {' | '.join(cells)} | {seconds:.0f} |")
        lines += ["", "Kendall's τ of gmn minus that of another, 95 % interval:", ""]
        for method in COMPARED:
            if own[method]:
                parts = [f"{t} {difference(own['gmn'], own[method], k)}" for k, t in enumerate(TARGETS)]
                lines.append(f"- {method}: {', '.join(parts)}")
    for task, unit in (("classify", "accuracy"), ("edit", "mean squared error")):
        found = [r for r in rows if r["task"] == task]
        if found:
            count = len(found[0]["judged"])
            lines += ["", f"**{task}**: {unit} on {count} networks of unseen images", ""]
            lines += [f"| method | seeds | {unit} | 95 % interval | CPU s |", "|---|---:|---:|---:|---:|"]
            for method in dict.fromkeys(r["method"] for r in found):
                own_rows = [r for r in found if r["method"] == method]
                values = np.array([r["judged"] for r in own_rows])
                low, high = np.quantile(_means(values), [0.025, 0.975])
                seconds = np.mean([r["cpu_seconds"] for r in own_rows])
                cell = _cell([float(v.mean()) for v in values], 4)
                lines.append(f"| {method} | {len(own_rows)} | {cell} | {low:.4f} … {high:.4f} | {seconds:.0f} |")
    found = [r for r in rows if "deviation" in r]
    if found:
        lines += ["", "Deviation from equivariance after training, the largest over nets and seeds:", ""]
        lines += ["| task | nets | of what is said | of the predicted change |", "|---|---:|---:|---:|"]
        for task in dict.fromkeys(r["task"] for r in found):
            own_rows = [r["deviation"] for r in found if r["task"] == task]
            worst = " | ".join(f"{max(d[k] for d in own_rows):.1e}" for k in ("said", "change"))
            lines.append(f"| {task} | {sum(d['nets'] for d in own_rows)} | {worst} |")
    return "\n".join(lines).strip() + "\n"


def _cell(values: list[float], digits: int = 3) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


def _means(values: Array) -> Array:
    """Means over test networks drawn anew (the same for every seed) and over seeds: [RESAMPLES]."""
    rng = np.random.Generator(np.random.Philox(0))
    return np.array([values[:, rng.integers(0, values.shape[1], values.shape[1])].mean() for _ in range(RESAMPLES)])


def difference(ours: list[Row], theirs: list[Row], column: int) -> str:
    """The difference of Kendall's τ, over the seeds that both have."""
    from scipy.stats import kendalltau

    rng = np.random.Generator(np.random.Philox(0))
    pairs = [(a, b) for a in ours for b in theirs if a["seed"] == b["seed"]]
    drawn = np.zeros(RESAMPLES)
    for a, b in pairs:
        p, q, y = (np.array(v)[:, column] for v in (a["predicted"], b["predicted"], a["true"]))
        for k in range(RESAMPLES):
            at = rng.integers(0, len(y), len(y))
            drawn[k] += kendalltau(p[at], y[at]).statistic - kendalltau(q[at], y[at]).statistic
    low, mean, high = (*np.quantile(drawn / len(pairs), [0.025]), drawn.mean() / len(pairs),
                       *np.quantile(drawn / len(pairs), [0.975]))  # fmt: skip
    return f"{mean:+.3f} ({low:+.3f} … {high:+.3f})"


if __name__ == "__main__":
    main()
