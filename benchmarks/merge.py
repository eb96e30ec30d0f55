"""Merging two networks that were trained apart: loss and accuracy along the line between them, before and after
alignment and repair.

    python benchmarks/merge.py --out FOLDER [--stage train|merge|report] [--pairs 5] [--plots docs/images] [--quick]

Six small networks (`benchmarks/nets/merge_*.arch`) learn `hard_digits`, each pair from two seeds, which decide the
initial weights and the order of the data. Every pair is then merged by several methods; what is measured is the
validation split, at 11 points of the line between A and B; the test split at its middle. Weights go to
FOLDER/weights, a row for each pair and way of matching to FOLDER/rows.jsonl: a script that was killed goes on where it
was.

Intervals are 95 % t-intervals of means over pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from results import Results, Row

import archc
from archc.backends.weights import read_weights
from archc.metanet.merge.align import match
from archc.metanet.merge.average import Judge, average, points_between, walk
from archc.metanet.merge.average import Path as Line
from archc.metanet.merge.repair import Repair

NETS = Path(__file__).parent / "nets"
TASK = "hard_digits"
STEPS = {"mlp": 2400, "cnn_bn": 1200, "cnn_gn": 1200, "vit": 2000, "glu": 2400, "moe": 1600}
"""Families, and how many steps of 64 pictures their networks learn."""
POINTS = 11
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "flat": (("cnn_gn", "vit", "moe"), {"hierarchical": False}),
    "experts in place": (("moe",), {"replicas": False}),
}
"""Other ways of matching, for the families that have groups, heads or experts: `flat` matches these first and then what
is inside them, each by itself."""
RECIPE: dict[str, Any] = {"shift": 2, "keep": "last", "device": "cpu"}


@dataclass(frozen=True)
class Bench:
    out: Path
    pairs: int = 5
    quick: bool = False

    def seeds(self, pair: int) -> tuple[int, int]:
        return 100 + 2 * pair, 101 + 2 * pair

    def weights(self, family: str, seed: int) -> Path:
        return self.out / "weights" / f"{family}-{seed}.safetensors"

    def each(self) -> Iterator[tuple[str, int]]:
        """Families and pairs: all families of one pair first, so that a table can be had early."""
        yield from ((family, pair) for pair in range(self.pairs) for family in STEPS)

    def train(self) -> None:
        from archc.backends.torch.training import load_task

        results, task = Results(self.out / "trained.jsonl"), load_task(TASK)
        for family, pair in self.each():
            for seed in self.seeds(pair):
                path = self.weights(family, seed)
                if path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                steps, began = 40 if self.quick else STEPS[family], time.process_time()
                net = archc.load(NETS / f"merge_{family}.arch")
                trained = archc.train(net, task, path, seed=seed, steps=steps, threads=1, **RECIPE)
                row = {"family": family, "seed": seed, "steps": steps, "params": net.cost.params}
                row |= {"cpu_seconds": time.process_time() - began, "val": trained.result.val.metrics}
                results.add(row)
                print(row, flush=True)

    def merge(self) -> None:
        from archc.backends.torch.training import load_task

        results, task = Results(self.out / "rows.jsonl"), load_task(TASK)
        done = {(row["family"], row["pair"], row["way"]) for row in results.rows}
        for lines in (False, True):  # what is dear comes last
            for family, pair in self.each():
                files = [self.weights(family, seed) for seed in self.seeds(pair)]
                asked = [f"line, {way}" for way in LINES] if lines else ways(family)
                left = [way for way in asked if (family, pair, way) not in done]
                if not left or not all(f.exists() for f in files):
                    continue
                networks = [dict(read_weights(f).arrays) for f in files]
                measure = Pair(family, networks, task, 3 if self.quick else POINTS)
                for way in left:
                    began = time.process_time()
                    row = measure(way)
                    seconds = time.process_time() - began
                    results.add({"family": family, "pair": pair, "way": way, **row, "cpu_seconds": seconds})
                    print(family, pair, way, f"{seconds:.1f} s", flush=True)


LINES = ("naive", "weights", "activations")
"""Ways whose whole lines are measured."""


def ways(family: str) -> list[str]:
    """What is measured of a pair: its ends, the naive average, and each way of matching."""
    found = ["ends", "naive"]
    for method in ("weights", "activations"):
        found.append(method)
        found += [f"{method}, {v}" for v in VARIANTS if family in VARIANTS[v][0]]
    return found


class Pair:
    """Measures one pair."""

    def __init__(self, family: str, networks: list[Any], task: Any, points: int) -> None:
        self.graph, self.networks = archc.load(NETS / f"merge_{family}.arch").graph, networks
        self.judge, self.points = Judge(self.graph, task), points
        self.inputs = self.judge.inputs(self.graph, 512)

    def __call__(self, way: str) -> Row:
        if way == "ends":
            return {split: self.ends(split) for split in ("val", "test")}
        a, b = self.networks
        line, way = way.startswith("line, "), way.removeprefix("line, ")
        if way == "naive":
            return self.line(b) if line else self.middle(b)
        method, _, variant = way.partition(", ")
        began = time.process_time()
        options = VARIANTS[variant][1] if variant else {}
        found = match(self.graph, a, b, self.inputs if method == "activations" else None, **options)
        if line:
            return self.line(found.weights)
        how = {"cosine": found.product, "error": found.error, "conditioning": found.conditioning,
               "match_cpu_seconds": time.process_time() - began}  # fmt: skip
        return how | self.middle(found.weights)

    def ends(self, split: str) -> dict[str, Any]:
        a, b = self.networks
        both = ensemble(self.judge, self.networks, split)
        return {"a": self.judge(a, split), "b": self.judge(b, split), "ensemble": both}

    def middle(self, nearer: Any) -> Row:
        """Metrics of the mean, before and after repair."""
        repair, half = Repair(self.graph, (self.networks[0], nearer), self.inputs), (0.5, 0.5)
        mean = average((self.networks[0], nearer), half)
        mended = repair(mean, half)
        row: Row = {"repair": str(mended)}
        for split in ("val", "test"):
            row[split] = {"middle": self.judge(mean, split), "repaired": self.judge(mended.weights, split)}
        return row

    def line(self, nearer: Any) -> Row:
        """Metrics along the line, before and after repair."""
        a, at = self.networks[0], points_between(self.points)
        repair = Repair(self.graph, (a, nearer), self.inputs)
        plain, mended = (walk(self.judge, a, nearer, at, r) for r in (None, repair))
        return {"alphas": at, "line": list(plain.metrics), "repaired line": list(mended.metrics)}


def ensemble(judge: Judge, networks: list[Any], split: str) -> dict[str, float]:
    """Loss and accuracy of the mean of the networks' probabilities."""
    data, total = judge.feed.split(split), []
    inputs, targets = judge.feed.batch(split, torch.arange(len(data)), None, None)
    for weights in networks:
        judge(weights, split)  # puts them into its module
        with torch.no_grad():
            total.append(judge.module.eval()(*inputs).softmax(-1))
    mean = sum(total) / len(total)
    loss = -mean.gather(1, targets[:, None]).log().mean()
    return {"loss": float(loss), "accuracy": float((mean.argmax(-1) == targets).float().mean())}


