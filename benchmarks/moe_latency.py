"""Latency of a compiled mixture of experts beside running all of them, a dense network, PyTorch and ONNX Runtime.

    python benchmarks/moe_latency.py [--tokens 512] [--threads 1] [--experts gelu] [--skewed] [--json out.json]

Eight experts of 256-1024-256, two for each token; the gates are computed from the input in the timed run.

    all           archc, all experts for each token, weighed by the softmax (`benchmarks/nets/moe_all.arch`)
    dense         archc, one feed-forward network with as many operations per token: hidden size 2048
    torch         a loop over experts in eager mode: `where`, the expert on its rows, `index_add`
    ort loop      ONNX Runtime on that loop as `torch.onnx.export` traces it (NonZero, Gather, ScatterElements)
    ort dynamo    the same through the exporter of `torch.export`
    ort dense     ONNX Runtime on what `archc export` writes, where all experts see all tokens

Every runner has a process of its own; runners take turns, and ratios are taken within a round: our time divided by the
peer's, with its 95 % bootstrap interval. Outputs are compared with torch in float64 first. `--skewed` adds to the input
what the router takes for the first two experts, so that they get every token. What stands in the file of `--json` is
not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import warnings
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from archc.backends.weights import atomic_file, read_weights, write_weights
from archc.facade import bench, bench_worker
from archc.facade.compile import build
from archc.facade.model import Model, load
from archc.facade.weights import resolve
from archc.grammar.printer import print_graph

NETS = Path(__file__).parent / "nets"
DIM, HIDDEN, EXPERTS, TOP_K = 256, 1024, 8, 2
NAMES = {"gelu": ("moe", "moe_all", "ffn"), "swiglu": ("moe_swiglu", "", "ffn_swiglu")}
Arrays = dict[str, Any]


def plain_module(weights: Arrays, swiglu: bool) -> Any:
    """A mixture as one writes it in PyTorch, with the weights of the `.arch` file."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Swiglu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = (nn.Linear(DIM, HIDDEN, bias=False) for _ in range(2))
            self.down = nn.Linear(HIDDEN, DIM, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
            return out

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(DIM, EXPERTS, bias=False)
            gelu = (nn.Sequential(nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM)) for _ in range(EXPERTS))
            self.experts = nn.ModuleList(Swiglu() for _ in range(EXPERTS)) if swiglu else nn.ModuleList(gelu)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight, index = self.router(x).softmax(-1).topk(TOP_K, -1)
            weight = weight / weight.sum(-1, keepdim=True)
            y = torch.zeros_like(x)
            for e, expert in enumerate(self.experts):
                rows, slot = torch.where(index == e)
                y = y.index_add(0, rows, weight[rows, slot].unsqueeze(-1) * expert(x[rows]))
            return y

    module = Mixture().eval()
    assert [p.shape for p in module.parameters()] == [a.shape for a in weights.values()]
    with torch.no_grad():
        for parameter, array in zip(module.parameters(), weights.values(), strict=True):
            parameter.copy_(torch.from_numpy(np.array(array)))
    return module


def given(folder: Path) -> tuple[Arrays, np.ndarray]:
    """Weights in program order, and the input."""
    arrays = read_weights(folder / "weights.safetensors").arrays
    names = load(folder / "model.arch").graph.parameters()
    return {name: arrays[name] for name in names}, read_weights(folder / "inputs.safetensors").arrays["x"]


def _torch(folder: Path, device: str, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    weights, x = given(folder)
    module, tensor = plain_module(weights, (folder / "swiglu").exists()), torch.from_numpy(np.array(x))

    def call() -> Any:
        with torch.inference_mode():
            return module(tensor)

    return torch.__version__, call, lambda made: {"y": made.numpy()}


def export_loop(folder: Path, into: Path, dynamo: bool) -> None:
    import torch

    weights, x = given(folder)
    module = plain_module(weights, (folder / "swiglu").exists())
    other = torch.randn(x.shape)  # what is traced must not depend on who goes where
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": 18}
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (other,), str(into), dynamo=dynamo, **names)


bench_worker._RUNNERS = {**bench_worker._RUNNERS, "torch": _torch}  # type: ignore[assignment]


