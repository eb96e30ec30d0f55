"""How fast programs are read: `archc check` as a process, long programs, axes and hashes of a large network.

    python benchmarks/frontend.py [--json out.json]

Prints medians with the smallest and largest of the repeats, in seconds unless said otherwise.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LAYERS = (
    "conv(8, kernel = 3, stride = 1, bias = false)",
    "relu",
    "batch_norm(eps = 0.001)",
    "conv(8, kernel = 1, groups = 2)",
    "gelu",
)
COUNTS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def program(ops: int) -> str:
    """A straight program of so many ops, one statement each, up to 13 tokens an op and statement."""
    lines = ["arch long()", "input x: f32[N, 8, 16, 16]", "output y: f32[N, 8, 16, 16]", "let v0 = x"]
    lines += [f"let v{i + 1} = v{i} -> {LAYERS[i % len(LAYERS)]}" for i in range(ops)]
    return "\n".join([*lines, f"y = v{ops}", ""])


def repeated(function: Callable[[], object], repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return {"median": statistics.median(times), "min": min(times), "max": max(times), "repeats": repeats}


def check_process() -> dict[str, float]:
    command = [sys.executable, "-m", "archc", "check", str(ROOT / "examples/resnet50.arch")]
    return repeated(lambda: subprocess.run(command, check=True, cwd=ROOT), 15)


def long_program(ops: int) -> dict[str, Any]:
    """Parse, elaborate and verify in a process of its own, with its peak memory."""
    code = (
        "import json, resource, sys, time\n"
        "from archc.grammar.load import loads\nfrom archc.ir.verify import verify\n"
        "text = sys.stdin.read(); start = time.perf_counter()\n"
        "graph = loads(text); loaded = time.perf_counter()\n"
        "verify(graph); end = time.perf_counter()\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps({'load': loaded - start, 'verify': end - loaded, 'peak_mib': peak}))\n"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], input=program(ops), text=True, check=True,
                                  capture_output=True, cwd=ROOT).stdout)
        for _ in range(3)
    ]  # fmt: skip
    total = [r["load"] + r["verify"] for r in runs]
    return {
        "ops": ops,
        "median": statistics.median(total),
        "min": min(total),
        "max": max(total),
        "us_per_op": 1e6 * statistics.median(total) / ops,
        "peak_mib": max(r["peak_mib"] for r in runs),
    }


def analyses() -> dict[str, dict[str, float]]:
    """Shapes and axes, and the hash, of ResNet-50: the graph in memory, nothing cached."""
    from archc.grammar.load import load
    from archc.ir import op
    from archc.ir.axes import derive_axes
    from archc.ir.canonical import canonical
    from archc.ir.verify import verify

    graph = load(ROOT / "examples/resnet50.arch")

    def shapes_and_axes() -> None:
        op._bind_cached.cache_clear()
        verify(graph)  # infers every type anew
        derive_axes(graph)

    return {"shapes and axes": repeated(shapes_and_axes, 25), "hash": repeated(lambda: canonical(graph), 25)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="longest program")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"check resnet50 (process)": check_process(), **analyses()}
    for name, r in result.items():
        print(f"{name:28s} {1e3 * r['median']:9.1f} ms   ({1e3 * r['min']:.1f} … {1e3 * r['max']:.1f})")
    result["programs"] = []
    for ops in (c for c in COUNTS if c <= arguments.most):
        r = long_program(ops)
        result["programs"].append(r)
        print(
            f"{ops:6d} ops {r['median']:8.2f} s ({r['min']:.2f} … {r['max']:.2f})  {r['us_per_op']:6.0f} µs/op  "
            f"{r['peak_mib']:5.0f} MiB",
            flush=True,
        )
    result["self_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
