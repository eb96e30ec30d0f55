"""Weights to begin training from, to judge predicted ones by: Kaiming's, and ones that know the topology.

Both draw the matrices of linear layers, convolutions and attention anew; whatever else a net has (norms, splines,
positions) keeps what its program says, and biases begin at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from archc.ir.graph import Graph, Node, Value
from archc.ir.init import Init, fans

Weights = dict[str, NDArray[np.float32]]

MATRIX_OPS = {"linear", "tied_linear", "bilinear", "conv", "conv_transpose", "attention", "kan"}
"""Ops that mix channels by weights: a path through one of them is a layer longer."""
_DRAWN = {"linear", "bilinear", "conv", "conv_transpose", "attention"}
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "norm"}

Powers = tuple[float, float, float, float]
"""Over the paths that lead from the input to a value: the sums of L⁰, L¹, L² and L³, L being their layers."""


@dataclass(frozen=True)
class Start:
    """First weights, and the factor by which the learning rate is to be multiplied."""

    weights: Weights
    rate: float = 1.0


def kaiming(graph: Graph, seed: int) -> Start:
    """He et al. (https://arxiv.org/abs/1502.01852): matrices N(0, 2 / fan_in)."""
    return Start(_draw(graph, seed, {}))


def architecture_aware(graph: Graph, seed: int) -> Start:
    """Chen et al. (https://arxiv.org/abs/2402.17440): N(0, 2 / (fan_in · d)), where the layer reads a sum of d terms,
    and a rate that falls as (Σ L³)^-½ over all paths from input to output; 1 for a chain of three layers.

    What is summed is counted through ops without weights; a norm makes one term of it.
    """
    terms: dict[str, int] = {}
    paths: dict[Value, Powers] = dict.fromkeys(graph.inputs, (1.0, 0.0, 0.0, 0.0))
    _follow(graph, paths, {}, terms)
    cubes = sum(paths[value][3] for value in graph.outputs)
    return Start(_draw(graph, seed, terms), math.sqrt(27 / max(1.0, cubes)))


STARTS = {"kaiming": kaiming, "aware": architecture_aware}


def _draw(graph: Graph, seed: int, terms: Mapping[str, int]) -> Weights:
    found: Weights = {}
    drawn = {
        parameter.name: node.name
        for node in graph.walk()
        for role, parameter in node.weights.items()
        if node.op.name in _DRAWN and parameter.trainable and "norm" not in role
    }
    for name, parameter in graph.parameters().items():
        init = parameter.init
        if name in drawn:
            fan_in = fans(parameter.shape)[0]
            variance = 2 / (max(1, fan_in) * terms.get(drawn[name], 1))
            init = Init("normal", math.sqrt(variance)) if len(parameter.shape) > 1 else Init("constant")
        found[name] = np.asarray(init.sample(parameter.shape, seed, name), np.float32)
    return found


def _follow(graph: Graph, paths: dict[Value, Powers], sums: dict[Value, int], terms: dict[str, int]) -> None:
    """Fill in the paths that lead to each value, how many terms it sums, and how many each layer reads."""
    for node in graph.nodes:
        read = [paths.get(value, (0.0, 0.0, 0.0, 0.0)) for value in node.inputs]
        merged = _sum(read) or (0.0, 0.0, 0.0, 0.0)
        width = [sums.get(value, 1) for value in node.inputs]
        count = sum(width) if node.op.name == "add" else max(width, default=1)
        if node.regions:
            inner = [_region(region, node, paths, sums, terms) for region in node.regions]
            merged = _sum(inner) or merged
        elif node.op.name in MATRIX_OPS:
            terms[node.name] = count
            merged, count = _longer(merged), 1
        elif node.op.name in _NORMS:
            count = 1
        for value in node.outputs:
            paths[value], sums[value] = merged, count


def _region(
    region: Graph, node: Node, paths: dict[Value, Powers], sums: dict[Value, int], terms: dict[str, int]
) -> Powers:
    for formal, value in zip(region.inputs, _actuals(region, node), strict=True):
        paths[formal] = paths.get(value, (0.0, 0.0, 0.0, 0.0)) if value is not None else (0.0, 0.0, 0.0, 0.0)
        sums[formal] = sums.get(value, 1) if value is not None else 1
    _follow(region, paths, sums, terms)
    return _sum([paths[value] for value in region.outputs]) or (0.0, 0.0, 0.0, 0.0)


def _actuals(region: Graph, node: Node) -> list[Value | None]:
    """What each formal of a region stands for: operands in order as far as they go, and captures at the end."""
    own = len(region.inputs) - node.captures
    operands: list[Value | None] = list(node.operands[:own])
    return operands + [None] * (own - len(operands)) + [*node.captured]


def _sum(powers: Sequence[Powers]) -> Powers | None:
    if not powers:
        return None
    a, b, c, d = (sum(p[k] for p in powers) for k in range(4))
    return a, b, c, d


def _longer(p: Powers) -> Powers:
    """Every path a layer longer: (L + 1)ᵏ, summed."""
    return p[0], p[1] + p[0], p[2] + 2 * p[1] + p[0], p[3] + 3 * p[2] + 3 * p[1] + p[0]
