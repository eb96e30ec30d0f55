"""Indices that a network computes: compiled code checks them while it runs, and so never reads outside a table.

Those that come in as inputs have been checked before (`archc.backends.inputs.index_bounds`), and some cannot be wrong.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm import equations
from archc.backends.tvm.equations import APART
from archc.backends.tvm.lower import TvmNode
from archc.ir.dims import Dim
from archc.ir.graph import Value
from archc.ir.ops import shape
from archc.ir.ops.index import INDEX_SELECT
from archc.ir.ops.linear import EMBEDDING
from archc.ir.types import FLOATS

op = relax.op

# What comes out are elements of what goes in.
_MOVES = (
    *(shape.IDENTITY, shape.RESHAPE, shape.FLATTEN, shape.UNFLATTEN, shape.SQUEEZE, shape.UNSQUEEZE, shape.PERMUTE),
    *(shape.TRANSPOSE, shape.FLIP, shape.EXPAND, shape.CONCAT, shape.STACK, shape.SPLIT, shape.SLICE, shape.SELECT),
)


def look_up(n: TvmNode, operand: int, size: Dim, read: Any) -> Any:
    """`read(index)` with an operand as the index into an axis of `size`, once it is known to be inside.

    A GPU has no way to report what is not: there the result is NaN in its place, or element 0 where there is no NaN.
    """
    index = n.args[operand]
    if surely_below(n, n.node.inputs[operand], size):
        return read(index)
    if n.lowerer.kind == "cpu":
        emit_te = n.lowerer.bb.emit_te
        words = f"`{n.node.name}` is given an index, computed by the network, that is outside its table"
        if isinstance(size, int):
            check = partial(equations.checked, size=size, words=words)
            return read(emit_te(check, index, primfunc_name_hint="checked", primfunc_attrs=APART))
        axis = n.p.axis % n.type.rank

        def check_open(index: Any, table: Any) -> Any:
            return equations.checked(index, table.shape[axis], words, table)

        return read(emit_te(check_open, index, n.x, primfunc_name_hint="checked", primfunc_attrs=APART))
    whole = n.emit(op.astype(index, "int64"))
    above = n.emit(op.greater_equal(whole, n.const(0, "int64")))
    inside = n.emit(op.logical_and(above, n.emit(op.less(whole, n.size(size, "int64")))))
    found = n.emit(read(n.emit(op.where(inside, whole, n.const(0, "int64")))))
    if n.type.dtype not in FLOATS:
        return found
    nan = n.const(float("nan"))
    if n.node.op is INDEX_SELECT:
        axis = n.p.axis % n.type.rank
        inside = n.emit(op.reshape(inside, [-1 if a == axis else 1 for a in range(n.type.rank)]))
    elif n.node.op is EMBEDDING:
        inside = n.emit(op.expand_dims(inside, -1))
    return op.where(inside, found, nan)


def surely_below(n: TvmNode, value: Value, size: Dim) -> bool:
    """Whether all elements of an integer value are known to be from 0 to size - 1."""
    known = n.lowerer.bounds.get(value)
    if known is not None and isinstance(size, int):
        return known <= size
    node = value.producer
    if node is None:
        return False
    if node.op.name == "constant":
        numbers = np.asarray(node.call.params.value)
        return isinstance(size, int) and bool(((numbers >= 0) & (numbers < size)).all())
    if node.op.name in ("argmax", "argmin") or (node.op.name == "top_k" and value is node.outputs[1]):
        most = node.inputs[0].type.shape[node.call.axis(node.call.params.axis)]
        return most == size or (isinstance(most, int) and isinstance(size, int) and most <= size)
    return node.op in _MOVES and all(surely_below(n, v, size) for v in node.operands)