# -- tables and pictures ----------------------------------------------------------------------------------------------

NAMES = {"mlp": "MLP", "cnn_bn": "residual CNN, batch norm", "cnn_gn": "residual CNN, group norm", "vit": "ViT",
         "glu": "GLU", "moe": "MoE"}  # fmt: skip
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}
"""Two-sided 95 % points of Student's t by number of values."""


def interval(values: list[float], digits: int = 1, scale: float = 1.0) -> str:
    """Mean and half-width of its 95 % interval."""
    x = np.asarray(values) * scale
    half = T95.get(len(x), 2.0) * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return f"{x.mean():.{digits}f} ± {half:.{digits}f}"


def report(rows: list[Row]) -> str:
    """The tables, as Markdown."""
    by: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by.setdefault((row["family"], row["way"]), []).append(row)
    lines = ["| | pairs | A and B | ensemble | naive | naive, repaired | weights | weights, repaired | activations |"
             " activations, repaired |", "|---|" + "---|" * 9]  # fmt: skip
    losses = [*lines]
    for family, name in NAMES.items():
        ends = by.get((family, "ends"), [])
        if not ends:
            continue
        for table, metric, digits, scale in ((lines, "accuracy", 1, 100), (losses, "loss", 3, 1)):
            cells = [interval([(e["test"]["a"][metric] + e["test"]["b"][metric]) / 2 for e in ends], digits, scale)]
            cells.append(interval([e["test"]["ensemble"][metric] for e in ends], digits, scale))
            for way in ("naive", "weights", "activations"):
                found = by.get((family, way), [])
                cells += [
                    interval([r["test"][k][metric] for r in found], digits, scale) for k in ("middle", "repaired")
                ]
            table.append(f"| {name} | {len(ends)} | " + " | ".join(cells) + " |")
    barriers = ["| | naive | naive, repaired | weights | weights, repaired | activations | activations, repaired |",
                "|---|" + "---|" * 6]  # fmt: skip
    drops = [*barriers]
    for family, name in NAMES.items():
        cells: dict[str, list[str]] = {"loss": [], "accuracy": []}
        for way in ("naive", "weights", "activations"):
            for key in ("line", "repaired line"):
                paths = [Line(tuple(r["alphas"]), tuple(r[key])) for r in by.get((family, f"line, {way}"), [])]
                if paths:
                    cells["loss"].append(interval([p.barrier() for p in paths], 2))
                    cells["accuracy"].append(interval([p.barrier("accuracy", True) for p in paths], 1, 100))
        if cells["loss"]:
            barriers.append(f"| {name} | " + " | ".join(cells["loss"]) + " |")
            drops.append(f"| {name} | " + " | ".join(cells["accuracy"]) + " |")
    ablation = ["| | way | jointly | flat | difference | experts in place | difference |", "|---|" + "---|" * 6]
    for family, name in NAMES.items():
        for method in ("weights", "activations"):
            whole = {r["pair"]: r for r in by.get((family, method), [])}
            row = [name, method, interval([r["test"]["repaired"]["accuracy"] for r in whole.values()], 1, 100)]
            variants = [v for v, (families, _) in VARIANTS.items() if family in families]
            for v in variants:
                found = by.get((family, f"{method}, {v}"), [])
                gain = [whole[r["pair"]]["test"]["repaired"]["accuracy"] - r["test"]["repaired"]["accuracy"]
                        for r in found]  # fmt: skip
                row += [interval([r["test"]["repaired"]["accuracy"] for r in found], 1, 100), interval(gain, 1, 100)]
            if variants:
                ablation.append("| " + " | ".join([*row, *[""] * (7 - len(row))]) + " |")
    parts = [("Test accuracy in the middle, %", lines), ("Test loss in the middle", losses),
             ("Barrier of validation loss along the line", barriers),
             ("Barrier of validation accuracy along the line, points", drops),
             ("What hierarchical matching is worth: test accuracy in the middle, repaired, %", ablation)]  # fmt: skip
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(table) for title, table in parts) + "\n"


