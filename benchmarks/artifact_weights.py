"""What large weights cost: an MLP of eight square layers, compiled and loaded with its weights lifted, or embedded.

    python benchmarks/artifact_weights.py 500            # megabytes of weights
    python benchmarks/artifact_weights.py 500 --embed

Each step runs in a process of its own and prints seconds, and the peak resident memory of that process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 8


def compile_mlp(path: Path, megabytes: int, embed: bool) -> None:
    import numpy as np

    from archc.backends.artifact import Facts, Port, write_artifact
    from archc.backends.tvm.build import build
    from archc.backends.tvm.lift import lift_constants
    from archc.backends.tvm.load import tvm
    from archc.backends.tvm.targets import parse_target

    relax = tvm.relax
    width = int((megabytes * 2**20 / 4 / LAYERS) ** 0.5) // 16 * 16
    rng = np.random.default_rng(0)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, width), "float32"))
    with builder.function("main", [x]):
        h = x
        for _ in range(LAYERS):
            weight = rng.standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
            h = builder.emit(relax.op.nn.relu(relax.op.matmul(h, relax.const(weight))))
        builder.emit_func_output(h)
    spec = parse_target("cpu")
    report("weights made")
    module, constants = builder.get(), []
    with spec.to_tvm():
        module = tvm.ir.transform.Sequential(
            [
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
            ]
        )(module)
    start = time.perf_counter()
    if not embed:
        module, constants = lift_constants(module)
    library = build(module, spec)
    write_artifact(
        path,
        facts=Facts(
            name="mlp",
            inputs=(Port(name="x", dtype="f32", dims=(1, width)),),
            outputs=(Port(name="y", dtype="f32", dims=(1, width)),),
            ir_hash="",
            weights_hash="",
        ),
        target=spec,
        code=library.code,
        toolchain=library.toolchain,
        library=library.data,
        constants=constants,
        report=library.report,
    )
    report("compiled and written", start)
    print(f"  library {len(library.data) / 2**20:.1f} MiB, artifact {path.stat().st_size / 2**20:.1f} MiB")


def run(path: Path) -> None:
    import numpy as np

    start = time.perf_counter()
    from archc.backends.runtime import load

    report("runtime imported", start)
    start = time.perf_counter()
    artifact = load(path)
    report("loaded (every byte hashed)", start)
    x = np.ones(artifact.manifest.inputs[0].dims, np.float32)
    for name in ("first call", "second call"):
        start = time.perf_counter()
        artifact(x)
        report(name, start)


def report(what: str, start: float | None = None) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = "" if start is None else f"{time.perf_counter() - start:8.3f} s"
    print(f"  {what:28}{seconds:>12}   peak {peak:6.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", type=int)
    parser.add_argument("--embed", action="store_true", help="leave the weights in the library")
    parser.add_argument("--step", choices=["compile", "run"])
    parser.add_argument("--path", type=Path)
    options = parser.parse_args()
    if options.step == "compile":
        return compile_mlp(options.path, options.megabytes, options.embed)
    if options.step == "run":
        return run(options.path)
    with tempfile.TemporaryDirectory() as folder:
        for step in ("compile", "run"):
            print(step, flush=True)
            command = [sys.executable, __file__, *sys.argv[1:], "--step", step, "--path", f"{folder}/mlp.archc"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
