"""Would the tests notice? Small mistakes put into shape rules, axis rules, lowerings and kernels, one at a time.

    python benchmarks/mutants.py --count 60 --seed 0 --results mutants.jsonl

A mutant changes one place of one file's syntax tree: two arguments swapped, a term dropped, a constant or an operator
changed, a comparison turned, a string of a signature edited. It is put into a copy of the tree, and the quick suites
that are meant to guard that file run there. A mutant that they pass is a survivor, and is listed: either the tests
have a hole, or the change means nothing. Resumable: a mutant with a line in the results is not run again.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {
    "rules": (
        ("ir/ops/*.py", "ir/axes.py", "ir/dims.py"),
        ("tests/ir", "tests/reference/test_flops.py", "tests/reference/test_axes.py", "tests/reference/test_torch.py"),
    ),
    "torch": (
        ("backends/torch/lowerings/*.py",),
        ("tests/reference/test_torch.py", *(f"tests/backends/torch/test_{t}.py" for t in ("lowerings", "codegen"))),
    ),
    "tvm": (
        ("backends/tvm/lowerings/*.py", "backends/tvm/cpu/*.py"),
        ("tests/reference/test_tvm.py", "tests/backends/tvm", "tests/differential"),
    ),
}
"""Family -> its files, and the suites that should catch a mistake in them. Those that do not exist are left out."""
SKIPPED = ("__init__.py", "tile.py", "codegen.py")
"""Files whose mistakes cost time, not truth: tile sizes, and how many kernels are compiled at once."""
IDLE = (
    "OpDef",
    "register",
    "lowering",
    "isinstance",
    "model_validator",
    "Field",
    "Weight",
    "_activation",
    "_unary",
    "_binary",
)
"""Calls whose own arguments are names and texts; what is inside them is changed all the same."""
SECONDS = 900


@dataclass(frozen=True)
class Mutant:
    """One change of a file: where it is, what was done, and the file with it."""

    family: str
    file: str
    line: int
    kind: str
    before: str
    source: str


@dataclass(frozen=True)
class Change:
    """A node of a file's tree, and what could stand in its place."""

    tree: ast.Module
    node: ast.expr
    kind: str
    new: ast.AST

    @property
    def before(self) -> str:
        return ast.unparse(self.node)[:80]

    def mutant(self, path: Path, family: str) -> Mutant:
        changed = _Replace(self.node, self.new).visit(self.tree)
        source = ast.unparse(ast.fix_missing_locations(changed))
        _Replace(self.new, self.node).visit(self.tree)
        return Mutant(family, str(path.relative_to(ROOT)), self.node.lineno, self.kind, self.before, source)


SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What can be done to a node, each as (kind, new node)."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.BinOp) and type(new.op) in SWAPPED:
        yield "drop a term", copy.deepcopy(new.left)
        new.op = SWAPPED[type(new.op)]()  # type: ignore[assignment]
        yield "other operator", new
    elif isinstance(new, ast.Compare) and type(new.ops[0]) in SWAPPED:
        new.ops[0] = SWAPPED[type(new.ops[0])]()  # type: ignore[call-overload]
        yield "other comparison", new
    elif isinstance(new, ast.BoolOp):
        new.op = SWAPPED[type(new.op)]()  # type: ignore[assignment]
        yield "other connective", new
    elif isinstance(new, ast.Constant) and type(new.value) is int:
        yield "off by one", ast.Constant(new.value + 1)
    elif isinstance(new, ast.Constant) and type(new.value) is float and new.value:
        yield "wrong constant", ast.Constant(new.value * 1.5)
    elif isinstance(new, ast.Constant) and isinstance(new.value, str):
        yield from _line_changes(new.value)
    elif isinstance(new, ast.Call) and len(new.args) >= 2 and not any(isinstance(a, ast.Starred) for a in new.args):
        new.args[0], new.args[1] = new.args[1], new.args[0]
        yield "swap arguments", new
    elif isinstance(new, ast.IfExp):
        new.body, new.orelse = new.orelse, new.body
        yield "swap branches", new
    elif isinstance(new, ast.Call) and new.keywords:
        yield "drop an argument", ast.Call(new.func, new.args, new.keywords[:-1])


def _line_changes(text: str) -> Iterator[tuple[str, ast.AST]]:
    """Of a signature's line: its marks, and the order of its last axes. Of a torch expression: its numbers."""
    if "->" in text and "[" in text:
        for mark in "!~":
            if mark in text:
                yield f"drop `{mark}`", ast.Constant(text.replace(mark, "", 1))
        swapped = re.sub(r"\[(\w+), (\w+)([^\]]*)\]$", r"[\2, \1\3]", text)
        if swapped != text:
            yield "swap axes", ast.Constant(swapped)
    elif text.startswith((", ", "F.", "torch.")) and re.search(r"\d", text):
        yield "off by one", ast.Constant(re.sub(r"\d", lambda m: str((int(m[0]) + 1) % 10), text, count=1))


class _Replace(ast.NodeTransformer):
    def __init__(self, at: ast.AST, new: ast.AST) -> None:
        self.at, self.new = at, new

    def visit(self, node: ast.AST) -> Any:
        return ast.copy_location(self.new, node) if node is self.at else super().generic_visit(node)


