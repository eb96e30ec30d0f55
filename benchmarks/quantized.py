"""What weights of 8 and 4 bits save: file size and latency, and what they cost: error.

    python benchmarks/quantized.py [--threads 1] [--rounds 15] [--seconds 0.1] [--json out.json] [CASE ...]

Two networks at batch 1 and 64: an MLP 784-1024-1024-10, and the feed-forward block of a GPT of width 768. Each is
compiled as it is and through `quantize_weights`; beside it stand ONNX Runtime, as it is and with its dynamic
quantisation (`quantize_dynamic`, 8 bits, symmetric, for each output; it also rounds the activations, to use integer
instructions, which ours do not). Runners take turns in one process, and ratios to our float32 are taken within a
round: the median, and the 95 % bootstrap interval of it. `error` is the root mean square difference from our float32,
relative.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from archc.backends.initial import InitialWeights
from archc.facade.compile import compile as compile_model
from archc.facade.model import Model, loads
from archc.facade.transform import transform

HEAD = "arch net\ninput x: f32[N, {i}]\noutput y: f32[N, {o}]\n"
NETS = {
    "mlp": HEAD.format(i=784, o=10) + "y = x -> linear(1024) -> relu -> linear(1024) -> relu -> linear(10)\n",
    "ffn": HEAD.format(i=768, o=768) + "y = x -> linear(3072) -> gelu -> linear(768)\n",
}
BATCHES = (1, 64)
VARIANTS = {
    "f32": None,
    "8 bits": "quantize_weights",
    "4 bits": "quantize_weights(bits = 4)",
    "4 bits, groups": "quantize_weights(bits = 4, group = {group})",
}
GROUPS = {"mlp": 16, "ffn": 64}


@dataclass(frozen=True)
class Row:
    """One runner on one case; `ratio` is its time divided by our float32's."""

    case: str
    runner: str
    bytes: int
    ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    error: float


def write_onnx(model: Model, weights: Any, path: Path) -> None:
    """The network as ONNX: `MatMul`, `Add`, `Relu`, `Gelu`."""
    nodes, stored, last = [], [], "x"
    for node in model.graph.nodes:
        if node.op.name == "linear":
            for role in ("weight", "bias"):
                array = np.asarray(weights[f"{node.name}.{role}"])
                stored.append(numpy_helper.from_array(np.ascontiguousarray(array.T), f"{node.name}.{role}"))
            nodes.append(helper.make_node("MatMul", [last, f"{node.name}.weight"], [f"{node.name}.product"]))
            nodes.append(helper.make_node("Add", [f"{node.name}.product", f"{node.name}.bias"], [node.name]))
        else:
            nodes.append(helper.make_node({"relu": "Relu", "gelu": "Gelu"}[node.op.name], [last], [node.name]))
        last = node.name
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", v.type.shape[1]])
        for name, v in (("x", model.graph.inputs[0]), (last, model.graph.outputs[0]))
    ]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))


def runners(net: str, batch: int, threads: int, folder: Path) -> dict[str, tuple[int, Callable[[Any], Any]]]:
    """Bytes of the file, and what computes y of x."""
    model = loads(NETS[net])
    weights = dict(InitialWeights(model.graph))
    found: dict[str, tuple[int, Callable[[Any], Any]]] = {}
    for i, (name, spec) in enumerate(VARIANTS.items()):
        changed, arrays = model, weights
        if spec is not None:
            made = transform(model, spec.format(group=GROUPS[net]), weights=weights, check=False)
            changed, arrays = made.model, dict(made.weights or {})
        path = folder / f"{net}{batch}_{i}.archc"
        artifact = compile_model(changed, weights=arrays, batch=batch, threads=threads, out=path, cache=False)
        found[name] = (path.stat().st_size, artifact)
    plain, small = folder / f"{net}.onnx", folder / f"{net}.int8.onnx"
    write_onnx(model, weights, plain)
    quantize_dynamic(plain, small, weight_type=QuantType.QInt8, per_channel=True)
    for name, path in (("onnxruntime", plain), ("onnxruntime, 8 bits", small)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found[name] = (path.stat().st_size, lambda x, s=session: s.run(None, {"x": x})[0])
    return found


def measure(net: str, batch: int, threads: int, rounds: int, seconds: float, folder: Path) -> list[Row]:
    entered = runners(net, batch, threads, folder)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, loads(NETS[net]).graph.inputs[0].type.shape[1])).astype(np.float32)
    outputs = {name: np.asarray(run(x)) for name, (_, run) in entered.items()}
    needed = outputs["f32"]
    turns = {name: max(3, int(seconds / _once(run, x))) for name, (_, run) in entered.items()}
    times: dict[str, list[float]] = {name: [] for name in entered}
    for _ in range(rounds):
        for name, (_, run) in entered.items():
            start = time.perf_counter()
            for _ in range(turns[name]):
                run(x)
            times[name].append((time.perf_counter() - start) / turns[name])
    rows = []
    for name, (size, _) in entered.items():
        ratios = np.array(times[name]) / np.array(times["f32"])
        medians = np.median(rng.choice(ratios, (2000, rounds)), axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        error = float(np.sqrt(np.square(outputs[name] - needed).mean() / np.square(needed).mean()))
        ms = 1e3 * float(np.median(times[name]))
        rows.append(Row(f"{net}-b{batch}", name, size, ms, float(np.median(ratios)), float(low), float(high), error))
    return rows


def _once(run: Callable[[Any], Any], x: Any) -> float:
    for _ in range(3):
        run(x)
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def main() -> None:
    cases = [f"{net}-b{batch}" for net in NETS for batch in BATCHES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(cases)} (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each runner in each round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    print(f"{'case':8s} {'runner':20s} {'KiB':>8s} {'ms':>9s} {'ratio to our f32':>20s} {'error':>9s}")
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.cases or cases:
            net, _, batch = case.partition("-b")
            made = measure(net, int(batch), arguments.threads, arguments.rounds, arguments.seconds, Path(folder))
            for r in made:
                span = f"{r.ratio:.2f} [{r.ratio_low:.2f}, {r.ratio_high:.2f}]"
                print(
                    f"{case:8s} {r.runner:20s} {r.bytes / 1024:8.0f} {r.ms:9.4f} {span:>20s} {r.error:9.1e}", flush=True
                )
            rows += made
            if arguments.json:
                facts = {"machine": platform.machine(), "threads": arguments.threads}
                versions = {"onnxruntime": onnxruntime.__version__}
                found = {**facts, **versions, "rows": [asdict(r) for r in rows]}
                arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
