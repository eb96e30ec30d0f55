"""Pieces that are joined again, and pieces of what was joined, are read where they come from.

    a, b = split(x, parts=2, axis=1)
    c = concat(a, b, axis=1)             d = slice(x, axis=1, from=3, to=5)
    d = slice(c, axis=1, from=1)    →    return d
    …

A `concat` of concats is one; a `slice` of a slice is one; a slice that lies within one operand of a `concat` is a slice
of that; a `split` along the seams of a `concat` is nothing; `select` from a `stack` is what was stacked.
"""

from __future__ import annotations

from collections.abc import Sequence

from archc.ir.dims import Dim
from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.ops.pieces import CONCAT, SELECT, SLICE, SPLIT, selected, slice_bounds, split_sizes
from archc.ir.ops.shape import STACK
from archc.passes.manager import Context, Pass
from archc.passes.rewrite import producer, rewrite


def join_pieces(graph: Graph, context: Context) -> bool:
    """Apply the rules below until none of them applies: what one of them frees, another may take."""
    rules = {CONCAT: _concat, SLICE: _slice, SPLIT: _split, SELECT: _select}

    def rule(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
        found = rules.get(node.op)
        return found(b, node) if found is not None else None

    changed = False
    while rewrite(graph, rule):
        changed = True
    return changed


def _axis(node: Node) -> int:
    return node.call.axis(node.call.params.axis)


def _concat(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """All parts of a split in their order; or parts that are themselves joined, and read only here."""
    first, axis = producer(node.operands[0], SPLIT), _axis(node)
    if first is not None and node.operands == first.outputs and _axis(first) == axis:
        return first.operands
    parts: list[Value] = []
    for value in node.operands:
        inner = producer(value, CONCAT)
        alone = inner is not None and b.graph.use_count(value) == 1 and _axis(inner) == axis
        parts += inner.operands if inner is not None and alone else [value]
    return [b(CONCAT, *parts, axis=axis)] if len(parts) > len(node.operands) else None


def _slice(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A slice, without steps, of another one or of one operand of a `concat`."""
    if node.call.params.step != 1:
        return None
    (value,), axis, (start, stop) = node.operands, _axis(node), slice_bounds(node.call)
    inner = producer(value, SLICE)
    if inner is not None and inner.call.params.step == 1 and _axis(inner) == axis:
        offset, _ = slice_bounds(inner.call)
        return _cut(b, inner.operands[0], axis, offset + start, offset + stop)
    joined = producer(value, CONCAT)
    if joined is None or _axis(joined) != axis:
        return None
    seam: Dim = 0
    for part in joined.operands:
        before, after = start - seam, seam + part.type.shape[axis] - stop
        if _not_negative(before) and _not_negative(after):
            return _cut(b, part, axis, before, stop - seam)
        seam = seam + part.type.shape[axis]
    return None


def _not_negative(dim: Dim) -> bool:
    return isinstance(dim, int) and dim >= 0


def _cut(b: GraphBuilder, x: Value, axis: int, start: Dim, stop: Dim) -> Sequence[Value] | None:
    """A slice with bounds counted from 0, or None where they cannot be written: a bound is a number, from either
    end."""
    size = x.type.shape[axis]
    first, last = (bound if isinstance(bound, int) else bound - size for bound in (start, stop))
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    if start == 0 and stop == size:
        return [x]
    result: Value = b(SLICE, x, axis=axis, from_=first, to=None if stop == size else last)
    return [result]


def _split(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """A split along the seams of a `concat`."""
    joined, axis = producer(node.operands[0], CONCAT), _axis(node)
    if joined is None or _axis(joined) != axis:
        return None
    same = tuple(v.type.shape[axis] for v in joined.operands) == split_sizes(node.call)
    return joined.operands if same else None


def _select(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
    """What was stacked at this place."""
    stacked, axis = producer(node.operands[0], STACK), _axis(node)
    if stacked is None or stacked.call.axis(stacked.call.params.axis, extra=1) != axis:
        return None
    place = selected(node.call)
    assert isinstance(place, int), "the axis of a stack has a known size"
    return [stacked.operands[place]]


JOIN_PIECES = Pass("join_pieces", join_pieces)
