"""Does a region treat each row by itself? Read off the signatures of its ops.

What does may be run on any choice of rows, in any order, and rows of several experts may stand in one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from archc.ir.graph import Graph, Node, Value
from archc.ir.signature import Axis, Letter, Rest, Size, Tensor, atoms


def by_row(region: Graph, lead: int) -> bool:
    """Whether each result at a row depends on the region's first input at that row alone. A row is an index along the
    first `lead` axes.

    >>> from archc.grammar.load import loads
    >>> def tokens(body):
    ...     net = f"arch a input x: f32[N, T, 8] output y: f32[N, T, 8] y = x -> skip(gate = linear(1), body = {body})"
    ...     return loads(net).nodes[-1].regions[1]
    >>> by_row(tokens("layer_norm -> linear(8) -> gelu"), 2)
    True
    >>> by_row(tokens("fn(r) { return r - (r -> mean(1, keepdim = true)) }"), 2)
    False
    """
    carried = {region.inputs[0]}
    for node in region.nodes:
        if carried.isdisjoint(node.inputs):
            continue
        if node.regions or not _by_row(node, carried, lead):
            return False
        carried.update(node.outputs)
    return carried.issuperset(region.outputs)


def _by_row(node: Node, carried: set[Value], lead: int) -> bool:
    """Whether the op keeps the rows of the operands that have them, and no axis else follows them."""
    signature = node.bound.signature
    if len(signature.operands) != len(node.operands):
        return False
    rows: set[tuple[str, ...]] = set()
    others: set[str] = {name for weight in signature.weights for name in _names(weight.axes)}
    tensors = [(p, v.type.rank, v in carried) for p, v in zip(signature.operands, node.operands, strict=True)]
    tensors += [(p, v.type.rank, True) for p, v in zip(signature.results, node.outputs, strict=True)]
    for pattern, rank, has_rows in tensors:
        axes = _spread(pattern, rank)
        first = axes[:lead] if has_rows else []
        if has_rows and len(axes) <= lead:
            return False
        for axis in first:
            one = axis == Size(1) and axis is not first[-1]  # of one sample, as of several
            if not one and (not isinstance(axis, Letter) or axis.pinned or axis.mixed):
                return False
        if has_rows:
            rows.add(tuple(axis.name if isinstance(axis, Letter) else "" for axis in first))
        others.update(_names(axes[len(first) :]))
    return len(rows) == 1 and others.isdisjoint(*rows)


def _spread(pattern: Tensor, rank: int) -> list[Axis]:
    """The pattern's axes, one for each axis of a tensor of this rank: `*b` is b.0, b.1, …"""
    count = rank - sum(not isinstance(a, Rest) for a in pattern.axes)
    spread: list[Axis] = []
    for axis in pattern.axes:
        if isinstance(axis, Rest):
            spread += [Letter(f"{axis.name}.{i}", axis.pinned, axis.mixed) for i in range(count)]
        else:
            spread.append(axis)
    return spread


def _names(axes: Sequence[Axis]) -> list[str]:
    return [atom.name for axis in axes for atom in atoms(axis) if isinstance(atom, Letter | Rest)]
