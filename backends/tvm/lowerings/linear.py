"""Linear maps, look-up tables and products."""

from __future__ import annotations

from typing import Any

from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.ops.linear import EMBEDDING, LINEAR

op = relax.op


@lowering(LINEAR)
def _linear(n: TvmNode) -> Any:
    weight = n.array("weight")
    assert weight is not None
    y = n.emit(op.matmul(n.x, n.const(weight.T)))
    bias = n.weight("bias")
    return y if bias is None else op.add(y, bias)


@lowering(EMBEDDING)
def _embedding(n: TvmNode) -> Any:
    return op.take(n.weight("weight"), n.x, axis=0)
