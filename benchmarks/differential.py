"""Random networks against independent oracles: text, hash, types, torch, TVM, decompositions, symmetry.

    python benchmarks/differential.py --count 1000 --seed 0 --results results.jsonl

A line is written for each network as soon as it is judged, and a network with a line is not judged again, so a run that
was cut off goes on where it was. Several networks are compiled as one; when that fails, each is compiled alone.
`--reduce` prints a small network for each failure of TVM. The table at the end counts what was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests" / "differential"
sys.path.insert(0, str(TESTS))

from oracles import Findings, Trial, against_judge, check, compile_and_run, judge_compiled, trial  # noqa: E402
from random_nets import RandomNet, random_net  # noqa: E402
from reduction import reduced  # noqa: E402

from archc.grammar.printer import print_graph  # noqa: E402
from archc.ir.diagnostics import CompileError  # noqa: E402
from archc.ir.graph import Graph  # noqa: E402

UNSUPPORTED = ("E0506", "E0507")
"""The codes by which a backend refuses a network that is right."""


def judged(nets: Sequence[RandomNet], folder: Path, tvm: bool) -> list[Findings]:
    """The findings for each network."""
    found = [check(net) for net in nets]
    if not tvm:
        return found
    trials: list[tuple[Trial, Findings]] = []
    for net, findings in zip(nets, found, strict=True):
        if "judge" not in findings.wrong:
            trials.append((trial(net), findings))
    _compiled(trials, folder)
    return found


def _compiled(trials: list[tuple[Trial, Findings]], folder: Path) -> None:
    if not trials:
        return
    start = time.perf_counter()
    try:
        results = compile_and_run([t for t, _ in trials], folder)
    except Exception as e:  # an error of the compiler is the finding
        if len(trials) > 1:
            for pair in trials:
                _compiled([pair], folder)
        elif isinstance(e, CompileError) and e.diagnostics[0].code in UNSUPPORTED:
            trials[0][1].refused["tvm"] = str(e)
        else:
            trials[0][1].wrong["tvm"] = f"{type(e).__name__}: {e}"[-600:]
        return
    seconds = (time.perf_counter() - start) / len(trials)
    for (t, findings), result in zip(trials, results, strict=True):
        judge_compiled(findings, t, _compare(findings, result))
        findings.seconds["tvm"] = seconds


def _compare(findings: Findings, result: dict[str, Any]) -> Callable[[Trial], str]:
    return lambda t: against_judge(t, result, findings)


def row(net: RandomNet, found: Findings) -> dict[str, Any]:
    return {
        "seed": net.seed,
        "index": net.index,
        "focus": net.focus,
        "ops": sorted(net.ops),
        "nodes": len(list(net.graph.walk())),
        "wrong": found.wrong,
        "excused": found.excused,
        "refused": found.refused,
        "outputs": found.outputs,
        "vacuous": found.vacuous,
        "seconds": {k: round(v, 3) for k, v in found.seconds.items()},
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The counts, as a table."""
    wrong = Counter(name for r in rows for name in r["wrong"])
    excused = Counter(name for r in rows for name in r["excused"])
    refused = Counter(name for r in rows for name in r.get("refused", ()))
    seconds = Counter[str]()
    for r in rows:
        seconds.update(r["seconds"])
    lines = [
        f"{len(rows)} networks, {sum(r['nodes'] for r in rows)} nodes, {len({o for r in rows for o in r['ops']})} ops; "
        f"{sum(r['outputs'] for r in rows)} outputs compared, {sum(r['vacuous'] for r in rows)} of them with a "
        "tolerance above 5 % of their largest element",
        "",
        "| oracle | wrong | excused | refused | seconds a network |",
        "|---|---|---|---|---|",
    ]
    for name in seconds:
        lines.append(
            f"| {name} | {wrong[name]} | {excused[name]} | {refused[name]} | {seconds[name] / len(rows):.3f} |"
        )
    bad = sum(bool(r["wrong"]) for r in rows)
    lines += [
        "",
        f"{bad} networks with a mismatch, {sum(bool(r['excused']) for r in rows)} excused by a close decision",
    ]
    return "\n".join(lines)


def smallest(net: RandomNet, folder: Path) -> str:
    """A small network on which TVM fails in the same way."""

    def outcome(graph: Graph) -> str:
        sizes = {s: net.sizes.get(s, 3) for s in graph.symbols()}
        t = trial(RandomNet(net.seed, net.index, net.focus, graph, "", sizes))
        found = Findings()
        try:
            (result,) = compile_and_run([t], folder)
        except Exception as e:
            return type(e).__name__
        judge_compiled(found, t, _compare(found, result))
        return "wrong" if found.wrong else ""

    first = outcome(net.graph)

    def fails(graph: Graph) -> bool:
        told = {str(d) for v in graph.inputs for d in v.type.shape}
        return all(s in told for s in graph.symbols()) and outcome(graph) == first

    return print_graph(reduced(net.graph, fails)) if first else "passes alone\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="networks compiled as one")
    parser.add_argument("--no-tvm", dest="tvm", action="store_false")
    parser.add_argument("--reduce", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("differential.jsonl"))
    given = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    rows = [r for r in rows if r["seed"] == given.seed]
    done = {r["index"] for r in rows}
    todo = [i for i in range(given.start, given.start + given.count) if i not in done]
    with tempfile.TemporaryDirectory() as scratch, given.results.open("a") as file:
        for at in range(0, len(todo), given.batch):
            nets = [random_net(given.seed, i) for i in todo[at : at + given.batch]]
            for net, found in zip(nets, judged(nets, Path(scratch), given.tvm), strict=True):
                rows.append(row(net, found))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                for oracle, reason in found.wrong.items():
                    print(f"{net.index} ({net.focus}) {oracle}: {reason[-300:]}", flush=True)
                if given.reduce and "tvm" in found.wrong:
                    print(smallest(net, Path(scratch)), flush=True)
    print(summary(rows))
    sys.exit(any(r["wrong"] for r in rows))


if __name__ == "__main__":
    main()
