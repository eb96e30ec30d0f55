"""Mutations of the example spaces: how many change nothing (none), how many would without a look at the hash, of which
kinds they are, how much of the weights a child inherits, and what they cost.

    python benchmarks/mutation.py --out runs/mutation

The parents are draws; of einspace also the nets that its own search begins with (benchmarks/einspace_seeds.py). One row
a mutation in mutation.jsonl; resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

from einspace_seeds import EXAMPLES, SEEDS, choices
from results import Results, Row

from archc.grammar.load import loads
from archc.grammar.mutate import variants
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError
from archc.search.inherit import matching
from archc.search.records import Candidate
from archc.search.space import KINDS, GrammarSpace, open_space

SPACES = ("closed", "digits_net", "cells", "transformer", "choices", "darts", "sequences", "einspace")
CHILDREN = 10
"""Mutations of each parent."""


def parents(name: str, count: int, space: GrammarSpace) -> Iterator[tuple[str, Candidate]]:
    if name == "einspace":
        for seed in ("transformer", "wrn16_4"):
            yield seed, space.redraw(choices(SEEDS[seed]), seed)
        count //= 2
    for i in range(count):
        yield f"draw {i}", space.draw(f"mutation/{i}")


def measured(space: GrammarSpace, parent: Candidate, key: str) -> Row:
    """One mutation: what it is, and whether the edit that was tried first had changed nothing."""
    began = time.process_time()
    child = space.mutate(0, parent, key)
    seconds = time.process_time() - began
    assert parent.trace is not None
    first = next(variants(space.space, parent.trace, key, {k: w for k, w in KINDS.items() if k != "transform"}))
    try:
        silent = canonical(space.space.redraw(first.trace, first.seed).graph).hash == parent.hash
    except CompileError:
        silent = True
    old, new = loads(parent.text), loads(child.text)
    sizes = {p.name: p.size for p in new.parameters().values()}
    kept = sum(p.size for p in matching(old, new)) / max(sum(sizes.values()), 1)
    return {
        "origin": child.origin,
        "changed": canonical(new).hash != canonical(old).hash,
        "first_silent": silent,
        "kept": round(kept, 4),
        "seconds": round(seconds, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parents", type=int, default=20, help="draws of each space; half as many of einspace")
    parser.add_argument("--spaces", nargs="*", default=SPACES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "mutation.jsonl")
    done = Counter((row["space"], row["parent"]) for row in results.rows)
    for name in args.spaces:
        space = open_space(EXAMPLES / "spaces" / f"{name}.arch")
        assert isinstance(space, GrammarSpace)
        for label, parent in parents(name, args.parents, space):
            for child in range(done[name, label], CHILDREN):
                row = {"space": name, "parent": label, "child": child}
                results.add(row | measured(space, parent, f"{label}/{child}"))
        tell(name, [r for r in results.rows if r["space"] == name])
    (args.out / "mutation.json").write_text(json.dumps(summary(results.rows), indent=1) + "\n", encoding="utf-8")


def summary(rows: list[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        for name in (row["space"], *([f"einspace, {row['parent']}"] if row["parent"] in SEEDS else [])):
            found.setdefault(name, {"rows": []})["rows"].append(row)
    return {name: told(entry["rows"]) for name, entry in found.items()}


def told(rows: list[Row]) -> Row:
    kinds = Counter(row["origin"].partition("/")[2] for row in rows)
    return {
        "mutations": len(rows),
        "unchanged": sum(not row["changed"] for row in rows),
        "silent without a check": round(mean(row["first_silent"] for row in rows), 3),
        "kinds": {kind: round(count / len(rows), 3) for kind, count in sorted(kinds.items())},
        "weights kept, median": round(median(row["kept"] for row in rows), 3),
        "ms, median": round(1000 * median(row["seconds"] for row in rows), 1),
        "ms, mean": round(1000 * mean(row["seconds"] for row in rows), 1),
    }


def tell(name: str, rows: list[Row]) -> None:
    print(name, json.dumps(told(rows)))


if __name__ == "__main__":
    main()
