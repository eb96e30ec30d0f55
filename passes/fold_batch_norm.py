"""Batch norm folded into a layer beside it: two affine maps of each channel are one.

    h = conv(x, out=8, kernel=3, bias=false; weight=W)             y = conv(x, out=8, kernel=3; weight=W', bias=b')
    y = batch_norm(h; γ, β, μ, σ²)                         →

with s = γ / sqrt(σ² + ε):  W' = s · W  and  b' = s · (b - μ) + β. A norm that no layer comes before goes into those
that read it, if all of them take it:

    h = batch_norm(x; γ, β, μ, σ²)                                 y = linear(x, out=8; weight=W', bias=b')
    y = linear(h, out=8; weight=W, bias=b)                 →

with t = β - s · μ:  W' = W · s  and  b' = b + W · t. Not so for a padded convolution, unless t is 0: at the border it
sees zeros behind the norm, and the folded one would need to see -t / s before it.

In evaluation this is exact up to rounding; in training a batch norm uses the batch's statistics, so the pass does
nothing there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archc.ir.graph import Graph, Node
from archc.ir.ops.convolution import CONV, CONV_TRANSPOSE, conv_geometry
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import BATCH_NORM, NORM
from archc.passes.blocks import users_of
from archc.passes.layers import Rewiring, owns_weights, weight, with_values
from archc.passes.manager import Context, Pass, Weights

if TYPE_CHECKING:
    from archc.passes.layers import Array


def fold_batch_norm(graph: Graph, context: Context) -> bool:
    """Fold every batch norm that a layer before it or all layers behind it take up, where their weights are their own.

    `context.weights` must be given; the folded weights replace the layers' there, and the norm's are removed.
    """
    if context.training or context.weights is None:
        return False
    users = users_of(graph)
    changed = False
    for region in list(graph.graphs()):
        edit = Rewiring(region, context.weights)
        norms = [n for n in region.nodes if _is_batch_norm(n) and owns_weights(n, users)]
        left = []
        for norm in norms:
            layer = norm.operands[0].producer
            before = layer is not None and _takes(layer) and region.use_count(norm.operands[0]) == 1
            if layer is None or not before or not owns_weights(layer, users) or not _fold_back(edit, layer, norm):
                left.append(norm)
        for norm in left[::-1]:  # of several, the last goes first
            if all(owns_weights(n, users) for n in norm.output.uses):
                _fold_ahead(edit, norm)
        changed |= edit.finish()
    return changed


def _is_batch_norm(node: Node) -> bool:
    return node.op is BATCH_NORM or (node.op is NORM and "running_var" in node.weights)


def _takes(layer: Node) -> bool:
    """A norm acts on axis 1: of a linear map's operand and result that is the last axis for rank 2 only."""
    return layer.op in (CONV, CONV_TRANSPOSE) or (layer.op is LINEAR and layer.output.type.rank == 2)


def _affine(norm: Node, weights: Weights) -> tuple[Array, Array]:
    """(scale, shift) of each channel."""
    import numpy as np

    mean, variance = weight(norm, "running_mean", weights), weight(norm, "running_var", weights)
    gain, bias = weight(norm, "weight", weights), weight(norm, "bias", weights)
    assert mean is not None
    assert variance is not None
    scale = (1.0 if gain is None else gain) / np.sqrt(variance + norm.call.params.eps)
    return scale, (0.0 if bias is None else bias) - scale * mean


def _fold_back(edit: Rewiring, layer: Node, norm: Node) -> bool:
    """Into the layer before: every output channel is scaled and shifted. Returns whether that can be."""
    scale, shift = _affine(norm, edit.weights)
    values = {"weight": _outputs_scaled(layer, scale, edit.weights)}
    bias = weight(layer, "bias", edit.weights)
    values["bias"] = shift if bias is None else scale * bias + shift
    stored = edit.stored(values, layer)
    if stored is None:
        return False
    params = with_values(layer.params, bias=True)
    new = edit.layer(layer, layer.operands[0], params, stored, instead_of=[layer, norm])
    norm.output.replace_all_uses(new.output, edit.graph)
    return True


def _outputs_scaled(layer: Node, scale: Array, weights: Weights) -> Array:
    values = weight(layer, "weight", weights)
    assert values is not None
    if layer.op is not CONV_TRANSPOSE:
        return values * scale.reshape(-1, *[1] * (values.ndim - 1))
    groups = layer.call.params.groups  # [groups · i, o, *kernel]: each group has its own o outputs
    apart = values.reshape(groups, -1, *values.shape[1:])
    scales = scale.reshape(groups, 1, values.shape[1], *[1] * (values.ndim - 2))
    return (apart * scales).reshape(values.shape)


def _fold_ahead(edit: Rewiring, norm: Node) -> None:
    """Into all layers behind: every input channel is scaled; what the shifts add up to joins the bias."""
    readers = list(norm.output.uses)
    if not readers or edit.graph.use_count(norm.output) != len(readers) or not all(map(_takes, readers)):
        return
    scale, shift = _affine(norm, edit.weights)
    if shift.any() and not all(map(_sees_no_border, readers)):
        return
    made = [edit.stored(_inputs_scaled(layer, scale, shift, edit.weights), layer) for layer in readers]
    taken = [(layer, values) for layer, values in zip(readers, made, strict=True) if values is not None]
    if len(taken) < len(readers):
        return
    for layer, values in taken:
        params = with_values(layer.params, bias="bias" in values)
        new = edit.layer(layer, norm.operands[0], params, values, instead_of=[layer])
        layer.output.replace_all_uses(new.output, edit.graph)
    edit.drop(norm)


def _sees_no_border(layer: Node) -> bool:
    """Does every element of the result read as many operands? (A transposed convolution's borders read fewer.)"""
    if layer.op is CONV:
        return not any(sum(pads) for *_, pads in conv_geometry(layer.call.params, layer.call.rank - 2))
    return layer.op is LINEAR


def _inputs_scaled(layer: Node, scale: Array, shift: Array, weights: Weights) -> dict[str, Array]:
    values, bias = weight(layer, "weight", weights), weight(layer, "bias", weights)
    assert values is not None
    if layer.op is CONV_TRANSPOSE:  # [groups · i, o, *kernel]
        scaled = values * scale.reshape(-1, *[1] * (values.ndim - 1))
        return {"weight": scaled} | ({} if bias is None else {"bias": bias})
    groups = layer.call.params.groups if layer.op is CONV else 1
    apart = values.reshape(groups, -1, *values.shape[1:])  # [groups, o, i, *kernel]

    def by_input(numbers: Array) -> Array:
        return numbers.reshape(groups, 1, -1, *[1] * (values.ndim - 2))

    scaled = (apart * by_input(scale)).reshape(values.shape)
    if bias is None and not shift.any():
        return {"weight": scaled}
    added: Array = (apart * by_input(shift)).sum(axis=tuple(range(2, apart.ndim))).reshape(-1)
    return {"weight": scaled, "bias": added if bias is None else bias + added}


FOLD_BATCH_NORM = Pass("fold_batch_norm", fold_batch_norm)
