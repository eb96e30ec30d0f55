"""What a graph metanetwork is measured against: weight statistics, sizes, and a plain MLP on all weights in a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from archc.backends.weights import Array
from archc.ir.graph import Graph

SLOTS = 8
"""Parameters from the front, and as many from the back, that have statistics of their own."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def statistics(weights: Mapping[str, Array]) -> Array:
    """StatNN's features (Unterthiner et al. 2020, arXiv:2002.11448): mean, deviation and five quantiles of each
    parameter. Networks differ in depth, so there are those of the first `SLOTS` parameters, of the last `SLOTS`, and of
    all weights together; NaN where a network has fewer.

    >>> len(statistics({"a": np.zeros((2, 2)), "b": np.ones(3)}))
    119
    """
    each = [_of(array) for array in weights.values()]
    missing = [np.full(len(QUANTILES) + 2, np.nan)]
    front = (each + missing * SLOTS)[:SLOTS]
    back = (missing * SLOTS + each)[-SLOTS:]
    return np.concatenate([*front, *back, _of(np.concatenate([a.reshape(-1) for a in weights.values()]))])


def _of(array: Array) -> Array:
    return np.array([array.mean(), array.std(), *np.quantile(array, QUANTILES)])


def architecture(graph: Graph) -> Array:
    """What a network is without its weights: parameters, multiply–adds, how many parameters it has, the logarithms of
    rows and columns of the first and last `SLOTS` of them, and how often each kind of op stands in it."""
    from archc.metanet.vocabulary import vocabulary

    shapes = [(s[0] if s else 1, math.prod(s[1:])) for s in (p.shape for p in graph.parameters().values())]
    sides = [np.log1p(np.array(s, float)) for s in shapes]
    missing = [np.full(2, np.nan)]
    words = vocabulary()
    counts = np.zeros(len(words.ops))
    for node in graph.walk():
        counts[words.index("ops", node.op.name)] += 1
    rows = [*(sides + missing * SLOTS)[:SLOTS], *(missing * SLOTS + sides)[-SLOTS:]]
    return np.concatenate([sizes(graph), [len(shapes)], *rows, counts])


def sizes(graph: Graph) -> Array:
    """Logarithms of the number of parameters and of the floating point operations for one input."""
    from archc.ir.cost import count_params, graph_flops
    from archc.ir.dims import substitute, symbols

    flops = graph_flops(graph)
    one = substitute(flops, dict.fromkeys(symbols(flops), 1))
    found: Array = np.log1p(np.array([count_params(graph.parameters().values()), float(str(one))]))
    return found


def boosted(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    """Gradient boosting (scikit-learn's, histogram-based; NaN is a value of its own), one model a column of y."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    models = [
        HistGradientBoostingRegressor(
            max_iter=300, learning_rate=0.06, max_leaf_nodes=15, min_samples_leaf=10, l2_regularization=1.0,
            max_features=0.3, random_state=seed,
        ).fit(x, column)
        for column in y.T
    ]  # fmt: skip
    return lambda rows: np.asarray(np.stack([m.predict(rows) for m in models], 1))


def boosted_classes(x: Array, y: Array, seed: int) -> Callable[[Array], Array]:
    """Gradient boosting for classes: what it says is the class."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = ~np.isnan(x).all(0)  # no thresholds can be found where no network has a value
    model = HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.1, max_leaf_nodes=15, max_features=0.5, random_state=seed
    ).fit(x[:, known], y)
    return lambda rows: np.asarray(model.predict(rows[:, known]))


def flat_mlp(inputs: int, outputs: int, hidden: int) -> nn.Module:
    """A plain MLP on all weights in a row."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Dropout(0.2),
        nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs),
    )  # fmt: skip


def padded(weights: Sequence[Mapping[str, Array]], width: int) -> Array:
    """All weights of each network in a row, zeros behind: [n, width]."""
    rows = np.zeros((len(weights), width), np.float32)
    for row, own in zip(rows, weights, strict=True):
        flat = np.concatenate([a.reshape(-1) for a in own.values()])
        row[: len(flat)] = flat
    return rows


def fit_flat(
    draw: Callable[[Any, int], tuple[Tensor, Tensor]], model: nn.Module, steps: int, lr: float, loss: Any, seed: int
) -> None:
    """Train on batches that `draw(rng, step)` gives: (inputs, targets)."""
    from archc.metanet.gmn.learn import LearnConfig, optimiser_of, step

    config = LearnConfig(lr=lr, seed=seed)
    optimiser = optimiser_of(model, config)
    rng = np.random.Generator(np.random.Philox(seed))
    model.train()
    for k in range(steps):
        x, y = draw(rng, k)
        step(model, optimiser, loss(model(x), y), config.rate(k, steps))
    model.eval()
