"""How much of what gates skip is saved: latency of networks with gated blocks, against the share that is skipped.

    python benchmarks/skip_latency.py [--threads 1] [--rounds 15] [--json out.json] [--plot out.png] [NET ...]

The gates of `benchmarks/nets/skip_*.arch` read what their block reads. Their last bias is set, gate by gate along a
float64 run of torch, so that of 32 inputs (or all tokens of these) the share `rate` finds it closed; the threshold of
`exit_*.arch` is set so that this share leaves. The same 32 inputs run as one batch of 32 and one by one. Every
artifact's outputs are compared with torch in float64 first. What stands in the file of `--json` is not measured again.

`speed-up` is the time of the network without gates (every block runs) divided by that of the network with them; what
FLOPs allow is the same ratio of floating-point operations, those of the gates included. Runners take turns, and ratios
are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from archc.backends.weights import atomic_file
from archc.facade.compile import compile as compile_model
from archc.facade.model import Model, load
from archc.facade.weights import resolve
from archc.ir.cost import graph_flops
from archc.ir.dims import substitute, symbols

NETS = Path(__file__).parent / "nets"
CASES: dict[str, tuple[str, str, tuple[int, ...]]] = {  # with gates, without, shape of one input
    "resnet18": ("skip_resnet18_32", "resnet18_32", (3, 32, 32)),
    "encoder12": ("skip_encoder12", "encoder", (128, 256)),
    "tokens12": ("skip_tokens12", "encoder", (128, 256)),
    "exit": ("exit_resnet18_32", "resnet18_32", (3, 32, 32)),
}
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
INPUTS = 32
BATCHES = (1, 32)

Arrays = dict[str, Any]


def network(name: str, batch: int, **parameters: Any) -> Model:
    if name == "encoder":
        parameters["depth"] = 12
    sizes = {"N": batch} if "resnet" in name else {"N": batch, "T": 128}
    return load(NETS / f"{name}.arch", dims=sizes, **parameters)


def draw_inputs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Inputs that differ in scale and mean, so that the gates have something to tell them apart by."""
    rng = np.random.Generator(np.random.Philox(seed))
    ones = (INPUTS, *[1] * len(shape))
    scale, mean = rng.uniform(0.5, 2.0, ones), rng.normal(0.0, 0.5, ones)
    return (scale * rng.normal(size=(INPUTS, *shape)) + mean).astype(np.float32)


@dataclass
class Calibrated:
    """A network whose gates (or exit) do what they should. `opened` [gates, rows] says which rows run a body."""

    weights: Arrays
    parameters: Arrays
    judged: np.ndarray
    opened: np.ndarray


def calibrated(name: str, inputs: np.ndarray, rate: float) -> Calibrated:
    """Weights and parameters with which a share `rate` of the rows is skipped, and torch's outputs in float64."""
    import torch

    model = network(name, INPUTS, **({"threshold": 2.0} if name.startswith("exit") else {}))
    weights: Arrays = {name: np.asarray(a) for name, a in resolve(model.graph, None, 0).arrays.items()}
    biases = [name for name in weights if name.endswith("gate.linear1.bias")]
    parameters: Arrays = {}
    opened = []

    def gate(logits: torch.Tensor) -> torch.Tensor:
        """For torch.sigmoid, which stands in gates alone: the logits, moved to where they should be."""
        between = np.float32(threshold(logits.detach().numpy().ravel(), rate))
        name = biases[len(opened)]
        weights[name] = weights[name] - between
        opened.append((logits - float(between)).detach().numpy().ravel() > 0)
        return sigmoid(logits - float(between))

    def leave(logits: torch.Tensor, dim: int) -> torch.Tensor:
        """For torch.softmax of an exit's logits."""
        probabilities = softmax(logits, dim=dim)
        sure = probabilities.amax(dim=-1).numpy()
        parameters["threshold"] = threshold(sure, 1 - rate)
        opened.append(sure < parameters["threshold"])
        return probabilities

    def outputs_of(model: Model) -> np.ndarray:
        with torch.no_grad():
            made: np.ndarray = model.to_torch(weights).double().eval()(torch.from_numpy(inputs).double()).numpy()
        return made

    sigmoid, softmax = torch.sigmoid, torch.softmax
    if name.startswith("exit"):
        torch.softmax = leave
    else:
        torch.sigmoid = gate
    try:
        outputs_of(model)
    finally:
        torch.sigmoid, torch.softmax = sigmoid, softmax
    return Calibrated(weights, parameters, outputs_of(network(name, INPUTS, **parameters)), np.array(opened))


def threshold(values: np.ndarray, below: float) -> float:
    """A number well apart from all values, which this share of them (within half a percent) is below."""
    ordered = np.sort(values)
    step = float(ordered[-1] - ordered[0])
    padded = np.array([ordered[0] - step, *ordered, ordered[-1] + step])
    middle, slack = round(below * len(ordered)), len(ordered) // 200
    counts = range(max(0, middle - slack), min(len(ordered), middle + slack) + 1) if 0 < below < 1 else [middle]
    count = max(counts, key=lambda i: padded[i + 1] - padded[i])
    assert padded[count + 1] - padded[count] > 1e-6 * step, "inputs are too much alike"
    return float((padded[count] + padded[count + 1]) / 2)


