"""Where a network's weights come from: a file, arrays in hand, or a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archc.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class Origin:
    """Arrays by parameter name; `origin` is what an artifact's manifest says of them, `metadata` what a file holds."""

    arrays: Mapping[str, Any]
    origin: str
    metadata: Mapping[str, str]


def resolve(graph: Graph, weights: Mapping[str, Any] | Path | str | None, seed: int = 0) -> Origin:
    """The weights of a network, each in its parameter's dtype.

    Raises: CompileError E06xx when a file is broken or does not fit.
    """
    from archc.backends.weights import check_weights, numpy_dtype, read_weights, type_of

    parameters = graph.parameters()
    needed = {name: p.type for name, p in parameters.items()}
    if weights is None:
        arrays = {
            name: p.init.sample(p.shape, seed, name).astype(numpy_dtype(p.type.dtype)) for name, p in parameters.items()
        }
        return Origin(arrays, f"seed:{seed}", {})
    if isinstance(weights, str | Path):
        found = read_weights(weights, needed)
        return Origin(found.arrays, "file", found.metadata)
    arrays = {name: _numpy(value) for name, value in weights.items()}
    check_weights(needed, {name: type_of(a) for name, a in arrays.items()})
    return Origin(arrays, "given", {})


def _numpy(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor, without importing torch here
        from archc.backends.torch.training.checkpoint import to_array

        return to_array(value)
    return np.asarray(value)
