"""The register tile under GEMM and convolution.

A tile is `rows` output rows (GEMM rows, or pixels) by `columns` output columns (features, or channels), held in vector
registers while the reduction runs, then finished by the fused epilogue and stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from archc.backends.tvm.cpu.elementwise import MergedReads, merge, operands
from archc.backends.tvm.cpu.emit import Emitter, as_int, index, product
from archc.backends.tvm.cpu.isa import Isa
from archc.backends.tvm.cpu.loops import over_vectors, unravel
from archc.backends.tvm.cpu.program import Axis, Evaluator, Program, Stage, is_expensive

Expr = Any
Buffer = Any

PAGE = 1024  # float32 in 4 KiB
_WAYS = 8  # lines so far apart that a first-level cache (32 KiB) keeps at once
_TILE_COST = 0.25  # of a tile beyond its rows, in rows


def column_block(columns: int, isa: Isa) -> int:
    """Columns per tile: the multiple of the vector width that wastes least, two vectors where all are equal.

    One vector leaves the multiplier idle while it waits for broadcasts, so it counts as a tenth slower.
    """
    v = isa.lanes
    cost = {2 * v: 1.0, 3 * v: 1.001, 4 * v: 1.002, v: 1.1}
    return min(cost, key=lambda block: (-(-columns // block) * block * cost[block], cost[block]))


def row_block(rows: int | None, columns: int, isa: Isa, stride: int | None = None) -> int:
    """Rows per tile: as many as the registers hold, fewer where that leaves less of the last tile empty.

    Tiles of six rows and more run at the same rate (113 GFLOP/s of about 117), smaller ones a little slower.
    `stride` is the distance of rows in memory, in elements. At a multiple of a page all rows share the eight places
    that a first-level cache has for such addresses: a ninth row would evict the first (92 GFLOP/s for 112).

    >>> [row_block(rows, 32, Isa("avx512", 16, 26)) for rows in (13, 14, 64, 100)]
    [13, 7, 8, 10]
    """
    most = max(1, isa.sums // (columns // isa.lanes))
    if stride is not None and stride % PAGE == 0:
        most = min(most, _WAYS)
    if rows is None:
        return next(height for height in (8, 6, 4, 3, 2, 1) if height <= most)  # batches are often powers of two
    return min(range(1, most + 1), key=lambda height: (-(-rows // height) * (height + _TILE_COST), -height))


@dataclass(frozen=True)
class Tile:
    """One tile's sums, `rows` x `columns`, in registers."""

    sums: Buffer
    rows: int
    columns: int
    lanes: int

    @classmethod
    def zero(cls, out: Emitter, rows: int, columns: int, lanes: int) -> Tile:
        tile = cls(out.local("sums", [rows, columns], "float32"), rows, columns, min(lanes, columns))
        for row, column in tile._vectors():
            with out.loop(tile.lanes, "vectorized", "lane") as lane:
                out.store(tile.sums, [row, column + lane], tirx.const(0.0, "float32"))
        return tile

    def accumulate(self, out: Emitter, product: Callable[[int, Expr], Expr]) -> None:
        """sums[r, c] += product(r, c), unrolled; LLVM makes it one fused multiply-add a vector."""
        for row, column in self._vectors():
            with out.loop(self.lanes, "vectorized", "lane") as lane:
                at = column + lane
                out.store(self.sums, [row, at], self.sums[row, at] + product(row, at))

    def folded(self, out: Emitter, rows: int) -> Tile:
        """The tile of `rows` rows in which row r is the sum of rows r, r + rows, r + 2 rows, …"""
        for row, column in self._vectors():
            if row >= rows:
                with out.loop(self.lanes, "vectorized", "lane") as lane:
                    into, at = row % rows, column + lane
                    out.store(self.sums, [into, at], self.sums[into, at] + self.sums[row, at])
        return replace(self, rows=rows)

    def _vectors(self) -> list[tuple[int, int]]:
        return [(row, column) for row in range(self.rows) for column in range(0, self.columns, self.lanes)]


