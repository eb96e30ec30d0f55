"""Layers as matrices, and what they read on sample data: for passes that fit their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.ops.convolution import CONV, conv_geometry
from archc.passes.manager import Context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ROWS = 4096
"""Rows of sample data that a fit looks at, at most."""


def weights_or_initial(context: Context, parameter: Parameter) -> Array:
    """The weights of a parameter in float64; where none are known the initial ones, which the network will have."""
    if context.weights is not None:
        return context.value(parameter)
    return parameter.init.sample(parameter.shape, context.seed, parameter.name)


def observed(graph: Graph, context: Context, values: Sequence[Value]) -> dict[Value, Array]:
    """Values on given data, those outside regions; none when there are no data (random inputs are none) or weights."""
    outside = {v for node in graph.nodes for v in node.outputs} | set(graph.inputs)
    seen = [v for v in dict.fromkeys(values) if v in outside]
    if context.observe is None or not context.data or context.weights is None or not seen:
        return {}
    return dict(zip(seen, context.observe(graph, context.weights, seen), strict=True))


def rows_read(layer: Node, x: Array) -> Array:
    """What a linear map or a convolution reads, a row for each time that its matrix is applied: [rows, groups, inputs].

    `x` is its operand. Of more than `ROWS` rows, some evenly spaced ones are taken.
    """
    import numpy as np

    if layer.op is not CONV:
        rows: Array = x.reshape(-1, 1, x.shape[-1])
        return np.asarray(rows[_spread(len(rows))])
    p = layer.call.params
    geometry = conv_geometry(p, x.ndim - 2)
    padded = np.pad(x, [(0, 0), (0, 0), *(pads for _, _, _, pads in geometry)])
    spans = tuple(dilation * (kernel - 1) + 1 for kernel, _, dilation, _ in geometry)
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    steps = tuple(slice(None, None, stride) for _, stride, _, _ in geometry)
    taps = tuple(slice(None, None, dilation) for _, _, dilation, _ in geometry)
    windows = windows[(slice(None), slice(None), *steps, *taps)]  # [n, c, *places, *kernel]
    places = np.moveaxis(windows, 1, x.ndim - 1)  # [n, *places, c, *kernel]
    count = math.prod(places.shape[: x.ndim - 1])
    at = np.unravel_index(_spread(count), places.shape[: x.ndim - 1])
    return np.ascontiguousarray(places[at]).reshape(len(at[0]), p.groups, -1)


def _spread(count: int) -> Any:
    import numpy as np

    return np.unique(np.linspace(0, count - 1, min(count, ROWS)).astype(np.intp))


def relative(error: Array, of: Array) -> float:
    """The Frobenius norm of an error, as a share of what it is an error of."""
    import numpy as np

    return float(np.linalg.norm(error) / (np.linalg.norm(of) or 1.0))
