"""Arrays cut up so that each free leaf is a dimension of its own.

A parameter's axis may be a leaf, a product (heads x channels) or a sum (what a concatenation reads). `cut` makes blocks
of it, one for each part of a sum, whose dimensions are leaves: a group element then reorders whole dimensions, and the
inner product of two networks is a sum over blocks.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from archc.ir.axes import AxisVar

Array = Any  # a numpy array
Label = AxisVar | None
"""The leaf that a dimension is, None for one that stays in place."""
Sources = dict[AxisVar, Array]
"""For each leaf, shape (sizes of what indexes it…, size): which of B's elements comes to each of A's places. What
indexes a leaf is counted in A's places too."""
Outers = Mapping[AxisVar, tuple[AxisVar, ...]]
"""For each leaf that moves, the leaves each element of which has a permutation of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The same part of A and of B; `labels` say what its dimensions are, `axes` which axis each one came from."""

    a: Array
    b: Array
    labels: tuple[Label, ...]
    axes: tuple[int, ...]

    def at(self, dim: int, in_a: int, in_b: int) -> Block:
        """Where a dimension has one place in A and another in B."""
        head = (slice(None),) * dim
        return Block(
            self.a[(*head, in_a)],
            self.b[(*head, in_b)],
            self.labels[:dim] + self.labels[dim + 1 :],
            self.axes[:dim] + self.axes[dim + 1 :],
        )

    def aligned(self, sources: Mapping[AxisVar, Array], outers: Outers, but: int | None = None) -> Array:
        """B's part, its elements where the sources put them; dimension `but` is left as it is."""
        if not any(label in sources for i, label in enumerate(self.labels) if i != but):
            return self.b
        rank = self.b.ndim
        places = [np.arange(n).reshape([-1 if i == j else 1 for j in range(rank)]) for i, n in enumerate(self.b.shape)]
        index = []
        for i, label in enumerate(self.labels):
            if label is None or label not in sources or i == but:
                index.append(places[i])
            else:
                index.append(sources[label][(*(places[self.place(o, i)] for o in outers[label]), places[i])])
        return self.b[tuple(index)]

    def place(self, outer: AxisVar, near: int) -> int:
        """The dimension that is `outer`: in the same axis as dimension `near`, or else the only one."""
        found = [i for i, label in enumerate(self.labels) if label is outer]
        assert found, "a tensor that carries the inner leaf carries the outer one"
        return next((i for i in found if self.axes[i] == self.axes[near]), found[0])

    def fixed(self, leaf: AxisVar, sources: Sources, outers: Outers) -> Iterator[tuple[int, Block]]:
        """Each dimension that is `leaf`, with the others that are held where the sources put them."""
        found = [i for i, label in enumerate(self.labels) if label is leaf]
        for dim in found:
            if len(found) == 1:
                yield dim, self
                continue
            labels = tuple(None if i in found and i != dim else label for i, label in enumerate(self.labels))
            held = {leaf: sources[leaf]}
            yield dim, Block(self.a, self.aligned(held, outers, but=dim), labels, self.axes)


def cut(a: Array, b: Array, variables: Sequence[AxisVar], labels: Container[AxisVar]) -> Iterator[Block]:
    """The blocks of a parameter that two networks have. `labels` are the leaves to be told apart.

    >>> inner, outer = AxisVar(3), AxisVar(2)
    >>> both = AxisVar(6, kind="product", parts=(outer, inner))
    >>> w = np.arange(24.0).reshape(6, 4)
    >>> [block] = cut(w, w, [both, AxisVar(4)], {inner, outer})
    >>> block.a.shape, block.labels == (outer, inner, None)
    ((2, 3, 4), True)
    """
    for parts in product(*(pieces(v, n, labels) for v, n in zip(variables, a.shape, strict=True))):
        names = tuple(name for part, _ in parts for name in part)
        axes = tuple(i for i, (part, _) in enumerate(parts) for _ in part)
        index, before = [], 0
        for _, places in parts:
            after = len(names) - before - places.ndim
            index.append(places.reshape((1,) * before + places.shape + (1,) * after))
            before += places.ndim
        yield Block(a[tuple(index)], b[tuple(index)], names, axes) if index else Block(a, b, (), ())


def pieces(var: AxisVar, size: int, labels: Container[AxisVar]) -> list[tuple[tuple[Label, ...], Array]]:
    """The parts of an axis: the labels of each, and its places on the axis, a dimension for each label."""
    root = var.find()
    if root.kind == "leaf" or not all(isinstance(p.find().size, int) for p in root.parts):
        return [((root if root in labels else None,), np.arange(size))]
    found: list[tuple[tuple[Label, ...], Array]] = []
    if root.kind == "sum":
        offset = 0
        for part in root.parts:
            own = _size(part)
            found += [(names, offset + places) for names, places in pieces(part, own, labels)]
            offset += own
        return found
    found = [((), np.zeros((), np.intp))]
    for part in root.parts:
        own = _size(part)
        inner = pieces(part, own, labels)
        found = [
            (names + more, places.reshape(places.shape + (1,) * local.ndim) * own + local)
            for names, places in found
            for more, local in inner
        ]
    return found


def _size(var: AxisVar) -> int:
    size = var.find().size
    assert isinstance(size, int)
    return size


def compact(block: Block) -> Block:
    """The same with all dimensions that stay in place as one, the last."""
    kept = [i for i, label in enumerate(block.labels) if label is not None]
    rest = [i for i, label in enumerate(block.labels) if label is None]
    shape = (*(block.a.shape[i] for i in kept), -1)
    if not block.a.size:
        return block
    a, b = (x.transpose(*kept, *rest).reshape(shape) for x in (block.a, block.b))
    return replace(
        block,
        a=a,
        b=b,
        labels=(*(block.labels[i] for i in kept), None),
        axes=(*(block.axes[i] for i in kept), -1),
    )


def inner_product(blocks: Sequence[Block], sources: Mapping[AxisVar, Array], outers: Outers) -> float:
    """What is to be made large: the sum over blocks of A times aligned B."""
    return float(sum(np.vdot(x.a, x.aligned(sources, outers)) for x in blocks))
