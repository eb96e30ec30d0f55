"""Choices: what was drawn at which place, and how one is drawn.

A choice has a path: the choices around it with their productions, then its own name, numbered where the same production
mentions it again.

    Body:1/Layer                the rule `Layer` in production 1 of the outermost `Body`
    Body:1/Layer:0/choose#1     the second `choose` inside production 0 of that
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import TypeAlias

Production: TypeAlias = int | float
"""What a choice came to: the number of an alternative, or the value of a `range`."""

Trace: TypeAlias = Mapping[str, Production]
"""Choices by path."""


class Table:
    """Alternatives by weight, to draw one of them, and when it does not fit another one.

    One random number does for all draws from a table: given that it fell on an alternative, its place within the
    alternative's share is uniform again, and decides among the others. So what follows a choice is drawn from the same
    random numbers whether or not alternatives that do not fit stood in it.

    >>> table = Table([0, 1, 2], [1.0, 2.0, 1.0])
    >>> table.draw(0.5)
    (1, 0.5)
    >>> table.without(1).numbers, table.without(1).draw(0.5)
    ((0, 2), (2, 0.0))
    """

    __slots__ = ("_less", "cumulative", "last", "numbers", "total", "weights")

    def __init__(self, numbers: Sequence[int], weights: Sequence[float]) -> None:
        self.numbers, self.weights = tuple(numbers), tuple(weights)
        self.cumulative = tuple(accumulate(weights))
        self.total, self.last = self.cumulative[-1] if weights else 0.0, len(self.numbers) - 1
        self._less: dict[int, Table] = {}

    def draw(self, place: float) -> tuple[int, float]:
        """The alternative at a place in [0, 1), and the place within it."""
        at = place * self.total
        i = bisect_right(self.cumulative, at, 0, self.last)
        weight = self.weights[i]
        return self.numbers[i], min(max((at - self.cumulative[i] + weight) / weight, 0.0), 1.0)

    def without(self, number: int) -> Table:
        """The table of the other alternatives."""
        found = self._less.get(number)
        if found is None:
            kept = [(n, w) for n, w in zip(self.numbers, self.weights, strict=True) if n != number]
            found = self._less[number] = Table([n for n, _ in kept], [w for _, w in kept])
        return found


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


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice that was made."""

    path: str
    chosen: Production


@dataclass(slots=True)
class Choices:
    """The decisions of one architecture, as a trace has them. What the trace leaves open is drawn by random numbers
    that depend on the key and the choice's path alone.

    made   those met so far, in the order in which they were made
    """

    key: str
    given: Trace = field(default_factory=dict)
    made: dict[str, Decision] = field(default_factory=dict)

    @property
    def trace(self) -> dict[str, Production]:
        return {path: decision.chosen for path, decision in self.made.items()}

    def among(self, path: str, weights: Mapping[int, float]) -> int:
        """One of the alternatives, by weight."""
        if path not in self.made:
            wanted = self.given.get(path)
            if wanted not in weights:
                wanted, _ = Table(list(weights), list(weights.values())).draw(uniform(self.key, path))
            self.made[path] = Decision(path, int(wanted))  # type: ignore[arg-type]
        return int(self.made[path].chosen)

    def number(self, path: str, grid: Grid) -> int | float:
        """The number of a `range`."""
        if path not in self.made:
            wanted = self.given.get(path)
            if wanted is None or not grid.low <= wanted <= grid.high:
                wanted = grid(uniform(self.key, path))
            self.made[path] = Decision(path, wanted)
        return self.made[path].chosen


def uniform(key: str, path: str) -> float:
    """A number in (0, 1) that depends on its arguments alone.

    >>> uniform("0", "Body") == uniform("0", "Body"), uniform("0", "Body") == uniform("0", "Tail")
    (True, False)
    """
    word = blake2b(f"{key}|{path}".encode(), digest_size=8).digest()
    return (int.from_bytes(word, "little") + 0.5) / 2**64
