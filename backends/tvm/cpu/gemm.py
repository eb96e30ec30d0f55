"""Matrix products: by a constant (packed at compile time) and between activations (packed on the way)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from archc.backends.tvm.cpu.emit import Emitter, as_int, ceil_div, index, product
from archc.backends.tvm.cpu.loops import Machine, divisor_of, unravel
from archc.backends.tvm.cpu.program import Program, Stage, substitute
from archc.backends.tvm.cpu.tile import Epilogue, Tile, column_block, row_block

Expr = Any
Buffer = Any

# Multiply-adds below which a second thread costs more than it brings.
_SMALL = 1 << 16


def pack_columns(weight: np.ndarray, block: int) -> np.ndarray:
    """[K, N] as [N / block, K, block], the last block filled with zeros.

    >>> pack_columns(np.arange(6.0).reshape(2, 3), 2).tolist()
    [[[0.0, 1.0], [3.0, 4.0]], [[2.0, 0.0], [5.0, 0.0]]]
    """
    k, n = weight.shape
    blocks = -(-n // block)
    padded = np.pad(weight, ((0, 0), (0, blocks * block - n)))
    return np.ascontiguousarray(padded.reshape(k, blocks, block).transpose(1, 0, 2))


def matmul_constant(builder: relax.BlockBuilder, x: relax.Expr, weight: np.ndarray, machine: Machine) -> relax.Expr:
    """x [..., K] times a constant [K, N]."""
    k, n = weight.shape
    rows = as_int(product(list(x.ty.shape)[:-1]))
    block = column_block(n, machine.isa)
    if rows is not None and rows <= 2:
        # one row leaves registers free: more columns at once keep more multiply-adds in flight
        block = next(b for b in (8, 4, 2, 1) if b == 1 or n >= 2 * b * machine.isa.lanes) * machine.isa.lanes
    packed = pack_columns(weight, block)

    def equation(x: te.Tensor, packed: te.Tensor) -> te.Tensor:
        inner = te.reduce_axis((0, k), name="k")

        def term(*at: Expr) -> Expr:
            w = packed[tirx.indexdiv(at[-1], block), inner, tirx.indexmod(at[-1], block)]
            return te.sum(x[(*at[:-1], inner)] * w, axis=[inner])

        return te.compute((*x.shape[:-1], n), term, name="gemm", attrs={"archc.kernel": "gemm"})

    return builder.call_te(equation, x, relax.const(packed), primfunc_name_hint="gemm")


def gemm_kernel(program: Program, anchor: Stage, machine: Machine) -> tirx.PrimFunc:
    """The loops of `matmul_constant`; column blocks outside, so that a panel of weights stays in cache."""
    out = Emitter()
    x, packed = anchor.value.a.source, anchor.value.b.source
    blocks, depth, columns = (int(d) for d in packed.shape)
    n = int(anchor.axes[-1].extent)
    rows = product([a.extent for a in anchor.axes[:-1]])
    epilogue = Epilogue(program, out, anchor)
    height = row_block(as_int(rows), columns, machine.isa, depth)
    row_blocks = ceil_div(rows, height)
    known = as_int(rows)
    kind = "serial" if known is not None and known * n * depth < _SMALL else "parallel"
    with out.loop(row_blocks * blocks, kind, "task") as task:
        first = out.bind("first", tirx.floormod(task, divisor_of(row_blocks)) * height)
        block = out.bind("block", tirx.floordiv(task, divisor_of(row_blocks)))
        matrix = out.view(x, [rows, depth])

        def sums(at: Sequence[Expr]) -> Tile:
            return folded_sums(
                out, len(at), columns, depth, machine, lambda r, k, c: matrix[at[r], k] * packed[block, k, c]
            )

        store_rows(out, epilogue, sums, rows, first, height, n, columns, block)
    return program.rewritten(out.finish())


def store_rows(
    out: Emitter, epilogue: Epilogue, sums: Callable[[Sequence[Expr]], Tile],
    rows: Expr, first: Expr, height: int, n: int, columns: int, block: Expr,
) -> None:  # fmt: skip
    """Make and store a tile: `height` rows from `first` on, as many as there are, by one block of the `n` columns.

    `sums(at)` is the tile of the rows `at`; those beyond the last row are the last row again, and not stored.
    """
    known = as_int(rows)
    last = n - (ceil_div(n, columns) - 1) * columns

    def tile(height: int) -> None:
        exact = known is not None and known % height == 0
        at = [first + r if exact else out.bind("row", tirx.min(first + r, rows - 1)) for r in range(height)]
        epilogue.store(
            sums(at),
            place=lambda r: first + r,
            valid=lambda r: None if exact else first + r < rows,
            first_column=block * columns,
            columns=last,
            spare=None if last == columns else n - block * columns,
        )

    if known is not None:
        tile(height)
    else:
        by_height(out, rows - first, height, tile)


def folded_sums(
    out: Emitter, height: int, columns: int, depth: int, machine: Machine, term: Callable[[int, Expr, Expr], Expr]
) -> Tile:
    """The tile of sums of term(row, k, column) over k."""
    phases = _phases(height * columns // machine.isa.lanes, depth)
    sums = Tile.zero(out, height * phases, columns, machine.isa.lanes)
    with out.loop(depth // phases, name="k") as steps:
        sums.accumulate(out, lambda r, c: term(r % height, steps * phases + r // height, c))
    return sums.folded(out, height)


def _phases(sums: int, depth: int) -> int:
    """Into how many sums to split each of `sums`: a multiply-add takes four cycles, so eight have to be under way."""
    return next(phases for phases in (8, 4, 2, 1) if phases == 1 or (phases * sums <= 8 and depth % phases == 0))


def by_height(out: Emitter, left: Expr, height: int, tile: Any) -> None:
    """Run `tile` at the full height where that many rows are left, at the smallest sufficient one in the last block."""
    heights = [height]
    while heights[-1] > 1:
        heights.append(heights[-1] // 2)

    def choose(options: Sequence[int]) -> None:
        if len(options) == 1:
            tile(options[0])
            return
        with out.when(left > options[1]):
            tile(options[0])
        with out.otherwise():
            choose(options[1:])

    choose(heights)


def matmul(
    builder: relax.BlockBuilder,
    a: relax.Expr,
    b: relax.Expr,
    a_axes: Sequence[int],
    b_axes: Sequence[int],
) -> relax.Expr:
    """a [*batch, M, K] times b [*batch, K, N], each seen through a permutation of its axes; batch axes broadcast."""

    def equation(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        a_shape, b_shape = [a.shape[i] for i in a_axes], [b.shape[i] for i in b_axes]
        batch = _broadcast(a_shape[:-2], b_shape[:-2])
        inner = te.reduce_axis((0, a_shape[-1]), name="k")

        def read(
            tensor: te.Tensor, axes: Sequence[int], shape: list[Expr], at: Sequence[Expr], tail: list[Expr]
        ) -> Expr:
            lead = at[len(at) - (len(shape) - 2) :] if len(shape) > 2 else ()
            own = [index(0) if as_int(d) == 1 else i for d, i in zip(shape, lead, strict=False)] + tail
            physical: list[Expr] = [None] * len(axes)
            for logical, axis in enumerate(axes):
                physical[axis] = own[logical]
            return tensor[tuple(physical)]

        def term(*at: Expr) -> Expr:
            *lead, m, n = at
            left = read(a, a_axes, a_shape, lead, [m, inner])
            return te.sum(left * read(b, b_axes, b_shape, lead, [inner, n]), axis=[inner])

        shape = (*batch, a_shape[-2], b_shape[-1])
        attributes = {} if (as_int(a_shape[-2]) or 3) <= 2 else {"archc.kernel": "matmul"}
        return te.compute(shape, term, name="matmul", attrs=attributes)

    return builder.call_te(equation, a, b, primfunc_name_hint="matmul", primfunc_attrs={"op_pattern": 4})


def _broadcast(a: list[Expr], b: list[Expr]) -> list[Expr]:
    rank = max(len(a), len(b))
    a, b = [1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b
    return [y if as_int(x) == 1 else x for x, y in zip(a, b, strict=True)]


def matmul_kernel(program: Program, anchor: Stage, machine: Machine) -> tirx.PrimFunc:
    """The loops of `matmul`: a task packs one block of columns of `b`, then runs down the rows of `a`."""
    out = Emitter()
    *batch_axes, row_axis, column_axis = anchor.axes
    (inner,) = anchor.reduced
    rows, n, depth = row_axis.extent, column_axis.extent, inner.extent
    batch = [a.extent for a in batch_axes]
    known_rows, known_columns = as_int(rows), as_int(n)
    columns = 2 * machine.isa.lanes if known_columns is None else column_block(known_columns, machine.isa)
    blocks = ceil_div(n, columns)
    a, b = anchor.value.a, anchor.value.b
    height = row_block(known_rows, columns, machine.isa, _stride(a, row_axis.var))
    row_blocks = ceil_div(rows, height)
    epilogue = Epilogue(program, out, anchor)
    total = as_int(product([*batch, rows, n, depth]))
    kind = "serial" if total is not None and total < _SMALL else "parallel"
    with out.loop(product([*batch, blocks]), kind, "task") as task:
        *lead, block = unravel(task, [*batch, blocks])
        block = out.bind("block", block)
        lead = [out.bind("batch", i) for i in lead]
        flat_batch = out.bind("flat", tirx.floordiv(task, divisor_of(blocks)))
        left_columns = out.bind("left", n - block * columns)
        panel = out.scratch("panel", [depth, columns], "float32")

        def at(load: Any, m: Expr, column: Expr, k: Expr) -> Expr:
            bound = dict(zip((x.var for x in batch_axes), lead, strict=True))
            return substitute(load, {**bound, row_axis.var: m, column_axis.var: column, inner.var: k})

        zero = tirx.const(0.0, "float32")
        ragged = known_columns is None or known_columns % columns != 0
        with out.loop(depth, name="k") as k:
            if not ragged:
                _copy_row(out, panel, k, columns, machine, lambda c: at(b, 0, block * columns + c, k))
            else:
                with out.when(left_columns >= columns):
                    _copy_row(out, panel, k, columns, machine, lambda c: at(b, 0, block * columns + c, k))
                with out.otherwise(), out.loop(columns, name="column") as c:
                    value = tirx.if_then_else(c < left_columns, at(b, 0, tirx.min(block * columns + c, n - 1), k), zero)
                    out.store(panel, [k, c], value)

        with out.loop(row_blocks, name="rows") as row_block_at:
            first = out.bind("first", row_block_at * height)

            def tile(height: int) -> None:
                exact = known_rows is not None and known_rows % height == 0
                sums = Tile.zero(out, height, columns, machine.isa.lanes)
                own = [first + r if exact else out.bind("row", tirx.min(first + r, rows - 1)) for r in range(height)]
                with out.loop(depth, name="k") as k:
                    sums.accumulate(out, lambda r, c: at(a, own[r], 0, k) * panel[k, c])
                epilogue.store(
                    sums,
                    place=lambda r: flat_batch * rows + first + r,
                    valid=lambda r: None if exact else first + r < rows,
                    first_column=block * columns,
                    columns=left_columns if known_columns is None else known_columns - (int(blocks) - 1) * columns,
                    spare=left_columns if ragged else None,
                )

            if known_rows is not None:
                tile(height)
            else:
                by_height(out, rows - first, height, tile)
    return program.rewritten(out.finish())


def _stride(load: Expr, axis: Expr) -> int | None:
    """How far apart in memory two elements are whose indices differ by one along `axis`, where that is known."""
    places = [place for place, at in enumerate(load.indices) if at.same_as(axis)]
    return as_int(product(load.source.shape[places[0] + 1 :])) if len(places) == 1 else None


def _copy_row(out: Emitter, panel: Buffer, k: Expr, columns: int, machine: Machine, read: Any) -> None:
    for start in range(0, columns, machine.isa.lanes):
        with out.loop(machine.isa.lanes, "vectorized", "lane") as lane:
            out.store(panel, [k, start + lane], read(start + lane))
