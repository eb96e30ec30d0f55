"""How much the elements of an axis class matter: what pruning removes first.

Every score is about 1 on average within its unit, so that units of different layers can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from archc.ir.axes import AxisClass, AxisVar
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import Init
from archc.passes.manager import Context
from archc.passes.resize import elements
from archc.passes.units import Unit, roles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

By = Literal["magnitude", "random", "variance"]
Spreads = dict[tuple[Value, int], "Array"]
"""(value, axis): the variance of each place along the axis, over everything else."""


def scores(graph: Graph, units: Sequence[Unit], by: By, context: Context) -> dict[Unit, list[Array]]:
    """For each class of each unit its elements' scores, shape (sizes of what indexes it…, size).

    magnitude  the norm of all that a removal takes away, over every weight that has the element: each weight in units
               of its own mean, so that a batch norm's gain counts beside a convolution's rows (the groups of Fang et
               al. 2023, DepGraph, arXiv:2301.12900)
    variance   how much the layers that read the element would miss it: the standard deviation on sample data times
               the norm of the weights that meet it. What is constant can be had from a bias. Units that are read
               within regions alone go by magnitude
    random     uniform numbers

    Without weights all score alike.

    Raises: CompileError E0408 when `by = variance` has no data to look at.
    """
    import numpy as np

    if by == "random":
        return {u: [_drawn(c, context.seed, f"{u.anchor.name}:{i}") for i, c in enumerate(u.classes)] for u in units}
    if context.weights is None:
        return {u: [np.ones(_shape(c)) for c in u.classes] for u in units}
    spreads = _spreads(graph, units, context) if by == "variance" else {}
    return {u: [_score(u, c, spreads, context) for c in u.classes] for u in units}


def _drawn(c: AxisClass, seed: int, name: str) -> Array:
    return Init("uniform", 0.5).sample(_shape(c), seed, name) + 1.0


def _score(unit: Unit, c: AxisClass, spreads: Spreads, context: Context) -> Array:
    import numpy as np

    score = _activity(unit, c, spreads, context)
    if score is None:
        parameters = {p.name: p for p in unit.axes.parameters}
        members = dict.fromkeys(parameters[m.parameter] for m in c.members)
        energies = [_energy(p, context.value(p), c, unit) for p in members if p.trainable]
        score = np.sqrt(sum(e / (e.mean() or 1.0) for e in energies) / max(1, len(energies)))
    result: Array = score / (score.mean() or 1.0)
    return result


def _shape(c: AxisClass) -> tuple[int, ...]:
    return (*(int(str(o.size)) for o in c.indexed_by), c.size)


def _energy(parameter: Parameter, value: Array, c: AxisClass, unit: Unit) -> Array:
    """The sum of squares of what each element of a class has in a weight."""
    return collected(unit.axes.parameters[parameter], value**2, c)


def collected(variables: Sequence[AxisVar], value: Array, c: AxisClass) -> Array:
    """Numbers of a tensor added up by the element of a class (and of what indexes it) that they belong to."""
    import numpy as np

    found = np.zeros(_shape(c))
    for own, var in enumerate(variables):  # a recurrent weight has one class on both axes
        if not any(leaf is c.leaf for leaf in var.leaves()):
            continue
        axes = [_place_of(outer, own, variables) for outer in c.indexed_by] + [own]
        gone = tuple(i for i in range(len(variables)) if i not in axes)
        rest = [i for i in range(len(variables)) if i in axes]
        index = []
        for leaf, axis in zip((*c.indexed_by, c.leaf), axes, strict=True):
            shape = [-1 if i == axis else 1 for i in rest]
            index.append(elements(variables[axis], leaf).reshape(shape))
        index = list(np.broadcast_arrays(*index))
        there = np.logical_and.reduce([i >= 0 for i in index])
        np.add.at(found, tuple(i[there] for i in index), value.sum(axis=gone)[there])
    return found


def _place_of(outer: AxisVar, own: int, variables: Sequence[AxisVar]) -> int:
    """The axis that tells which element of an outer leaf a place belongs to: the own one, or the other that has it."""
    with_it = [i for i, v in enumerate(variables) if any(leaf is outer for leaf in v.leaves())]
    return own if own in with_it else with_it[0]


def _readers(unit: Unit, c: AxisClass) -> Iterator[tuple[Node, Value, int]]:
    """(reader, what it reads, on which axis the class stands there), for classes that nothing indexes."""
    for node in unit.nodes:
        if c.indexed_by or "weight" not in node.weights:
            continue
        if all(role != "read" for _, role in roles(node, unit.axes, c.leaf)):
            continue
        value = node.operands[0]
        axes = [i for i, v in enumerate(unit.axes.values[value]) if any(leaf is c.leaf for leaf in v.leaves())]
        if len(axes) == 1:
            yield node, value, axes[0]


def _spreads(graph: Graph, units: Sequence[Unit], context: Context) -> Spreads:
    """The variance on sample data of each place of what is read outside of regions, along the axis of the class."""
    import numpy as np

    if context.observe is None:
        raise fail(
            "E0408",
            "`prune(by = variance)` needs data",
            label="it looks at what flows through the network",
            help="give data, or `by = magnitude`",
        )
    outside = {v for node in graph.nodes for v in node.inputs}
    places = {(v, axis) for u in units for c in u.classes for _, v, axis in _readers(u, c) if v in outside}
    if not places:
        return {}
    values = list(dict.fromkeys(v for v, _ in places))
    seen = dict(zip(values, context.observe(graph, context.weights or {}, values), strict=True))
    return {
        (value, axis): np.moveaxis(seen[value], axis, 0).reshape(seen[value].shape[axis], -1).var(axis=1)
        for value, axis in places
    }


def _activity(unit: Unit, c: AxisClass, spreads: Spreads, context: Context) -> Array | None:
    """Standard deviation of what is read, times the norm of the weights that read it; None where nothing was seen."""
    import numpy as np

    total = np.zeros(_shape(c))
    for node, value, axis in _readers(unit, c):
        if (value, axis) in spreads:
            weight = node.weights["weight"]
            energy = _energy(weight, context.value(weight), c, unit)
            total += collected([unit.axes.values[value][axis]], spreads[value, axis], c) * energy
    return np.sqrt(total) if total.any() else None
