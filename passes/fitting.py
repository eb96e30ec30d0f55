"""Least squares on sample data: what a value is like, an activation by a gated product, a layer behind others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph, Value
from archc.passes.functions import Function
from archc.passes.manager import Context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ROWS = 2048
"""Rows that a fit looks at, at most."""
FEWEST = 4
"""Rows that say anything: with fewer, a layer stays as it is."""
STEEPNESS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.702, 2.0, 2.5, 3.0, 4.0)
"""How steep a fitted gate may be; steeper ones, which come nearer to a kink, hardly learn."""


def samples(graph: Graph, context: Context, values: list[Value], axis: int) -> dict[Value, Array]:
    """Values as rows `[rows, channels]`, their channels being `axis`: on the data, or on random inputs where there are
    none. What the network cannot show, within regions or without weights, is taken to be standard normal."""
    import numpy as np

    outside = {v for node in graph.nodes for v in node.outputs} | set(graph.inputs)
    seen = [v for v in dict.fromkeys(values) if v in outside]
    found: dict[Value, Array] = {}
    if context.observe is not None and context.weights is not None and seen:
        shown = context.observe(graph, context.weights, seen)
        rows = {v: _rows(np.moveaxis(a, axis, -1)) for v, a in zip(seen, shown, strict=True)}
        found = {v: r for v, r in rows.items() if len(r)}
    for value in values:
        if value not in found:
            size = value.type.shape[axis]
            assert isinstance(size, int), f"{value} has no known number of channels"
            digest = hashlib.sha256(f"{context.seed}:{value.name}".encode()).digest()
            rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
            found[value] = rng.standard_normal((ROWS, size))
    return found


def _rows(array: Array) -> Array:
    """At most `ROWS` rows of the last axis, evenly spaced, of those without NaN and infinities."""
    import numpy as np

    rows = array.reshape(-1, array.shape[-1])
    rows = rows[np.isfinite(rows).all(1)]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ROWS)).astype(np.intp))
    return np.ascontiguousarray(rows[chosen], dtype=np.float64)


def relative(error: Array, of: Array) -> float:
    """The root mean square of an error as a share of how much that varies which it is an error of."""
    import numpy as np

    spread = np.linalg.norm(of - of.mean(0))
    return float(np.linalg.norm(error) / (spread or 1.0))


def least_squares(features: Array, target: Array, ridge: float = 1e-10) -> Array:
    """The coefficients `[…, features, targets]` of `target ≈ features @ coefficients`, in batches. A ridge, relative to
    the features' own size, keeps features that say the same from running away."""
    import numpy as np

    across = np.swapaxes(features, -1, -2)
    gram = across @ features
    size = np.trace(gram, axis1=-2, axis2=-1) / gram.shape[-1]
    eye = np.eye(gram.shape[-1]) * (ridge * np.maximum(size, 1e-300))[..., None, None]
    return np.linalg.solve(gram + eye, across @ target)


@dataclass(frozen=True, slots=True)
class GateFit:
    """`act(z) ≈ gate(steepness · z) · (slope · z + offset) + constant`, for each neuron; `error` is relative."""

    steepness: float
    slope: Array
    offset: Array
    constant: Array
    error: float


def fit_gate(z: Array, wanted: Array, gate: Function, constant: bool) -> GateFit:
    """The best such product for each neuron: `z` and `wanted` are [rows, neurons]. `constant` says whether there may be
    one."""
    import numpy as np

    best: GateFit | None = None
    zt, target = z.T, wanted.T[..., None]  # [neurons, rows]
    for steepness in STEEPNESS:
        g = gate(steepness * zt)
        features = np.stack([g * zt, g, np.ones_like(zt)][: 3 if constant else 2], -1)
        found = least_squares(features, target)
        error = relative((features @ found)[..., 0].T - wanted, wanted)
        if best is None or error < 0.99 * best.error:
            slope, offset = found[:, 0, 0], found[:, 1, 0]
            best = GateFit(steepness, slope, offset, found[:, 2, 0] if constant else 0 * slope, error)
    assert best is not None
    return best


def fit_layer(features: Array, target: Array, start: Array, bias: bool) -> tuple[Array, Any, float]:
    """The layer `target ≈ features Wᵀ + b`: (W, b or None, the relative error on rows that the fit did not see).

    How far it goes from `start` towards the rows, a second half of them decides: few rows say little."""
    import numpy as np

    if bias:
        features = np.concatenate([features, np.ones((len(features), 1))], 1)
        start = np.concatenate([start, np.zeros((len(start), 1))], 1)
    missing = target - features @ start.T
    few = len(missing) < FEWEST
    best, chosen = relative(missing, target) if few else relative(missing[1::2], target[1::2]), np.inf
    for ridge in () if few else (1e-8, 1e-4, 1e-2, 1.0):
        step = least_squares(features[::2], missing[::2], ridge)
        error = relative(features[1::2] @ step - missing[1::2], target[1::2])
        if error < best:
            best, chosen = error, ridge
    found = start if np.isinf(chosen) else start + least_squares(features, missing, chosen).T
    return (found[:, :-1], found[:, -1], best) if bias else (found, None, best)
