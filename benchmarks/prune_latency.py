"""Latency of compiled networks after pruning, against the FLOPs that are left: what of the promise is kept.

    python benchmarks/prune_latency.py [--ratio 0.5] [--round-to 1,8,16,32] [--threads 1] [--json out.json] [NET ...]

A network of `benchmarks/nets/` or `examples/` is pruned with `prune(ratio, round_to)` and compiled; every artifact's
outputs are compared with torch in float64 first. The original and its pruned selves take turns, and ratios are taken
within a round: `latency` is the pruned one's time divided by the original's, with its 95 % bootstrap interval, `flops`
the share of floating-point operations that is left.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from skip_latency import clock

from archc.backends.inputs import random_inputs
from archc.facade.compile import compile as compile_model
from archc.facade.model import Model, load
from archc.facade.weights import resolve
from archc.ir.clone import clone
from archc.ir.cost import graph_flops
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

ROOT = Path(__file__).parents[1]
DIMS = {"resnet50_32": {"N": 1}, "resnet18_32": {"N": 1}, "mobilenet_32": {"N": 1}, "encoder": {"N": 1, "T": 128}}
ROUND_TO = (1, 8, 16, 32)


def network(name: str) -> Model:
    here = ROOT / "benchmarks" / "nets" / f"{name}.arch"
    return load(here if here.exists() else ROOT / "examples" / f"{name}.arch", dims=DIMS.get(name, {"N": 1, "T": 128}))


def pruned(model: Model, weights: dict[str, Any], spec: str) -> tuple[Model, dict[str, Any], float]:
    """The pruned network, its weights, and how long pruning took (seconds)."""
    graph, context = clone(model.graph), Context(dict(weights))
    (ran,) = run_passes(graph, [parse_pass(spec)], context)
    assert context.weights is not None
    return Model(graph), dict(context.weights), ran.seconds


def checked(model: Model, weights: dict[str, Any], threads: int) -> Any:
    """The artifact, when its outputs are those of torch in float64."""
    import torch

    artifact = compile_model(model, weights=weights, threads=threads)
    inputs = random_inputs(model.graph, 0, None, "f32")
    with torch.no_grad():
        module = model.to_torch(weights).double().eval()
        given = [torch.from_numpy(v) for v in inputs.values()]
        judged = module(*[v.double() if v.is_floating_point() else v for v in given])
    found = next(iter(artifact.run(inputs).values()))
    error = float(np.abs(found - judged.numpy()).max() / np.abs(judged.numpy()).max())
    assert error < 1e-4, f"{model.graph.name}: outputs are off by {error}"
    return lambda: artifact.run(inputs)


def measure(net: str, specs: list[str], threads: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    model = network(net)
    weights = {name: np.asarray(a) for name, a in resolve(model.graph, None, 0).arrays.items()}
    runners: dict[str, Any] = {"": checked(model, weights, threads)}
    facts: dict[str, dict[str, float]] = {}
    whole = int(graph_flops(model.graph))
    for spec in specs:
        small, kept, taken = pruned(model, weights, spec)
        runners[spec] = checked(small, kept, threads)
        facts[spec] = {"flops": int(graph_flops(small.graph)) / whole, "pass_seconds": taken}
    times: dict[str, list[float]] = {key: [] for key in runners}
    for turn in range(rounds):
        order = list(runners)
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            times[key].append(clock(runners[key], seconds))
    rows = []
    base = np.array(times[""])
    for spec in specs:
        ratio = np.array(times[spec]) / base
        low, high = _interval(ratio)
        rows.append(
            {
                "net": net, "spec": spec, "threads": threads, "ms": float(np.median(times[spec])),
                "ms_before": float(np.median(base)), "latency": float(np.median(ratio)), "latency_low": low,
                "latency_high": high, **facts[spec],
            }
        )  # fmt: skip
    return rows


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median."""
    rng = np.random.Generator(np.random.Philox(0))
    low, high = np.percentile(np.median(rng.choice(values, (2000, len(values))), axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="NET", default=["resnet50_32"])
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--round-to", default=",".join(map(str, ROUND_TO)))
    parser.add_argument("--across", default="uniform")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each runner in each round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'net':14s} {'pass':58s} {'ms':>8s} {'before':>8s} {'flops':>6s} {'latency':>22s}")
    for net in arguments.nets:
        specs = [
            f"prune(ratio = {arguments.ratio}, across = {arguments.across}, round_to = {n})"
            for n in arguments.round_to.split(",")
        ]
        for row in measure(net, specs, arguments.threads, arguments.rounds, arguments.seconds):
            rows.append(row)
            spread = f"{row['latency']:6.3f} [{row['latency_low']:.3f}, {row['latency_high']:.3f}]"
            print(
                f"{net:14s} {row['spec']:58s} {row['ms']:8.3f} {row['ms_before']:8.3f} {row['flops']:6.3f} "
                f"{spread:>22s}",
                flush=True,
            )
    if arguments.json:
        document = {"machine": platform.processor() or platform.machine(), "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
