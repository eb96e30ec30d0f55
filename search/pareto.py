"""Several objectives at once: who dominates whom, fronts, and how good a front is.

Rows are trials, columns objectives, less is better (`Goals.losses`). Infinite: infeasible, or not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from archc.search.goals import Goals
from archc.search.records import Result

Losses: TypeAlias = NDArray[np.float64]


def violation(goals: Goals, result: Result) -> float:
    """By how much an infeasible trial misses the constraints, as shares of their bounds; 0 for a feasible one.

    Infinite when it is not known, as after a crash.
    """
    if result.status != "infeasible":
        return 0.0
    missed = [
        abs(result.values[c.key] - c.bound) / (abs(c.bound) or 1.0)
        for c in goals.constraints
        if c.key in result.values and not c.holds(result.values)
    ]
    return float(sum(missed)) if missed else float("inf")


def dominates(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether a is nowhere worse than b, and somewhere better.

    >>> dominates([1, 2], [1, 3]), dominates([1, 3], [1, 3]), dominates([0, 4], [1, 3])
    (True, False, False)
    """
    first, second = np.asarray(a), np.asarray(b)
    return bool((first <= second).all() and (first < second).any())


def ranks(losses: ArrayLike, violations: Sequence[float] | None = None) -> NDArray[np.int64]:
    """The front of each row: 0 for those that none dominates, 1 for those that only these do, and so on.

    With `violations`, what violates less dominates (Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic
    Algorithm: NSGA-II"): every feasible row stands before every infeasible one.

    >>> ranks([[1, 4], [2, 2], [4, 1], [3, 3], [5, 5]]).tolist()
    [0, 0, 0, 1, 2]
    >>> ranks([[1, 4], [2, 2], [0, 0]], violations=[0, 0, 0.1]).tolist()
    [0, 0, 1]
    """
    table = np.asarray(losses, np.float64)
    over = np.zeros(len(table)) if violations is None else np.asarray(violations, np.float64)
    beats = (table[:, None] <= table).all(2) & (table[:, None] < table).any(2)
    beats = (over[:, None] < over) | ((over[:, None] == over) & beats)  # [i, j]: i before j
    found = np.full(len(table), -1, np.int64)
    before, rank = beats.sum(0), 0
    while (found < 0).any():
        front = (before == 0) & (found < 0)
        found[front] = rank
        before = before - beats[front].sum(0)
        rank += 1
    return found


def crowding(losses: ArrayLike) -> Losses:
    """How far the neighbours of each row of one front are, summed over objectives; infinite at the ends (Deb et al.).

    >>> crowding([[0, 4], [1, 1], [4, 0], [3, 0.5]]).tolist()
    [inf, 1.625, inf, 1.0]
    """
    table = np.asarray(losses, np.float64)
    found = np.zeros(len(table))
    for column in table.T:
        order = np.argsort(column, kind="stable")
        known = order[np.isfinite(column[order])]
        if len(known) == 0:
            continue
        found[known[[0, -1]]] = np.inf
        width = column[known[-1]] - column[known[0]]
        if width > 0:
            found[known[1:-1]] += (column[known[2:]] - column[known[:-2]]) / width
    return found


def front(losses: ArrayLike) -> list[int]:
    """The rows that none dominates, by the first objective. Of equal rows the first counts; infinite ones do not.

    >>> front([[2, 2], [1, 4], [3, 3], [4, 1], [2, 2]])
    [1, 0, 3]
    """
    table = np.asarray(losses, np.float64)
    found: list[int] = []
    for i in sorted(np.flatnonzero(np.isfinite(table).all(1)).tolist(), key=lambda i: (*table[i], i)):
        if not any((table[j] <= table[i]).all() for j in found):
            found.append(i)
    return found


def hypervolume(losses: ArrayLike, reference: Sequence[float]) -> float:
    """The volume that rows dominate, up to a reference point: exact, by slices along the last objective.

    Rows that do not dominate the reference point add nothing. n log n for two objectives, n² log n for three.

    >>> hypervolume([[1, 3], [2, 1]], [4, 4])
    7.0
    >>> hypervolume([[1, 1, 1], [0, 0, 3]], [2, 2, 4])
    6.0
    """
    corner = np.asarray(reference, np.float64)
    table = np.asarray(losses, np.float64).reshape(-1, len(corner))
    return _volume(table[(table < corner).all(1)], corner)


def _volume(table: Losses, corner: Losses) -> float:
    if len(table) == 0:
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - table.min())
    table = table[np.argsort(table[:, -1], kind="stable")]
    if len(corner) == 2:
        lowest = np.minimum.accumulate(table[:, 0])
        return float(((corner[0] - lowest) * np.diff(table[:, 1], append=corner[1])).sum())
    depths = np.diff(table[:, -1], append=corner[-1])
    return sum(float(d) * _volume(table[: i + 1, :-1], corner[:-1]) for i, d in enumerate(depths) if d > 0)


def knee(losses: ArrayLike) -> int | None:
    """The row of the front that gives most for least: farthest from the plane through the ends of the front.

    Objectives are scaled to their ranges on the front first, after which that is the smallest sum (Das 1999, "On
    characterizing the “knee” of the Pareto curve based on Normal-Boundary Intersection"). None without a front.

    >>> knee([[0, 10], [1, 2], [6, 1], [10, 0]])
    1
    """
    table, rows = np.asarray(losses, np.float64), front(losses)
    if not rows:
        return None
    best = table[rows]
    low, high = best.min(0), best.max(0)
    scaled = (best - low) / np.where(high > low, high - low, 1.0)
    return rows[int(np.argmin(scaled.sum(1)))]
