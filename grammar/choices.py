"""Choices: what was drawn at which place, by which random numbers, and what to change when it does not fit.

A choice has a path: the choices around it with their productions, then its own name, numbered where the same production
mentions it again.

    Body:1/Layer                the rule `Layer` in production 1 of the outermost `Body`
    Body:1/Layer:0/choose#1     the second `choose` inside production 0 of that

What is chosen depends on (key, path) alone: random numbers are a hash of both, so that a choice is the same in whatever
order and however often the rest is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import shake_128
from typing import Any, TypeAlias

Production: TypeAlias = int | float
"""What a choice came to: the number of an alternative, or the value of a `range`."""

RANGE_TRIES = 8
"""Values of one `range` that are tried when its first does not fit."""
PATIENCE = 10
"""Failures in one production before the production itself is given up."""


def uniform(key: str, path: str, count: int) -> list[float]:
    """Numbers in (0, 1) that depend on their arguments alone.

    >>> uniform("0", "Body", 2) == uniform("0", "Body", 3)[:2], uniform("0", "Body", 1) == uniform("0", "Tail", 1)
    (True, False)
    """
    words = shake_128(f"{key}|{path}".encode()).digest(8 * count)
    return [(int.from_bytes(words[i : i + 8], "little") + 0.5) / 2**64 for i in range(0, 8 * count, 8)]


def race(weights: Mapping[int, float], key: str, path: str) -> list[int]:
    """The keys of `weights` in random order: each next one is drawn by weight from those that are left.

    Exponential clocks of these rates ring in that order (Efraimidis & Spirakis 2006).
    """
    clocks = uniform(key, path, 1 + max(weights, default=-1))
    return sorted(weights, key=lambda i: -math.log(clocks[i]) / weights[i])


@dataclass(frozen=True, slots=True)
class Grid:
    """`range`: from a place in (0, 1) to a number.

    >>> Grid(8, 32, 8, False)(0.99), Grid(1, 100, None, True)(0.5), Grid(1, 6, 1, False)(0.01)
    (32, 10.0, 1)
    """

    low: int | float
    high: int | float
    step: int | float | None
    log: bool

    def __call__(self, place: float) -> int | float:
        low, high, step = self.low, self.high, self.step
        if step is None:
            value: float = low * (high / low) ** place if self.log else low + (high - low) * place
            return min(max(float(f"{value:.4g}"), float(low)), float(high))
        count = math.floor((high - low) / step + 1e-9) + 1
        if self.log:  # grid points share the logarithmic scale from half a step below to half a step above
            first, last = max(low - step / 2, low / 2), low + (count - 0.5) * step
            number: int = round((first * (last / first) ** place - low) / step)
            return low + min(max(number, 0), count - 1) * step
        return low + min(int(place * count), count - 1) * step


@dataclass(slots=True)
class Decision:
    """A choice that was made: `option(k)` is what it falls back to after k failures, for k below `count`."""

    path: str
    count: int
    option: Callable[[int], Production]
    chosen: Production


@dataclass(slots=True)
class _Failure:
    """A failure, the decisions that led to it, and which of them has been varied how often since."""

    what: Any
    fallbacks: dict[str, int]
    decisions: list[Decision]
    cursor: int
    step: int = 1


@dataclass(slots=True)
class Choices:
    """The decisions of one draw, over all attempts. `given` holds those that are asked for, by path."""

    key: str
    given: Mapping[str, Production] = field(default_factory=dict)
    made: dict[str, Decision] = field(default_factory=dict)
    """Those of this attempt, in the order in which they were made."""
    _fallbacks: dict[str, int] = field(default_factory=dict)
    _failure: _Failure | None = None
    _failures: dict[str, int] = field(default_factory=dict)

    @property
    def trace(self) -> dict[str, Production]:
        return {path: decision.chosen for path, decision in self.made.items()}

    def among(self, path: str, weights: Mapping[int, float]) -> int:
        """One of the alternatives, by weight."""

        def order() -> tuple[int, Callable[[int], Production]]:
            first = self.given.get(path)
            ranked = race(weights, self.key, path)
            if first in weights:
                ranked = [int(first), *(i for i in ranked if i != first)]  # type: ignore[arg-type]
            return len(ranked), ranked.__getitem__

        return int(self._decide(path, order))

    def number(self, path: str, grid: Grid) -> int | float:
        """The number of a `range`, at a random place between its ends."""

        def order() -> tuple[int, Callable[[int], Production]]:
            places = uniform(self.key, path, RANGE_TRIES)
            options = list(dict.fromkeys(map(grid, places)))
            first = self.given.get(path)
            if first is not None and grid.low <= first <= grid.high:
                options = [first, *(o for o in options if o != first)]
            return len(options), options.__getitem__

        return self._decide(path, order)

    def _decide(self, path: str, order: Callable[[], tuple[int, Callable[[int], Production]]]) -> Production:
        if path not in self.made:
            count, option = order()
            self.made[path] = Decision(path, count, option, option(min(self._fallbacks.get(path, 0), count - 1)))
        return self.made[path].chosen

    def revise(self, what: Any, place: str | None) -> bool:
        """Change the nearest decision that may be to blame for a failure, and leave the others; False if none is left.

        `what` tells failures apart. A decision whose change leads to the very same failure had no part in it: it is put
        back as it was, and the one before it is tried. `place` is the path of the innermost choice in whose production
        it happened: when that has failed often, the choice falls back itself, and so outwards.
        """
        if self._failure is None or self._failure.what != what:
            self._failure = _Failure(what, self._fallbacks, list(self.made.values()), len(self.made) - 1)
        failure = self._failure
        self.made = {}
        return self._give_up(place, failure) or self._sweep(failure)

    def _give_up(self, place: str | None, failure: _Failure) -> bool:
        """Let a choice fall back whose production fails again and again, or the choice around it."""
        order = [d.path for d in failure.decisions]
        while place in order:
            self._failures[place] = self._failures.get(place, 0) + 1
            if self._failures[place] < PATIENCE:
                return False
            at = order.index(place)
            if self._fall_back(failure, at, 1):
                self._failures = {p: n for p, n in self._failures.items() if not p.startswith(place)}
                self._failure = None
                return True
            place = place.rpartition("/")[0].rpartition(":")[0]
        return False

    def _sweep(self, failure: _Failure) -> bool:
        while failure.decisions:
            if failure.cursor < 0:
                failure.step += 1
                failure.cursor = len(failure.decisions) - 1
                if all(failure.fallbacks.get(d.path, 0) + failure.step >= d.count for d in failure.decisions):
                    return False
            failure.cursor -= 1
            if self._fall_back(failure, failure.cursor + 1, failure.step):
                return True
        return False

    def _fall_back(self, failure: _Failure, at: int, step: int) -> bool:
        """Let one of the decisions take a later option; those made after it are made again."""
        decision = failure.decisions[at]
        fallback = failure.fallbacks.get(decision.path, 0) + step
        if fallback >= decision.count:
            return False
        kept = {d.path for d in failure.decisions[:at]}
        self._fallbacks = {p: k for p, k in failure.fallbacks.items() if p in kept} | {decision.path: fallback}
        return True
