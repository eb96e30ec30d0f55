"""Replays on the closed table: what is seen, what it costs, and what it is judged by."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archc.search.records import Candidate
from archc.search.strategy import strategy_kind
from archc.search.table import TableSpace

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("strategies_bench", FOLDER / "strategies.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["strategies_bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def view(bench: Any) -> Any:
    """256 made-up architectures that learn at the same pace, with noise."""
    rng = np.random.Generator(np.random.Philox(0))
    space = TableSpace(
        [Candidate(text="", hash=f"{a} {b}", trace={"a": a, "b": b}) for a in range(16) for b in range(16)]
    )
    final = rng.random(256)
    shares = np.array(bench.CHECKPOINTS) ** 0.5
    return bench.View(space, final[:, None] * shares + 0.01 * rng.random((256, 4)), final)


def replayed(bench: Any, view: Any, name: str, budget: float, early: bool = False, **options: Any) -> dict[str, Any]:
    kind = strategy_kind(name)
    found: dict[str, Any] = bench.replay(
        kind.make(view.space, bench.GOALS, 0, kind.options(**options)), view, budget, early
    )
    return found


def test_a_whole_training_costs_one(bench: Any, view: Any) -> None:
    found = replayed(bench, view, "random", 32)
    assert (found["trials"], found["duplicates"], found["spent"]) == (32, 0, 32)
    assert found["quality"][bench.GRID.index(48)] is None


def test_what_was_trained_before_costs_nothing(bench: Any, view: Any) -> None:
    found = replayed(bench, view, "random", 64, distinct=False)
    assert found["duplicates"] > 0
    assert found["trials"] == 64 + found["duplicates"]


def test_rungs_cost_their_share(bench: Any, view: Any) -> None:
    found = replayed(bench, view, "halving", 20)
    assert 20 - 1 < found["spent"] <= 20
    assert found["trials"] > 60  # of nine that begin three go on, and one to the end: 9/9 + 3 · 2/9 + 2/3 for 13 trials


def test_stopping_early_saves(bench: Any, view: Any) -> None:
    whole, early = (replayed(bench, view, "random", 64, early=e) for e in (False, True))
    assert early["trials"] > 1.3 * whole["trials"]
    assert early["spent"] <= 64 + 1e-6


def test_the_truth_is_not_seen(bench: Any, view: Any) -> None:
    """Other test accuracies change what a search is judged by, and nothing of what it does."""
    other = replace(view, truth=view.truth[::-1])
    for name in ("evolution", "halving", "local"):
        seen, blind = replayed(bench, view, name, 24), replayed(bench, other, name, 24)
        assert seen["quality"] != blind["quality"]
        assert (seen["trials"], seen["duplicates"], seen["spent"]) == (
            blind["trials"],
            blind["duplicates"],
            blind["spent"],
        )


def test_intervals_hold_means(bench: Any) -> None:
    values = np.random.Generator(np.random.Philox(1)).normal(3, 1, 100)
    found = bench.mean(values)
    assert found.low < 3 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)
