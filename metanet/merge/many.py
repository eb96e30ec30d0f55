"""Several networks brought near to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archc.ir.graph import Graph
from archc.metanet.merge.align import Match, match
from archc.metanet.merge.average import average

Array = Any  # a numpy array
Arrays = Mapping[str, Array]

ROUNDS = 10


def match_many(
    graph: Graph, networks: Sequence[Arrays], data: Mapping[str, Array] | None = None, *, seed: int = 0
) -> list[Match]:
    """Align every network but the first to the first: by weights, or with `data` by activations.

    Of more than two, by weights, each is then aligned again to the mean of the others, until none gains from it (the
    MergeMany of Ainsworth et al. 2022); the first stays as it is.

    Raises: what `match` raises.
    """
    first, *rest = networks
    found = [match(graph, first, w, data, seed=seed) for w in rest]
    if len(rest) < 2 or data is not None:
        return found
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(ROUNDS):
        gained = False
        for i in rng.permutation(len(found)):
            others = [first, *(m.weights for j, m in enumerate(found) if j != i)]
            again = match(graph, average(others, [1 / len(others)] * len(others)), found[i].weights, seed=seed)
            if again.product[1] > again.product[0] + 1e-6:
                found[i], gained = again, True
        if not gained:
            break
    return found
