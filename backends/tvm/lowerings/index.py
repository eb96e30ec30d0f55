"""Look-ups by index, and sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm import equations
from archc.backends.tvm.lower import TvmNode, lowering
from archc.backends.tvm.lowerings.bounds import look_up
from archc.backends.tvm.lowerings.elementwise import number
from archc.ir.ops import index
from archc.ir.ops.shape import swapped
from archc.ir.types import NUMPY_NAMES

op = relax.op


@lowering(index.GATHER)
def _gather(n: TvmNode) -> Any:
    axis = n.p.axis % n.type.rank
    return look_up(n, 1, n.node.inputs[0].type.shape[axis], lambda index: op.gather_elements(n.x, index, axis))


@lowering(index.INDEX_SELECT)
def _index_select(n: TvmNode) -> Any:
    axis = n.p.axis % n.type.rank
    return look_up(n, 1, n.node.inputs[0].type.shape[axis], lambda index: op.take(n.x, index, axis, mode="clip"))


@lowering(index.ONE_HOT)
def _one_hot(n: TvmNode) -> Any:
    classes = n.const(np.arange(n.p.num_classes), NUMPY_NAMES[n.node.inputs[0].type.dtype])
    hit = n.emit(op.equal(n.emit(op.expand_dims(n.x, -1)), classes))
    return hit if n.p.dtype == "bool" else number(n, hit, n.dtype)


@lowering(index.TOP_K)
def _top_k(n: TvmNode) -> Any:
    """Among equals the first comes first; NaN is the largest of all."""
    rank = n.type.rank
    axis = n.p.axis % rank
    order = swapped(rank, axis, rank - 1)

    def swap(x: Any) -> Any:
        return x if axis == rank - 1 else n.emit(op.permute_dims(x, order))

    x = swap(n.x)
    indices = top_indices(n, x, n.p.k, n.p.largest)
    return [swap(n.emit(op.gather_elements(x, indices, rank - 1))), swap(indices)]


def top_indices(n: TvmNode, x: Any, k: int, largest: bool = True) -> Any:
    """The indices (i64) of the k largest elements of the last axis, in order."""
    floats = str(x.ty.dtype).startswith(("float", "bfloat"))
    call = n.lowerer.bb.emit_te
    rank = call(lambda x: equations.rank(x, largest, floats), x, primfunc_name_hint="rank")
    return call(lambda rank: equations.where_rank(rank, k), rank, primfunc_name_hint="top")
