"""The functions on the edges of a `kan` layer, on NumPy arrays: for passes that fit, refine, prune or read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Node
from archc.ir.ops.kan import KanParams, knots
from archc.passes.functions import function

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def basis(p: KanParams, x: Array) -> Array:
    """The basis of a layer at each number: [*b] -> [*b, functions].

    >>> import numpy as np
    >>> basis(KanParams(out=1, grid=2, order=1), np.array([-0.5, 0.0])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    """
    import numpy as np

    x = np.asarray(x, dtype=np.float64)[..., None]
    if p.basis == "fourier":
        angles = x * np.arange(1, p.grid + 1)
        return np.concatenate([np.cos(angles), np.sin(angles)], -1)
    if p.basis == "chebyshev":
        z = np.tanh(x)
        terms = [np.ones_like(z), z]
        for _ in range(2, p.order + 1):
            terms.append(2 * z * terms[-1] - terms[-2])
        return np.concatenate(terms, -1)
    assert p.basis == "bspline", "rational functions are no sum over a basis"
    t, step = np.array(knots(p)), (p.range[1] - p.range[0]) / p.grid
    found = ((x >= t[:-1]) & (x < t[1:])).astype(np.float64)
    for m in range(1, p.order + 1):
        rising, falling = (x - t[: -m - 1]) / (m * step), (t[m + 1 :] - x) / (m * step)
        found = rising * found[..., :-1] + falling * found[..., 1:]
    return np.asarray(found)


def rational(numerator: Array, denominator: Array, x: Array) -> Array:
    """`Σ aᵢxⁱ / (1 + |Σ bᵢxⁱ|)`, the denominator from b₁ on."""
    import numpy as np

    above = sum(a * x**i for i, a in enumerate(numerator))
    below = sum(b * x ** (i + 1) for i, b in enumerate(denominator))
    return np.asarray(above / (1 + np.abs(below)))


def edges(node: Node, weights: Mapping[str, Array], x: Array) -> Array:
    """What each edge of a layer makes of numbers: `x` is [points, in], one column for each input; the result is
    [points, out, in]. `weights` are the layer's by role."""
    import numpy as np

    p: KanParams = node.call.params
    if p.basis == "grkan":
        groups = np.split(x, p.groups, axis=-1)
        parts = [
            rational(a, b, g) for a, b, g in zip(weights["numerator"], weights["denominator"], groups, strict=True)
        ]
        return np.asarray(np.concatenate(parts, -1)[:, None, :] * weights["weight"])
    found = np.einsum("pik,oik->poi", basis(p, x), weights["coefficients"])
    if p.has_base:
        base: Any = function(p.base_function, _usual(p.base_function))
        found = found + base(x)[:, None, :] * weights["base_weight"]
    return np.asarray(found)


def _usual(activation: str) -> Any:
    """An activation's usual parameters."""
    from archc.ir.op import REGISTRY

    return REGISTRY[activation].params() if activation in REGISTRY else None
