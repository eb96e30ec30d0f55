"""Activation functions on NumPy arrays, in float64: for passes that fit one function by others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Node

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Function = Callable[[Any], Any]
"""Element by element, on float64."""


def sigmoid(x: Array) -> Array:
    import numpy as np

    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))  # never overflows


def erf(x: Array) -> Array:
    import numpy as np

    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), dtype=np.float64)


def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    import numpy as np

    z = beta * x
    return np.asarray(np.where(z > threshold, x, np.logaddexp(0.0, np.minimum(z, threshold)) / beta))


def _gelu(p: Any) -> Function:
    import numpy as np

    if p is not None and p.approximate == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))


def _elu(p: Any) -> Function:
    import numpy as np

    return lambda x: np.where(x > 0, x, p.alpha * np.expm1(np.minimum(x, 0)))


def _leaky(p: Any) -> Function:
    import numpy as np

    return lambda x: np.where(x > 0, x, p.negative_slope * x)


def function(op: str, params: Any = None) -> Function | None:
    """The activation as a function of arrays; None for one that is not known here. `params` are the node's.

    >>> float(function("relu6")(7.0)), function("sparkle")
    (6.0, None)
    """
    import numpy as np

    p = params
    known: dict[str, Callable[[], Function]] = {
        "identity": lambda: lambda x: x,
        "relu": lambda: lambda x: np.maximum(x, 0),
        "relu6": lambda: lambda x: np.clip(x, 0, 6),
        "leaky_relu": lambda: _leaky(p),
        "elu": lambda: _elu(p),
        "gelu": lambda: _gelu(p),
        "sigmoid": lambda: sigmoid,
        "silu": lambda: lambda x: x * sigmoid(x),
        "hardsigmoid": lambda: lambda x: np.clip(x + 3, 0, 6) / 6,
        "hardswish": lambda: lambda x: x * np.clip(x + 3, 0, 6) / 6,
        "tanh": lambda: np.tanh,
        "softplus": lambda: softplus if p is None else lambda x: softplus(x, p.beta, p.threshold),
        "mish": lambda: lambda x: x * np.tanh(softplus(x)),
        "square": lambda: np.square,
        "sin": lambda: np.sin,
        "cos": lambda: np.cos,
    }
    return known[op]() if op in known else None


def function_of(node: Node) -> Function | None:
    """The function of an activation node."""
    return function(node.op.name, node.params)
