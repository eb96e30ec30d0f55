"""Matrix products with quantised weights: read as small integers, made floats in registers.

At one row a product waits for its weights, and codes are a quarter (or an eighth) of them. For many rows a task makes
floats of its columns once, in a buffer that stays in its cache.

Codes are packed as the floats of `archc.backends.tvm.cpu.gemm` are, [N / block, K, block] bytes; where all lie between
-8 and 7, two in a byte: those of neighbouring vectors of columns. For a byte b = 16 h + l, the low half l = code + 8,
sums of x·l and of x·b are kept, since no instruction takes bytes apart for free: Σ x h = (Σ x b - Σ x l) / 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi
from tvm import ir, relax, te, tirx

from archc.backends.tvm.cpu.emit import Emitter, as_int, ceil_div, product
from archc.backends.tvm.cpu.gemm import pack_columns, store_rows
from archc.backends.tvm.cpu.loops import Machine
from archc.backends.tvm.cpu.program import Program, Stage
from archc.backends.tvm.cpu.tile import Epilogue, Tile, column_block, row_block

if TYPE_CHECKING:
    from archc.backends.tvm.cpu.select import SelectKernels

Expr = Any
Buffer = Any

_SMALL = 1 << 16  # multiply-adds below which a second thread costs more than it brings
_FEW = 16  # rows up to which codes are made floats in registers, anew for each tile of rows


@dataclass(frozen=True)
class Codes:
    """The matrix `(codes - zero) · scale`: codes [K, N] (int8), scale and zero [runs, N] for equal runs of rows."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None


def codes_of(selection: SelectKernels, value: relax.Expr) -> Codes | None:
    """What a matrix is made of, if it is what `archc.backends.tvm.lowerings.quantised` writes."""
    reshaped = selection.definition(value)
    if not _is(reshaped, "reshape"):
        return None
    scaled = selection.definition(reshaped.args[0])
    if not _is(scaled, "multiply"):
        return None
    shifted, scale, zero = selection.definition(scaled.args[0]), selection.constant(scaled.args[1]), None
    if _is(shifted, "subtract"):
        zero = selection.constant(shifted.args[1])
        shifted = selection.definition(shifted.args[0])
    codes = selection.constant(shifted.args[0]) if _is(shifted, "astype") else None
    if codes is None or scale is None or codes.dtype != np.int8 or codes.ndim != 3 or scale.dtype != np.float32:
        return None
    runs, _, columns = codes.shape
    if scale.shape != (runs, 1, columns) or (zero is not None and zero.shape != scale.shape):
        return None
    return Codes(codes.reshape(-1, columns), scale[:, 0], None if zero is None else zero[:, 0])


def filters_of(selection: SelectKernels, value: relax.Expr) -> np.ndarray | None:
    """The codes of a quantised convolution's filters; its scales are multiplied to what it computes."""
    made = selection.definition(value)
    array = selection.constant(made.args[0]) if _is(made, "astype") else None
    return array if array is not None and array.dtype == np.int8 else None


def _is(value: relax.Expr, name: str) -> bool:
    return isinstance(value, relax.Call) and isinstance(value.op, ir.Op) and value.op.name == f"relax.{name}"


