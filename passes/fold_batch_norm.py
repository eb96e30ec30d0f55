"""Batch norm folded into the layer before it: two affine maps of each channel are one.

    h = conv(x, out=8, kernel=3, bias=false; weight=W)             y = conv(x, out=8, kernel=3; weight=W', bias=b')
    y = batch_norm(h; γ, β, μ, σ²)                         →

with s = γ / sqrt(σ² + ε):  W' = s · W  and  b' = s · (b - μ) + β. In evaluation this is exact up to rounding; in
training a batch norm uses the batch's statistics, so the pass does nothing there. It folds into convolutions,
transposed ones and linear maps that come *before* the norm: behind a norm, a padded convolution sees zeros where the
folded one would need the shift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archc.ir.graph import Graph, Node, Parameter
from archc.ir.init import ZEROS
from archc.ir.ops.convolution import CONV, CONV_TRANSPOSE
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import BATCH_NORM, NORM
from archc.passes.manager import Context, Pass, Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def fold_batch_norm(graph: Graph, context: Context) -> bool:
    """Fold every batch norm whose only operand is a layer that nothing else reads and whose weights are its own.

    `context.weights` must be given; the folded weights replace the layer's there, computed in float64 and stored in
    the layer's dtype, and the norm's are removed.
    """
    if context.training or context.weights is None:
        return False
    users: dict[Parameter, int] = {}
    for node in graph.walk():
        for parameter in node.weights.values():
            users[parameter] = users.get(parameter, 0) + 1
    changed = False
    for region in list(graph.graphs()):
        for norm in [n for n in region.nodes if n.op is BATCH_NORM or (n.op is NORM and "running_var" in n.weights)]:
            layer = norm.operands[0].producer
            if layer is None or not _folds(layer) or region.use_count(layer.output) != 1:
                continue
            if any(users[p] > 1 for p in (*layer.weights.values(), *norm.weights.values())):
                continue
            _fold(region, layer, norm, context.weights)
            changed = True
    return changed


def _folds(layer: Node) -> bool:
    """A norm acts on axis 1: of a linear map's result that is the last axis for rank 2 only."""
    return layer.op in (CONV, CONV_TRANSPOSE) or (layer.op is LINEAR and layer.output.type.rank == 2)


def _fold(graph: Graph, layer: Node, norm: Node, weights: Weights) -> None:
    weight, bias = _folded(layer, norm, weights)
    parameter = layer.weights["weight"]
    for gone in norm.weights.values():
        del weights[gone.name]
    name = f"{layer.name}.bias"
    while name in weights and "bias" not in layer.weights:  # a program may name its weights as it likes
        name += "_"
    shift = layer.weights.get("bias") or Parameter(name, norm.weights["running_mean"].type, ZEROS)
    stored = weights[parameter.name].dtype
    weights[parameter.name], weights[shift.name] = weight.astype(stored), bias.astype(stored)
    new = graph.add(
        layer.op,
        layer.operands,
        layer.params.model_copy(update={"bias": True}),
        name=layer.name,
        weights={"weight": parameter, "bias": shift},
        span=layer.span,
        trace=layer.trace,
    )
    norm.output.replace_all_uses(new.output, graph)
    graph.erase(norm, layer)
    graph.sort()


def _folded(layer: Node, norm: Node, weights: Weights) -> tuple[Array, Array]:
    """The weight and bias of the folded layer, in float64."""
    import numpy as np

    def value(node: Node, role: str, default: float) -> Array:
        if role not in node.weights:
            return np.full(norm.weights["running_mean"].shape, default)
        found: Array = weights[node.weights[role].name].astype(np.float64)
        return found

    variance = value(norm, "running_var", 1.0)
    scale = value(norm, "weight", 1.0) / np.sqrt(variance + norm.call.params.eps)
    bias = scale * (value(layer, "bias", 0.0) - value(norm, "running_mean", 0.0)) + value(norm, "bias", 0.0)
    weight = value(layer, "weight", 0.0)
    if layer.op is not CONV_TRANSPOSE:
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias
    groups = layer.call.params.groups  # [groups · i, o, *kernel]: each group has its own o outputs
    apart = weight.reshape(groups, -1, *weight.shape[1:])
    scales = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return (apart * scales).reshape(weight.shape), bias


FOLD_BATCH_NORM = Pass("fold_batch_norm", fold_batch_norm)
