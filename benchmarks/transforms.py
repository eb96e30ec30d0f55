"""Does every pass keep what it promises? Cleanups on random networks, transforms on examples and random networks.

    python benchmarks/transforms.py --cleanups 1000 --seed 0 --results cleanups.jsonl --report cleanups.json

`--cleanups` takes so many random networks over the whole registry (those of `tests/differential`), every fourth as it
is and the others with detours for the cleanups to find (`tests/passes/provocations.py`), and runs every pass on each:
what is checked is said in `tests/passes/preservation.py`.

A line is written for each network as soon as it is judged, and a network with a line is not judged again, so a run that
was cut off goes on where it was. The report counts; the exit status tells whether something was violated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "differential"), str(TESTS / "passes")]

from preservation import PASSES, Kept, check_cleanups  # noqa: E402
from provocations import provoked  # noqa: E402
from random_nets import random_net  # noqa: E402

Row = dict[str, Any]


def cleanup_row(seed: int, index: int) -> Row:
    """What the cleanups did to one random network."""
    start = time.perf_counter()
    try:
        net = random_net(seed, index)
    except KeyError as e:  # an op that the generator cannot place yet
        return {"seed": seed, "index": index, "skipped": f"no recipe for {e}"}
    graph = provoked(net.graph, index) if index % 4 else net.graph
    try:
        kept = check_cleanups(graph, index, net.sizes)
    except Exception as e:  # whatever it is, it is the finding
        where = traceback.extract_tb(e.__traceback__)[-1]
        kept = Kept(wrong={"run": f"{type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"})
    ops = {node.op.name for node in graph.walk()}
    found = {"ops": sorted(ops), "nodes": len(list(graph.walk())), **vars(kept)}
    return {"seed": seed, "index": index, "focus": net.focus, **found, "seconds": round(time.perf_counter() - start, 2)}


def cleanup_report(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts over all networks, and every violation with what reproduces it."""
    skipped = Counter(row["skipped"] for row in rows if "skipped" in row)
    rows = [row for row in rows if "skipped" not in row]
    changed = Counter(name for row in rows for name in row["changed"])
    return {
        "networks": len(rows),
        "skipped": dict(skipped),
        "nodes": sum(row["nodes"] for row in rows),
        "ops": len({op for row in rows for op in row["ops"]}),
        "passes run": len(rows) * len(PASSES),
        "comparisons of functions": sum(row["comparisons"] for row in rows),
        "changed": {name: changed[name] for name in PASSES},
        "largest relative difference in float64": max((row["error"] for row in rows), default=0.0),
        "excused by a close decision": sum(len(row["excused"]) for row in rows),
        "violations": sum(len(row["wrong"]) for row in rows),
        "violated": [
            {"seed": row["seed"], "index": row["index"], "check": check, "found": reason}
            for row in rows
            for check, reason in row["wrong"].items()
        ],
    }


def read_rows(path: Path, seed: int) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [r for r in rows if r["seed"] == seed]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cleanups", type=int, metavar="N", help="so many random networks")
    parser.add_argument("--start", type=int, default=0, help="number of the first network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("transforms.jsonl"))
    parser.add_argument("--report", type=Path, help="a JSON file for the counts")
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    rows = read_rows(given.results, given.seed)
    done, judged = {r["index"] for r in rows}, sum("skipped" not in r for r in rows)
    with given.results.open("a") as file:
        for index in count(given.start):
            if judged >= (given.cleanups or 0):
                break
            if index in done:
                continue
            rows.append(cleanup_row(given.seed, index))
            judged += "skipped" not in rows[-1]
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            for check, reason in rows[-1].get("wrong", {}).items():
                print(f"{index} ({rows[-1]['focus']}) {check}: {reason[:300]}", flush=True)
    report = cleanup_report(rows)
    text = json.dumps(report, indent=2)
    print(text)
    if given.report is not None:
        given.report.write_text(text + "\n")
    sys.exit(report["violations"] > 0)


if __name__ == "__main__":
    main()