def halves(packed: np.ndarray, lanes: int) -> np.ndarray:
    """Codes of 4 bits […, block], two vectors of columns in one of bytes: […, block / 2].

    >>> halves(np.array([[[1, 2, -3, 4]]], np.int8), 2).tolist()
    [[[-39, 74]]]
    """
    *lead, block = packed.shape
    pairs = packed.reshape(*lead, block // (2 * lanes), 2, lanes)
    joined = ((pairs[..., 0, :] + 8) & 15) | (pairs[..., 1, :] << 4)
    return joined.astype(np.int8).reshape(*lead, block // 2)


def fit_halves(codes: np.ndarray) -> bool:
    """Do all codes lie between -8 and 7?"""
    return bool(np.abs(codes.astype(np.int16) * 2 + 1).max(initial=0) <= 15)


def code_at(read: Callable[[Expr], Expr], column: Expr, lanes: int, half: bool) -> Expr:
    """The code of a column of a block as a float; `read` gives the byte at a place of the block."""
    if not half:
        return read(column).astype("float32")
    byte = read(tirx.indexdiv(column, 2 * lanes) * lanes + tirx.indexmod(column, lanes)).astype("int32")
    low = tirx.bitwise_and(byte, tirx.const(15, "int32")) - tirx.const(8, "int32")
    upper = tirx.indexmod(tirx.indexdiv(column, lanes), 2) > 0
    return tirx.Select(upper, byte >> tirx.const(4, "int32"), low).astype("float32")


def matmul_codes(builder: relax.BlockBuilder, x: relax.Expr, weight: Codes, machine: Machine) -> relax.Expr:
    """x [..., K] times the matrix [K, N] that the codes stand for."""
    (depth, n), lanes = weight.codes.shape, machine.isa.lanes
    runs = len(weight.scale)
    half = fit_halves(weight.codes)
    rows = as_int(product(list(x.ty.shape)[:-1]))
    block = column_block(n, machine.isa)
    if rows is not None and rows <= 2:  # one row leaves registers free: see `matmul_constant`
        block = next(b for b in (8, 4, 2, 1) if b == 1 or n >= 2 * b * lanes) * lanes
    if half:
        block = -(-block // (2 * lanes)) * 2 * lanes
    packed = pack_columns(weight.codes, block)
    packed = halves(packed, lanes) if half else packed
    spare = [(0, 0), (0, len(packed) * block - n)]
    tables = [np.pad(t, spare) for t in (weight.scale, weight.zero) if t is not None]

    def equation(x: te.Tensor, packed: te.Tensor, scale: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        inner = te.reduce_axis((0, depth), name="k")

        def term(*at: Expr) -> Expr:
            run, column = tirx.indexdiv(inner, depth // runs), at[-1]
            at_block, inside = tirx.indexdiv(column, block), tirx.indexmod(column, block)
            value = code_at(lambda place: packed[at_block, inner, place], inside, lanes, half)
            for table in zero:
                value = value - table[run, at[-1]]
            return te.sum(x[(*at[:-1], inner)] * (value * scale[run, at[-1]]), axis=[inner])

        attributes = {"archc.kernel": "codes", "block": block, "half": int(half)}
        return te.compute((*x.shape[:-1], n), term, name="codes", attrs=attributes)

    constants = [relax.const(packed), *map(relax.const, tables)]
    return builder.call_te(equation, x, *constants, primfunc_name_hint="codes", primfunc_attrs={"op_pattern": 4})


def codes_kernel(program: Program, anchor: Stage, machine: Machine) -> tirx.PrimFunc:
    """The loops of `matmul_codes`. A task has a block of columns; for many rows it makes floats of its codes first."""
    out = Emitter()
    matrix = _Matrix.of(anchor, machine)
    n, columns, depth = int(anchor.axes[-1].extent), matrix.block, matrix.depth
    blocks = -(-n // columns)
    rows = product([a.extent for a in anchor.axes[:-1]])
    known = as_int(rows)
    height = row_block(known, columns, machine.isa, depth)
    epilogue = Epilogue(program, out, anchor)
    kind = "serial" if known is not None and known * n * depth < _SMALL else "parallel"
    with out.loop(blocks, kind, "block") as block:
        x = out.view(anchor.value.a.source, [rows, depth])

        def run_down(sums: Callable[[Sequence[Expr]], Tile]) -> None:
            with out.loop(ceil_div(rows, height), name="rows") as step:
                first = out.bind("first", step * height)
                store_rows(out, epilogue, sums, rows, first, height, n, columns, block)

        def by_codes() -> None:
            run_down(lambda at: matrix.sums(out, x, at, block))

        def by_floats() -> None:
            panel = matrix.floats(out, block)
            run_down(lambda at: matrix.sums_of(out, x, at, panel))

        if known is not None:
            (by_floats if known > _FEW else by_codes)()
        else:
            with out.when(rows > _FEW):
                by_floats()
            with out.otherwise():
                by_codes()
    return program.rewritten(out.finish())


def sources(value: Expr) -> list[Buffer]:
    """The buffers that an expression reads, in its order."""
    found: list[Buffer] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, lambda load: found.append(load.source)))
    return found


@dataclass(frozen=True)
class _Matrix:
    """The buffers of a quantised matrix, as its kernel reads them."""

    packed: Buffer
    scale: Buffer
    zero: Buffer | None
    block: int
    half: bool
    lanes: int

    @classmethod
    def of(cls, anchor: Stage, machine: Machine) -> _Matrix:
        read = sources(anchor.value.b)
        packed = next(s for s in read if str(s.dtype) == "int8")
        floats = [s for s in read if str(s.dtype) == "float32"]
        facts = anchor.attributes
        zero = floats[0] if len(floats) > 1 else None
        return cls(packed, floats[-1], zero, int(facts["block"]), bool(int(facts["half"])), machine.isa.lanes)

    @property
    def depth(self) -> int:
        return int(self.packed.shape[1])

    @property
    def runs(self) -> int:
        return int(self.scale.shape[0])

    def floats(self, out: Emitter, block: Expr) -> Buffer:
        """A block of columns as floats [K, block], in a buffer of the task's own."""
        panel = out.scratch("panel", [self.depth, self.block], "float32")
        length = self.depth // self.runs
        with out.loop(self.runs, name="run") as run, out.loop(length, name="k") as step:
            k = run * length + step
            for column in range(0, self.block, self.lanes):
                with out.loop(self.lanes, "vectorized", "lane") as lane:
                    code, place = self._stored(block, k, column, lane), block * self.block + column + lane
                    if self.half and column // self.lanes % 2:
                        code = code >> tirx.const(4, "int32")
                    elif self.half:
                        code = code - tirx.const(8, "int32")
                    value = tirx.Cast("float32", code)
                    if self.zero is not None:
                        value = value - self.zero[run, place]
                    out.store(panel, [k, column + lane], value * self.scale[run, place])
        return panel

    def sums_of(self, out: Emitter, x: Buffer, at: Sequence[Expr], panel: Buffer) -> Tile:
        """The products of rows `at` of x with a panel."""
        sums = Tile.zero(out, len(at), self.block, self.lanes)
        with out.loop(self.depth, name="k") as k:
            sums.accumulate(out, lambda r, c: x[at[r], k] * panel[k, c])
        return sums

    def sums(self, out: Emitter, x: Buffer, at: Sequence[Expr], block: Expr) -> Tile:
        """The products of rows `at` of x with the columns of a block."""
        result = Tile.zero(out, len(at), self.block, self.lanes)
        with out.loop(self.runs, name="run") as run:
            start = run * (self.depth // self.runs)
            part = self._partial(out, x, at, block, start)
            totals = self._totals(out, x, at, start) if self.half or self.zero is not None else []
            for row in range(len(at)):
                for column in range(0, self.block, self.lanes):
                    with out.loop(self.lanes, "vectorized", "lane") as lane:
                        place = block * self.block + column + lane
                        value = self._corrected(part, row, column, lane, totals)
                        if self.zero is not None:
                            value = value - self.zero[run, place] * totals[row]
                        before = result.sums[row, column + lane]
                        out.store(result.sums, [row, column + lane], before + value * self.scale[run, place])
        return result

    def _partial(self, out: Emitter, x: Buffer, at: Sequence[Expr], block: Expr, start: Expr) -> Tile:
        """Sums over one run of x times codes, or of x·l and x·b where there are two in a byte."""
        height, length = len(at), self.depth // self.runs
        waiting = height * self.block // self.lanes
        # a multiply-add takes four cycles, so eight have to be under way
        phases = next(p for p in (8, 4, 2, 1) if p == 1 or (p * waiting <= 8 and length % p == 0))
        part = Tile.zero(out, height * phases, self.block, self.lanes)
        with out.loop(length // phases, name="k") as steps:
            for r in range(height * phases):
                k = start + steps * phases + r // height
                for column in range(0, self.block, self.lanes):
                    with out.loop(self.lanes, "vectorized", "lane") as lane:
                        term = x[at[r % height], k] * tirx.Cast("float32", self._stored(block, k, column, lane))
                        out.store(part.sums, [r, column + lane], part.sums[r, column + lane] + term)
        return part.folded(out, height)

    def _stored(self, block: Expr, k: Expr, column: int, lane: Expr) -> Expr:
        """A code; or of two in a byte, the low half for the first vector of columns, the whole byte for the second."""
        if not self.half:
            return self.packed[block, k, column + lane]
        byte = tirx.Cast("int32", self.packed[block, k, column // (2 * self.lanes) * self.lanes + lane])
        return byte if column // self.lanes % 2 else tirx.bitwise_and(byte, tirx.const(15, "int32"))

    def _corrected(self, part: Tile, row: int, column: int, lane: Expr, totals: list[Expr]) -> Expr:
        """The sum of x times codes."""
        value = part.sums[row, column + lane]
        if not self.half:
            return value
        if column // self.lanes % 2:
            return (value - part.sums[row, column - self.lanes + lane]) * tirx.const(1 / 16, "float32")
        return value - totals[row] * tirx.const(8.0, "float32")

    def _totals(self, out: Emitter, x: Buffer, at: Sequence[Expr], start: Expr) -> list[Expr]:
        """The sum of each row of x over one run."""
        length, width = self.depth // self.runs, self.lanes
        while length % width:
            width //= 2
        found = []
        for row in at:
            several = out.local("several", [width], "float32")
            total = out.local("total", [1], "float32")
            with out.loop(width, "vectorized", "lane") as lane:
                out.store(several, [lane], tirx.const(0.0, "float32"))
            with out.loop(length // width, name="k") as step, out.loop(width, "vectorized", "lane") as lane:
                out.store(several, [lane], several[lane] + x[row, start + step * width + lane])
            out.store(total, [0], tirx.const(0.0, "float32"))
            with out.loop(width, name="lane") as lane:
                out.store(total, [0], total[0] + several[lane])
            found.append(out.bind("t", total[0]))
        return found
