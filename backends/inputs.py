"""Random inputs for a network: what verification, benchmarks and tests feed it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from archc.ir.dims import Dim, known
from archc.ir.graph import Graph, Value
from archc.ir.types import FLOATS, INTEGERS, NUMPY_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH, LENGTH = 2, 7
"""Sizes that symbols get where nobody says: the first symbol (the batch), and every other."""


def symbol_sizes(graph: Graph, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """A size for each symbolic dimension of the inputs."""
    sizes = {s: BATCH if i == 0 else LENGTH for i, s in enumerate(graph.symbols())}
    return sizes | dict(given or {})


def index_bounds(graph: Graph) -> dict[str, int]:
    """For each integer input that is looked up in something of a known size: valid indices are 0 … bound - 1.

    An input is followed through views; what is computed from it is not.
    """
    bounds: dict[str, int] = {}
    for value in graph.inputs:
        if value.type.dtype not in INTEGERS:
            continue
        sizes = list(_looked_up(value))
        if sizes:
            bounds[value.name] = min(sizes)
    return bounds


def _looked_up(value: Value) -> Iterator[int]:
    for node in value.uses:
        place = node.inputs.index(value)
        if node.op.name == "embedding":
            yield node.call.params.count
        elif node.op.name == "one_hot":
            yield node.call.params.num_classes
        elif node.op.name in ("gather", "index_select") and place == 1:
            size = node.inputs[0].type.shape[node.call.axis(node.call.params.axis)]
            if isinstance(size, int):
                yield size
        elif node.op.category == "shape" and node.op.name != "cast":
            for result in node.outputs:
                yield from _looked_up(result)


def random_inputs(
    graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None, float_dtype: str | None = None
) -> dict[str, NDArray[Any]]:
    """Standard normal floats, valid indices and coin flips, by input name.

    `sizes` fixes symbols; `float_dtype` replaces the declared float dtype (`"f64"` for the judge).
    """
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    values: Mapping[str, Dim] = symbol_sizes(graph, sizes)
    bounds = index_bounds(graph)
    inputs = {}
    for value in graph.inputs:
        type_ = value.type.substitute(values)
        shape = known(type_.shape)
        assert shape is not None, f"no size for a symbol of {value.type}"
        if type_.dtype in FLOATS:
            name = NUMPY_NAMES[float_dtype or type_.dtype]
            draw = rng.standard_normal(shape)
            if name == "bfloat16":
                import ml_dtypes

                inputs[value.name] = draw.astype(ml_dtypes.bfloat16)
            else:
                inputs[value.name] = draw.astype(name)
        elif type_.dtype == "bool":
            inputs[value.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            inputs[value.name] = rng.integers(0, bounds.get(value.name, 2), shape).astype(NUMPY_NAMES[type_.dtype])
    return inputs
