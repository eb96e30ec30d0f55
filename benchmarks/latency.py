"""How well is a network's latency predicted before it is compiled?

    python benchmarks/latency.py measure --out RUNS/latency
    python benchmarks/latency.py score --out RUNS/latency

`measure` draws networks of several spaces, compiles them for this machine's CPU (one thread, batch axis open) and times
each in `--rounds` rounds (see timing.py), rows in `OUT/*.jsonl`; it goes on where it was. Rounds of odd number are one
measurement, those of even number another, of the same artifacts: the rank correlation of the two is the ceiling.

`score` learns from the first measurement of some networks and is held against the second measurement of the others, in
folds: Spearman's ρ overall and within fifths by FLOPs, beside the ceiling on the same networks, and FLOPs alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from results import Results
from timing import compiled, timed

ROOT = Path(__file__).resolve().parent.parent
SPACES = {
    "closed": ("examples/spaces/closed.arch", 150),
    "digits_net": ("examples/spaces/digits_net.arch", 70),
    "einspace": ("examples/spaces/einspace.arch", 40),
}
BATCHES = (1, 32)


def draws(space: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Distinct architectures of a space: name and text."""
    from archc.grammar.draw import read_space
    from archc.ir.canonical import canonical

    opened, seen, index = read_space(ROOT / SPACES[space][0]), set[str](), 0
    while len(seen) < count:
        drawn = opened.draw(seed, index)
        found = canonical(drawn.graph).hash
        if found not in seen:
            seen.add(found)
            yield f"{space}-{index}", drawn.text
        index += 1


def networks(out: Path, counts: Mapping[str, int], seed: int) -> dict[str, str]:
    """The texts by name, drawn once and kept in a file."""
    rows = Results(out / "nets.jsonl")
    known = {row["name"] for row in rows.rows}
    for space, count in counts.items():
        for name, text in draws(space, count, seed):
            if name not in known:
                rows.add({"name": name, "space": space, "text": text})
    return {row["name"]: row["text"] for row in rows.rows}


def measure(options: argparse.Namespace) -> None:
    given = (one.partition("=") for one in options.spaces)
    counts = {space: int(count or SPACES[space][1]) for space, _, count in given}
    texts = networks(options.out, counts, options.seed)
    whole = compiled(options.out / "artifacts", texts, Results(options.out / "compiled.jsonl"))
    print(f"{len(whole)} of {len(texts)} networks compiled", flush=True)
    rows = Results(options.out / "times.jsonl")
    kept = {name: texts[name] for name in whole}
    timed(options.out / "artifacts", kept, options.batches, range(options.rounds), rows, core=options.core)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), help="SPACE[=COUNT]: how many networks of which")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--core", type=int, default=None, help="the core that the timed process is pinned to")
    parser.add_argument("what", choices=("measure", "score"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measure(options)


if __name__ == "__main__":
    main()
