"""Latency of compiled networks on this machine's CPU beside ONNX Runtime (and torch, and torch.compile).

    python benchmarks/cpu_latency.py [--threads 1] [--against onnxruntime,torch] [--json out.json] [CASE ...]

Seven cases, written as `.arch` in `benchmarks/nets/`. Every runner has a process of its own; runners take turns, and
ratios are taken within a round: `ratio` is our time divided by the peer's, with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from archc.facade.bench import bench
from archc.facade.model import load

NETS = Path(__file__).parent / "nets"
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "resnet18-b1": ("resnet18_32", {"N": 1}),
    "resnet18-b32": ("resnet18_32", {"N": 32}),
    "mlp-b1": ("mlp", {"N": 1}),
    "mlp-b64": ("mlp", {"N": 64}),
    "encoder-t128": ("encoder", {"N": 1, "T": 128}),
    "mobilenet-b1": ("mobilenet_32", {"N": 1}),
    "resnet50-b1": ("resnet50_32", {"N": 1}),
}


def measure(case: str, against: list[str], threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """One case; see `archc.facade.bench`."""
    net, dims = CASES[case]
    result = bench(load(NETS / f"{net}.arch", dims=dims), against, threads=threads, rounds=rounds, seconds=seconds)
    ours, *peers = result.timings
    row: dict[str, Any] = {
        "case": case,
        "threads": threads,
        "ms": ours.median_ms,
        "low": ours.low_ms,
        "high": ours.high_ms,
    }
    for peer in peers:
        assert not peer.failure, f"{case}: {peer.runner} failed: {peer.failure}"
        assert peer.ratio is not None
        assert peer.ratio_low is not None
        assert peer.ratio_high is not None
        row[peer.runner] = {
            "ms": peer.median_ms,
            "version": peer.version,
            "ratio": 1 / peer.ratio,
            "ratio_low": 1 / peer.ratio_high,
            "ratio_high": 1 / peer.ratio_low,
            "difference": peer.difference,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--against", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each runner in each round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    against = arguments.against.split(",")
    rows = []
    print(f"{'case':14s} {'archc ms':>10s}  " + "  ".join(f"{p + ' ms':>15s} {'ratio':>18s}" for p in against))
    for case in arguments.cases or CASES:
        row = measure(case, against, arguments.threads, arguments.rounds, arguments.seconds)
        rows.append(row)
        cells = "  ".join(
            f"{row[p]['ms']:15.4f} {row[p]['ratio']:5.2f} [{row[p]['ratio_low']:.2f}, {row[p]['ratio_high']:.2f}]"
            for p in against
        )
        print(f"{case:14s} {row['ms']:10.4f}  {cells}", flush=True)
    if arguments.json:
        document = {"machine": platform.processor() or platform.machine(), "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