def judged(model: Model, weights: Arrays, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        made: np.ndarray = model.to_torch(weights).double().eval()(torch.from_numpy(x).double()).numpy()
    return made


def measure(tokens: int, threads: int, kind: str, skewed: bool, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each runner, ours first."""
    with tempfile.TemporaryDirectory(prefix="archc-moe-") as name, ExitStack() as stack:
        root = Path(name)
        nets = zip(("archc", "all", "dense"), NAMES[kind], strict=True)
        models = {n: load(NETS / f"{net}.arch", dims={"T": tokens}) for n, net in nets if net}
        weights = {n: np.asarray(a) for n, a in resolve(models["archc"].graph, None, 0).arrays.items()}
        x = np.random.Generator(np.random.Philox(0)).normal(size=(tokens, DIM))
        if skewed:
            router = next(iter(weights.values()))
            x += 40 * (router[0] + router[1])
        x = x.astype(np.float32)
        folders: dict[str, tuple[str, Path]] = {}
        for n, model in models.items():
            folder = root / n
            folder.mkdir()
            own = weights if n == "archc" else dict(resolve(model.graph, None, 0).arrays)
            build(model, folder / "model.archc", weights=own, threads=threads, cache=False)
            (folder / "model.arch").write_text(print_graph(model.graph), encoding="utf-8")
            write_weights(folder / "weights.safetensors", own)
            write_weights(folder / "inputs.safetensors", {"x": x})
            if kind == "swiglu":
                (folder / "swiglu").touch()
            folders[n] = ("archc", folder)
        ours = folders["archc"][1]
        folders["torch"] = ("torch", ours)
        for n, dynamo in (("ort loop", False), ("ort dynamo", True)):
            folder = root / n
            folder.mkdir()
            for file in ("weights", "inputs"):
                (folder / f"{file}.safetensors").symlink_to(ours / f"{file}.safetensors")
            export_loop(ours, folder / "model.onnx", dynamo)
            folders[n] = ("onnxruntime", folder)
        folders["ort dense"] = ("onnxruntime", ours)
        bench_worker.export(ours)
        runners = {n: bench._Runner(worker, folder, "cpu", threads) for n, (worker, folder) in folders.items()}
        for runner in runners.values():
            stack.enter_context(runner)
            runner.prepare()
            assert not runner.failure, runner.failure
        needed = judged(models["archc"], weights, x)
        outputs = {n: read_weights(r.outputs).arrays for n, r in runners.items()}
        for turn in range(rounds):
            order = list(runners.values())
            for runner in order[turn % len(order) :] + order[: turn % len(order)]:
                runner.measure(seconds)
        rows = []
        for n, runner in runners.items():
            names = {runner.name: outputs[n], "archc": outputs["archc"]}
            timing = bench._timing(runner, runners["archc"], names)
            row: dict[str, Any] = {"runner": n, "version": timing.version, "ms": timing.median_ms}
            row |= {"low": timing.low_ms, "high": timing.high_ms}
            if timing.ratio and timing.ratio_low and timing.ratio_high:
                row["ratio"] = 1 / timing.ratio
                row |= {"ratio_low": 1 / timing.ratio_high, "ratio_high": 1 / timing.ratio_low}
            if n not in ("all", "dense"):  # those are other functions
                (y,) = outputs[n].values()
                row["error"] = float(np.abs(y - needed).max() / np.abs(needed).max())
                assert row["error"] < 1e-4, f"{n} computes something else: off by {row['error']}"
            rows.append({"tokens": tokens, "threads": threads, "experts": kind, "skewed": skewed, **row})
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--experts", choices=NAMES, default="gelu")
    parser.add_argument("--skewed", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each runner in each round")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    rows = json.loads(a.json.read_text())["rows"] if a.json and a.json.exists() else []
    wanted = {"tokens": a.tokens, "threads": a.threads, "experts": a.experts, "skewed": a.skewed}
    if not any(wanted.items() <= row.items() for row in rows):
        rows += measure(a.tokens, a.threads, a.experts, a.skewed, a.rounds, a.seconds)
        if a.json:
            document = {"machine": platform.processor() or platform.machine(), "rows": rows}
            with atomic_file(a.json) as temporary:
                temporary.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{'runner':12s} {'ms':>9s} {'10 % - 90 %':>19s}  ours / theirs")
    for row in rows:
        if wanted.items() <= row.items():
            spread = f"{row['low']:.3f} - {row['high']:.3f}"
            ratio = f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]" if "ratio" in row else ""
            print(f"{row['runner']:12s} {row['ms']:9.3f} {spread:>19s}  {ratio}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        bench_worker.main(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        bench._WORKER = (sys.executable, __file__, "--worker")
        main()
