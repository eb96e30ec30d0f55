"""Finding the group element that brings network B nearest to network A.

By weights: the element that makes the inner product of A's and B's trained parameters largest. By activations: the one
that makes the correlations of what units compute on data largest, summed over all values that show a class; a class
that no value shows (what is inside an expert) is matched by weights. Both are one problem, blocks of arrays whose
dimensions are leaves (`problem`), and have one solver (`solve`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from archc.ir.axes import Axes, AxisVar
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.merge.blocks import Block, Label, Outers, inner_product
from archc.metanet.merge.network import check_same, check_weights_finite
from archc.metanet.merge.problem import pose
from archc.metanet.merge.solve import Solver, identity
from archc.metanet.symmetry import Element

Array = Any  # a numpy array
Arrays = Mapping[str, Array]
Method = Literal["weights", "activations"]
RESTARTS, LARGE = 8, 1_000_000
METHODS: tuple[Method, ...] = ("weights", "activations")


@dataclass(frozen=True)
class Match:
    """How network B is aligned.

    axes          the classes and exchanges of the network
    element       what is done to B: see `archc.metanet.symmetry.apply`
    weights       B's weights, aligned
    product       cosine of A's weights with B's, before and after
    error         relative error of the aligned B's function in float64, and the conditioning that allows for it
    sweeps        how often the solver went through all classes
    by_weights    of activation matching: how many classes no value shows, so that weights had to tell
    """

    axes: Axes = field(repr=False)
    element: Element = field(repr=False)
    weights: Arrays = field(repr=False)
    product: tuple[float, float]
    error: float
    conditioning: float
    stacks: int
    sweeps: int
    method: Method
    by_weights: int = 0


def match(
    graph: Graph,
    a: Arrays,
    b: Arrays,
    data: Mapping[str, Array] | None = None,
    *,
    seed: int = 0,
    hierarchical: bool = True,
    replicas: bool = True,
    restarts: int | None = None,
) -> Match:
    """Align network B to network A: by weights, or with `data` (inputs by name) by activations.

    `hierarchical` matches what indexes others (heads, groups, experts) together with what is inside; `replicas` lets
    alike experts and branches change places. Of `restarts` descents the best one counts: by default 8, of networks of
    more than a million weights 1; activations leave little to chance, and get 1.

    Raises: CompileError E0840 for weights that are no numbers, E0841 where nothing can be permuted, E0843 (exit code 3)
    when the aligned network does not compute what B does.

    >>> import numpy as np
    >>> from archc.grammar.load import loads
    >>> from archc.metanet.symmetry import random_weights, rotation, apply
    >>> graph = loads("arch a input x: f32[N, 4] output y: f32[N, 2] y = x -> linear(8) -> relu -> linear(2)")
    >>> a = random_weights(graph, 0)
    >>> problem = pose(graph)
    >>> b = apply(problem.axes, rotation(problem.axes.classes[0]), a)
    >>> all(np.array_equal(w, a[name]) for name, w in match(graph, a, b).weights.items())
    True
    """
    check_weights_finite(("A", "B"), (a, b))
    problem = pose(graph, replicas)
    if not problem.outers:
        raise fail(
            "E0841",
            f"nothing in `{graph.name}` can be permuted, so there is nothing to align",
            label="every axis of every parameter is fixed by an op, an input or an output",
            help="`archc symmetry` tells what fixes them",
        )
    blocks, solver = problem.blocks(a, b), Solver(seed, hierarchical)
    size = sum(p.size for p in graph.parameters().values())
    restarts = restarts or (RESTARTS if size <= LARGE else 1)
    sources, told = identity(problem.outers), 0
    if data is not None:
        from archc.metanet.merge.activations import value_blocks

        values = value_blocks(problem, a, b, data)
        shown = _families(problem.outers, {label for x in values for label in x.labels})
        told = len(problem.outers) - len(shown)
        sources |= solver.solve(values, shown)
        blocks = problem.blocks(a, problem.aligned(sources, b))
        hidden = {leaf: above for leaf, above in problem.outers.items() if leaf not in shown}
        sources |= solver.solve(blocks, hidden, restarts)
    else:
        sources = solver.solve(blocks, problem.outers, restarts)
    aligned = problem.aligned(sources, b)
    error, conditioning = check_same(graph, b, aligned, seed)
    return Match(
        problem.axes,
        problem.element(sources),
        aligned,
        product=(_cosine(problem.blocks(a, b)), _cosine(problem.blocks(a, aligned))),
        error=error,
        conditioning=conditioning,
        stacks=len(problem.stacks),
        sweeps=solver.sweeps,
        method="weights" if data is None else "activations",
        by_weights=told,
    )


def _families(outers: Outers, shown: Container[Label]) -> dict[AxisVar, tuple[AxisVar, ...]]:
    """The leaves that are shown together with all that index them and all that they index."""
    hidden = {leaf for leaf in outers if leaf not in shown}
    while True:
        more = {leaf for leaf, above in outers.items() if leaf not in hidden and hidden.intersection(above)}
        more |= {o for leaf in hidden for o in outers[leaf] if o in outers} - hidden
        if not more:
            return {leaf: above for leaf, above in outers.items() if leaf not in hidden}
        hidden |= more


def _cosine(blocks: Sequence[Block]) -> float:
    """The cosine of two networks' weights."""
    lengths = [sum(float(np.vdot(w, w)) for w in ws) for ws in ([x.a for x in blocks], [x.b for x in blocks])]
    return inner_product(blocks, {}, {}) / (math.sqrt(lengths[0] * lengths[1]) or 1.0)
