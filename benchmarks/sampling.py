"""Drawing from a space: how fast, whether all of it builds and runs, how large it is, how much of it is the same.

    python benchmarks/sampling.py --out sampling/ [--space examples/spaces/einspace.arch] [--parts rate,builds]

Parts, in this order; each is a number of rows in `sampling/rows.jsonl`, and a script that was killed goes on where it
was. `sampling/summary.json` is written at the end.

    rate     10,000 architectures in batches, drawn and hashed: CPU seconds, attempts, sizes, hashes, peak memory
    builds   1,000 of them: the graph built, its cost and canonical hash compared with what the draw says, and the
             network run in torch, where its results for one sample take at most 512 MB
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from results import Results, Row

from archc.grammar.draw import Drawn, Space, read_space
from archc.grammar.requirements import measure
from archc.ir.canonical import canonical
from archc.ir.cost import cost

SPACE = Path(__file__).parent.parent / "examples" / "spaces" / "einspace.arch"
BATCH, BATCHES = 500, 20
BUILT, BUILT_AT_ONCE = 1000, 20
MOST_BYTES = 512 << 20
"""Of a network's results for one sample: what is larger is built, and not run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--parts", default="rate,builds")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = Results(given.out / "rows.jsonl")
    space = read_space(given.space)
    wanted = given.parts.split(",")
    if "rate" in wanted:
        space.draw(given.seed + 1, 0)  # what happens once: reading, and the first steps of scripts
        for batch in range(BATCHES):
            _once(results, f"rate/{batch}", lambda batch=batch: rate(space, given.seed, batch))
    if "builds" in wanted:
        for first in range(0, BUILT, BUILT_AT_ONCE):
            _once(results, f"builds/{first}", lambda first=first: builds(space, given.seed, first))
    summary = summarised(results.rows)
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


def _once(results: Results, key: str, work: Any) -> None:
    if all(row["key"] != key for row in results.rows):
        results.add({"key": key, **work()})


def rate(space: Space, seed: int, batch: int) -> Row:
    """Draw and hash a batch. Graphs are built for the first twenty alone, after the clock has stopped."""
    begin = time.process_time()
    drawn = [space.draw(seed, index) for index in range(batch * BATCH, (batch + 1) * BATCH)]
    middle = time.process_time()
    hashes = [one.hash for one in drawn]
    end = time.process_time()
    traces = [blake2b(repr(one.trace).encode(), digest_size=8).hexdigest() for one in drawn]
    sizes = [list(_sizes(one)) for one in drawn]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = time.process_time()
    for one in drawn[:20]:
        one.graph  # noqa: B018
    build = (time.process_time() - before) / 20
    return {
        "draw_seconds": middle - begin, "hash_seconds": end - middle, "build_seconds_each": build,
        "attempts": sum(one.attempts for one in drawn), "hashes": hashes, "traces": traces, "sizes": sizes,
        "built_for_hash": sum(len(h) == 64 for h in hashes), "peak_mb": peak,
    }  # fmt: skip


def _sizes(one: Drawn) -> Iterator[int]:
    """Nodes, params, flops and bytes of results of one sample, choices."""
    scale = one._transfer.scale
    yield from (one.nodes, one.params, scale.at_one(one._derivation.flops))
    yield from (scale.at_one(one._derivation.activation_bytes), len(one.trace))


def builds(space: Space, seed: int, first: int) -> Row:
    """Build and run some architectures; what differs from what their draws say."""
    import torch

    from archc.backends.torch.module import to_torch

    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    depths, pairs = [], []
    begin = time.process_time()
    for index in range(first, first + BUILT_AT_ONCE):
        one = space.draw(seed, index)
        graph = one.graph
        costs = cost(graph)
        found["built"] += 1
        built = costs.params, costs.flops, costs.activation_bytes, sum(1 for _ in graph.walk())
        found["costs as drawn"] += built == (one.params, one.flops, one.activation_bytes, one.nodes)
        depths.append(measure(graph, ["depth"])["depth"])
        pairs.append([one.hash, canonical(graph).hash])
        if list(_sizes(one))[3] > MOST_BYTES or one.params > 100_000_000:
            found["too large to run here"] += 1
            continue
        shape = [2 if not isinstance(d, int) else d for d in graph.inputs[0].type.shape]
        with torch.no_grad():
            result = to_torch(graph).eval()(torch.randn(shape, generator=torch.Generator().manual_seed(index)))
        found["run"] += 1
        wanted = [2 if not isinstance(d, int) else d for d in graph.outputs[0].type.shape]
        found["shape as drawn"] += list(result.shape) == wanted
    return {"found": dict(found), "depths": depths, "pairs": pairs, "seconds": time.process_time() - begin}


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def quantiles(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[min(int(len(ordered) * q), len(ordered) - 1)] for q in QUANTILES]


def summarised(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of all rows."""
    batches = [r for r in rows if r["key"].startswith("rate/")]
    built = [r for r in rows if r["key"].startswith("builds/")]
    summary: dict[str, Any] = {}
    if batches:
        count = len(batches) * BATCH
        hashes = [h for r in batches for h in r["hashes"]]
        traces = [t for r in batches for t in r["traces"]]
        sizes = [s for r in batches for s in r["sizes"]]
        summary |= {
            "drawn": count,
            "per_cpu_second": count / sum(r["draw_seconds"] + r["hash_seconds"] for r in batches),
            "per_cpu_second_by_batch": [BATCH / (r["draw_seconds"] + r["hash_seconds"]) for r in batches],
            "hash_share": sum(r["hash_seconds"] for r in batches)
            / sum(r["draw_seconds"] + r["hash_seconds"] for r in batches),
            "build_seconds_each": sum(r["build_seconds_each"] for r in batches) / len(batches),
            "valid_attempts": count / sum(r["attempts"] for r in batches),
            "hashed_by_building": sum(r["built_for_hash"] for r in batches),
            "distinct_hashes": len(set(hashes)),
            "distinct_traces": len(set(traces)),
            "peak_mb": max(r["peak_mb"] for r in batches),
            "quantiles": {
                name: quantiles([s[i] for s in sizes])
                for i, name in enumerate(("nodes", "params", "flops", "activation_bytes", "choices"))
            },
        }
    if built:
        total: Counter[str] = sum((Counter(r["found"]) for r in built), Counter())
        pairs = {tuple(p) for r in built for p in r["pairs"]}
        summary |= {
            "builds": dict(total),
            "depth": quantiles([d for r in built for d in r["depths"]]),
            "hashes_told_apart": [len({a for a, _ in pairs}), len({b for _, b in pairs}), len(pairs)],
        }
    return summary


if __name__ == "__main__":
    main()
