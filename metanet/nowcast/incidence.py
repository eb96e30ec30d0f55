"""A network as a hypergraph: each weight joins the neurons (elements of axes) that it stands between.

All trained parameters of a network, one after the other, are one flat vector of n weights. The nodes are the elements
of the axis leaves of the certified group (`archc.metanet.symmetry.group`), so that the bias of a neuron, the rows that
feed it, the gain of its norm and the columns that read it meet in one node whatever the ops in between. A weight of a
flattened axis (channel × place) touches one node for each factor; an element of an axis that is indexed (a channel of a
head) is a node for each element of what indexes it. Nothing here tells two nodes of a class apart, hence what passes
messages along it commutes with every element of that group: permutations of classes, per element of what indexes them,
and exchanges of whole experts and branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from archc.ir.axes import AxisVar
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.symmetry import group

Array = np.ndarray[Any, Any]

MAX_WEIGHTS = 2_000_000
"""A jump of the shipped model needs about 1 kB of memory a weight."""


@dataclass(frozen=True)
class Incidence:
    """The hypergraph of a network of n weights, T parameters and M nodes.

    names    of the trained parameters, in the order of the flat vector; `shapes` beside them
    tensor   i64[n], the parameter of each weight
    slots    i64[n] for each way of touching a node (factor of an axis); M where a weight touches none that way
    sides    of each slot: 0 for a parameter's first axis (what it feeds), 1 for the others (what it reads)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    tensor: Array
    slots: tuple[Array, ...]
    sides: tuple[int, ...]
    nodes: int

    @property
    def weights(self) -> int:
        return len(self.tensor)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    def flatten(self, arrays: Mapping[str, Array]) -> Array:
        """The flat vector of parameters by name."""
        return np.concatenate([np.asarray(arrays[name]).reshape(-1) for name in self.names])

    def unflatten(self, flat: Array) -> dict[str, Array]:
        """The reverse of `flatten`."""
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return {name: part.reshape(s) for name, part, s in zip(self.names, parts, self.shapes, strict=True)}


