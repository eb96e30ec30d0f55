"""Initial weights, drawn when they are asked for.

Which they are follows from a seed, names and distributions. A compilation that the cache knows so needs none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archc.backends.weights import Array, numpy_dtype
from archc.ir.graph import Graph
from archc.ir.types import TensorType


class InitialWeights(Mapping[str, Array]):
    """The initial value of every parameter by name, the same for the same seed and name on every machine.

    >>> from archc.grammar.load import loads
    >>> graph = loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 2]\\ny = x -> linear(2)\\n")
    >>> {name: array.shape for name, array in InitialWeights(graph, seed=7).items()}
    {'linear.weight': (2, 4), 'linear.bias': (2,)}
    """

    def __init__(self, graph: Graph, seed: int = 0) -> None:
        self.seed = seed
        self._parameters = graph.parameters()
        self._drawn: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._drawn:
            p = self._parameters[name]
            array = p.init.sample(p.shape, self.seed, name).astype(numpy_dtype(p.type.dtype))
            array.flags.writeable = False  # the seed would not tell of changes
            self._drawn[name] = array
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def types(self) -> dict[str, TensorType]:
        return {name: p.type for name, p in self._parameters.items()}

    def identity(self, names: Sequence[str]) -> list[Any]:
        """What decides the values of these parameters, as plain data."""
        of = self._parameters
        return [self.seed, *([name, str(of[name].type), repr(of[name].init)] for name in names)]