def plot(rows: list[Row], folder: Path) -> None:
    """The mean lines of all families in one picture."""
    from matplotlib.figure import Figure

    families = [f for f in NAMES if any(r["family"] == f and r["way"] == "line, naive" for r in rows)]
    figure = Figure(figsize=(3.1 * len(families), 5.4), layout="constrained")
    panels = figure.subplots(2, len(families), squeeze=False)
    styles = {"naive": "C7", "weights": "C0", "activations": "C1"}
    for column, family in enumerate(families):
        for way, colour in styles.items():
            found = [r for r in rows if r["family"] == family and r["way"] == f"line, {way}"]
            for key, dash in (("line", ":"), ("repaired line", "-")):
                for panel, metric in zip(panels[:, column], ("accuracy", "loss") if found else (), strict=bool(found)):
                    mean = np.mean([[m[metric] for m in r[key]] for r in found], axis=0)
                    label = way + (", repaired" if key == "repaired line" else "")
                    panel.plot(found[0]["alphas"], mean, color=colour, linestyle=dash, label=label)
        panels[0, column].set(title=NAMES[family], ylim=(0, 1))
        panels[1, column].set(xlabel="share of B")
    panels[0, 0].set(ylabel="validation accuracy")
    panels[1, 0].set(ylabel="validation loss")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "archc"}):
        figure.savefig(folder / "merging.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("train", "merge", "report"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--plots", type=Path, help="where merging.svg goes")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.out, args.pairs, args.quick)
    if args.stage in (None, "train"):
        bench.train()
    if args.stage in (None, "merge"):
        bench.merge()
    if args.stage in (None, "report"):
        rows = Results(args.out / "rows.jsonl").rows
        (args.out / "report.md").write_text(report(rows), encoding="utf-8")
        print(report(rows))
        for what in ("trained", "rows"):
            print(f"{what}: {sum(r['cpu_seconds'] for r in Results(args.out / f'{what}.jsonl').rows):.0f} s of CPU")
        if args.plots:
            plot(rows, args.plots)


if __name__ == "__main__":
    main()
