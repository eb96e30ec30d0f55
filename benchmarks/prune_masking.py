"""Is a pruned network the old one with what went masked? Every example at full size, in float64, random weights.

    python benchmarks/prune_masking.py [--ratio 0.25] [--seed 0] [--results rows.jsonl] [EXAMPLE ...]

For each example: `prune(ratio)`, what it measured of itself, whether the result prints and re-parses to itself, how far
it is from the old network, and how far from the old network with the removed elements masked (`archc.passes.masking`),
which should be rounding. A line is written for each as soon as it is judged, and what has a line is not judged again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from archc.facade.sameness import same_function
from archc.grammar.load import load, loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.equal import structurally_equal
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, run_passes
from archc.passes.masking import masked
from archc.passes.prune import PruneOptions, choose
from archc.passes.spec import parse_pass, parse_transform
from archc.passes.transform import find_sites

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"N": 1, "T": 16}


def judge(name: str, ratio: float, seed: int) -> dict[str, Any]:
    spec = f"prune(ratio = {ratio})"
    transform, options = parse_transform(spec)
    assert isinstance(options, PruneOptions)
    old = load(EXAMPLES / f"{name}.arch")
    weights = random_weights(old, seed)
    units = [site.found for site in find_sites(transform, old, options).sites]
    choice = choose(old, units, options, Context(dict(weights), wide=True))
    new, context = clone(old), Context(dict(weights), wide=True)
    (ran,) = run_passes(new, [parse_pass(spec)], context)
    assert context.weights is not None
    reference, kept = masked(old, units[0].axes, choice, dict(weights))
    sizes = {s: n for s, n in SIZES.items() if s in old.symbols()}
    same = same_function(reference, new, kept, context.weights, sizes=sizes, seed=seed)
    return {
        "example": name,
        "seed": seed,
        "ratio": ratio,
        "classes": sum(len(unit.classes) for unit in units),
        "removed": context.measured[0].value,
        "seconds": ran.seconds,
        "prints": structurally_equal(new, loads(print_graph(new))) is None,
        "from masked": same.relative,
        "ok": same.ok,
        "from old": same_function(old, new, weights, context.weights, sizes=sizes, seed=seed).relative,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help="default: all")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("prune_masking.jsonl"))
    arguments = parser.parse_args()
    written = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    rows = [json.loads(line) for line in written]
    done = {(r["example"], r["seed"], r["ratio"]) for r in rows}
    for name in arguments.examples or sorted(f.stem for f in EXAMPLES.glob("*.arch")):
        if (name, arguments.seed, arguments.ratio) in done:
            continue
        start = time.perf_counter()
        row = judge(name, arguments.ratio, arguments.seed)
        rows.append(row)
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{name:16s} {row['classes']:4d} classes, {row['removed']:.3f} removed, "
            f"from masked {row['from masked']:.1e}, from old {row['from old']:.1e}"
            f"{'' if row['ok'] and row['prints'] else ' WRONG'} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    bad = [r["example"] for r in rows if not (r["ok"] and r["prints"])]
    print(f"{len(rows)} judged, {len(bad)} wrong {bad or ''}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
