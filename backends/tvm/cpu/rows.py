"""Reductions, and whatever is made of them: sums, means, softmax, layer / RMS / group norm.

In a *row program* every stage shares its leading axes (the rows), so one task carries a row through all stages while it
is in the first-level cache. Anything else runs stage by stage through memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from archc.backends.tvm.cpu.elementwise import write_pointwise
from archc.backends.tvm.cpu.emit import Emitter, as_int, index, product
from archc.backends.tvm.cpu.loops import Machine, divisor, over_vectors, powers_of_two, tasks, unravel
from archc.backends.tvm.cpu.program import Axis, Evaluator, Program, Stage, is_expensive, key

Expr = Any
Buffer = Any


def reduction_kernel(program: Program, machine: Machine) -> tirx.PrimFunc:
    """A function with at least one reduction and no special kernel."""
    rows = _row_axes(program)
    if rows is None:
        return _staged(program, machine)
    return _row_program(program, rows, machine)


# Row programs


def _row_axes(program: Program) -> int | None:
    """How many leading axes every stage shares, where a row at a time will do; None otherwise."""
    reductions = [s for s in program.stages if s.combiner]
    count = min(len(s.axes) for s in reductions)
    if count == 0 or any(len(s.axes) != count or not _runs_along_rows(s) for s in reductions):
        return None
    output = program.output
    inner = {key(s.buffer): s for s in program.stages}
    for stage in program.stages:
        if len(stage.axes) < count:
            return None
        if any(
            not tvm_ffi.structural_equal(a.extent, b.extent)
            for a, b in zip(stage.axes[:count], output.axes[:count], strict=True)
        ):
            return None
        for load in _loads(stage.value):
            if key(load.source) not in inner:
                continue
            if any(not i.same_as(a.var) for i, a in zip(load.indices[:count], stage.axes[:count], strict=True)):
                return None
    return count


def _runs_along_rows(stage: Stage) -> bool:
    """Whether the last reduced axis is the contiguous one of what is read (or nothing large is read at all)."""
    lane = _contiguous_axis(stage)
    return lane is None or any(key(a.var) == lane for a in stage.reduced)


def _row_program(program: Program, count: int, machine: Machine) -> tirx.PrimFunc:
    out = Emitter()
    extents = [a.extent for a in program.output.axes[:count]]
    cost = max((product([a.extent for a in (*s.axes[count:], *s.reduced)]) for s in program.stages), key=_known)
    with tasks(out, product(extents), cost) as (first, block):
        kept = {key(s.buffer): _row_buffer(out, s, count) for s in program.stages[:-1] if _worth_keeping(program, s)}
        with out.loop(block, name="row") as row:
            place = unravel(out.bind("outer", first + row), extents)
            evaluator = Evaluator(program, out)
            for stage in program.stages:
                if stage.combiner:
                    # every read of this row's statistic has the row's own index
                    total = reduce_lanes(out, evaluator, stage, place, machine.isa.lanes)
                    if stage is program.output:
                        out.store(stage.buffer, place, total)
                    else:
                        evaluator.define_value(stage.buffer, total)
                elif key(stage.buffer) in kept or stage is program.output:
                    _write_row(out, evaluator, stage, place, kept.get(key(stage.buffer)), machine.isa.lanes)
                    if stage is not program.output:
                        evaluator.define_copy(stage.buffer, kept[key(stage.buffer)], count)
    return program.rewritten(out.finish())


def _known(extent: Expr) -> int:
    number = as_int(extent)
    return 1 << 62 if number is None else number


def _worth_keeping(program: Program, stage: Stage) -> bool:
    """Whether a pointwise stage is read twice and costs more to compute again than to load."""
    if stage.combiner:
        return False
    readers = sum(any(key(load.source) == key(stage.buffer) for load in _loads(s.value)) for s in program.stages)
    return readers > 1 and is_expensive(stage.value)


def _row_buffer(out: Emitter, stage: Stage, count: int) -> Buffer:
    extents = [a.extent for a in stage.axes[count:]]
    return out.scratch(f"{stage.name}_row", extents or [1], stage.buffer.dtype)


def _write_row(
    out: Emitter, evaluator: Evaluator, stage: Stage, place: Sequence[Expr], buffer: Buffer | None, lanes: int
) -> None:
    own = [a.extent for a in stage.axes[len(place) :]]
    if not own:
        value = evaluator.stage(stage, place)
        out.store(stage.buffer, place, value) if buffer is None else out.store(buffer, [0], value)
        return
    with ExitStack() as loops:
        outer = [loops.enter_context(out.loop(e, name="outer")) for e in own[:-1]]

        def write(at: Expr) -> None:
            value = evaluator.stage(stage, [*place, *outer, index(at)])
            if buffer is None:
                out.store(stage.buffer, [*place, *outer, at], value)
            else:
                out.store(buffer, [*outer, at], value)

        over_vectors(out, own[-1], lanes, write)


def reduce_lanes(out: Emitter, evaluator: Evaluator, stage: Stage, place: Sequence[Expr], lanes: int) -> Expr:
    """One element of a reduction: several vectors of partial results along the last reduced axis, folded at the end."""
    *outer_axes, last = _reduction_order(stage)
    extent = as_int(last.extent)
    dtype = _sum_dtype(stage)
    width = (
        lanes if extent is None else max(w for w in (1, 2, 4, 8, lanes, 2 * lanes, 4 * lanes) if w <= max(1, extent))
    )
    partial = out.local("partial", [width], dtype)
    combiner = stage.combiner
    assert combiner is not None
    with out.loop(width, "vectorized", "lane") as lane:
        out.store(partial, [lane], identity(combiner, dtype))

    def add(outer: dict[int, Expr], at: Expr, lane: Expr) -> None:
        where = {**outer, key(last.var): index(at)}
        term = evaluator.stage(stage, place, [where[key(a.var)] for a in stage.reduced])
        term = term if term.ty.dtype == dtype else tirx.Cast(dtype, term)
        out.store(partial, [lane], evaluator.combine(combiner, partial[lane], term))

    with ExitStack() as loops:
        outer = {key(a.var): loops.enter_context(out.loop(a.extent, name="k")) for a in outer_axes}
        whole = extent // width if extent is not None else out.bind("whole", tirx.floordiv(last.extent, width))
        if whole != 0:
            with out.loop(whole, name="block") as block, out.loop(width, "vectorized", "lane") as lane:
                add(outer, block * width + lane, lane)
        if extent is None:
            with out.loop(last.extent - whole * width, name="rest") as rest:
                add(outer, whole * width + rest, index(0))
        else:
            done = whole * width
            for tail in powers_of_two(extent - done):
                with out.loop(tail, "vectorized", "lane") as lane:
                    add(outer, done + lane, lane)
                done += tail
    while width > 1:
        half = width // 2
        with out.loop(half, "vectorized", "lane") as lane:
            out.store(partial, [lane], evaluator.combine(combiner, partial[lane], partial[lane + half]))
        width = half
    total = partial[0]
    return total if dtype == stage.buffer.dtype else tirx.Cast(stage.buffer.dtype, total)


def _reduction_order(stage: Stage) -> list[Axis]:
    lane = _contiguous_axis(stage)
    return sorted(stage.reduced, key=lambda a: key(a.var) == lane)


def _sum_dtype(stage: Stage) -> str:
    """Half floats are summed in float32."""
    dtype = str(stage.buffer.dtype)
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def identity(combiner: str, dtype: str) -> Expr:
    """The value that leaves a reduction unchanged."""
    if combiner in ("add", "mul"):
        return tirx.const(0 if combiner == "add" else 1, dtype)
    if combiner in ("and", "or"):
        return tirx.const(combiner == "and", dtype)
    if dtype.startswith("float"):
        return tirx.const(float("-inf") if combiner == "max" else float("inf"), dtype)
    return tirx.min_value(dtype) if combiner == "max" else tirx.max_value(dtype)


# Stage by stage


def _staged(program: Program, machine: Machine) -> tirx.PrimFunc:
    out = Emitter()
    evaluator = Evaluator(program, out)
    for stage in program.stages:
        final = stage is program.output
        if not final and not stage.combiner and not _reused(program, stage):
            continue
        if final:
            written = stage
        else:
            shape = [a.extent for a in stage.axes]
            kept = out.scratch(stage.name, shape or [1], stage.buffer.dtype)
            written = Stage(stage.name, kept, stage.axes, stage.reduced, stage.value, stage.combiner, stage.attributes)
        if stage.combiner:
            _write_reduction(out, evaluator, written, machine)
        else:
            write_pointwise(out, written, evaluator, machine)
        if not final:
            evaluator.define_copy(stage.buffer, kept)
    return program.rewritten(out.finish())


def _reused(program: Program, stage: Stage) -> bool:
    """Whether some reader walks more axes than the stage has, and so would compute it again and again."""
    readers = [s for s in program.stages if any(key(load.source) == key(stage.buffer) for load in _loads(s.value))]
    return any(len(s.axes) + len(s.reduced) > len(stage.axes) for s in readers) or _worth_keeping(program, stage)


def _write_reduction(out: Emitter, evaluator: Evaluator, stage: Stage, machine: Machine) -> None:
    extents = [a.extent for a in stage.axes]
    cost = product([a.extent for a in stage.reduced])
    if not extents:
        out.store(
            stage.buffer,
            [] if not len(stage.buffer.shape) else [0],
            reduce_lanes(out, evaluator, stage, [], machine.isa.lanes),
        )
        return
    if _runs_along_rows(stage):
        with tasks(out, product(extents), cost) as (first, block), out.loop(block, name="row") as row:
            place = unravel(out.bind("outer", first + row), extents)
            out.store(stage.buffer, place, reduce_lanes(out, evaluator, stage, place, machine.isa.lanes))
        return
    _write_columns(out, evaluator, stage, machine)


def _write_columns(out: Emitter, evaluator: Evaluator, stage: Stage, machine: Machine) -> None:
    """The contiguous axis survives the reduction: a vector of results at a time."""
    *outer_extents, inner = [a.extent for a in stage.axes]
    cost = product([a.extent for a in stage.reduced])
    dtype, combiner = _sum_dtype(stage), stage.combiner
    assert combiner is not None
    number, lanes = as_int(inner), machine.isa.lanes
    width = lanes if number is None else max(1, min(4 * lanes, number - number % lanes) if number >= lanes else 1)
    if number is not None and width > lanes:
        width = lanes * divisor(number // lanes, 4)

    def columns(outer: list[Expr], start: Expr, width: int) -> None:
        sums = out.local("sums", [width], dtype)
        with out.loop(width, "vectorized", "lane") as lane:
            out.store(sums, [lane], identity(combiner, dtype))
        with ExitStack() as loops:
            reduced = [loops.enter_context(out.loop(a.extent, name="k")) for a in stage.reduced]
            lane = loops.enter_context(out.loop(width, "vectorized", "lane"))
            term = evaluator.stage(stage, [*outer, start + lane], reduced)
            term = term if term.ty.dtype == dtype else tirx.Cast(dtype, term)
            out.store(sums, [lane], evaluator.combine(combiner, sums[lane], term))
        with out.loop(width, "vectorized", "lane") as lane:
            value = sums[lane] if dtype == stage.buffer.dtype else tirx.Cast(stage.buffer.dtype, sums[lane])
            out.store(stage.buffer, [*outer, start + lane], value)

    whole = number // width if number is not None else out.bind("whole", tirx.floordiv(inner, width))
    if whole != 0:
        with tasks(out, product([*outer_extents, whole]), cost * width) as (first, block), out.loop(block) as row:
            *outer, chunk = unravel(out.bind("at", first + row), [*outer_extents, whole])
            columns(outer, chunk * width, width)
    if number is not None and number == whole * width:
        return
    with tasks(out, product(outer_extents), cost) as (first, block), out.loop(block) as row:
        outer = unravel(out.bind("at", first + row), outer_extents) if outer_extents else []
        done = whole * width
        if number is None:
            with out.loop(inner - done, name="rest") as rest:
                columns(outer, done + rest, 1)
        else:
            for tail in powers_of_two(number - done):
                columns(outer, index(done), tail)
                done += tail


# What an expression reads


def _loads(value: Expr) -> list[ir.TensorLoad]:
    found: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(value, (ir.TensorLoad, lambda load: found.append(load)))
    return found


def _contiguous_axis(stage: Stage) -> int | None:
    """The axis that runs along memory in the largest operand."""
    own = {key(a.var) for a in (*stage.axes, *stage.reduced)}
    best: tuple[int, int | None] = (0, None)
    for load in _loads(stage.value):
        if not len(load.indices):
            continue
        last = [key(v) for v in _vars(load.indices[-1]) if key(v) in own]
        if last and len(load.indices) > best[0]:
            best = (len(load.indices), last[-1])
    return best[1]


def _vars(value: Expr) -> list[ir.Var]:
    found: list[ir.Var] = []
    tvm_ffi.structural_walk(value, (ir.Var, lambda var: found.append(var)))
    return found
