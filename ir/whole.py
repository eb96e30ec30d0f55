"""Axes that were cut for nothing: factors that no op tells apart are one axis again.

A network may split an axis, do the same to every element, and join it again (`reshape`, `relu`, `reshape`). Unification
leaves two factors, of which each may be permuted; but their product may be permuted as a whole. That is so when every
op treats the pair alike: they stand next to each other in one letter of its signature, or in two letters that always
occur together and across neither of which the op looks. `passes` that resize axes want the factors apart, so this is a
step of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from archc.ir.axes import Axes, AxisClass, AxisVar
from archc.ir.graph import Graph, Node
from archc.ir.signature import Size, Tensor, atoms, parse_signature


def mend(graph: Graph, axes: Axes) -> None:
    """Join factors of products that every op treats alike, in `axes.classes` and in the axes of parameters."""
    pairs = {pair for variables in axes.parameters.values() for v in variables for pair in _neighbours(v.find())}
    of = {c.leaf: c for c in axes.classes}
    pairs = {(a, b) for a, b in pairs if a in of and b in of and {*of[b].indexed_by} == {*of[a].indexed_by, a}}
    if not pairs:
        return
    for node in graph.walk():
        present = {leaf for variables in axes.letters[node].values() for v in variables for leaf in v.leaves()}
        here = {pair for pair in pairs if pair[0] in present or pair[1] in present}
        if here:
            tensors = list(tensors_of(node, axes))
            pairs -= {pair for pair in here if not _alike(node, axes, tensors, *pair)}
    following = dict(sorted(pairs, key=lambda pair: (of[pair[0]].index, of[pair[1]].index)))
    for first in [a for a in following if a not in following.values()]:
        chain = [first]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        _join(axes, chain)


def tensors_of(node: Node, axes: Axes) -> Iterator[tuple[Tensor, tuple[AxisVar, ...]]]:
    """The patterns of a node's operands, weights and results, and of what its regions take and give, with variables."""
    signature = node.bound.signature
    yield from ((t, axes.values[v]) for t, v in zip(signature.operands, node.operands, strict=True))
    yield from ((t, axes.parameters[node.weights[t.name]]) for t in signature.weights if t.name in node.weights)
    yield from ((t, axes.values[v]) for t, v in zip(signature.results, node.outputs, strict=True))
    lines = node.op.region_lines(node.call) if node.op.region_lines else ()
    for line, region in zip(lines, node.regions, strict=True):
        inner = parse_signature(line)
        yield from ((t, axes.values[v]) for t, v in zip(inner.operands, region.inputs, strict=False))
        yield from ((t, axes.values[v]) for t, v in zip(inner.results, region.outputs, strict=True))


def _neighbours(var: AxisVar) -> Iterator[tuple[AxisVar, AxisVar]]:
    """Leaves that stand next to each other in a product."""
    if var.kind == "product":
        parts = factors(var)
        yield from ((a, b) for a, b in itertools.pairwise(parts) if a.kind == b.kind == "leaf")
    for part in var.parts:
        yield from _neighbours(part.find())


def factors(var: AxisVar) -> list[AxisVar]:
    """The factors of an axis, outermost first: of a product its parts, else the axis itself."""
    root = var.find()
    return [f for part in root.parts for f in factors(part)] if root.kind == "product" else [root]


def _alike(
    node: Node, axes: Axes, tensors: Sequence[tuple[Tensor, tuple[AxisVar, ...]]], a: AxisVar, b: AxisVar
) -> bool:
    letters = {
        (name, i): list(v.leaves()) for name, variables in axes.letters[node].items() for i, v in enumerate(variables)
    }
    having = {key: leaves for key, leaves in letters.items() if a in leaves or b in leaves}
    if all(_together(leaves, a, b) for leaves in having.values()):
        return True
    mixed = {
        atom.name
        for tensor, _ in tensors
        for axis in tensor.axes
        for atom in atoms(axis)
        if not isinstance(atom, Size) and atom.mixed
    }
    if any(name in mixed for name, _ in having):
        return False
    for _tensor, variables in tensors:
        leaves = [leaf for v in variables for leaf in v.leaves()]
        if leaves.count(a) != leaves.count(b) or leaves.count(a) > 1:
            return False
    return True


def _together(leaves: Sequence[AxisVar], a: AxisVar, b: AxisVar) -> bool:
    """Whether each `a` is followed by a `b`, and each `b` preceded by an `a`."""
    return all((leaf is a) == (after is b) for leaf, after in zip([None, *leaves], [*leaves, None], strict=True))


def _join(axes: Axes, chain: list[AxisVar]) -> None:
    of = {c.leaf: c for c in axes.classes}
    inside = set(chain)
    others = [c for c in axes.classes if c.leaf not in inside]
    if any(inside & set(c.indexed_by) and not inside <= set(c.indexed_by) for c in others):
        return
    roots = {v.find(): None for variables in axes.parameters.values() for v in variables}
    if not all(_only_together(root, chain) for root in roots):
        return
    size = 1
    for leaf in chain:
        assert isinstance(leaf.size, int)
        size *= leaf.size
    joined = AxisVar(size)
    for root in roots:
        _rewrite(root, chain, joined)

    def outer(cls: AxisClass) -> tuple[AxisVar, ...]:
        return tuple(dict.fromkeys(joined if o in inside else o for o in cls.indexed_by))

    first = of[chain[0]]
    classes = []
    for c in axes.classes:
        if c is first:
            classes.append(replace(c, leaf=joined, size=size))
        elif c.leaf not in inside:
            classes.append(replace(c, indexed_by=outer(c)))
    axes.classes = tuple(replace(c, index=i) for i, c in enumerate(classes))


def _only_together(var: AxisVar, chain: list[AxisVar]) -> bool:
    """Whether no leaf of the chain stands in `var` without the others in their order."""
    if var.kind == "leaf":
        return var not in chain
    if var.kind == "sum":
        return all(_only_together(p.find(), chain) for p in var.parts)
    parts, i = factors(var), 0
    while i < len(parts):
        if parts[i : i + len(chain)] == chain:
            i += len(chain)
        elif not _only_together(parts[i], chain):
            return False
        else:
            i += 1
    return True


def _rewrite(var: AxisVar, chain: list[AxisVar], joined: AxisVar) -> None:
    if var.kind == "product":
        parts, new, i = factors(var), list[AxisVar](), 0
        while i < len(parts):
            if parts[i : i + len(chain)] == chain:
                new.append(joined)
                i += len(chain)
            else:
                new.append(parts[i])
                i += 1
        var.parts = tuple(new)
        if len(new) == 1 and new[0] is joined:
            var.parent = joined
    for part in var.parts:
        _rewrite(part.find(), chain, joined)
