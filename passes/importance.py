"""How much the elements of an axis class matter: what pruning removes first.

Every score is about 1 on average within its unit, so that units of different layers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def scores(graph: Graph, unit: Unit, by: By, context: Context) -> list[Array]:
    """For each class of a unit its elements' scores, shape (sizes of what indexes it…, size).

    magnitude  the norm of all that a removal takes away, over every weight that has the element: each weight in units
               of its own mean, so that a batch norm's gain counts beside a convolution's rows (the groups of Fang et
               al. 2023, DepGraph, arXiv:2301.12900)
    variance   how much the layers that read the element would miss it: the standard deviation on sample data times
               the norm of the weights that meet it. What is constant can be had from a bias. Units that are read
               within regions alone go by magnitude
    random     uniform numbers

    Without weights all score alike.
    """
    import numpy as np

    if by == "random":
        name = unit.anchor.name
        return [Init("uniform", 0.5).sample(_shape(c), context.seed, f"{name}:{i}") + 1.0
                for i, c in enumerate(unit.classes)]  # fmt: skip
    if context.weights is None:
        return [np.ones(_shape(c)) for c in unit.classes]
    parameters = {p.name: p for p in unit.axes.parameters}
    found = []
    for c in unit.classes:
        score = _activity(graph, unit, c, context) if by == "variance" else None
        if score is None:
            members = dict.fromkeys(parameters[m.parameter] for m in c.members)
            energies = [_energy(p, context.value(p), c, unit) for p in members if p.trainable]
            score = np.sqrt(sum(e / (e.mean() or 1.0) for e in energies) / max(1, len(energies)))
        found.append(score / (score.mean() or 1.0))
    return found


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


def _activity(graph: Graph, unit: Unit, c: AxisClass, context: Context) -> Array | None:
    """Standard deviation of what is read, times the norm of the weights that read it; None where nothing is read
    outside of regions."""
    import numpy as np

    if context.observe is None:
        raise fail(
            "E0408",
            "`prune(by = variance)` needs data",
            label="it looks at what flows through the network",
            help="give data, or `by = magnitude`",
        )
    readers = [n for n in unit.nodes if n in set(graph.nodes) and _reads(n, unit, c)]
    total = np.zeros(_shape(c))
    for node, value in _inputs(readers, unit, c):
        (seen,) = context.observe(graph, context.weights or {}, [value])
        variables = unit.axes.values[value]
        axis = next(i for i, v in enumerate(variables) if c.leaf in v.leaves())
        spread = np.moveaxis(seen, axis, 0).reshape(seen.shape[axis], -1).var(axis=1)
        weight = node.weights["weight"]
        total += collected([variables[axis]], spread, c) * collected(
            unit.axes.parameters[weight], context.value(weight) ** 2, c
        )
    return np.sqrt(total) if total.any() else None


def _reads(node: Node, unit: Unit, c: AxisClass) -> bool:
    return "weight" in node.weights and any(role == "read" for _, role in roles(node, unit.axes, c.leaf))


def _inputs(readers: Sequence[Node], unit: Unit, c: AxisClass) -> list[tuple[Node, Value]]:
    """(reader, what it reads) where the class stands on one axis of it, and nothing indexes it."""
    found = []
    for node in readers:
        value = node.operands[0]
        axes = [v for v in unit.axes.values[value] if c.leaf in v.leaves()]
        if len(axes) == 1 and not c.indexed_by:
            found.append((node, value))
    return found
