"""Tasks on sequences: labels, sides that share nothing, and what tells nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from archc.backends.torch.training import load_task
from archc.backends.torch.training.sequences import balanced, listops_value
from archc.ir.diagnostics import CompileError

SMALL = "train=300&val=100&test=100"
TASKS = ("dyck", "listops", "copy", "induction")


def rows(spec: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    part = load_task(spec).splits[split]
    (x,), y = part.batch(torch.arange(len(part)))
    return x.numpy(), y.numpy()


@pytest.mark.parametrize("name", TASKS)
def test_no_sequence_stands_on_two_sides(name: str) -> None:
    spec = f"{name}?{SMALL}"
    sides = [set(map(tuple, rows(spec, split)[0].tolist())) for split in ("train", "val", "test")]
    assert [len(side) for side in sides] == [300, 100, 100], "nor twice on one"
    assert len(set.union(*sides)) == 500
    task, again, other = load_task(spec), load_task(spec), load_task(f"{spec}&seed=1")
    assert task.data_sha256 == again.data_sha256 != other.data_sha256


def test_labels_are_right() -> None:
    x, y = rows(f"dyck?{SMALL}", "train")
    assert [balanced(row.tolist(), 2) for row in x] == y.tolist()
    x, y = rows(f"listops?{SMALL}", "train")
    assert [listops_value([s for s in row.tolist() if s < 15]) for row in x] == y.tolist()
    x, y = rows(f"copy?{SMALL}", "train")
    assert np.array_equal(y[:, 5:], x[:, :-5])
    x, y = rows(f"induction?{SMALL}", "train")
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        assert row.count(row[-1]) == 2
        assert row[row.index(row[-1]) + 1] == label


def test_what_a_sequence_is_made_of_does_not_tell() -> None:
    x, y = rows("dyck?train=2000", "train")
    counts = np.stack([(x == symbol).sum(1) for symbol in range(4)], 1)
    assert 0.45 < y.mean() < 0.55
    assert (counts[:, :2] == counts[:, 2:]).all(), "as many close as open, in both classes"
    x, y = rows("listops?train=2000", "train")
    assert np.bincount(y, minlength=10).max() < 0.25 * len(y)
    x, y = rows("induction?train=2000", "train")
    assert np.bincount(y, minlength=8).max() < 0.2 * len(y)


def test_options() -> None:
    task = load_task(f"copy?length=10&symbols=3&lag=2&{SMALL}")
    assert (str(task.inputs[0]), str(task.output)) == ("i64[10]", "f32[10, 3]")
    with pytest.raises(CompileError, match="E0614"):
        load_task("dyck?length=4&kinds=1")
    for spec in ("copy?lag=16", "dyck?length=7", "listops?depth=0"):
        with pytest.raises(CompileError, match="E0610"):
            load_task(spec)


def test_they_can_be_searched_on() -> None:
    """Networks of embeddings fit, per sequence and per place; and one of the wrong length does not."""
    from archc.grammar.load import loads
    from archc.search.trial import demand_fit

    net = "arch net\ninput x: i64[N, {n}]\noutput y: f32[N, {out}]\ny = x -> embedding({v}, 8) -> {body} linear({k})\n"
    for spec, n, v, k, body in [("dyck", 24, 4, 2, "flatten ->"), ("copy", 16, 8, 8, "")]:
        task = load_task(f"{spec}?{SMALL}")
        right, wrong = (
            loads(net.format(n=size, v=v, k=k, body=body, out=k if body else f"{size}, {k}")) for size in (n, n + 1)
        )
        demand_fit(right, task)
        with pytest.raises(CompileError, match="E0615"):
            demand_fit(wrong, task)