def executed(model: Model, opened: np.ndarray) -> int:
    """FLOPs of all inputs together: gates, what stands outside of blocks, and blocks where they run."""
    gated = [n for n in model.graph.nodes if n.op.name in ("skip", "exit")]
    total = int(graph_flops(model.graph))
    for node, rows in zip(gated, opened, strict=True):
        body = node.regions[1]
        some = body.inputs[0].type.shape[0]
        if symbols(some):
            each = int(substitute(graph_flops(body), dict.fromkeys(symbols(some), 1)))
        else:  # a gate for each token: the body is typed on all of them
            each = int(graph_flops(body)) // rows.size
        total -= each * int((~rows).sum())
    return total


def outputs(artifact: Any, name: str, parts: list[np.ndarray]) -> list[np.ndarray]:
    """The first output for all parts, one after the other."""
    return [next(iter(artifact.run({name: part}).values())) for part in parts]


def clock(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds of one run: the median over as many as fit."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e3


def measure(case: str, batch: int, threads: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One network and batch, at each rate."""
    gated, plain, shape = CASES[case]
    inputs = draw_inputs(shape)
    parts = [inputs[i : i + batch] for i in range(0, INPUTS, batch)]
    dense = network(plain, batch)
    name = dense.graph.inputs[0].name
    dense_flops = int(graph_flops(dense.graph)) * len(parts)
    runners: dict[float | None, Any] = {None: compile_model(dense, threads=threads)}
    facts: dict[float, dict[str, Any]] = {}
    for rate in RATES:
        c = calibrated(gated, inputs, rate)
        assert abs(1 - c.opened.mean() - rate) < 0.01
        runners[rate] = compile_model(network(gated, batch, **c.parameters), weights=c.weights, threads=threads)
        found = np.concatenate(outputs(runners[rate], name, parts))
        error = float(np.abs(found - c.judged).max() / np.abs(c.judged).max())
        assert error < 1e-4, f"{case} batch {batch} rate {rate}: outputs are off by {error}"
        flops = executed(network(gated, INPUTS, **c.parameters), c.opened)
        facts[rate] = {"error": error, "allowed": dense_flops / flops}
    times: dict[float | None, list[float]] = {key: [] for key in runners}
    for turn in range(rounds):
        order = list(runners)
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            times[key].append(clock(partial(outputs, runners[key], name, parts), seconds) / len(parts))
    rows = []
    base = np.array(times[None])
    for rate in RATES:
        ratio = base / np.array(times[rate])
        low, high = _interval(ratio)
        speed, allowed = float(np.median(ratio)), facts[rate]["allowed"]
        rows.append(
            {
                "net": case, "batch": batch, "threads": threads, "rate": rate,
                "ms": float(np.median(times[rate])), "ms_without_gates": float(np.median(base)),
                "speedup": speed, "speedup_low": low, "speedup_high": high,
                "allowed": allowed, "share": speed / allowed, "error": facts[rate]["error"],
            }
        )  # fmt: skip
    return rows


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median."""
    rng = np.random.Generator(np.random.Philox(0))
    low, high = np.percentile(np.median(rng.choice(values, (2000, len(values))), axis=1), [2.5, 97.5])
    return float(low), float(high)


def plot(rows: list[Mapping[str, Any]], path: Path) -> None:
    """Latency over the share that is skipped, as parts of the latency without gates, beside what FLOPs allow."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((r["net"], r["batch"]) for r in rows))
    figure = Figure(figsize=(3.4 * len(cases), 3.4), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, (net, batch) in zip(panels, cases, strict=True):
        own = [r for r in rows if (r["net"], r["batch"]) == (net, batch)]
        rates = [r["rate"] for r in own]
        axes.plot(rates, [1 / r["allowed"] for r in own], "--", color="#999999", label="FLOPs")
        axes.plot(rates, [1 / r["speedup"] for r in own], "o-", color="#3b6ea5", label="measured")
        axes.set_title(f"{net}, batch {batch}", fontsize=10)
        axes.set_xlabel("share of gates closed")
        axes.set_ylim(0, 1.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("latency, without gates = 1")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="NET", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, action="append", help=f"default: {BATCHES}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each runner in each round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json and arguments.json.exists() else []
    print(f"{'net':10s} {'batch':>5s} {'skipped':>7s} {'ms':>9s} {'speed-up':>22s} {'allowed':>8s} {'share':>6s}")
    for case in arguments.nets or CASES:
        for batch in arguments.batch or BATCHES:
            key = (case, batch, arguments.threads)
            if not any((r["net"], r["batch"], r["threads"]) == key for r in rows):
                rows += measure(*key, arguments.rounds, arguments.seconds)
                save(rows, arguments.json)
            for row in rows:
                if (row["net"], row["batch"], row["threads"]) == key:
                    print(line(row), flush=True)
    if arguments.plot:
        plot([r for r in rows if r["threads"] == arguments.threads], arguments.plot)


def line(row: Mapping[str, Any]) -> str:
    spread = f"{row['speedup']:6.3f} [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]"
    return (
        f"{row['net']:10s} {row['batch']:5d} {row['rate']:7.2f} {row['ms']:9.3f} {spread:>22s} {row['allowed']:8.3f} "
        f"{row['share']:6.3f}"
    )


def save(rows: list[dict[str, Any]], path: Path | None) -> None:
    if path is not None:
        document = {"machine": platform.processor() or platform.machine(), "rows": rows}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
