"""Where a network's weights come from: a file, arrays in hand, or a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from archc.ir.diagnostics import fail
from archc.ir.graph import Graph

if TYPE_CHECKING:
    from archc.backends.preprocessing import Preprocessing
    from archc.backends.weights import Weights

Given: TypeAlias = "Mapping[str, Any] | Weights | Path | str | None"
"""Weights as a caller may give them: arrays or tensors by name, a file (or what was read from one), or nothing."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Arrays by parameter name; `origin` is what an artifact's manifest says of them, `metadata` what a file holds."""

    arrays: Mapping[str, Any]
    origin: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How raw data become the network's input, where the weights' training has noted it."""
        from pydantic import ValidationError

        from archc.backends.preprocessing import Preprocessing

        text = self.metadata.get("archc.preprocessing")
        if text is None:
            return None
        try:
            return Preprocessing.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise fail(
                "E0622",
                "the weights file does not say how to prepare data",
                label=f"`archc.preprocessing`: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                help="train again, or take the entry out of the file's metadata",
            ) from None


def resolve(graph: Graph, weights: Given, seed: int = 0) -> Origin:
    """The weights of a network, each in its parameter's dtype.

    Raises: CompileError E06xx when a file is broken or does not fit, TypeError for what can be no weights.
    """
    from archc.backends.initial import InitialWeights
    from archc.backends.weights import Weights, check_weights, read_weights, type_of

    if weights is None:
        return Origin(InitialWeights(graph, seed), f"seed:{seed}")
    needed = {name: p.type for name, p in graph.parameters().items()}
    if isinstance(weights, str | Path):
        found = read_weights(weights, needed)
        return Origin(found.arrays, "file", found.metadata)
    if isinstance(weights, Weights):
        check_weights(needed, weights.arrays)
        return Origin(weights.arrays, "file", weights.metadata)
    given: Any = weights
    if not isinstance(given, Mapping):
        hint = "; give its state_dict()" if hasattr(given, "state_dict") else ""
        raise TypeError(f"needed a file or arrays by parameter name as weights, found {type(given).__name__}{hint}")
    arrays = {name: _numpy(value) for name, value in given.items()}
    check_weights(needed, {name: type_of(a) for name, a in arrays.items()})
    return Origin(arrays, "given")


def _numpy(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor, without importing torch here
        from archc.backends.torch.training.checkpoint import to_array

        return to_array(value)
    return np.asarray(value)