def incidence(graph: Graph) -> Incidence:
    """The hypergraph of a network's trained parameters.

    Raises: CompileError E0836 when nothing in it is trained or a trained parameter is not f32, E0838 for a network of
    more than `MAX_WEIGHTS` weights.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 2]\\ny = x -> linear(3) -> relu -> linear(2)")
    >>> found = incidence(net)
    >>> found.names
    ('linear.weight', 'linear.bias', 'linear1.weight', 'linear1.bias')
    >>> found.weights, found.nodes  # 4 inputs, 3 hidden neurons, 2 outputs
    (23, 9)
    """
    trained = {name: p for name, p in graph.parameters().items() if p.trainable}
    if not trained:
        raise fail("E0836", f"`{graph.name}` has nothing to predict", label="none of its parameters is trained")
    for name, parameter in trained.items():
        if parameter.type.dtype != "f32":
            raise fail(
                "E0836",
                f"parameter `{name}` of `{graph.name}` cannot be predicted",
                label=f"needed f32, found {parameter.type.dtype}",
            )
    total = sum(math.prod(p.shape) for p in trained.values())
    if total > MAX_WEIGHTS:
        raise fail(
            "E0838",
            f"`{graph.name}` is too large for nowcasting",
            label=f"{total:,} weights, and at most {MAX_WEIGHTS:,} are taken",
            help="train it without nowcasting",
        )
    axes = group(graph)
    by_name = {p.name: variables for p, variables in axes.parameters.items()}
    nodes = _Nodes({c.leaf: c.indexed_by for c in axes.classes})
    touched = [nodes.touch(p.shape, by_name[name]) for name, p in trained.items()]
    width = max(len(slots) for slots in touched)
    places = [[*slots, *[_nothing(p.shape)] * (width - len(slots))]
              for slots, p in zip(touched, trained.values(), strict=True)]  # fmt: skip
    sides = tuple(min(k // nodes.FACTORS, 1) for k in range(width))
    columns = [np.concatenate([slots[k] for slots in places]) for k in range(width)]
    used = [k for k in range(width) if (columns[k] >= 0).any()]
    return Incidence(
        names=tuple(trained),
        shapes=tuple(tuple(p.shape) for p in trained.values()),
        tensor=np.repeat(np.arange(len(trained)), [math.prod(p.shape) for p in trained.values()]),
        slots=tuple(np.where(columns[k] < 0, nodes.count, columns[k]) for k in used),
        sides=tuple(sides[k] for k in used),
        nodes=nodes.count,
    )


def _nothing(shape: tuple[int, ...]) -> Array:
    return np.full(math.prod(shape), -1)


class _Nodes:
    """Numbers the elements of leaves as parameters touch them."""

    FACTORS = 4
    """Slots for the factors of one axis; further factors (none of ours has more) share the last, which only loses."""

    def __init__(self, indexed_by: Mapping[AxisVar, tuple[AxisVar, ...]]) -> None:
        self.indexed_by = indexed_by
        self.sums = {o for outer in indexed_by.values() for o in outer if o.kind == "sum"}
        self.first: dict[AxisVar, int] = {}
        self.count = 0

    def touch(self, shape: tuple[int, ...], variables: tuple[AxisVar, ...]) -> list[Array]:
        """For each slot the node of each weight of a parameter, flat; -1 for none."""
        grid = np.indices(shape).reshape(len(shape), -1)
        scope: dict[AxisVar, Array] = {}
        axes: list[list[Touch]] = []
        for var, place in zip(variables, grid, strict=True):
            axes.append(_leaves(var.find(), place, np.ones(place.shape, bool)))
            scope = self._digits(var.find(), axes[-1], place) | scope
        slots = []
        for factors, var, place in zip(axes, variables, grid, strict=True):
            own = self._digits(var.find(), factors, place)
            columns = [_nothing(shape) for _ in range(self.FACTORS)]
            for inside, leaf, digit in factors:
                node = self._number(leaf, digit, {**scope, **own})
                free = next((c for c in columns if not (c[inside] >= 0).any()), None)
                if free is not None:
                    free[inside] = node[inside]
            slots += columns
        return slots

    def _digits(self, var: AxisVar, factors: list[Touch], place: Array) -> dict[AxisVar, Array]:
        """The coordinates that an axis gives: of its leaves, and of sums that index, whole or through a part."""
        found = {leaf: np.where(inside, digit, 0) for inside, leaf, digit in factors}
        for sum_ in self.sums:
            if var is sum_:
                found[sum_] = place
                continue
            offset = 0
            for part in sum_.parts:
                if part.find() in found:
                    found[sum_] = found[part.find()] + offset
                offset += _size(part)
        return found

    def _number(self, leaf: AxisVar, digit: Array, scope: Mapping[AxisVar, Array]) -> Array:
        outer = self.indexed_by.get(leaf, ())
        sizes = [_size(o) for o in (*outer, leaf)]
        if leaf not in self.first:
            self.first[leaf] = self.count
            self.count += math.prod(sizes)
        number: Array = np.zeros_like(digit)
        for size, place in zip(sizes, [*(scope[o] for o in outer), digit], strict=True):
            number = number * size + place
        return number + self.first[leaf]


Touch = tuple[Array, AxisVar, Array]


def _leaves(var: AxisVar, place: Array, inside: Array) -> list[Touch]:
    """Where an axis has a leaf, and at which of its elements: (mask, leaf, element). Leaves of size 1 say nothing."""
    if var.kind == "leaf":
        return [] if var.size == 1 else [(inside, var, place)]
    found = []
    if var.kind == "product":
        for part in reversed(var.parts):
            root = part.find()
            found += _leaves(root, place % _size(root), inside)
            place = place // _size(root)
        return found
    offset = 0
    for part in var.parts:
        root = part.find()
        here = inside & (place >= offset) & (place < offset + _size(root))
        found += _leaves(root, np.clip(place - offset, 0, _size(root) - 1), here)
        offset += _size(root)
    return found


def _size(var: AxisVar) -> int:
    size = var.find().size
    assert isinstance(size, int), "the axes of a parameter have sizes that are known"
    return size
