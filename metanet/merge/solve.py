"""Coordinate descent over the leaves of the group, each step an exact linear assignment (Ainsworth et al. 2022).

With all other leaves held, the inner product of A and aligned B is linear in the permutation of one leaf, so that the
best one is a linear assignment. A leaf that indexes others (heads their channels, experts their hidden units) is
matched together with them: the gain of putting B's element i at A's place j is what the *best inner alignment* of that
pair reaches, found by the same descent on the two slices. A leaf that stands twice in one tensor (a recurrent matrix)
makes the problem quadratic: each step then takes the gradient there, and is kept only if the product grew.

S. Ainsworth, J. Hayase, S. Srinivasa: Git Re-Basin, arXiv:2209.04836.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from archc.ir.axes import AxisVar
from archc.metanet.merge.blocks import Array, Block, Outers, Sources, inner_product

LEAST = 1e-9  # share of a product by which it must grow
SWEEPS = 100


class Solver:
    """Finds the sources of B's elements for A's places.

    hierarchical  match a leaf together with those that it indexes; without, one after the other, as if it indexed none
    """

    def __init__(self, seed: int = 0, hierarchical: bool = True) -> None:
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.hierarchical = hierarchical
        self.sweeps = 0

    def solve(self, blocks: Sequence[Block], outers: Outers, restarts: int = 1) -> Sources:
        """The sources that make the inner product large: the best of several descents, the first from the identity, the
        others from a random element."""
        best, most = identity(outers), -np.inf
        for k in range(restarts):
            start = identity(outers)
            if k:
                start = {leaf: self.rng.permuted(table, axis=-1) for leaf, table in start.items()}
            found = self.descend(blocks, outers, start)
            value = inner_product(blocks, found, outers)
            if value > most:
                best, most = found, value
        return best

    def descend(self, blocks: Sequence[Block], outers: Outers, start: Sources | None = None) -> Sources:
        """One descent, from the identity unless told: with a start leaves are taken in random order."""
        sources, inside = start or identity(outers), start is None
        jointly = self.hierarchical
        top = [leaf for leaf, above in outers.items() if not jointly or not any(o in outers for o in above)]
        scopes = {leaf: _Scope(leaf, blocks, outers) for leaf in top}
        for _ in range(SWEEPS):
            order = [top[i] for i in self.rng.permutation(len(top))] if not inside else top
            changed = [self._improve(scopes[leaf], sources, outers) for leaf in order]
            self.sweeps += not inside
            if not any(changed) or (len(top) == 1 and not scopes[top[0]].repeated):
                break
        return sources

    def _improve(self, scope: _Scope, sources: Sources, outers: Outers) -> bool:
        """Match one leaf anew, and what it indexes; whether the product grew."""
        leaf, moving = scope.leaf, {scope.leaf, *scope.inner}
        held = {other: s for other, s in sources.items() if other not in moving}
        blocks = [Block(x.a, x.aligned(held, outers), x.labels, x.axes) for x in scope.blocks]
        changed = False
        above = outers[leaf]
        for place in product(*(range(_size(o)) for o in above)):
            part = blocks
            for outer, at in zip(above, place, strict=True):
                part = [_restricted(x, outer, at) for x in part]
            own = {leaf: sources[leaf][place]}
            free: dict[AxisVar, tuple[AxisVar, ...]] = {leaf: ()}
            for other in scope.inner:
                free[other] = tuple(o for o in outers[other] if o not in above)
                own[other] = _table(sources[other], outers[other], above, place)
            found = self._assign(leaf, scope.inner, part, own, free)
            before, after = (inner_product(part, s, free) for s in (own, found))
            if after > before + LEAST * max(abs(before), abs(after)):
                changed = True
                sources[leaf][place] = found[leaf]
                for other in scope.inner:
                    _table(sources[other], outers[other], above, place)[...] = found[other]
        return changed

    def _assign(
        self, leaf: AxisVar, inner: Sequence[AxisVar], blocks: Sequence[Block], sources: Sources, outers: Outers
    ) -> Sources:
        """The best sources of a leaf that nothing indexes any more, with those of the leaves that it indexes."""
        from scipy.optimize import linear_sum_assignment

        size = _size(leaf)
        gain = np.zeros((size, size))  # (A's place, B's element)
        nested: list[tuple[int, Block]] = []
        for block in blocks:
            for dim, x in block.fixed(leaf, sources, outers):
                if any(label in inner for label in x.labels):
                    nested.append((dim, x))
                else:
                    flat = [np.moveaxis(y, dim, 0).reshape(size, -1) for y in (x.a, x.b)]
                    gain += flat[0] @ flat[1].T
        below = {other: tuple(o for o in outers[other] if o is not leaf) for other in inner}
        best: dict[tuple[int, int], Sources] = {}
        for j, i in product(range(size), repeat=2) if nested else ():
            pair = [x.at(dim, j, i) for dim, x in nested]
            if self.hierarchical:
                best[j, i] = self.descend(pair, below)
            else:
                best[j, i] = {other: _table(sources[other], outers[other], (leaf,), (j,)) for other in inner}
            gain[j, i] += inner_product(pair, best[j, i], below)
        _, chosen = linear_sum_assignment(gain, maximize=True)
        found = {leaf: chosen.astype(np.intp)}
        for other in inner:
            table = found[other] = sources[other].copy()
            for j, i in enumerate(chosen) if nested else ():
                _table(table, outers[other], (leaf,), (j,))[...] = best[j, int(i)][other]
        return found


class _Scope:
    """What is looked at when a leaf is matched: the blocks that carry it, and the leaves that it indexes."""

    def __init__(self, leaf: AxisVar, blocks: Sequence[Block], outers: Outers) -> None:
        self.leaf = leaf
        self.inner = [other for other in outers if leaf in _above(other, outers)]
        self.blocks = [x for x in blocks if leaf in x.labels]
        self.repeated = any(x.labels.count(leaf) > 1 for x in self.blocks)


def identity(outers: Outers) -> Sources:
    """Every element where it is.

    >>> identity({AxisVar(3): (AxisVar(2),)}).popitem()[1].tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    return {
        leaf: np.broadcast_to(np.arange(_size(leaf)), (*map(_size, above), _size(leaf))).copy()
        for leaf, above in outers.items()
    }


def _above(leaf: AxisVar, outers: Outers) -> set[AxisVar]:
    """What indexes a leaf, and what indexes that."""
    direct = outers.get(leaf, ())
    return {*direct, *(o for above in direct for o in _above(above, outers))}


def _restricted(block: Block, outer: AxisVar, at: int) -> Block:
    """A block at one element of a leaf that is in place in both networks; all of it where it has no such leaf."""
    while outer in block.labels:
        block = block.at(block.labels.index(outer), at, at)
    return block


def _table(table: Array, above: Sequence[AxisVar], given: Sequence[AxisVar], place: Sequence[int]) -> Any:
    """The part of a leaf's sources (a view) at a place of some of the leaves that index it."""
    at: Mapping[AxisVar, int] = dict(zip(given, place, strict=True))
    return table[tuple(at.get(o, slice(None)) for o in above)]


def _size(leaf: AxisVar) -> int:
    assert isinstance(leaf.size, int)
    return leaf.size
