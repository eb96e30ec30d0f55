"""The parameter graph at tensor level: nothing is lost, order counts where it counts, and loaders batch it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.load import load, loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY
from archc.metanet.tensor_graph import FLOWS, REGIONS, TensorGraph, tensor_arrays, tensor_graph
from archc.metanet.vocabulary import Vocabulary, attributes, op_columns, vocabulary

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.arch"))


def net(body: str, x: str = "f32[N, 6]", y: str = "f32[N, 6]") -> Graph:
    return loads(f"arch a\ninput x: {x}\noutput y: {y}\n{body}")


def op_net(name: str) -> Graph:
    """A network of the op's own example."""
    op = REGISTRY[name]
    ports = "".join(f"input x{i}: {t}\n" for i, t in enumerate(op.example_inputs))
    feed = ", ".join(f"x{i}" for i in range(len(op.example_inputs)))
    return loads(f"arch a\n{ports}output y\ny = {f'({feed})' if ',' in feed else feed} -> {op.example}")


def counted(arrays: TensorGraph, graph: Graph) -> None:
    parameters = graph.parameters()
    assert arrays.names == list(parameters)
    assert arrays.parameter_size.tolist() == [p.size for p in parameters.values()]
    assert arrays.parameter_size.sum() == sum(p.size for p in parameters.values())
    uses = sum(len(node.weights) for node in graph.walk())
    assert arrays.weighs.shape == (2, uses) and set(arrays.weighs[0]) == set(range(len(parameters)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_parameter_of_the_examples_is_there(path: Path) -> None:
    graph = load(path)
    arrays = tensor_arrays(graph)
    counted(arrays, graph)
    assert np.isfinite(arrays.op_attributes).all() and np.isfinite(arrays.op_position).all()
    assert (arrays.feeds[0] < arrays.feeds[1]).all(), "places are in topological order"
