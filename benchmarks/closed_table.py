"""The table of the closed space: what `closed.py` measured of every architecture, to replay searches on.

    python benchmarks/closed_table.py rows/ [--table benchmarks/data/closed.npz] [--report report.md]

gathers the rows that `closed.py` wrote, and says what the table is good for: how well one seed tells the other, early
validation the end, and `params` both.

    >>> table = load()                                                             # doctest: +SKIP
    >>> table.curves[0, :, 17]      # first task, both seeds, architecture 17: validation accuracy on the way
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).parent / "data" / "closed.npz"
CHOICES = ("Style", "Stem", "Fine", "Coarse", "Head")
CHECKPOINTS = (1 / 9, 1 / 3, 2 / 3, 1.0)
SEEDS, ARCHITECTURES = 2, 1024

Floats = NDArray[np.float64]
QUANTITIES = ("params", "flops", "activation_bytes")


@dataclass(frozen=True)
class Table:
    """Axes: task, seed, architecture, checkpoint, as far as each has them. NaN: not trained (yet).

    An architecture's hash and its quantities depend on the task, which settles channels, side and classes; its trace
    does not. `loss` is that of validation at the end, as `accuracy` is, the end of `curves`; `seconds` are CPU time.
    """

    tasks: tuple[str, ...]
    choices: tuple[str, ...]
    checkpoints: Floats
    traces: NDArray[np.int64]  # architecture, choice
    hashes: NDArray[np.str_]  # task, architecture
    curves: Floats  # task, seed, architecture, checkpoint
    loss: Floats  # task, seed, architecture
    test: Floats
    test_loss: Floats
    seconds: Floats
    params: Floats  # task, architecture
    flops: Floats
    activation_bytes: Floats

    @property
    def accuracy(self) -> Floats:
        """Validation accuracy at the end: task, seed, architecture."""
        return self.curves[..., -1]

    def trace(self, architecture: int) -> dict[str, int]:
        """The choices of an architecture, as the space names them."""
        return dict(zip(self.choices, map(int, self.traces[architecture]), strict=True))


def load(path: Path | str = TABLE, *, partial: bool = False) -> Table:
    """The table: the committed one, or what there is of the rows in a folder. Tasks that are not complete are left out,
    unless they are asked for."""
    table = _gathered(Path(path)) if Path(path).is_dir() else _stored(Path(path))
    return table if partial else _only(table, [not np.isnan(test).any() for test in table.test])


def store(path: Path, table: Table) -> None:
    """Write a table, as arrays of numbers."""
    arrays = {field.name: np.asarray(getattr(table, field.name)) for field in fields(table)}
    arrays["hashes"] = np.array([[list(bytes.fromhex(h)) for h in task] for task in table.hashes], np.uint8)
    for name in ("curves", "loss", "test", "test_loss", "seconds"):
        arrays[name] = arrays[name].astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _stored(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    arrays["hashes"] = np.array([[bytes(h).hex() for h in task] for task in arrays["hashes"]])
    for name in ("curves", "loss", "test", "test_loss", "seconds"):
        arrays[name] = arrays[name].astype(np.float64)
    for name in ("tasks", "choices"):
        arrays[name] = tuple(map(str, arrays[name]))
    return Table(**arrays)


def _gathered(folder: Path) -> Table:
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("closed-*.jsonl")):
        whole, _, _ = file.read_bytes().rpartition(b"\n")
        rows += map(json.loads, whole.splitlines())
    tasks = tuple(dict.fromkeys(row["task"] for row in rows))
    cells = len(tasks), SEEDS, ARCHITECTURES
    found = {name: np.full(cells, np.nan) for name in ("loss", "test", "test_loss", "seconds")}
    sizes = {name: np.full((cells[0], cells[2]), np.nan) for name in QUANTITIES}
    curves = np.full((*cells, len(CHECKPOINTS)), np.nan)
    hashes = np.full((cells[0], cells[2]), "0" * 64)
    for row in rows:
        task, number = tasks.index(row["task"]), row["number"]
        at = task, row["seed"], number
        curve = row["curve"] + [0.0] * (len(CHECKPOINTS) - len(row["curve"]))  # one that diverged knows nothing
        curves[at] = curve
        found["loss"][at] = row["val_loss"]
        for name in ("test", "test_loss", "seconds"):
            found[name][at] = row[name]
        for name in QUANTITIES:
            sizes[name][task, number] = row[name]
        hashes[task, number] = row["hash"]
    traces = np.stack(np.unravel_index(np.arange(ARCHITECTURES), (4,) * len(CHOICES)), 1)
    return Table(tasks, CHOICES, np.array(CHECKPOINTS), traces, hashes, curves, **found, **sizes)


def _only(table: Table, chosen: Sequence[bool]) -> Table:
    keep = np.flatnonzero(chosen)
    parts: dict[str, Any] = {}
    for field in fields(table):
        value = getattr(table, field.name)
        if field.name == "tasks":
            parts["tasks"] = tuple(value[i] for i in keep)
        else:
            parts[field.name] = value if field.name in ("choices", "checkpoints", "traces") else value[keep]
    return Table(**parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    table = load(options.rows)
    if options.table is not None:
        store(options.table, table)
    text = report(table)
    print(text, end="")
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")


def report(table: Table) -> str:
    """How informative the table is, as a page of markdown tables."""
    from scipy.stats import spearmanr

    def rank(a: Floats, b: Floats) -> str:
        return f"{spearmanr(a, b).statistic:.2f}"

    head = [
        "task",
        "CPU s each",
        "val: min",
        "median",
        "max",
        "seed to seed",
        "top third",
        "params",
        "params, top third",
    ]
    head += [f"after {share:.2f}" for share in table.checkpoints[:-1]] + ["val to test", "oracle's test"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for task, name in enumerate(table.tasks):
        first, second = table.accuracy[task]
        mean, test = table.accuracy[task].mean(0), table.test[task].mean(0)
        top = first >= np.quantile(first, 2 / 3)  # chosen by one seed; judged by the other, too, would be too kind
        best = mean >= np.quantile(mean, 2 / 3)
        cells = [name, f"{table.seconds[task].mean():.2f}"]
        cells += [f"{100 * v:.1f}" for v in (mean.min(), np.median(mean), mean.max())]
        cells += [rank(first, second), rank(first[top], second[top])]
        cells += [rank(table.params[task], mean), rank(table.params[task][best], mean[best])]
        cells += [rank(table.curves[task, 0, :, k], second) for k in range(len(table.checkpoints) - 1)]
        cells += [rank(mean, test), f"{100 * test[mean.argmax()]:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
