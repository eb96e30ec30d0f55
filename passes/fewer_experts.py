"""Whole experts of mixtures go: those whose rows in the router are shortest. What is left is routed as before, with a
softmax over the experts that there are, as if the others' logits were minus infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from archc.ir.axes import Axes, AxisVar, derive_axes
from archc.ir.graph import Graph, Node, Parameter
from archc.passes.manager import Context, Measured
from archc.passes.resize import Choice, obstacle, resize
from archc.passes.transform import Refusal, Site
from archc.passes.units import roles


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """A `moe` node, the axis of its experts, the weights that have it, and how many experts are to stay."""

    node: Node
    axes: Axes
    leaf: AxisVar
    weights: tuple[tuple[Parameter, int], ...]
    stay: int


def find_mixtures(graph: Graph, share: float) -> Iterator[Site | Refusal]:
    """Every mixture of experts whose router ends in weights with a row for each expert."""
    axes = derive_axes(graph)
    nodes = list(graph.walk())
    for node in nodes:
        if node.op.name != "moe":
            continue
        experts = len(node.regions) - 1 - node.call.params.shared
        stay = max(node.call.params.top_k, experts - math.ceil(share * experts - 1e-9))
        leaf = axes.values[node.regions[0].outputs[0]][-1].find()
        having = [n for n in nodes if n is not node and any(roles(n, axes, leaf))]
        weights = tuple(
            (p, i) for p, variables in axes.parameters.items() for i, v in enumerate(variables) if v.find() is leaf
        )
        why = None if leaf.kind != "leaf" else obstacle(having, axes, {leaf: stay})
        if stay == experts:
            yield Refusal(
                node, "experts are left only beyond `top_k`", f"{experts} experts, top_k = {stay}", code="E0421"
            )
        elif leaf.kind != "leaf" or not weights or why is not None or set(having) - set(node.regions[0].walk()):
            reason = "its router needs to end in weights with a row for each expert"
            yield Refusal(node, reason, why[1] if why else "", code="E0421")
        else:
            yield Site(node, (node,), graph, Mixture(node, axes, leaf, weights, stay))


def drop_experts(graph: Graph, mixtures: Sequence[Mixture], context: Context) -> None:
    """Keep as many experts of each mixture as are to stay."""
    import numpy as np

    choice = Choice()
    for m in mixtures:
        experts = len(m.node.regions) - 1 - m.node.call.params.shared
        score = np.zeros(experts)
        for parameter, axis in m.weights if context.weights is not None else ():
            rows = np.moveaxis(context.value(parameter), axis, 0).reshape(experts, -1)
            score += (rows**2).sum(axis=1)
        kept = np.sort(np.argsort(-score, kind="stable")[: m.stay])
        choice.set(m.leaf, kept)
        others = range(1 + experts, len(m.node.regions))
        choice.regions[m.node] = (0, *(1 + int(i) for i in kept), *others)
        gone = 1 - m.stay / experts
        context.measured.append(Measured("prune", m.node.name, "share of experts removed", gone))
    resize(graph, mixtures[0].axes, choice, context)
