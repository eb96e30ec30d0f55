"""How long passes take: every cleanup and pipeline on ResNet-50 and on transformers of 6 … 96 layers.

    python benchmarks/pass_time.py [--report pass_time.json]

Processor time of the manager's whole run (verification and bookkeeping included) on a fresh copy, the best of
`--repeat`: with the weights unknown (the graph alone), and once with them, where folding computes new ones. The time on
a transformer is fitted by `a · nodes + b` over the depths, and by `c · nodesᵖ`: p near 1 says that it is linear.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from archc.grammar.load import load, loads
from archc.ir.clone import clone
from archc.ir.graph import Graph
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.pipeline import INFERENCE, NAMED

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DEPTHS = (6, 12, 24, 48, 96)
LIMIT = 1.0
"""Seconds that no pass may take on ResNet-50 and on 24 layers, the weights apart."""

GATED = """arch gated(depth: int = 24, dim: int = 256)
input  x: f32[N, T, dim]
output y: f32[N, T, dim]
def attend = fn(x) {
    let q = x -> linear(dim) -> unflatten(2, [8, -1]) -> transpose(1, 2)
    let k = x -> linear(dim) -> unflatten(2, [8, -1]) -> transpose(1, 2)
    let v = x -> linear(dim) -> unflatten(2, [8, -1]) -> transpose(1, 2)
    let a = matmul(q, k -> transpose(2, 3), scaled = true) * 1.0 -> softmax
    return matmul(a, v) -> transpose(1, 2) -> flatten(from = 2, to = 3) -> linear(dim) -> dropout(0.1)
}
def feed = fn(x) { return silu(x -> linear(4 * dim)) * (x -> linear(4 * dim)) -> linear(dim) -> linear(dim) }
y = x -> repeat(depth) { residual(layer_norm -> attend) -> residual(layer_norm -> feed) }
"""
"""A transformer that spells out its attention, with something to do for most passes in every layer."""

PASSES: dict[str, Sequence[Pass]] = {p.name: [p] for p in NAMED} | {"inference": INFERENCE}


def weights_of(graph: Graph) -> dict[str, Any]:
    """Arrays of the right shapes: their values do not matter, but no variance is 0."""
    return {name: np.full(p.shape, 0.01, np.float32) for name, p in graph.parameters().items()}


def seconds(graph: Graph, passes: Sequence[Pass], repeat: int, weights: dict[str, Any] | None) -> float:
    """The best of several runs, without the collector: it runs when it likes."""
    best = math.inf
    gc.collect()
    gc.disable()
    for _ in range(repeat):
        copy, context = clone(graph), Context(None if weights is None else dict(weights))
        start = time.process_time()
        run_passes(copy, passes, context)
        best = min(best, time.process_time() - start)
    gc.enable()
    return best


def fitted(sizes: Sequence[int], times: Sequence[float]) -> dict[str, float]:
    """Microseconds a node, the share of the variance that a line explains, and the exponent of a power law."""
    slope, offset = np.polyfit(sizes, times, 1)
    left = np.asarray(times) - (slope * np.asarray(sizes) + offset)
    explained = 1 - float(left.var() / np.var(times))
    power = np.polyfit(np.log(sizes[1:]), np.log(times[1:]), 1)[0]
    return {"us_per_node": round(slope * 1e6, 2), "r2": round(explained, 4), "exponent": round(float(power), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()

    resnet = load(EXAMPLES / "resnet50.arch")
    gpt = load(EXAMPLES / "gpt2_small.arch", {"depth": 24})
    gated = {depth: loads(GATED, values={"depth": depth}) for depth in DEPTHS}
    sizes = [len(list(graph.walk())) for graph in gated.values()]
    named = {"resnet50": resnet, "gpt2_small, 24 layers": gpt, "gated, 24 layers": gated[24]}
    report: dict[str, Any] = {"nodes": {name: len(list(g.walk())) for name, g in named.items()}, "passes": {}}
    weights = {name: weights_of(graph) for name, graph in named.items()}
    print(f"| pass | {' | '.join(named)} | with weights | | | us a node | r² | exponent |\n|{'---|' * 10}")
    for name, passes in PASSES.items():
        alone = {net: seconds(graph, passes, given.repeat, None) for net, graph in named.items()}
        with_weights = {net: seconds(graph, passes, 1, weights[net]) for net, graph in named.items()}
        fit = fitted(sizes, [seconds(graph, passes, given.repeat, None) for graph in gated.values()])
        report["passes"][name] = {"graph": alone, "with_weights": with_weights, "linear": fit}
        cells = [f"{1e3 * t:.1f} ms" for t in (*alone.values(), *with_weights.values())]
        print(f"| {name} | {' | '.join(cells)} | {' | '.join(map(str, fit.values()))} |", flush=True)
    worst = max(t for p in report["passes"].values() for t in p["graph"].values())
    report["slowest"] = worst
    print(f"\nslowest, the weights apart: {worst:.3f} s")
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=2) + "\n")
    raise SystemExit(worst > LIMIT)


if __name__ == "__main__":
    main()
