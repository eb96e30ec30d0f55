"""How long parameter graphs take: tensor level on examples and on deep transformers, neuron level in edges a second.

    python benchmarks/graphs.py [--out graphs.json] [--repeat 9] [--only tensor|neuron]

Processor time of one thread from a network in memory, the collector off: the median of `--repeat` builds with the
fastest and the slowest. `arrays` are plain numpy arrays; `HeteroData` wraps them for torch-geometric, whose own import
(seconds) is not in it. The time on a transformer of 4 … 96 layers is fitted by `c · nodesᵖ`: p near 1 says linear.
Neuron level counts every edge, links included; weights are put in as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from archc.grammar.load import load, loads
from archc.ir.graph import Graph
from archc.metanet.neuron_graph import neuron_arrays
from archc.metanet.tensor_graph import tensor_arrays, to_hetero

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NETS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vit_s16", "mixtral_like", "lstm")
NEURON = ("digits_resnet", "resnet20", "resnet18", "resnet50", "vit_s16", "moe_lm", "lstm", "densenet121")
DEPTHS = (4, 8, 16, 32, 64, 96)
MOST = 60_000_000
"""Edges: more than the package allows unless it is asked."""

DEEP = """arch deep(depth: int = 24, dim: int = 64)
input  x: f32[N, T, dim]
output y: f32[N, T, dim]
def attend = fn(x) {
    let q = x -> linear(dim) -> unflatten(2, [8, -1]) -> transpose(1, 2)
    let k = x -> linear(dim) -> unflatten(2, [8, -1]) -> transpose(1, 2)
    let v = x -> linear(dim) -> unflatten(2, [8, -1]) -> transpose(1, 2)
    let a = matmul(q, k -> transpose(2, 3), scaled = true) -> softmax
    return matmul(a, v) -> transpose(1, 2) -> flatten(from = 2, to = 3) -> linear(dim)
}
def feed = fn(x) { return silu(x -> linear(4 * dim)) * (x -> linear(4 * dim)) -> linear(dim) }
y = x -> repeat(depth) { residual(layer_norm -> attend) -> residual(layer_norm -> feed) }
"""
"""A transformer that spells out its attention: 25 ops a layer."""


def timed(build: Callable[[], Any], repeat: int) -> dict[str, float]:
    """Median, fastest and slowest of several runs in milliseconds; the first, which fills caches, does not count."""
    build()
    times = []
    for _ in range(repeat):
        gc.collect()
        gc.disable()
        start = time.process_time()
        build()
        times.append(1e3 * (time.process_time() - start))
        gc.enable()
    return {"ms": round(statistics.median(times), 2), "min": round(min(times), 2), "max": round(max(times), 2)}


def tensor(name: str, graph: Graph, repeat: int) -> dict[str, Any]:
    found = tensor_arrays(graph)
    held = int(found.parameter_size.sum())
    assert held == sum(p.size for p in graph.parameters().values())
    return {
        "net": name,
        "ops": len(found.ops),
        "parameters": len(found.names),
        "elements": held,
        "arrays": timed(lambda: tensor_arrays(graph), repeat),
        "hetero": timed(lambda: to_hetero(tensor_arrays(graph)), repeat),
    }


def neuron(name: str, graph: Graph, repeat: int) -> dict[str, Any]:
    found = neuron_arrays(graph, max_edges=MOST)
    weights = {n: np.full(p.shape, 0.01, np.float32) for n, p in graph.parameters().items()}
    edges, nodes = found.edge_index.shape[1], len(found.x)
    assert (found.edge_mark == 0).sum() == sum(p.size for p in graph.parameters().values())
    links = int((found.edge_mark == 2).sum())
    del found

    def build() -> None:
        arrays = neuron_arrays(graph, max_edges=MOST)
        arrays.edge_attr[:, 0] = arrays.values(weights)

    spent = timed(build, repeat)
    rate = edges / spent["ms"] * 1e3
    return {"net": name, "nodes": nodes, "edges": edges, "links": links, "build": spent, "edges_per_second": rate}


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    sizes = [row["ops"] + row["parameters"] for row in rows]
    return float(np.polyfit(np.log(sizes), np.log([row["arrays"]["ms"] for row in rows]), 1)[0])


def spread(spent: dict[str, float]) -> str:
    return f"{spent['ms']:.1f} ({spent['min']:.1f} … {spent['max']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--only", choices=("tensor", "neuron"))
    options = parser.parse_args()
    report: dict[str, Any] = {}
    if options.only != "neuron":
        rows = [tensor(name, load(EXAMPLES / f"{name}.arch"), options.repeat) for name in NETS]
        deep = [tensor(f"{d} layers", loads(DEEP, values={"depth": d}), options.repeat) for d in DEPTHS]
        report |= {"tensor": rows, "deep": deep, "exponent": round(exponent(deep), 3)}
        print("| network | ops | parameters | arrays, ms | HeteroData, ms |\n|---|---|---|---|---|")
        for row in (*rows, *deep):
            times = f"{spread(row['arrays'])} | {spread(row['hetero'])}"
            print(f"| {row['net']} | {row['ops']} | {row['parameters']} | {times} |")
        print(f"\nexponent over depths: {report['exponent']}\n")
    if options.only != "tensor":
        report["neuron"] = []
        print("| network | neurons | edges | of them links | build, ms | million edges/s |\n|---|---|---|---|---|---|")
        for name in NEURON:
            row = neuron(name, load(EXAMPLES / f"{name}.arch"), options.repeat)
            report["neuron"].append(row)
            counts = f"{row['nodes']:,} | {row['edges']:,} | {row['links']:,}"
            print(f"| {name} | {counts} | {spread(row['build'])} | {row['edges_per_second'] / 1e6:.0f} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
