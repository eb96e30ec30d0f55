"""Loop shapes that every kernel shares: vectors with tails, tasks for the thread pool, flattened indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from archc.backends.tvm.cpu.emit import Emitter, as_int, index, product
from archc.backends.tvm.cpu.isa import Isa

Expr = Any

# Elements that make a task worth handing to another thread: about 4 microseconds of streaming work.
TASK = 8192


@dataclass(frozen=True)
class Machine:
    """What the kernels are written for."""

    isa: Isa
    threads: int


def over_vectors(out: Emitter, extent: Expr, lanes: int, write: Callable[[Expr], None], start: Expr = 0) -> None:
    """Run `write(i)` for i in start .. start + extent: whole vectors, then the tail.

    A tail of known length runs as vectors of 8, 4, 2 and 1; an unknown one as a scalar loop.
    """
    number = as_int(extent)
    if number is None:
        whole = out.bind("whole", tirx.floordiv(extent, lanes))
        with out.loop(whole, name="block") as block, out.loop(lanes, "vectorized", "lane") as lane:
            write(start + block * lanes + lane)
        with out.loop(extent - whole * lanes, name="rest") as rest:
            write(start + whole * lanes + rest)
        return
    if number >= lanes:
        with out.loop(number // lanes, name="block") as block, out.loop(lanes, "vectorized", "lane") as lane:
            write(start + block * lanes + lane)
    done = number - number % lanes
    for width in powers_of_two(number - done):
        with out.loop(width, "vectorized", "lane") as lane:
            write(start + done + lane)
        done += width


def powers_of_two(number: int) -> list[int]:
    """The binary digits of `number`, largest first.

    >>> powers_of_two(11)
    [8, 2, 1]
    """
    return [1 << bit for bit in reversed(range(number.bit_length())) if number >> bit & 1]


def unravel(flat: Expr, extents: Sequence[Expr]) -> list[Expr]:
    """The index of element `flat` of a row-major array.

    >>> [int(i) for i in unravel(7, (2, 3, 2))]
    [1, 0, 1]
    """
    places: list[Expr] = []
    rest = index(flat)
    for position, extent in reversed(list(enumerate(extents))):
        if position == 0:
            places.append(rest)
        elif as_int(extent) == 1:
            places.append(index(0))
        else:
            places.append(tirx.floormod(rest, divisor_of(extent)))
            rest = tirx.floordiv(rest, divisor_of(extent))
    return list(reversed(places))


def divisor_of(extent: Expr) -> Expr:
    """`extent` to divide by: TVM refuses to lower a division by zero where nothing is ever divided."""
    known = as_int(extent)
    return tirx.max(index(extent), index(1)) if known is None else index(max(1, known))


def divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`.

    >>> divisor(24, 10)
    8
    """
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def tasks(out: Emitter, rows: Expr, row_cost: Expr) -> Any:
    """A loop over blocks of rows, parallel where it pays: yields (first row, rows in the block)."""
    count, cost = as_int(rows), as_int(row_cost)
    if count is not None and cost is not None and count * cost <= 2 * TASK:
        return _Tasks(out, 1, "serial", count)
    block = max(1, TASK // max(1, cost)) if cost is not None else 1
    if count is None:
        block = 1
        return _Tasks(out, rows, "parallel", block)
    block = divisor(count, block) if count else 1
    return _Tasks(out, count // block, "parallel", block)


class _Tasks:
    def __init__(self, out: Emitter, number: Expr, kind: str, block: int) -> None:
        self._out, self._number, self._kind, self._block = out, number, kind, block

    def __enter__(self) -> tuple[Expr, int]:
        self._loop = self._out.loop(self._number, self._kind, "task")
        return self._loop.__enter__() * self._block, self._block

    def __exit__(self, *error: Any) -> None:
        self._loop.__exit__(*error)


__all__ = ["TASK", "Machine", "divisor", "divisor_of", "over_vectors", "powers_of_two", "product", "tasks", "unravel"]
