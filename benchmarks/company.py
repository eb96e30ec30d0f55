"""How much a compiled network slows down when other work wants the cores: no collapse.

    python benchmarks/company.py --threads 2

The same calls are timed alone and with a busy loop beside, in turns. With B busy loops on C cores and T threads, a fair
share makes the ratio of the medians about (T + B) / C at most, or 2; workers that spin or are pinned make it 10. Exit
code 1 when it is more than twice the fair share, or a result differs by a bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from archc.backends.runtime import load
from archc.facade.compile import build
from archc.facade.model import loads

NET = """\
arch net

input  x: f32[N, 16, 32, 32]
output y: f32[N, 10]

y = x -> conv(64, 3) -> relu -> conv(64, 3) -> relu -> flatten -> linear(10)
"""


def timed(artifact: Any, x: Any, seconds: float) -> list[float]:
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        artifact(x)
        times.append(time.perf_counter() - begin)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loops", type=int, default=1, help="busy loops beside")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archc-") as folder:
        path = Path(folder) / "net.archc"
        build(loads(NET), path, threads=options.threads)
        artifact = load(path, threads=options.threads)
    x = np.random.default_rng(0).standard_normal((1, 16, 32, 32), dtype=np.float32)
    timed(artifact, x, 0.3)
    wanted, same = artifact(x), True
    alone, beside = [], []
    for _ in range(options.rounds):
        alone += timed(artifact, x, options.seconds)
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.loops)]
        try:
            beside += timed(artifact, x, options.seconds)
            same = same and np.array_equal(artifact(x), wanted)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    one, two = (statistics.median(times) * 1e3 for times in (alone, beside))
    cores = len(os.sched_getaffinity(0))
    fair = max(2.0, (options.threads + options.loops) / cores)
    print(f"{cores} cores, {options.threads} threads, {options.loops} busy loops beside: ", end="")
    print(f"median {one:.3f} ms alone, {two:.3f} ms beside, ratio {two / one:.2f} (fair: {fair:.1f}), ", end="")
    print("equal results" if same else "OTHER RESULTS")
    raise SystemExit(0 if same and two / one <= 2 * fair else 1)


if __name__ == "__main__":
    main()