class Epilogue:
    """Finishes sums and stores them: whatever was fused behind the anchor, evaluated in registers.

    The output is seen as a matrix [product of leading axes, columns].
    """

    def __init__(self, program: Program, out: Emitter, anchor: Stage) -> None:
        self._out, self._stage, self._anchor = out, program.output, anchor
        self._evaluator = Evaluator(program, out)
        *lead, last = self._stage.axes
        self._groups: list[list[Axis]] = [[axis] for axis in lead] + [[last]]
        self._expensive = False
        if self._stage is not anchor:
            aside = self._evaluator.aside()
            aside.define(anchor.buffer, lambda at: tirx.BufferLoad(anchor.buffer, at))
            values = operands(self._stage, aside)
            self._groups = merge(self._stage, values, last_apart=True)
            self._expensive = any(is_expensive(s.value) for s in program.stages if s is not anchor)
        else:
            self._groups = ([lead] if lead else []) + [[last]]
        self._extents = [product([a.extent for a in group]) for group in self._groups]

    def store(
        self,
        tile: Tile,
        place: Callable[[Expr], Expr],
        valid: Callable[[Expr], Expr | None],
        first_column: Expr,
        columns: Expr,
        spare: Expr | None = None,
    ) -> None:
        """Store the tile's first `columns` columns, at rows `place(r)` of the output where `valid(r)`.

        `spare` is the number of columns left in the output where that may be fewer than the tile has.
        """
        if spare is not None:
            with self._out.when(spare >= tile.columns):
                self.store(tile, place, valid, first_column, tile.columns)
            with self._out.otherwise():
                self._through_memory(tile, place, valid, first_column, columns)
            return
        if self._expensive or as_int(columns) != tile.columns:
            self._through_memory(tile, place, valid, first_column, columns)
            return
        for row in range(tile.rows):
            with self._guard(valid(row)):
                where = self._row(place(row))
                for column in range(0, tile.columns, tile.lanes):
                    with self._out.loop(tile.lanes, "vectorized", "lane") as lane:
                        self._store_one(where, first_column + column + lane, tile.sums[row, column + lane])

    def _through_memory(
        self,
        tile: Tile,
        place: Callable[[Expr], Expr],
        valid: Callable[[Expr], Expr | None],
        first: Expr,
        columns: Expr,
    ) -> None:
        """By way of a buffer on the stack, in a loop over rows: a long epilogue is compiled once, not once a row."""
        finished = self._out.local("finished", [tile.rows, tile.columns], "float32")
        for row, column in tile._vectors():
            with self._out.loop(tile.lanes, "vectorized", "lane") as lane:
                self._out.store(finished, [row, column + lane], tile.sums[row, column + lane])
        with self._out.loop(tile.rows, name="row") as row, self._guard(valid(row)):
            where = self._row(place(row))
            over_vectors(
                self._out, columns, tile.lanes, lambda at: self._store_one(where, first + at, finished[row, index(at)])
            )

    def _guard(self, condition: Expr | None) -> Any:
        return nullcontext() if condition is None else self._out.when(condition)

    def _row(self, flat: Expr) -> list[Expr]:
        lead = self._extents[:-1]
        return unravel(self._out.bind("at", flat), lead) if lead else []

    def _store_one(self, where: Sequence[Expr], column: Expr, total: Expr) -> None:
        place = [*where, column]
        value = total
        if self._stage is not self._anchor:
            self._evaluator.define(self._anchor.buffer, lambda _: total)
            merged = MergedReads(self._out, self._groups, self._extents, place)
            with self._evaluator.reading(merged.load):
                value = self._evaluator.stage(self._stage, merged.axes)
        self._out.store(self._out.view(self._stage.buffer, self._extents), place, value)
