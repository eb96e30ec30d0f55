"""Random inputs for a network: what verification, benchmarks and tests feed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archc.ir.dims import Dim, known
from archc.ir.graph import Graph
from archc.ir.types import FLOATS, NUMPY_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH, LENGTH = 2, 7
"""Sizes that symbols get where nobody says: the first symbol (the batch), and every other."""


def symbol_sizes(graph: Graph, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """A size for each symbolic dimension of the inputs."""
    sizes = {s: BATCH if i == 0 else LENGTH for i, s in enumerate(graph.symbols())}
    return sizes | dict(given or {})


def index_bound(graph: Graph) -> int:
    """Integers below this are valid wherever the network looks something up."""
    counts = [n.call.params.count for n in graph.walk() if n.op.name == "embedding"]
    return min(counts, default=2)


def random_inputs(
    graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None, float_dtype: str | None = None
) -> dict[str, NDArray[Any]]:
    """Standard normal floats, valid indices and coin flips, by input name.

    `sizes` fixes symbols; `float_dtype` replaces the declared float dtype (`"f64"` for the judge).
    """
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    values: Mapping[str, Dim] = symbol_sizes(graph, sizes)
    bound = index_bound(graph)
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
            inputs[value.name] = rng.integers(0, bound, shape).astype(NUMPY_NAMES[type_.dtype])
    return inputs
