"""Two linear layers with nothing between them become one, where that costs no more.

    h = conv(x, out=32, kernel=3; weight=W₁, bias=b₁)              y = conv(x, out=8, kernel=3; weight=W, bias=b)
    y = conv(h, out=8, kernel=1; weight=W₂, bias=b₂)       →

with W = W₂ W₁ and b = W₂ b₁ + b₂, at each place of the kernel. It is done for `linear` behind `linear`, for a 1x1
convolution behind any, and for any behind a 1x1 one: there, when the second pads, the first must have no bias (at the
border the second sees zeros, not b₁). Convolutions have equally many groups. Neither FLOPs nor weights may grow, so the
two thin layers of a bottleneck or of a low-rank map stay.

Exact up to rounding in evaluation. In training two layers learn otherwise than one, so the pass does nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from archc.ir.cost import contraction_flops, node_flops
from archc.ir.dims import lower_bound, total
from archc.ir.graph import Graph, Node
from archc.ir.op import Call, Params, bind
from archc.ir.ops.convolution import CONV, conv_geometry
from archc.ir.ops.linear import LINEAR
from archc.passes.blocks import users_of
from archc.passes.layers import Rewiring, owns_weights, weight, with_values
from archc.passes.manager import Context, Pass, Weights

if TYPE_CHECKING:
    from archc.passes.layers import Array


def merge_layers(graph: Graph, context: Context) -> bool:
    """Merge layers whose weights are their own, chains of them into one. `context.weights` must be given."""
    if context.training or context.weights is None:
        return False
    users = users_of(graph)
    changed = False
    for region in list(graph.graphs()):
        edit = Rewiring(region, context.weights)
        for second in [n for n in region.nodes if n.op in (LINEAR, CONV)]:
            merged: Node | None = second
            while merged is not None:
                first = _before(region, merged, users)
                merged = None if first is None else _merge(edit, first, merged)
        changed |= edit.finish()
    return changed


def _before(graph: Graph, layer: Node, users: Mapping[str, int]) -> Node | None:
    """The layer of the same kind that this one alone reads."""
    first = layer.operands[0].producer
    if first is None or first.op is not layer.op or graph.use_count(first.output) != 1:
        return None
    return first if owns_weights(first, users) and owns_weights(layer, users) else None


def _merge(edit: Rewiring, first: Node, second: Node) -> Node | None:
    params = _merged_params(first, second)
    if params is None or not _costs_no_more(params, first, second):
        return None
    values = edit.stored(_merged_weights(first, second, edit.weights), second)
    if values is None:
        return None
    params = with_values(params, bias="bias" in values)
    new = edit.layer(second, first.operands[0], params, values, instead_of=[first, second])
    second.output.replace_all_uses(new.output, edit.graph)
    return new


def _merged_params(first: Node, second: Node) -> Params | None:
    """The parameters of the one layer, None where there is none that does the same."""
    if second.op is LINEAR:
        return second.params
    p, q = first.call.params, second.call.params
    rank = first.call.rank - 2
    one, two = conv_geometry(p, rank), conv_geometry(q, rank)
    if p.groups != q.groups:
        return None
    if all((kernel, pads) == (1, (0, 0)) for kernel, _, _, pads in two):
        strides = tuple(a * b for (_, a, *_), (_, b, *_) in zip(one, two, strict=True))
        return with_values(p, out=q.out, stride=strides[0] if len(set(strides)) == 1 else strides)
    pointwise = all((kernel, stride, pads) == (1, 1, (0, 0)) for kernel, stride, _, pads in one)
    padded = any(sum(pads) for *_, pads in two)
    return second.params if pointwise and not (padded and p.bias) else None


def _costs_no_more(params: Params, first: Node, second: Node) -> bool:
    has_bias = any("bias" in n.weights for n in (first, second))
    merged = bind(second.op, Call(with_values(params, bias=has_bias), (first.operands[0].type,)))
    assert merged.results == (second.output.type,), f"{first} and {second} do not merge into {merged.results}"
    saved = node_flops(first) + node_flops(second) - contraction_flops(merged)
    least = lower_bound(saved)
    fewer = total(p.size for n in (first, second) for p in n.weights.values())
    fewer = fewer - total(spec.type.size for spec in merged.weights.values())
    return least is not None and least >= 0 and isinstance(fewer, int) and fewer >= 0


def _merged_weights(first: Node, second: Node, weights: Weights) -> dict[str, Array]:
    """In float64: the product of the matrices at each place of the kernel that one of them has."""
    import numpy as np

    a, b = weight(first, "weight", weights), weight(second, "weight", weights)
    assert a is not None
    assert b is not None
    groups = second.call.params.groups if second.op is CONV else 1
    one = a.reshape(groups, -1, a.shape[1], a[0, 0].size)  # [g, h, i, k]
    two = b.reshape(groups, -1, b.shape[1], b[0, 0].size)  # [g, o, h, l]
    kernel = b.shape[2:] if a[0, 0].size == 1 else a.shape[2:]
    merged = np.einsum("ghik,gohl->goikl", one, two).reshape(b.shape[0], a.shape[1], *kernel)
    values = {"weight": merged}
    inner, outer = weight(first, "bias", weights), weight(second, "bias", weights)
    if inner is not None:
        carried = np.einsum("gh,gohl->go", inner.reshape(groups, -1), two).reshape(-1)
        values["bias"] = carried if outer is None else carried + outer
    elif outer is not None:
        values["bias"] = outer
    return values


MERGE_LAYERS = Pass("merge_layers", merge_layers)