def possible(path: Path) -> list[Change]:
    """Every change of a file: docstrings, messages and the texts of diagnostics are left alone."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("BindError", "fail", "TypeVar")
        ):
            for inner in ast.walk(node):
                inner.silent = True  # type: ignore[attr-defined]
        if isinstance(node, ast.keyword) and node.arg in (
            "doc",
            "paper",
            "example",
            "category",
            "help",
            "label",
            "flops",
        ):
            for inner in ast.walk(node):
                inner.silent = True  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.arg) and getattr(node, "returns", None) is not None:
            for inner in ast.walk(node.returns):  # type: ignore[union-attr, arg-type]
                inner.silent = True  # type: ignore[attr-defined]
    for node in list(ast.walk(tree)):
        if getattr(node, "silent", False) or not isinstance(node, ast.expr):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IDLE:
            continue
        found += [Change(tree, node, kind, new) for kind, new in changes(node)]
    return found


def chosen(seed: int, count: int, families: list[str]) -> list[Mutant]:
    """`count` mutants, as many of each family, from files taken in turn."""
    rng = random.Random(seed)
    picked: list[Mutant] = []
    for family in families:
        files = sorted({p for pattern in FAMILIES[family][0] for p in ROOT.glob(pattern) if p.name not in SKIPPED})
        rng.shuffle(files)
        wanted = count // len(families)
        while wanted:
            for path in files:
                options = possible(path)
                if options and wanted:
                    mutant = rng.choice(options).mutant(path, family)
                    if mutant not in picked:
                        picked.append(mutant)
                        wanted -= 1
    return picked


def survivors(path: Path) -> list[Mutant]:
    """The mutants that survived an earlier run, in the sources of today; what is no longer there is left out."""
    found = []
    for row in map(json.loads, path.read_text().splitlines()):
        if not row["killed"]:
            file = ROOT / row["file"]
            like = [c for c in possible(file) if c.kind == row["kind"] and c.before == row["before"]]
            like.sort(key=lambda c: abs(c.node.lineno - row["line"]))
            found += [c.mutant(file, row["family"]) for c in like[:1]]
    return found


def run(mutant: Mutant, tree: Path, jobs: int) -> dict[str, Any]:
    """Put the mutant into the copied tree, run its suites, and put the file back."""
    target = tree / mutant.file
    original = target.read_text(encoding="utf-8")
    target.write_text(mutant.source, encoding="utf-8")
    suites = [s for s in FAMILIES[mutant.family][1] if (tree / s).exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *suites]
    command += ["-n", str(jobs)] if jobs > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"}
    environment |= {"XDG_CACHE_HOME": str(tree / ".cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
        killed, how = done.returncode != 0, done.stdout.strip().splitlines()[-4:]
    except subprocess.TimeoutExpired:
        killed, how = True, ["timeout"]
    finally:
        target.write_text(original, encoding="utf-8")
    return {
        **{k: getattr(mutant, k) for k in ("family", "file", "line", "kind", "before")},
        "killed": killed,
        "how": how if killed else [],
        "seconds": round(time.perf_counter() - start, 1),
    }


def copied_tree(into: Path) -> Path:
    """The tracked files and the rest of the working tree, with the links of the package."""
    tree = into / "tree"
    ignore = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", ".cache", "*.jsonl", ".venv")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignore)
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=sorted(FAMILIES), action="append")
    parser.add_argument("--jobs", type=int, default=1, help="processes of pytest-xdist")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--survivors", type=Path, metavar="RESULTS", help="try the survivors of an earlier run again")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    done = {(r["file"], r["line"], r["kind"], r["before"]) for r in rows}
    with tempfile.TemporaryDirectory() as scratch, given.results.open("a") as file:
        tree = copied_tree(Path(scratch))
        families = given.family or sorted(FAMILIES)
        for family in families:
            path = next(p for pattern in FAMILIES[family][0] for p in ROOT.glob(pattern))
            same = Mutant(family, str(path.relative_to(ROOT)), 0, "none", "", path.read_text(encoding="utf-8"))
            control = run(same, tree, given.jobs)
            if control["killed"]:
                sys.exit(f"the suites of {family} fail without a mutant: {control['how']}")
        for mutant in survivors(given.survivors) if given.survivors else chosen(given.seed, given.count, families):
            if (mutant.file, mutant.line, mutant.kind, mutant.before) in done:
                continue
            rows.append(run(mutant, tree, given.jobs))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            print(f"{'killed  ' if rows[-1]['killed'] else 'SURVIVED'} {mutant.file}:{mutant.line} {mutant.kind}: "
                  f"{mutant.before} ({rows[-1]['seconds']} s)", flush=True)  # fmt: skip
    alive = [r for r in rows if not r["killed"]]
    print(f"{len(rows)} mutants, {len(rows) - len(alive)} killed, {len(alive)} survived")
    for r in alive:
        print(f"  {r['file']}:{r['line']} {r['kind']}: {r['before']}")


if __name__ == "__main__":
    main()
