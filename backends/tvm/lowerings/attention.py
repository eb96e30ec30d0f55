"""The product inside attention; everything around it is decomposed."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.ir.ops.attention import LOWEST, SCALED_DOT_PRODUCT

op = relax.op


@lowering(SCALED_DOT_PRODUCT)
def _scaled_dot_product(n: TvmNode) -> Any:
    """Query heads that share keys are rows of one product: [N, kv, r·T, D]."""
    (q, k, v, *masks), types = n.args, [value.type for value in n.node.inputs]
    (batch, heads, t, d), kv, u = types[0].shape, types[1].shape[1], types[1].shape[2]
    grouped = heads != kv
    lowest = n.const(LOWEST[types[0].dtype])
    scale = n.p.scale if n.p.scale is not None else d**-0.5 if isinstance(d, int) else None
    q = n.emit(op.multiply(q, n.const(scale)) if scale is not None else op.divide(q, n.emit(op.sqrt(n.size(d)))))
    if grouped:
        q = n.emit(op.reshape(q, n.shape([batch, kv, heads // kv * t, d])))
    scores = n.emit(op.matmul(q, n.emit(op.permute_dims(k, [0, 1, 3, 2]))))
    if grouped:
        scores = n.emit(op.reshape(scores, n.shape([batch, heads, t, u])))
    allowed = None
    if masks and types[3].dtype == "bool":
        allowed = masks[0]
    elif masks:
        scores = n.emit(op.add(scores, masks[0]))
        allowed = n.emit(op.greater(masks[0], lowest))
    if n.p.causal:
        past = _causal(n, t, u)
        allowed = past if allowed is None else n.emit(op.logical_and(allowed, past))
    if allowed is not None:
        scores = n.emit(op.where(allowed, scores, lowest))
    weights = n.emit(op.nn.softmax(scores, axis=-1))
    if masks:  # a query that may see nothing gets zeros, as in PyTorch
        weights = n.emit(op.where(allowed, weights, n.const(0)))
    if grouped:
        weights = n.emit(op.reshape(weights, n.shape([batch, kv, heads // kv * t, u])))
    found = op.matmul(weights, v)
    return op.reshape(n.emit(found), n.shape(n.type.shape)) if grouped else found


def _causal(n: TvmNode, t: Any, u: Any) -> Any:
    """[T, U]: whether query t may see key u."""
    if isinstance(t, int) and isinstance(u, int):
        return n.const(np.tri(t, u, dtype=bool), "bool")
    return n.emit(op.greater_equal(n.arange(t, 0, 2), n.arange(u, 1, 2)))
