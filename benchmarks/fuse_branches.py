"""Does it pay to fuse layers on one tensor? Compiled with `fuse_branches` and without, run in turn.

    python benchmarks/fuse_branches.py [--threads 1] [--report fuse_branches.json]

For each network the least of many runs, and the ratio fused / apart: below 1 fusing pays.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archc.backends import runtime
from archc.backends.inputs import random_inputs
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads
from archc.passes.fuse_branches import FUSE_BRANCHES
from archc.passes.manager import Pass
from archc.passes.pipeline import CLEANUP, INFERENCE

GATED = "y = silu(x -> linear({h}, bias = false)) * (x -> linear({h}, bias = false)) -> linear({d}, bias = false)"
THREE = "y = (x -> linear({d})) * sigmoid(x -> linear({d})) + (x -> linear({d}))"
CONVS = "y = concat(x -> conv({h}, kernel = {k}) -> relu, x -> conv({h}, kernel = {k}) -> sigmoid, axis = 1)"
NETWORKS = {
    "gated FFN, 1 token, 256-1024": ("1, 1, 256", "1, 1, 256", GATED, {"d": 256, "h": 1024}),
    "gated FFN, 128 tokens, 256-1024": ("1, 128, 256", "1, 128, 256", GATED, {"d": 256, "h": 1024}),
    "gated FFN, 64 tokens, 768-2048": ("1, 64, 768", "1, 64, 768", GATED, {"d": 768, "h": 2048}),
    "gated FFN, 32 rows, 64-128": ("32, 64", "32, 64", GATED, {"d": 64, "h": 128}),
    "q k v, 128 tokens, 256": ("1, 128, 256", "1, 128, 256", THREE, {"d": 256}),
    "q k v, 1 token, 768": ("1, 1, 768", "1, 1, 768", THREE, {"d": 768}),
    "1x1 convs, 64-64, 28x28": ("1, 64, 28, 28", "1, 128, 28, 28", CONVS, {"h": 64, "k": 1}),
    "3x3 convs, 32-32, 28x28": ("1, 32, 28, 28", "1, 64, 28, 28", CONVS, {"h": 32, "k": 3}),
}


def measured(name: str, threads: int, seconds: float, folder: Path) -> dict[str, float]:
    """The least milliseconds of each of the two, over runs in turn."""
    shape, result, body, sizes = NETWORKS[name]
    graph = loads(f"arch net\ninput x: f32[{shape}]\noutput y: f32[{result}]\n{body.format(**sizes)}\n")
    weights: dict[str, Any] = {n: p.init.sample(p.shape, 0, n) for n, p in graph.parameters().items()}
    weights = {n: w.astype("float32") for n, w in weights.items()}
    variants: dict[str, Sequence[Pass]] = {"apart": INFERENCE, "fused": (*CLEANUP, FUSE_BRANCHES, *INFERENCE)}
    artifacts = {}
    for variant, passes in variants.items():
        path = folder / f"{variant}.archc"
        compile_graph(graph, weights, path, spec=parse_target("cpu"), passes=passes)
        artifacts[variant] = runtime.load(path, device="cpu", threads=threads)
    inputs = random_inputs(graph)
    best = dict.fromkeys(variants, math.inf)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for variant, artifact in artifacts.items():
            start = time.perf_counter()
            artifact.run(inputs)
            best[variant] = min(best[variant], 1e3 * (time.perf_counter() - start))
    for artifact in artifacts.values():
        artifact.close()
    return {**best, "ratio": best["fused"] / best["apart"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="of running, for each network")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    report = {}
    print("| network | apart ms | fused ms | fused / apart |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            report[name] = found = measured(name, given.threads, given.seconds, Path(folder))
            cells = [f"{found[key]:.3f}" for key in ("apart", "fused", "ratio")]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    mean = math.exp(sum(math.log(found["ratio"]) for found in report.values()) / len(report))
    print(f"\ngeometric mean of the ratios: {mean:.3f}")
    if given.report is not None:
        given.report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
