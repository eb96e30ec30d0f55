"""Views, joins and pieces, and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, tirx, topi

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.ops import constants, shape
from archc.ir.ops.pieces import pad_widths, selected, slice_bounds

op = relax.op


@lowering(shape.RESHAPE, shape.FLATTEN, shape.UNFLATTEN, shape.SQUEEZE, shape.UNSQUEEZE)
def _reshape(n: TvmNode) -> Any:
    return op.reshape(n.x, n.shape(n.type.shape))


@lowering(shape.PERMUTE)
def _permute(n: TvmNode) -> Any:
    return op.permute_dims(n.x, [a % n.type.rank for a in n.p.order])


@lowering(shape.FLIP)
def _flip(n: TvmNode) -> Any:
    return op.flip(n.x, axis=n.p.axis % n.type.rank)


@lowering(shape.TRANSPOSE)
def _transpose(n: TvmNode) -> Any:
    rank = n.type.rank
    return op.permute_dims(n.x, shape.swapped(rank, n.p.a % rank, n.p.b % rank))


@lowering(shape.EXPAND)
def _expand(n: TvmNode) -> Any:
    return op.broadcast_to(n.x, n.shape(n.type.shape))


@lowering(shape.CONCAT)
def _concat(n: TvmNode) -> Any:
    return n.x if len(n.args) == 1 else _joined(n, list(n.args), n.p.axis % n.type.rank)


def _joined(n: TvmNode, pieces: list[Any], axis: int) -> Any:
    """Pieces one behind the other. Relax would add open sizes up as they come, to `T + 1 + 1`, and `FuseTIR` would not
    know these for the `T + 2` of the kernel."""
    if all(isinstance(p.ty.shape[axis], tirx.IntImm) for p in pieces):
        return op.concat(pieces, axis=axis)
    return n.lowerer.bb.emit_te(topi.concatenate, pieces, axis, primfunc_name_hint="concatenate")


@lowering(shape.STACK)
def _stack(n: TvmNode) -> Any:
    axis = n.p.axis % n.type.rank
    return op.concat([op.expand_dims(x, axis) for x in n.args], axis=axis)


@lowering(shape.SPLIT)
def _split(n: TvmNode) -> Any:
    axis = n.p.axis % n.type.rank
    results, start = [], 0
    for value in n.node.outputs:
        stop = start + value.type.shape[axis]
        results.append(n.emit(n.piece(n.x, axis, start, stop)))
        start = stop
    return results


@lowering(shape.SLICE)
def _slice(n: TvmNode) -> Any:
    start, stop = slice_bounds(n.node.call)
    axis = n.p.axis % n.type.rank
    return n.piece(n.x, axis, start, stop, n.p.step)


@lowering(shape.SELECT)
def _select(n: TvmNode) -> Any:
    at = selected(n.node.call)
    axis = n.p.axis % n.node.inputs[0].type.rank
    return op.squeeze(n.piece(n.x, axis, at, at + 1), [axis])


@lowering(shape.PAD)
def _pad(n: TvmNode) -> Any:
    widths = pad_widths(n.node.call)
    if n.p.mode == "constant":
        return op.nn.pad(n.x, [w for pair in widths for w in pair], pad_value=n.p.value)
    result = n.x
    for axis, ((before, after), size) in enumerate(zip(widths, n.node.inputs[0].type.shape, strict=True)):
        if before or after:
            result = n.emit(_joined(n, _borders(n, result, axis, before, after, size), axis))
    return result


def _borders(n: TvmNode, x: Any, axis: int, before: int, after: int, size: Any) -> list[Any]:
    """A row of slices: what stands before the axis, the axis, what stands behind it."""

    def row(at: Any) -> Any:
        return n.piece(x, axis, at, at + 1)

    mode = n.p.mode
    left = {"reflect": range(before, 0, -1), "replicate": [0] * before, "circular": range(-before, 0)}[mode]
    right = {"reflect": range(-2, -2 - after, -1), "replicate": [-1] * after, "circular": range(after)}[mode]
    pieces = [[row(i if i >= 0 else size + i) for i in side] for side in (left, right)]
    return [n.emit(p) for p in [*pieces[0], x, *pieces[1]]]


@lowering(constants.CONSTANT)
def _constant(n: TvmNode) -> Any:
    return n.const(np.asarray(n.p.value))


@lowering(constants.PARAMETER, constants.BUFFER)
def _parameter(n: TvmNode) -> Any:
    return n.weight("weight")
