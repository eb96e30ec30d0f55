"""The matrix products of all experts of a mixture in one kernel: rows sorted by expert, each group by its own weights.

What selects this kernel are functions marked `MARK`, of `archc.backends.tvm.equations.grouped_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, relax, te, tirx

from archc.backends.tvm import equations
from archc.backends.tvm.cpu.emit import Emitter, as_int, ceil_div
from archc.backends.tvm.cpu.gemm import by_height, folded_sums, pack_columns
from archc.backends.tvm.cpu.loops import Machine
from archc.backends.tvm.cpu.program import Program, Stage
from archc.backends.tvm.cpu.tile import Epilogue, column_block, row_block

Expr = Any

MARK = "archc.grouped"


def grouped_constant(
    builder: relax.BlockBuilder,
    x: relax.Expr,
    starts: relax.Expr,
    group: relax.Expr,
    weight: np.ndarray,
    rest: Sequence[relax.Expr],
    machine: Machine,
) -> relax.Expr:
    """`equations.grouped_linear` with a constant weight [E, K, N]; `rest` is the bias and perhaps the order."""
    _, k, n = weight.shape
    rows = as_int(next(iter(x.ty.shape)))
    block = column_block(n, machine.isa)
    if rows is not None and rows <= 2:  # no group has more; see `matmul_constant`
        block = next(b for b in (8, 4, 2, 1) if b == 1 or n >= 2 * b * machine.isa.lanes) * machine.isa.lanes
    packed = np.stack([pack_columns(w, block) for w in weight])

    def equation(
        x: te.Tensor, starts: te.Tensor, group: te.Tensor, packed: te.Tensor, bias: te.Tensor, *order: te.Tensor
    ) -> te.Tensor:
        def value(i: Expr, k: Expr, column: Expr) -> Expr:
            return packed(group(i), tirx.indexdiv(column, block), k, tirx.indexmod(column, block))

        attributes = {"archc.kernel": "grouped"}
        return equations.grouped_sums(x, starts, group, (k, n), value, bias, order, **attributes)

    attributes = {"op_pattern": 4}
    arguments = [x, starts, group, relax.const(packed), *rest]
    return builder.call_te(equation, *arguments, primfunc_name_hint="grouped", primfunc_attrs=attributes)


def grouped_kernel(program: Program, anchor: Stage, machine: Machine) -> tirx.PrimFunc:
    """The loops of `grouped_constant`: one group after another, its rows under each block of columns.

    Threads share the columns out, not the groups: how many rows a group has is known only when the network runs.
    """
    out = Emitter()
    there, weight = anchor.value.a, anchor.value.b
    x, packed = there.true_value, weight.source
    starts = _load(there.condition).source
    order = None if isinstance(x.indices[0], ir.Var) else x.indices[0].source
    matrix = x.source
    groups, blocks, depth, columns = (int(d) for d in packed.shape)
    n = int(anchor.axes[-1].extent)
    epilogue = Epilogue(program, out, anchor)
    parts = min(machine.threads, blocks)
    share = -(-blocks // parts)
    height = row_block(None, columns, machine.isa, depth)
    with out.loop(parts, "parallel", "part") as part, out.loop(groups, name="group") as group:
        begin, end = out.bind("begin", starts[group]), out.bind("end", starts[group + 1])
        with out.when(begin < end), out.loop(share, name="own") as own:
            block = out.bind("block", part * share + own)
            with out.when(block < blocks), out.loop(ceil_div(end - begin, height), name="rows") as at:
                first = out.bind("first", begin + at * height)

                def tile(height: int) -> None:
                    rows = [out.bind("row", tirx.min(first + r, end - 1)) for r in range(height)]
                    rows = rows if order is None else [out.bind("source", order[row]) for row in rows]
                    sums = folded_sums(
                        out,
                        height,
                        columns,
                        depth,
                        machine,
                        lambda r, k, c: matrix[rows[r], k] * packed[group, block, k, c],
                    )
                    last = n - (blocks - 1) * columns
                    epilogue.store(
                        sums,
                        place=lambda r: first + r,
                        valid=lambda r: first + r < end,
                        first_column=block * columns,
                        columns=last,
                        spare=None if last == columns else n - block * columns,
                    )

                by_height(out, end - first, height, tile)
    return program.rewritten(out.finish())


def _load(value: Expr) -> ir.TensorLoad:
    found: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, lambda load: found.append(load)))
    assert len(found) == 1, "the number of rows stands once in the condition"
    return found[0]
