"""A hundred thousand damaged programs: each must give a graph or a diagnostic, within five seconds and a gigabyte.

    python benchmarks/fuzz.py --count 100000 --seed 0 --results fuzz.jsonl

Mutants are those of `tests/fuzz/mutate.py`. A line is written for each thousand, so a run that was cut off goes on
where it was; a failure is written with the bytes that caused it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fuzz"))

from mutate import mutant, outcome

BLOCK = 1000


def block(seed: int, start: int, folder: Path) -> dict[str, Any]:
    """The outcomes of a thousand mutants."""
    codes: Counter[str] = Counter()
    bugs, slowest = [], 0.0
    for index in range(start, start + BLOCK):
        damaged = mutant(seed, index)
        found, seconds = outcome(damaged, folder)
        slowest = max(slowest, seconds)
        if found.startswith("BUG"):
            bugs.append(
                {"index": index, "origin": damaged.origin, "found": found, "data": damaged.data.decode("latin-1")}
            )
            print(f"{index} ({damaged.origin}): {found}", flush=True)
        codes[found.partition(":")[0]] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"seed": seed, "start": start, "codes": codes, "slowest": round(slowest, 3), "peak_mib": peak, "bugs": bugs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("fuzz.jsonl"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    rows = [r for r in rows if r["seed"] == given.seed]
    done = {r["start"] for r in rows}
    with tempfile.TemporaryDirectory() as scratch, given.results.open("a") as file:
        for start in range(0, given.count, BLOCK):
            if start in done:
                continue
            rows.append(block(given.seed, start, Path(scratch)))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    codes: Counter[str] = Counter()
    for row in rows:
        codes.update(row["codes"])
    bugs = sum(len(r["bugs"]) for r in rows)
    print(f"{len(rows) * BLOCK} programs, {codes['graph']} of them still right, {len(codes)} kinds of outcome")
    slowest, peak = (max((r[key] for r in rows), default=0) for key in ("slowest", "peak_mib"))
    print(f"slowest {slowest:.2f} s, at most {peak} MiB of memory, {bugs} failures")
    print(", ".join(f"{code} {n}" for code, n in codes.most_common()))
    sys.exit(bool(bugs) or peak > 1024)


if __name__ == "__main__":
    main()
