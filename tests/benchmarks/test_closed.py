"""The closed space and its table: what is in the table is the space's, all of it, and can be trained again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from archc.ir.canonical import canonical

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import closed
import closed_table
from results import Results


def test_no_two_architectures_are_the_same_network() -> None:
    space, table = closed.read_space(closed.SPACE, {}), closed_table.load()
    graphs = [space.redraw(dict(zip(closed.CHOICES, trace, strict=True))).graph for trace in closed.traces()]
    hashes = [canonical(graph).hash for graph in graphs]
    assert len(set(hashes)) == 1024
    # hard_digits is the task of the space's own defaults: these are the table's architectures, in its order.
    assert hashes == table.hashes[table.tasks.index("hard_digits")].tolist()
    assert [tuple(trace) for trace in table.traces.tolist()] == closed.traces()


def test_the_table_is_whole() -> None:
    table = closed_table.load()
    assert set(table.tasks) == {"hard_digits", "add_digits", "tiles", "mult_digits"}
    assert table.curves.shape == (4, 2, 1024, 4)
    for values in (table.curves, table.test):
        assert not np.isnan(values).any()
        assert values.min() >= 0
        assert values.max() <= 1
    assert all(len(set(hashes)) == 1024 for hashes in table.hashes.tolist())
    assert (table.params > 1000).all()


def test_a_row_can_be_trained_again() -> None:
    """To a few points: another processor or torch rounds otherwise. Its neighbours in the table are further away."""
    table = closed_table.load()
    task = table.tasks.index("hard_digits")
    best = int(table.accuracy[task].mean(0).argmax())
    row = closed.Bench().row("hard_digits", 1, best)
    assert row["hash"] == table.hashes[task, best]
    assert row["params"] == table.params[task, best]
    assert row["curve"] == pytest.approx(table.curves[task, 1, best].tolist(), abs=0.06)
    assert abs(np.median(table.accuracy[task]) - row["curve"][-1]) > 0.15


def test_rows_become_a_table_and_only_whole_tasks_count(tmp_path: Path) -> None:
    results = Results(tmp_path / "closed-0-of-1.jsonl")
    sizes = {"params": 10, "flops": 20, "activation_bytes": 30}
    row = {"task": "tiles", "seed": 1, "number": 7, "hash": "ab" * 32, "curve": [0.1, 0.2], "val_loss": 1.0}
    results.add(row | {"test": 0.5, "test_loss": 2.0, "seconds": 0.5} | sizes)
    assert closed_table.load(tmp_path).tasks == ()
    table = closed_table.load(tmp_path, partial=True)
    assert table.curves[0, 1, 7].tolist() == [0.1, 0.2, 0, 0], "one that diverged on the way"
    assert np.isnan(table.curves[0, 0]).all()
    closed_table.store(tmp_path / "table.npz", table)
    again = closed_table.load(tmp_path / "table.npz", partial=True)
    assert (again.hashes == table.hashes).all()
    assert again.trace(7) == {"Style": 0, "Stem": 0, "Fine": 0, "Coarse": 1, "Head": 3}
