"""Certificates of permutations and scalings on every example and on random networks, and the times of derivation.

    python benchmarks/symmetry.py --random 300 --out symmetry.jsonl --json symmetry.json

A line is written for each network, and a network with a line is not computed again. Times are CPU seconds of this
process: of derivation the median of 15 repetitions, of a certificate (weights, runs, permutations and both kinds of
factors, with inert parameters) one run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "differential"))

from random_nets import random_net  # noqa: E402

from archc.grammar.load import load  # noqa: E402
from archc.ir.axes import derive_axes  # noqa: E402
from archc.ir.graph import Graph  # noqa: E402
from archc.metanet import scaling  # noqa: E402
from archc.metanet.running import trial  # noqa: E402
from archc.metanet.symmetry import certify, group, order_text  # noqa: E402

DEEP = {"depth": 48, "dim": 256, "heads": 8, "vocab": 1000, "context": 64}
"""A GPT-2 of 48 layers, narrow enough for its weights to be drawn in float64 in a moment."""


def networks(
    count: int, seed: int, named: bool
) -> Iterator[tuple[str, Callable[[], tuple[Graph, dict[str, int] | None]]]]:
    for i in range(count):
        yield f"random {seed} {i}", lambda i=i: _random(seed, i)  # type: ignore[misc]
    if not named:
        return
    for file in sorted((ROOT / "examples").glob("*.arch")) + sorted((ROOT / "examples").glob("einspace/*.arch")):
        yield str(file.relative_to(ROOT)), lambda file=file: (load(file), None)  # type: ignore[misc]
    yield "gpt2, 48 layers", lambda: (load(ROOT / "examples/gpt2_small.arch", DEEP), None)


def _random(seed: int, index: int) -> tuple[Graph, dict[str, int] | None]:
    net = random_net(seed, index)
    return net.graph, dict(net.sizes)


def judged(name: str, graph: Graph, sizes: dict[str, int] | None) -> dict[str, Any]:
    start = time.process_time()
    axes = group(graph)
    given = trial(graph, 0, sizes)
    certificate = certify(graph, 0, axes=axes, given=given)
    found = [scaling.scalings(graph, kind) for kind in ("positive", "sign")]
    scales = [scaling.certify(graph, f.kind, 0, found=f, given=given) for f in found]
    checks = [certificate, *scales]
    return {
        "name": name,
        "ok": all(c.ok for c in checks),
        "classes": certificate.classes,
        "exchanges": certificate.exchanges,
        "order": order_text(axes)[:200],
        "log10": certificate.log10_order,
        "positive": scales[0].dimensions,
        "sign": scales[1].dimensions,
        "error": max(c.error for c in checks),
        "conditioning": certificate.conditioning,
        "control": min((c.controls.least for c in checks if c.controls.count), default=None),
        "controls": sum(c.controls.count for c in checks),
        "free": sum(c.controls.free for c in checks),
        "unreached": sum(c.controls.unreached for c in checks),
        "moved": certificate.moved,
        "inert": len(certificate.inert),
        "inputs": {k: list(v) for k, v in certificate.inputs.items()},
        "parameters": sum(p.size for p in graph.parameters().values()),
        "seconds": round(time.process_time() - start, 2),
    }


def times(graph: Graph, most: int = 15) -> dict[str, float]:
    """CPU milliseconds of the derivation of axes, of the whole group, and of both scalings: medians."""
    result = {}
    for what, compute in {
        "axes": lambda: derive_axes(graph),
        "group": lambda: group(graph),
        "scalings": lambda: [scaling.scalings(graph, kind) for kind in ("positive", "sign")],
    }.items():
        spent = []
        for _ in range(most):
            start = time.process_time()
            compute()
            spent.append(1e3 * (time.process_time() - start))
        result[what] = round(statistics.median(spent), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--random", type=int, default=300)
    parser.add_argument("--only-random", action="store_true", help="no examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("symmetry.jsonl"))
    parser.add_argument("--json", type=Path, default=Path("symmetry.json"))
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {r["name"] for r in rows}
    with given.out.open("a") as file:
        for name, make in networks(given.random, given.seed, not given.only_random):
            if name in done:
                continue
            rows.append(judged(name, *make()))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            if not rows[-1]["ok"]:
                print(rows[-1], flush=True)
    named = [r for r in rows if not r["name"].startswith("random")]
    head = "network, parameters, classes, exchanges, log10 of the order, factors, signs, inert, error, least control"
    columns = [*head.split(", "), "input", "CPU s"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for r in named:
        shape = ", ".join(str(v).replace(" ", "") for v in r["inputs"].values())
        control = f"{r['control']:.0e}" if r["control"] is not None else ""
        cells = [r["name"].removeprefix("examples/"), f"{r['parameters']:,}", r["classes"], r["exchanges"]]
        cells += [f"{r['log10']:.0f}", r["positive"], r["sign"], r["inert"], f"{r['error']:.0e}", control, shape]
        print(f"| {' | '.join(map(str, cells))} | {r['seconds']:.1f} |")
    other = [r for r in rows if r["name"].startswith("random")]
    speed = {
        "resnet50": times(load(ROOT / "examples/resnet50.arch")),
        "gpt2, 48 layers": times(load(ROOT / "examples/gpt2_small.arch", DEEP)),
    }
    totals = {
        "failures": sum(not r["ok"] and math.isfinite(r["error"]) for r in rows),
        "outputs not finite": [r["name"] for r in rows if not math.isfinite(r["error"])],
        "random": len(other),
        "random with a nontrivial group": sum(r["log10"] > 0 for r in other),
        "random with factors": sum(r["positive"] + r["sign"] > 0 for r in other),
        "random with exchanges": sum(r["exchanges"] > 0 for r in other),
        "largest error over tolerance": max(
            r["error"] / (1e-12 * r["conditioning"]) for r in rows if math.isfinite(r["error"])
        ),
        "least control": min(r["control"] for r in rows if r["control"] is not None),
        "controls": sum(r["controls"] for r in rows),
        "moves of separate parts": sum(r["free"] for r in rows),
        "moves that the input does not reach": sum(r["unreached"] for r in rows),
        "with a group, and no control that told": [r["name"] for r in rows if r["moved"] and not r["controls"]],
        "derivation, CPU ms": speed,
        "seconds": sum(r["seconds"] for r in rows),
    }
    print(json.dumps(totals, indent=2))
    given.json.write_text(json.dumps({"rows": rows, **totals}, indent=1) + "\n")
    sys.exit(bool(totals["failures"]))


if __name__ == "__main__":
    main()
