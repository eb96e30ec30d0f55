"""A parameter graph of either level, in one record: what is counted, written and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from archc.metanet.neuron_graph import NeuronArrays, edge_types, to_data
from archc.metanet.tensor_graph import FLOWS, REGIONS, TensorGraph, to_hetero
from archc.metanet.vocabulary import Vocabulary

Level = Literal["tensor", "neuron"]


@dataclass(frozen=True, slots=True)
class ParameterGraph:
    """A parameter graph as numpy arrays, and what there is to count.

    nodes, edges   how many of each kind (ops by name, `parameter`; edges by type)
    parameters     how many parameters it has, and `elements` of them: those of the network, each once
    """

    level: Level
    arrays: TensorGraph | NeuronArrays = field(repr=False)
    words: Vocabulary = field(repr=False)
    weights: Mapping[str, Any] | None = field(repr=False)
    nodes: dict[str, int] = field(default_factory=dict)
    edges: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    elements: int = 0

    def torch(self) -> Any:
        """As a `HeteroData` (tensor level) or a `Data` (neuron level) of torch-geometric."""
        if isinstance(self.arrays, TensorGraph):
            return to_hetero(self.arrays)
        assert self.weights is not None
        return to_data(self.arrays, self.weights)

    def flat(self) -> dict[str, Any]:
        """Every array by name, as files hold them."""
        import numpy as np

        if isinstance(self.arrays, TensorGraph):
            return self.arrays.arrays
        assert self.weights is not None
        names = ("x", "kind", "chain", "node_set", "edge_index", "edge_type", "edge_mark", "edge_attr", "offsets")
        found = {name: np.array(getattr(self.arrays, name)) for name in names}
        found["edge_attr"][:, 0] = self.arrays.values(self.weights)
        return found

    def layout(self) -> dict[str, Any]:
        """What the numbers in the arrays stand for: names of parameters, ops, roles, columns, edge types."""
        common = {"level": self.level, "format": 1, "names": self.arrays.names, "shapes": self.arrays.shapes}
        words = self.words.to_json()
        if isinstance(self.arrays, TensorGraph):
            return common | words | {"nodes": self.arrays.ops, "flows": FLOWS, "regions": REGIONS}
        return common | {"ops": words["ops"], "edge_types": edge_types(self.words)}
