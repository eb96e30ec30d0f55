"""The hypergraph that messages pass along is carried into itself by every element of the certified group: exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archc.grammar.load import load, loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.metanet import symmetry
from archc.metanet.nowcast.incidence import Incidence, incidence
from archc.metanet.nowcast.nets import NETS

ROOT = Path(__file__).parents[3]


def graphs() -> Iterator[Graph]:
    yield from (net.graph(12) for net in NETS.values())
    yield load(ROOT / "benchmarks/nets/moe_swiglu.arch", {"dim": 12, "hidden": 8})
    yield load(ROOT / "examples/mixtral_like.arch", {"dim": 16, "depth": 1, "heads": 4, "kv_heads": 2, "hidden": 8,
                                                     "experts": 4, "vocab": 40})  # fmt: skip
    yield load(ROOT / "examples/skipnet.arch", {"width": 4, "depth": 2})


def broken_by(graph: Graph, found: Incidence, seed: int = 0) -> int:
    """In how many places a random group element does not carry the hypergraph into itself."""
    axes = symmetry.group(graph)
    numbers = {name: np.zeros(p.shape, np.int64) for name, p in graph.parameters().items()}
    numbers |= found.unflatten(np.arange(found.weights))
    moved = found.flatten(symmetry.apply(axes, symmetry.sample(axes, seed), numbers))
    assert (moved != np.arange(found.weights)).mean() > 0.5
    wrong = 0
    goes: dict[int, int] = {}
    for slot in found.slots:
        for old, new in zip(slot[moved].tolist(), slot.tolist(), strict=True):
            wrong += goes.setdefault(old, new) != new
    tensors = set(zip(found.tensor[moved].tolist(), found.tensor.tolist(), strict=True))
    return wrong + len(goes) - len(set(goes.values())) + len(tensors) - len(found.names)


@pytest.mark.parametrize("graph", list(graphs()), ids=lambda g: g.name)
def test_group_elements_carry_the_hypergraph_into_itself(graph: Graph) -> None:
    assert broken_by(graph, incidence(graph)) == 0


def test_a_node_that_stands_for_a_place_is_caught() -> None:
    graph = NETS["mlp"].graph()
    found = incidence(graph)
    places = np.arange(found.weights) % 7
    assert broken_by(graph, replace(found, slots=(*found.slots, places), sides=(*found.sides, 1))) > 0


def test_all_that_a_neuron_has_meets_in_its_node() -> None:
    graph = loads(
        "arch a()\ninput x: f32[N, 1, 4, 4]\noutput y: f32[N, 2]\n"
        "y = x -> conv(3, kernel = 3) -> group_norm(1) -> relu -> flatten -> linear(2)"
    )
    found = incidence(graph)
    channel = found.unflatten(found.slots[0])["conv.weight"][1, 0, 0, 0]
    touched = [name for name in found.names if any((found.unflatten(s)[name] == channel).any() for s in found.slots)]
    assert touched == list(found.names)[:-1]  # all but the bias of the output
    assert touched[0] == "conv.weight"


def test_what_cannot_be_predicted_is_said() -> None:
    head = "arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
    with pytest.raises(CompileError, match="E0836"):
        incidence(loads(head + "y = x -> relu"))
    with pytest.raises(CompileError, match="E0838"):
        incidence(loads(head + "y = x -> linear(600000) -> linear(4)"))
