"""Seconds to compile a network for this machine's CPU, `import tvm` apart; and from the cache, as a whole process.

    python benchmarks/compile_time.py [FILE.arch ...]

Each compilation is a new process with an empty cache; the figure is the median of `--repeats`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEFAULT = ("resnet18", "resnet50")

CODE = """
import json, sys, time
import archc.backends.tvm.load, archc.backends.tvm.lowerings, archc.backends.tvm.cpu
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.facade.weights import resolve
from archc.grammar.load import load
start = time.perf_counter()
graph = load(sys.argv[1], dims={"N": 1})
weights = resolve(graph, None, 0).arrays
ready = time.perf_counter()
compile_graph(graph, weights, sys.argv[2], spec=parse_target("cpu", threads=2))
print(json.dumps([ready - start, time.perf_counter() - ready]))
"""


def compile_once(file: Path) -> tuple[float, float]:
    """Seconds to (read and draw weights, compile)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CODE, str(file), f"{folder}/a.archc"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    read, compiled = json.loads(done.stdout)
    return read, compiled


def cached(file: Path, repeats: int) -> list[float]:
    """Seconds of `archc compile` as a process, when the cache has it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ARCHC_CACHE": f"{folder}/cache"}
        command = [sys.executable, "-m", "archc", "compile", str(file), "--batch", "1", "-o", f"{folder}/a.archc", "-q"]
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
            times.append(time.perf_counter() - start)
    return times[1:]


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} … {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for file in arguments.files or [ROOT / "examples" / f"{name}.arch" for name in DEFAULT]:
        runs = [compile_once(file) for _ in range(arguments.repeats)]
        again = cached(file, arguments.repeats)
        compiled = [c for _, c in runs]
        print(
            f"{file.stem:16s} compile {_spread(compiled)}, "
            f"reading and initial weights {statistics.median(r for r, _ in runs):.2f} s; "
            f"from the cache, whole process {_spread(again)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
