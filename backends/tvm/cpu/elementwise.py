"""Pointwise functions: activations, broadcasts, copies, permutes.

Neighbouring axes that every operand walks in the same way are merged, so that `relu` on [2, 64, 7, 7] is one loop over
6272 elements and a bias over [n, h, w, c] two loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from archc.backends.tvm.cpu.emit import Emitter, as_int, index, product
from archc.backends.tvm.cpu.loops import TASK, Machine, over_vectors, tasks, unravel
from archc.backends.tvm.cpu.program import Axis, Evaluator, Program, Stage, key

Expr = Any
Buffer = Any


def pointwise_kernel(program: Program, machine: Machine) -> tirx.PrimFunc:
    """A function whose every stage is pointwise."""
    out = Emitter()
    write_pointwise(out, program.output, Evaluator(program, out), machine)
    return program.rewritten(out.finish())


def write_pointwise(out: Emitter, stage: Stage, evaluator: Evaluator, machine: Machine) -> None:
    """Write `stage.buffer` with loops over merged axes, vectorised along the last."""
    if not stage.axes:
        out.store(stage.buffer, [0] * len(stage.buffer.shape), evaluator.stage(stage, []))
        return
    groups = merge(stage, operands(stage, evaluator))
    extents = [product([a.extent for a in group]) for group in groups]
    *outer, inner = extents

    def write(outer_index: Sequence[Expr], at: Expr) -> None:
        place = [*outer_index, index(at)]
        merged = MergedReads(out, groups, extents, place)
        with evaluator.reading(merged.load):
            value = evaluator.stage(stage, merged.axes)
        out.store(out.view(stage.buffer, extents), place, value)

    lanes = machine.isa.lanes
    if not outer:
        _flat(out, inner, lanes, lambda at: write([], at))
        return
    with tasks(out, product(outer), inner) as (first, block), out.loop(block, name="row") as row:
        outer_index = unravel(out.bind("outer", first + row), outer)
        over_vectors(out, inner, lanes, lambda at: write(outer_index, at))


def _flat(out: Emitter, extent: Expr, lanes: int, write: Any) -> None:
    """One long axis: tasks of `TASK` elements, then what is left."""
    number = as_int(extent)
    if number is not None and number <= 2 * TASK:
        over_vectors(out, extent, lanes, write)
        return
    whole = number // TASK if number is not None else tirx.floordiv(extent, TASK)
    with out.loop(whole, "parallel", "task") as task:
        over_vectors(out, TASK, lanes, write, start=task * TASK)
    over_vectors(out, extent - whole * TASK, lanes, write, start=whole * TASK)


def operands(stage: Stage, evaluator: Evaluator) -> list[Expr]:
    """Every expression that `stage` comes to, written in its own axes, without writing any of it."""
    aside = evaluator.aside()
    value = aside.stage(stage, [a.var for a in stage.axes])
    return [*aside.named(), value]


def merge(stage: Stage, values: Sequence[Expr], *, last_apart: bool = False) -> list[list[Axis]]:
    """Axes in groups that every load walks together; with `last_apart` the last axis is a group of its own."""
    position = {key(a.var): i for i, a in enumerate(stage.axes)}
    joined = [True] * (len(stage.axes) - 1)  # joined[i]: axes i and i + 1 may be one
    if last_apart and joined:
        joined[-1] = False

    def separate(i: int) -> None:
        for side in (i - 1, i):
            if 0 <= side < len(joined):
                joined[side] = False

    def on_load(load: ir.TensorLoad, visitor: Any) -> None:
        places = [position.get(key(i)) if isinstance(i, ir.Var) else None for i in load.indices]
        seen = {p for p in places if p is not None}
        for axis, (here, extent) in enumerate(zip(places, load.source.shape, strict=True)):
            if here is None:
                visitor.visit(load.indices[axis])
                continue
            if not tvm_ffi.structural_equal(extent, stage.axes[here].extent):
                separate(here)
            follows = axis + 1 < len(places) and places[axis + 1] == here + 1
            precedes = axis > 0 and places[axis - 1] == here - 1
            if here < len(joined) and not follows:
                joined[here] = False
            if here > 0 and not precedes:
                joined[here - 1] = False
        if len(seen) != sum(p is not None for p in places):
            for p in seen:
                separate(p)

    def on_var(var: ir.Var, _visitor: Any) -> None:
        if key(var) in position:
            separate(position[key(var)])

    for value in values:
        tvm_ffi.structural_visit(value, [(ir.TensorLoad, on_load), (ir.Var, on_var)])
    groups: list[list[Axis]] = []
    for i, axis in enumerate(stage.axes):
        if i and joined[i - 1]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


class MergedReads:
    """Answers loads at a place given in merged axes, each operand through a view whose axes are merged alike.

    A merged axis has no index of its own; its variable stands in `axes`, and is only ever met beside its neighbours.
    """

    def __init__(self, out: Emitter, groups: list[list[Axis]], extents: list[Expr], place: Sequence[Expr]) -> None:
        self._out, self._extents, self._place = out, extents, place
        self._groups = {key(group[0].var): (i, len(group)) for i, group in enumerate(groups) if len(group) > 1}
        self.axes: list[Expr] = []
        for group, at in zip(groups, place, strict=True):
            self.axes += [at] if len(group) == 1 else [axis.var for axis in group]

    def load(self, buffer: Buffer, indices: Sequence[Expr]) -> Expr:
        merged: list[Expr] = []
        shape: list[Expr] = []
        axis = 0
        while axis < len(indices):
            group = self._groups.get(key(indices[axis])) if isinstance(indices[axis], ir.Var) else None
            merged.append(indices[axis] if group is None else self._place[group[0]])
            shape.append(buffer.shape[axis] if group is None else self._extents[group[0]])
            axis += 1 if group is None else group[1]
        if len(shape) == len(indices):
            return tirx.BufferLoad(buffer, indices)
        return tirx.BufferLoad(self._out.view(buffer, shape), merged)
