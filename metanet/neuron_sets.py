"""Sets of neurons: which digits their places have, how a group element moves them, and how two sets are joined.

A set has a node for each place of an axis. Where the channels of a head are permuted head by head, the set of the
channels takes in the axis that counts the heads, so that every node has one image under the group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.axes import Axes, AxisVar
from archc.ir.graph import Node
from archc.ir.signature import Axis, Letter, Product, Rest, Size, Sum, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

Array = Any  # a numpy array of integers; numpy is imported where it is needed
Name = tuple[str, int]
"""A letter of a signature; of a `*rest` which of its axes."""

Atom = tuple[str, int, int]
"""A leaf of a letter's variable: the letter, and which leaf of it."""


@dataclass(frozen=True, slots=True)
class Term:
    """An axis of a tensor in a signature: parts (one, or those of a sum), each a product of letters of size > 1."""

    parts: tuple[tuple[tuple[Name, int, bool], ...], ...]
    """(letter, size, pinned) of each factor of each part."""

    @property
    def names(self) -> frozenset[Name]:
        return frozenset(name for part in self.parts for name, _, _ in part)

    @property
    def plain(self) -> tuple[tuple[Name, int, bool], ...] | None:
        """The letters of a term that is no sum."""
        return self.parts[0] if len(self.parts) == 1 else None


def terms(tensor: Tensor, shape: Sequence[Any], node: Node) -> list[Term | None]:
    """The axes of a tensor; None where a size is symbolic."""
    found: list[Term | None] = []
    length = len(shape) - sum(not isinstance(a, Rest) for a in tensor.axes)
    for axis in tensor.axes:
        if isinstance(axis, Rest):
            for k in range(length):
                size = shape[len(found)]
                found.append(_term([[((axis.name, k), size, axis.pinned)]]) if isinstance(size, int) else None)
        else:
            size = shape[len(found)]
            found.append(_term(list(_parts(axis, node, size, len(found)))) if isinstance(size, int) else None)
    return found


def _term(parts: list[list[tuple[Name, int, bool]]]) -> Term:
    return Term(tuple(tuple(f for f in part if f[1] != 1) for part in parts))


def _parts(axis: Axis, node: Node, size: int, place: int) -> Iterator[list[tuple[Name, int, bool]]]:
    if isinstance(axis, Sum):
        for k, part in enumerate(axis.parts):
            yield _factors(part, node, None, place * 100 + k)
    else:
        yield _factors(axis, node, size, place)


def _factors(axis: Axis, node: Node, size: int | None, place: int) -> list[tuple[Name, int, bool]]:
    if isinstance(axis, Product):
        return [f for k, factor in enumerate(axis.factors) for f in _factors(factor, node, None, place * 100 + k)]
    if isinstance(axis, Size):
        return [((f"#{axis.value}", place), axis.value, True)]
    assert isinstance(axis, Letter)
    if size is None:
        known = node.bound.dims.get(axis.name)
        assert isinstance(known, int), f"axis {axis.name} of {node} has no size"
        size = known
    return [((axis.name, 0), size, axis.pinned)]


def leaf_digits(var: AxisVar, ones: bool = False) -> list[tuple[AxisVar, Array]]:
    """The leaves of an axis (those of size 1 only with `ones`) with their digits at every place; -1 in other parts of a
    sum."""
    import numpy as np

    var = var.find()
    if var.kind == "leaf":
        return [(var, np.arange(var.size))] if ones or var.size != 1 else []  # type: ignore[arg-type]  # sizes are known here
    sizes = [int(part.find().size) for part in var.parts]  # type: ignore[arg-type]
    found = []
    if var.kind == "product":
        place = np.arange(int(np.prod(sizes)))
        stride = len(place)
        for part, size in zip(var.parts, sizes, strict=True):
            stride //= size
            digit = place // stride % size
            found += [(leaf, digits[digit]) for leaf, digits in leaf_digits(part, ones)]
        return found
    offset = 0
    for part, size in zip(var.parts, sizes, strict=True):
        for leaf, digits in leaf_digits(part, ones):
            wide = np.full(sum(sizes), -1)
            wide[offset : offset + size] = digits
            found.append((leaf, wide))
        offset += size
    return found


@dataclass(eq=False, slots=True)
class NodeSet:
    """Nodes `base … base + size`, one for each place of `components` together, row-major.

    outers  for a set of a value's axis: (axis, leaf) of each component before the last, which is the axis itself
    """

    base: int
    size: int
    components: tuple[AxisVar, ...]
    outers: tuple[tuple[int, AxisVar], ...] = ()
    chain: tuple[str, ...] = ()

    @property
    def nodes(self) -> Array:
        import numpy as np

        return np.arange(self.base, self.base + self.size)

    def digits(self) -> list[Array]:
        """The place in each component, for every node."""
        import numpy as np

        return list(np.unravel_index(np.arange(self.size), [int(str(c.size)) for c in self.components] or [1]))

    def image(self, element: Mapping[AxisVar, Array], index: Mapping[AxisVar, tuple[AxisVar, ...]]) -> Array:
        """Where a group element sends each place."""
        if not self.components:
            return self.nodes - self.base
        places = self.digits()
        scope: dict[AxisVar, Array] = {}
        for var, place in zip(self.components, places, strict=True):
            note_digits(var, place, scope, index)
        total: Array = 0
        for var, place in zip(self.components, places, strict=True):
            root = var.find()
            total = total * root.size + image(root, place, scope, element, index)
        return total


def subaxes(var: AxisVar) -> Iterator[AxisVar]:
    """An axis and all axes that it is made of, those of size 1 apart."""
    root = var.find()
    if root.size != 1:
        yield root
        for part in root.parts:
            yield from subaxes(part)


