"""Does every pass keep what it promises? Cleanups on random networks, transforms on examples and random networks.

    python benchmarks/transforms.py --cleanups 1000 --results cleanups.jsonl --report cleanups.json
    python benchmarks/transforms.py --transforms 15 --compile 100 --results transforms.jsonl --report transforms.json

`--cleanups` takes so many random networks over the whole registry (those of `tests/differential`), every fourth as it
is and the others with detours for the cleanups to find (`tests/passes/provocations.py`), and runs every pass on each:
what is checked is said in `tests/passes/preservation.py`.

`--transforms` applies every variant of every transform so many times, to small examples, random blocks and random
networks, at some of the sites found: what is checked is said in `tests/passes/applications.py`. Sites that refuse are
counted by reason. `--compile` compiles so many of the results, and compares them with torch.

A line is written for each network as soon as it is judged, and a network with a line is not judged again, so a run that
was cut off goes on where it was. The report counts; the exit status tells whether something was violated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "differential"), str(TESTS / "passes")]

from applications import apply_at_random, compiled  # noqa: E402
from preservation import PASSES, Kept, check_cleanups  # noqa: E402
from provocations import provoked  # noqa: E402
from random_nets import random_net  # noqa: E402

from archc.passes.catalogue import TRANSFORMS  # noqa: E402

Row = dict[str, Any]
TRIES = 40
"""Attempts for each application that is wanted, at most."""
LARGEST, BATCH = 90, 5
"""Nodes of the networks that are compiled, and how many of them as one."""


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


def specs() -> list[str]:
    """Every variant of every transform."""
    return [spec for transform in TRANSFORMS.values() for spec in transform.variants]


def transform_row(seed: int, spec: str, attempt: int) -> Row:
    """One attempt to apply a transform."""
    start = time.perf_counter()
    try:
        done, result = apply_at_random(seed, spec, attempt)
        found = {**vars(done), "applied": result is not None}
    except Exception as e:  # whatever it is, it is the finding
        where = traceback.extract_tb(e.__traceback__)[-1]
        words = f"{type(e).__name__}: {e} ({Path(where.filename).name}:{where.lineno})"
        found = {"spec": spec, "attempt": attempt, "applied": False, "refused": {}, "wrong": {"run": words}}
    return {"seed": seed, **found, "seconds": round(time.perf_counter() - start, 2)}


def transform_report(rows: Sequence[Row]) -> dict[str, Any]:
    """For each variant how often it was applied and how far the function moved; refusals by reason; violations."""
    variants: dict[str, Any] = {}
    refused: dict[str, Counter[str]] = {}
    for row in rows:
        name = row["spec"].partition("(")[0]
        refused.setdefault(name, Counter()).update(row["refused"])
        if row["applied"]:
            entry = variants.setdefault(row["spec"], {"applied": 0, "sites": 0, **row["contract"], "error": {}})
            entry["applied"] += 1
            entry["sites"] += row["sites"]
            for mode, error in row["error"].items():
                entry["error"][mode] = max(entry["error"].get(mode, 0.0), error)
    compiled_rows = [row for row in rows if "compiled" in row]
    return {
        "variants": len(variants),
        "never applied": [spec for spec in specs() if spec not in variants],
        "applications": sum(entry["applied"] for entry in variants.values()),
        "least of a variant": min((entry["applied"] for entry in variants.values()), default=0),
        "sites": sum(entry["sites"] for entry in variants.values()),
        "compiled": len(compiled_rows),
        "excused by a close decision": sum(len(row.get("excused", ())) for row in rows),
        "violations": sum(len(row["wrong"]) for row in rows) + sum(bool(row["compiled"]) for row in compiled_rows),
        "violated": [
            {"seed": row["seed"], "spec": row["spec"], "attempt": row["attempt"], "check": check, "found": reason}
            for row in rows
            for check, reason in (
                *row["wrong"].items(),
                *([("compiled", row["compiled"])] if row.get("compiled") else []),
            )
        ],
        "refusals": {name: dict(counts.most_common()) for name, counts in sorted(refused.items())},
        "by variant": variants,
    }


def run_cleanups(given: argparse.Namespace, rows: list[Row], write: Callable[[Row], None]) -> dict[str, Any]:
    done, judged = {r["index"] for r in rows}, sum("skipped" not in r for r in rows)
    for index in count(given.start):
        if judged >= given.cleanups:
            return cleanup_report(rows)
        if index in done:
            continue
        row = cleanup_row(given.seed, index)
        write(row)
        judged += "skipped" not in row
        for check, reason in row.get("wrong", {}).items():
            print(f"{index} ({row['focus']}) {check}: {reason[:300]}", flush=True)
    raise AssertionError("the numbers do not end")


def run_transforms(given: argparse.Namespace, rows: list[Row], write: Callable[[Row], None]) -> dict[str, Any]:
    part, parts = map(int, given.part.split("/"))
    for spec in [s for s in specs() if s.startswith(given.only)][part::parts]:
        applied, attempts = 0, 0
        known = {r["attempt"]: r for r in rows if r["spec"] == spec}
        while applied < given.transforms and attempts < TRIES * given.transforms:
            row = known.get(attempts)
            if row is None:
                row = transform_row(given.seed, spec, attempts)
                write(row)
                for check, reason in row["wrong"].items():
                    print(f"{spec} {attempts} {check}: {reason[:300]}", flush=True)
            applied += row["applied"]
            attempts += 1
        print(f"{spec}: {applied} of {attempts}", flush=True)
    return transform_report(rows)


def run_compiled(given: argparse.Namespace, rows: list[Row], rewrite: Callable[[], None]) -> dict[str, Any]:
    """Compile results, turn by turn of each variant, several as one."""
    turns: dict[str, list[Row]] = {}
    for row in rows:
        if row["applied"] and not row["wrong"] and row["nodes"] <= LARGEST:
            turns.setdefault(row["spec"], []).append(row)
    order = [row for turn in zip_longest(*turns.values()) for row in turn if row is not None][: given.compile]
    todo = [row for row in order if "compiled" not in row]
    for at in range(0, len(todo), BATCH):
        batch = todo[at : at + BATCH]
        made = [apply_at_random(row["seed"], row["spec"], row["attempt"]) for row in batch]
        pairs = [(done, result) for done, result in made if result is not None]
        with tempfile.TemporaryDirectory() as folder:
            reasons = compiled(pairs, Path(folder))
        for row, reason in zip(batch, reasons, strict=True):
            row["compiled"] = reason
            if reason:
                print(f"{row['spec']} {row['attempt']} compiled: {reason[-300:]}", flush=True)
        rewrite()
        print(f"compiled {at + len(batch)} of {len(todo)}", flush=True)
    return transform_report(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cleanups", type=int, default=0, metavar="N", help="so many random networks")
    parser.add_argument("--transforms", type=int, default=0, metavar="N", help="so many applications of each variant")
    parser.add_argument("--only", default="", help="transforms whose spec starts so")
    parser.add_argument("--part", default="0/1", help="of the variants: `1/4` is the second quarter")
    parser.add_argument("--compile", type=int, default=0, metavar="N", help="so many results of transforms")
    parser.add_argument("--start", type=int, default=0, help="number of the first network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("transforms.jsonl"))
    parser.add_argument("--report", type=Path, help="a JSON file for the counts")
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    rows = [r for r in rows if r["seed"] == given.seed]

    def write(row: Row) -> None:
        rows.append(row)
        with given.results.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rewrite() -> None:
        new = given.results.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new.replace(given.results)

    if given.cleanups:
        report = run_cleanups(given, rows, write)
    else:
        report = run_transforms(given, rows, write)
        if given.compile:
            report = run_compiled(given, rows, rewrite)
    text = json.dumps(report, indent=2)
    print(text)
    if given.report is not None:
        given.report.write_text(text + "\n")
    sys.exit(report["violations"] > 0)


if __name__ == "__main__":
    main()
