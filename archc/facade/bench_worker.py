"""One runner of a benchmark, in a process of its own: `python -m archc.facade.bench_worker NAME FOLDER DEVICE THREADS`.

The folder holds `model.archc`, `model.arch`, `weights.safetensors`, `inputs.safetensors` and, after `export FOLDER`,
`model.onnx`. The runner warms up, writes its outputs, says that it is ready, and then answers each number of seconds on
stdin with the milliseconds of the calls that it made in that time; all as lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WARM_UP = 3

Call = Callable[[], Any]
Named = Callable[[Any], Mapping[str, Any]]


def main(name: str, folder: Path, device: str, threads: int) -> None:
    from archc.backends.weights import write_weights
    from archc.ir.diagnostics import CompileError

    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not a reply

    def say(**words: Any) -> None:
        print(json.dumps(words), file=reply, flush=True)

    try:
        version, call, named = _RUNNERS[name](folder, device, threads)
        for _ in range(WARM_UP):
            made = call()
        write_weights(folder / f"{name}.safetensors", named(made))
    except ImportError as error:
        return say(failure=f"{error.name} is not installed: pip install 'archc[bench,export]'")
    except CompileError as error:
        return say(failure="; ".join(f"{d.message} {d.label}".strip() for d in error.diagnostics))
    except Exception as error:  # a peer fails in its own ways, and the others go on
        return say(failure=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}")
    say(version=version)
    for line in sys.stdin:
        say(ms=_measure(call, float(line)))


def _measure(call: Call, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _archc(folder: Path, device: str, threads: int) -> tuple[str, Call, Named]:
    """On the CPU the whole call is measured: checks, the program, outputs copied. On a GPU the data are there already,
    as they are for torch."""
    from archc import __version__
    from archc.backends.runtime import load
    from archc.backends.weights import read_weights

    artifact = load(folder / "model.archc", threads=threads)
    inputs = dict(read_weights(folder / "inputs.safetensors").arrays)
    if device == "cpu":
        return __version__, lambda: artifact.run(inputs), lambda made: made
    tensors, machine = artifact.tensors(inputs), artifact.new_machine()

    def call() -> Any:
        made = artifact.invoke(machine, tensors)
        artifact.synchronise()
        return made

    return __version__, call, artifact.outputs


def _torch(folder: Path, device: str, threads: int, compiled: bool = False) -> tuple[str, Call, Named]:
    import torch

    from archc.backends.torch.module import to_torch
    from archc.backends.torch.training.checkpoint import to_array, to_tensor
    from archc.backends.weights import read_weights
    from archc.facade.model import load

    torch.set_num_threads(threads)
    graph = load(folder / "model.arch").graph
    module: Any = to_torch(graph, read_weights(folder / "weights.safetensors").arrays).eval().to(device)
    arrays = read_weights(folder / "inputs.safetensors").arrays
    inputs = [to_tensor(arrays[v.name]).to(device) for v in graph.inputs]
    run = torch.compile(module, dynamic=False) if compiled else module

    def call() -> Any:
        with torch.inference_mode():
            made = run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return made

    def named(made: Any) -> Mapping[str, Any]:
        results = made if isinstance(made, tuple) else (made,)
        return {n: to_array(t) for n, t in zip(graph.output_names, results, strict=True)}

    return torch.__version__, call, named


def _compile(folder: Path, device: str, threads: int) -> tuple[str, Call, Named]:
    return _torch(folder, device, threads, compiled=True)


def _onnxruntime(folder: Path, device: str, threads: int) -> tuple[str, Call, Named]:
    import onnxruntime

    from archc.backends.weights import read_weights

    if not (folder / "model.onnx").exists():
        export(folder)  # it failed before: let it say why
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=[provider])
    given = read_weights(folder / "inputs.safetensors").arrays
    inputs = {port.name: given[port.name] for port in session.get_inputs()}
    names = [port.name for port in session.get_outputs()]
    return onnxruntime.__version__, lambda: session.run(None, inputs), lambda made: dict(zip(names, made, strict=True))


def export(folder: Path) -> None:
    """Write `model.onnx`: elsewhere, so that ONNX Runtime need not share its process with torch."""
    from archc.backends.torch.export import export_onnx
    from archc.backends.weights import read_weights
    from archc.facade.model import load

    weights = read_weights(folder / "weights.safetensors").arrays
    export_onnx(load(folder / "model.arch").graph, weights, folder / "model.onnx")


_RUNNERS: Mapping[str, Callable[[Path, str, int], tuple[str, Call, Named]]] = {
    "archc": _archc,
    "torch": _torch,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
}

if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
