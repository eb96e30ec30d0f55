"""What units compute on data, as blocks to be matched: their correlations.

Values are those of the network with attention taken apart, so that queries, keys and values of heads are seen. What is
inside a region (an expert, a cell that is scanned) is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from archc.ir.axes import Axes, AxisVar, derive_axes
from archc.ir.clone import clone
from archc.ir.decompose import decompose
from archc.ir.graph import Graph, Parameter, Value
from archc.ir.types import FLOATS
from archc.metanet.merge.blocks import Block, compact, cut
from archc.metanet.merge.network import Network
from archc.metanet.merge.problem import Problem

Array = Any  # a numpy array
Arrays = Mapping[str, Array]

COLUMNS = 4096
"""At most so many numbers of each unit are looked at, spread evenly over samples and places."""


def opened(graph: Graph) -> Graph:
    """A copy with attention taken apart into linear layers and their product; its parameters are the same."""
    copy = clone(graph)
    decompose(copy, lambda op: op.name not in ("attention", "norm"))
    return copy


def value_blocks(problem: Problem, a: Arrays, b: Arrays, data: Mapping[str, Array]) -> list[Block]:
    """Blocks of the values that show a leaf, each unit's numbers centred and of length 1."""
    graph = opened(problem.graph)
    axes = derive_axes(graph)
    same = _same_leaves(axes, problem)
    values = [v for n in graph.nodes for v in n.outputs if v.type.dtype in FLOATS and _shows(v, axes, same)]
    if not values:
        return []
    network = Network(graph, values, double=False)
    blocks: list[Block] = []
    for value, x, y in zip(values, network(a, data), network(b, data), strict=True):
        for block in cut(x, y, axes.values[value], same):
            labels = tuple(same.get(label) if label is not None else None for label in block.labels)
            if any(label is not None for label in labels):
                blocks.append(_correlated(Block(block.a, block.b, labels, block.axes)))
    return blocks


def _shows(value: Value, axes: Axes, same: Mapping[AxisVar, AxisVar]) -> bool:
    return any(leaf in same for var in axes.values.get(value, ()) for leaf in var.leaves())


def _same_leaves(axes: Axes, problem: Problem) -> dict[AxisVar, AxisVar]:
    """The leaves of the network taken apart -> those of the problem, told by the parameters that carry them."""
    found: dict[AxisVar, AxisVar] = {}
    wrong: set[AxisVar] = set()
    for parameter, variables in axes.parameters.items():
        for var, known in zip(variables, _known(problem, parameter), strict=True):
            leaves, others = list(var.leaves()), list(known.leaves())
            if [x.size for x in leaves] != [x.size for x in others]:
                wrong |= set(leaves)
                continue
            for leaf, other in zip(leaves, others, strict=True):
                if other in problem.outers and found.setdefault(leaf, other) is not other:
                    wrong.add(leaf)
    return {leaf: other for leaf, other in found.items() if leaf not in wrong}


def _known(problem: Problem, parameter: Parameter) -> tuple[AxisVar, ...]:
    return problem.axes.parameters[parameter]


def _correlated(block: Block) -> Block:
    """Centred, of length 1, of at most COLUMNS numbers for each unit; units that never change become 0."""
    block = compact(block)
    step = max(1, block.a.shape[-1] // COLUMNS)

    def units(x: Array) -> Array:
        x = x[..., ::step].astype(np.float64)
        x = x - x.mean(-1, keepdims=True)
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12)

    return Block(units(block.a), units(block.b), block.labels, block.axes)