def note_digits(
    var: AxisVar, place: Array, scope: dict[AxisVar, Array], index: Mapping[AxisVar, tuple[AxisVar, ...]]
) -> None:
    """Note the digits of all leaves of an axis, and of every sum that indexes others and has one of them as a part."""
    for leaf, digits in leaf_digits(var, ones=True):
        scope.setdefault(leaf, digits[place])
    for total in {o for outer in index.values() for o in outer if o.kind == "sum"} - scope.keys():
        offset = 0
        for part in total.parts:
            digits = scope.get(part.find())
            if digits is not None:
                scope[total] = offset + digits if total not in scope else _either(scope[total], offset + digits, digits)
            offset += int(str(part.size))


def _either(one: Array, other: Array, digits: Array) -> Array:
    import numpy as np

    return np.where(digits >= 0, other, one)


def image(
    var: AxisVar,
    place: Array,
    scope: Mapping[AxisVar, Array],
    element: Mapping[AxisVar, Array],
    index: Mapping[AxisVar, tuple[AxisVar, ...]],
) -> Array:
    """Where a group element sends the places of an axis, given the digits of every leaf that may index it."""
    import numpy as np

    var = var.find()
    if var.kind == "leaf":
        table = element.get(var)
        return place if table is None else table[(*(scope[o] for o in index[var]), place)]
    parts = [part.find() for part in var.parts]
    sizes = [int(str(part.size)) for part in parts]
    if var.kind == "product":
        total: Array = 0
        stride = int(np.prod(sizes))
        for part, size in zip(parts, sizes, strict=True):
            stride //= size
            total = total * size + image(part, place // stride % size, scope, element, index)
        return total
    moved, offset = np.array(place), 0
    for part, size in zip(parts, sizes, strict=True):
        inside = (place >= offset) & (place < offset + size)
        local = np.clip(place - offset, 0, size - 1)
        own: dict[AxisVar, Array] = {}
        note_digits(part, local, own, index)
        moved = np.where(inside, offset + image(part, local, {**scope, **own}, element, index), moved)
        offset += size
    return moved


def set_atoms(
    nodes: NodeSet, axis: int | None, axes_terms: Sequence[Term | None], letters: Mapping[str, tuple[AxisVar, ...]]
) -> dict[Atom, Array]:
    """The digit of every leaf of every letter, for the nodes of a set as a node's signature sees them."""
    if axis is None or not nodes.components:
        return {}
    places = nodes.digits()
    found: dict[Atom, Array] = {}
    for (outer_axis, outer), place in zip(nodes.outers, places[:-1], strict=True):
        term, inside = axes_terms[outer_axis], dict(leaf_digits(outer))
        for name in term.names if term else ():
            for k, (own, _) in enumerate(leaf_digits(letters[name[0]][name[1]])):
                if own in inside:
                    found.setdefault((*name, k), inside[own][place])
    term = axes_terms[axis]
    assert term is not None
    found |= term_atoms(term, places[-1], letters)
    return found


def term_atoms(term: Term, place: Array, letters: Mapping[str, tuple[AxisVar, ...]]) -> dict[Atom, Array]:
    """The digits of a term's letters at places of its axis."""
    import numpy as np

    found: dict[Atom, Array] = {}
    offset = 0
    for part in term.parts:
        size = int(np.prod([s for _, s, _ in part])) if part else 1
        stride, local = size, np.clip(place - offset, 0, size - 1)
        inside = None if len(term.parts) == 1 else (place >= offset) & (place < offset + size)
        for name, letter_size, _ in part:
            stride //= letter_size
            digit = local // stride % letter_size
            var = letters.get(name[0], ())
            leaves = leaf_digits(var[name[1]]) if len(var) > name[1] else []
            for k, digits in enumerate([d for _, d in leaves] or [np.arange(letter_size)]):
                value = digits[digit]
                found[(*name, k)] = value if inside is None else np.where(inside, value, -1)
        offset += size
    return found


def join(a: Mapping[Atom, Array], b: Mapping[Atom, Array], most: int) -> tuple[Array, Array] | int | None:
    """The pairs of places that agree in every digit that both have; None when they have none in common, and the number
    of pairs where that is more than `most`."""
    import numpy as np

    common = [atom for atom in a if atom in b]
    if not common:
        return None
    if len(common) == len(a) == len(b) and all(np.array_equal(a[c], b[c]) for c in common):
        places = np.arange(len(a[common[0]]))
        return places, places
    left, right = _key(a, b, common)
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    first, last = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
    counts = np.where(left >= 0, last - first, 0)
    pairs = int(counts.sum())
    if pairs > most:
        return pairs
    source = np.repeat(np.arange(len(left)), counts)
    inner = np.arange(pairs) - np.repeat(np.cumsum(counts) - counts, counts)
    return source, order[np.repeat(first, counts) + inner]


def _key(a: Mapping[Atom, Array], b: Mapping[Atom, Array], common: Sequence[Atom]) -> tuple[Array, Array]:
    """One number for the common digits of each place; negative (and never equal) where it has none of them."""
    import numpy as np

    keys = []
    radix = [int(max(a[c].max(), b[c].max())) + 2 for c in common]
    for side, nothing in ((a, -1), (b, -2)):
        key: Array = 0
        for atom, base in zip(common, radix, strict=True):
            key = key * base + side[atom] + 1
        keys.append(np.where(key == 0, nothing, key))
    return keys[0], keys[1]


def indexed_by(axes: Axes) -> dict[AxisVar, tuple[AxisVar, ...]]:
    """What indexes each free leaf."""
    return {c.leaf: c.indexed_by for c in axes.classes}
