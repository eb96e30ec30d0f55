"""Layers side by side on one tensor become one layer, and a split.

    q = linear(x, out=8; weight=W₁)                h = linear(x, out=16; weight=[W₁; W₂])
    k = linear(x, out=8; weight=W₂)        →       q, k = split(h, parts=[8, 8], axis=2)

For linear maps, and for convolutions of one geometry without groups; with a bias or without, alike in all. Exact up to
rounding, in training too: the new weight's rows learn as the old weights would.

Compiled for the CPU it pays for convolutions (0.74 and 0.88 of the time) and for large layers (0.86 for 768-2048), and
is within two per cent for others: see `benchmarks/fuse_branches.py`. So it is there by name, and in no pipeline.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from archc.ir.graph import Graph, Node
from archc.ir.ops.convolution import CONV
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.pieces import SPLIT
from archc.passes.blocks import users_of
from archc.passes.layers import Rewiring, owns_weights, with_values
from archc.passes.manager import Context, Pass


def fuse_branches(graph: Graph, context: Context) -> bool:
    """Fuse layers that read the same tensor, where their weights are their own. `context.weights` must be given."""
    if context.weights is None:
        return False
    users = users_of(graph)
    names = {node.name for node in graph.walk()}
    changed = False
    for region in list(graph.graphs()):
        beside: dict[Hashable, list[Node]] = {}
        for node in region.nodes:
            key = _key(node)
            if key is not None and owns_weights(node, users):
                beside.setdefault(key, []).append(node)
        edit = Rewiring(region, context.weights)
        for layers in beside.values():
            if len(layers) > 1:
                _fuse(edit, layers, names)
        changed |= edit.finish()
    return changed


def _key(node: Node) -> Hashable | None:
    """Layers with the same key differ in their weights and the number of outputs alone."""
    if node.op is LINEAR:
        return LINEAR, id(node.operands[0]), node.call.params.bias, node.weights["weight"].type.dtype
    if node.op is CONV and node.call.params.groups == 1:
        return CONV, id(node.operands[0]), repr(with_values(node.params, out=1, init=None))
    return None


def _fuse(edit: Rewiring, layers: Sequence[Node], names: set[str]) -> None:
    import numpy as np

    first, *_ = layers
    stored = {edit.weights[n.weights["weight"].name].dtype for n in layers}
    if len(stored) > 1:
        return
    values = {role: np.concatenate([edit.weights[n.weights[role].name] for n in layers]) for role in first.weights}
    sizes = tuple(int(n.call.params.out) for n in layers)
    name = _free("_".join([first.name, *(n.name.rpartition(".")[2] for n in layers[1:])]), names)
    params = with_values(first.params, out=sum(sizes), init=None)
    new = edit.layer(first, first.operands[0], params, values, instead_of=layers, name=name)
    axis = new.output.type.rank - 1 if new.op is LINEAR else 1
    parts = edit.behind(new, SPLIT, SPLIT.params(parts=sizes, axis=axis), _free(f"{name}.split", names))
    for layer, part in zip(layers, parts.outputs, strict=True):
        layer.output.replace_all_uses(part, edit.graph)


def _free(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name


FUSE_BRANCHES = Pass("fuse_branches", fuse_branches)
