"""Dominance, fronts and hypervolumes, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from archc.search.goals import parse_goals
from archc.search.pareto import crowding, dominates, front, hypervolume, knee, ranks, violation
from archc.search.records import Result


def points(rows: int, columns: int, seed: int, levels: int = 6) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(0, levels, (rows, columns)).astype(float)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_ranks_peel_fronts(columns: int) -> None:
    table = points(40, columns, columns)
    found = ranks(table)
    left, rank = list(range(40)), 0
    while left:
        peeled = [i for i in left if not any(dominates(table[j], table[i]) for j in left)]
        assert np.flatnonzero(found == rank).tolist() == peeled
        left, rank = [i for i in left if i not in peeled], rank + 1


def test_the_front_is_rank_zero() -> None:
    table = points(60, 3, 1)
    assert {tuple(table[i]) for i in front(table)} == {tuple(row) for row in table[ranks(table) == 0]}
    assert len({tuple(table[i]) for i in front(table)}) == len(front(table))


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_hypervolume_counts_cells(columns: int) -> None:
    """Integer points: unit cells are dominated wholly or not at all."""
    for seed in range(5):
        table = points(12, columns, seed)
        cells = np.stack(np.meshgrid(*[np.arange(7)] * columns, indexing="ij"), -1).reshape(-1, columns)
        inside = (table[:, None] <= cells).all(2).any(0).sum()
        assert hypervolume(table, [7.0] * columns) == inside


def test_hypervolume_grows_with_what_is_not_dominated_only() -> None:
    table = [[1.0, 3.0], [2.0, 1.0]]
    assert hypervolume([*table, [2.0, 2.0]], [4, 4]) == hypervolume(table, [4, 4])
    assert hypervolume([*table, [0.5, 3.5]], [4, 4]) > hypervolume(table, [4, 4])
    assert hypervolume([*table, [5.0, 0.0]], [4, 4]) == hypervolume(table, [4, 4])  # beyond the reference
    assert hypervolume([], [4, 4]) == 0


def test_infinite_and_unknown() -> None:
    inf = math.inf
    table = [[inf, inf], [1, 2], [0, inf], [inf, inf]]
    assert front(table) == [1]
    assert ranks(table).tolist() == [1, 0, 0, 1]
    assert front([[inf, 1]]) == []
    assert knee([[inf, 1]]) is None
    assert crowding(table)[0] == 0
    assert hypervolume(table, [3, 3]) == 2


def test_violations_come_before_objectives() -> None:
    goals = parse_goals(["accuracy:max"], ["params < 1k", "latency_ms@cpu <= 2"])
    fits = Result(number=0, status="finished", values={"accuracy": 0.5, "params": 900})
    over = Result(number=1, status="infeasible", reason="params", values={"params": 1500})
    both = Result(number=2, status="infeasible", reason="params", values={"params": 1500, "latency_ms@cpu": 4})
    crash = Result(number=3, status="infeasible", reason="crash")
    found = [violation(goals, r) for r in (fits, over, both, crash)]
    assert found == [0, 0.5, 1.5, math.inf]
    assert ranks([[9.0], [1.0], [1.0], [0.0]], found).tolist() == [0, 1, 2, 3]


def test_crowding_prefers_the_ends_and_the_lonely() -> None:
    found = crowding([[0, 1], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [1, 0]])
    assert np.isinf(found[[0, 4]]).all()
    assert found[3] > found[2] > found[1]
    assert np.isfinite(crowding([[1, 1]] * 3)[1])
