"""Is the derived permutation group the whole one? Tiny networks, counted by computing alone.

    python benchmarks/symmetry_brute.py --count 100 --out brute.jsonl

Each line of the file judges one network (see tests/metanet: tiny_nets.py draws it, brute.py counts, verdicts.py
compares); a network with a line is not judged again. Networks in which some numbers of a parameter have no influence
on the inputs at hand, or whose outputs are constant, are passed over and counted, until `--count` have been decided.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests" / "metanet"
sys.path.insert(0, str(TESTS))

from tiny_nets import BLOCKS, tiny_net  # noqa: E402
from verdicts import judge  # noqa: E402

from archc.grammar.load import loads  # noqa: E402
from archc.ir.op import REGISTRY  # noqa: E402


def judged(seed: int, index: int) -> dict[str, Any]:
    net = tiny_net(seed, index)
    graph = loads(net.text)
    start = time.process_time()
    verdict = judge(graph, seed)
    return {
        "seed": seed,
        "index": index,
        "blocks": net.blocks,
        "ops": sorted({node.op.name for node in graph.walk()}),
        "numbers": sum(p.size for p in graph.parameters().values()),
        **asdict(verdict),
        "decided": verdict.decided,
        "level": verdict.level,
        "seconds": round(time.process_time() - start, 2),
    }


def summary(rows: list[dict[str, Any]]) -> str:
    decided = [r for r in rows if r["decided"]]
    ops = {o for r in decided for o in r["ops"]}
    families = Counter(REGISTRY[o].category for o in ops)
    weighty = {o.name for o in REGISTRY.values() if o.weights or o.regions}
    levels = Counter(r["level"] or "differs" for r in decided)
    largest = max((r["classes"] * r["exchanges"] for r in decided), default=0)
    blocks = {b for r in decided for b in r["blocks"]}
    lines = [
        f"{len(decided)} networks decided, {len(rows) - len(decided)} passed over "
        f"({sum(r['constant'] for r in rows)} with constant outputs, {sum(r['gave_up'] for r in rows)} given up); "
        f"{len(ops)} ops, {len(blocks)} "
        f"of {len(BLOCKS)} blocks; {sum(r['seconds'] for r in rows):.0f} s of CPU",
        f"equal to all permutations of numbers inside parameters: {levels['entries']}",
        f"equal to all permutations of whole axes, where numbers alone have more: {levels['axes']}",
        f"not equal: {levels['differs']}",
        f"with exchanges of layers: {sum(r['exchanges'] > 1 for r in decided)}; largest order {largest:.3g}; "
        f"trivial groups: {sum(r['classes'] * r['exchanges'] == 1 for r in decided)}",
        f"families: {', '.join(f'{k} {v}' for k, v in sorted(families.items()))}",
        f"ops with weights or regions that did not occur: {', '.join(sorted(weighty - ops)) or 'none'}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("symmetry_brute.jsonl"))
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    rows = [r for r in rows if r["seed"] == given.seed]
    known = {r["index"]: r for r in rows}
    rows, index = [], 0
    with given.out.open("a") as file:
        while sum(r["decided"] for r in rows) < given.count:
            if index not in known:
                known[index] = judged(given.seed, index)
                file.write(json.dumps(known[index]) + "\n")
                file.flush()
                if known[index]["decided"] and not known[index]["level"]:
                    print(index, known[index]["blocks"], "differs", flush=True)
            rows.append(known[index])
            index += 1
    print(summary(rows))
    sys.exit(any(r["decided"] and not r["level"] for r in rows))


if __name__ == "__main__":
    main()
