"""How exactly a graph metanetwork commutes with the permutations of a network's weights.

A random element of the network's symmetry group (`archc.metanet.symmetry`) is applied to the weights; what the model
then says of the network should be the same, and the change that it predicts should be the old one, permuted. The
deviation is measured relative to the norm of what is predicted, not of the weights: a head that predicts nothing, or a
change that is small beside the weights, would hide any error otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from archc.backends.weights import Array
from archc.ir.graph import Graph
from archc.metanet.gmn.batch import Collator
from archc.metanet.gmn.model import Gmn
from archc.metanet.symmetry import apply, sample


@dataclass(frozen=True)
class Deviation:
    """Relative deviations under a group element.

    said     of the numbers said of the network, relative to their norm; 0 without such a head
    change   of the predicted change, relative to the change's norm; 0 without such a head
    moved    the share of weights that the element moved
    """

    said: float
    change: float
    moved: float


@torch.no_grad()
def deviation(model: Gmn, collator: Collator, graph: Graph, weights: Mapping[str, Array], seed: int) -> Deviation:
    """The deviation for one network and one random element of its group."""
    model.eval()
    axes = collator.arrays(graph).axes
    element = sample(axes, seed)
    acted = apply(axes, element, weights)
    said, change = model(collator([(graph, weights)]))
    said_after, change_after = model(collator([(graph, acted)]))
    moved = sum(int((acted[n] != w).sum()) for n, w in weights.items()) / sum(w.size for w in weights.values())
    of_said = of_change = 0.0
    if said is not None:
        of_said = float((said_after - said).norm() / said.norm())
    if change is not None:
        before, after = (
            {n: v.numpy() for n, v in collator.places([graph], c)[0].items()} for c in (change, change_after)
        )
        expected = apply(axes, element, before)
        error = sum(float(((after[n] - expected[n]) ** 2).sum()) for n in expected)
        of_change = float(np.sqrt(error)) / float(change.norm())
    return Deviation(of_said, of_change, moved)
