"""The parameter graph at neuron level: every weight is an edge once, and the network's symmetry permutes the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.load import load, loads
from archc.grammar.op_page import example_graph
from archc.ir.axes import AxisVar
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY
from archc.metanet.neuron_graph import NeuronArrays, edge_types, neuron_arrays, neuron_graph
from archc.metanet.symmetry import Element, apply, group, random_weights, sample
from archc.metanet.vocabulary import vocabulary

EXAMPLES = Path(__file__).parents[2] / "examples"
WITH_WEIGHTS = sorted(n for n, op in REGISTRY.items() if op.example and (op.weights or op.regions))

NETS = {
    "residual": "let h = x -> linear(6) -> relu\ny = h + (h -> layer_norm -> linear(6) -> silu) -> linear(6)",
    "chain": "let h = x -> linear(6)\ny = (h -> linear(6)) + (h -> linear(6)) + (h -> linear(6)) -> linear(6)",
    "glu": "let h = x -> linear(8)\ny = (h * (x -> linear(8) -> sigmoid)) -> linear(6)",
    "concat": "y = concat(x -> linear(3), x -> linear(4), axis = 1) -> tanh -> linear(6)",
    "shared": "share s = linear(8)\ny = x -> linear(8) -> s -> relu -> s -> linear(6)",
    "kan": "y = x -> kan(5) -> kan(6, basis = \"chebyshev\", order = 3) -> linear(6)",
    "moe": "y = x -> linear(8) -> "
    "moe(router = linear(3), experts = copies(3, linear(5) -> relu), top_k = 2) -> linear(6)",
}  # fmt: skip
IMAGES = {
    "depthwise": "x -> conv(6, kernel = 1) -> conv(6, kernel = 3, groups = 6) "
    "-> batch_norm -> relu -> flatten -> linear(4)",
    "grouped": "x -> conv(8, kernel = 1) -> conv(12, kernel = 3, groups = 4) "
    "-> group_norm(2) -> global_avg_pool -> linear(4)",
    "shuffle": "x -> conv(8, kernel = 1) -> im2col(kernel = 2, stride = 2) -> linear(5) -> flatten -> linear(4)",
    "heads": "x -> conv(8, kernel = 2, stride = 2) -> flatten(2) -> permute([0, 2, 1]) "
    "-> attention(2) -> attention(4, kv_heads = 2) -> mean(1) -> linear(4)",
    "prelu": "x -> conv(4, kernel = 3) -> prelu(4) -> max_pool(2) -> flatten -> linear(4)",
}  # fmt: skip


def net(name: str) -> Graph:
    if name in IMAGES:
        return loads(f"arch a\ninput x: f32[N, 2, 4, 4]\noutput y: f32[N, 4]\ny = {IMAGES[name]}")
    return loads(f"arch a\ninput x: f32[N, 6]\noutput y: f32[N, 6]\n{NETS[name]}")


def axis_part(element: Element) -> dict[AxisVar, np.ndarray]:
    return {key: table for key, table in element.items() if isinstance(key, AxisVar)}


def rows(arrays: NeuronArrays, nodes: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The edges as rows of one table, in one order."""
    ends = nodes[arrays.edge_index]
    table = np.column_stack([*ends, arrays.edge_type, arrays.edge_mark, *arrays.edge_attr[:, 1:].T, column])
    return table[np.lexsort(table.T)]


def equivariant(graph: Graph, seed: int = 0) -> tuple[bool, bool]:
    """(is the graph of the permuted weights the permuted graph, are they the same without permuting nodes)."""
    axes = group(graph)
    arrays = neuron_arrays(graph, axes)
    element = axis_part(sample(axes, seed))
    weights = random_weights(graph, seed)
    before, after = arrays.values(weights), arrays.values(apply(axes, element, weights))
    nodes, same = arrays.moved(element), np.arange(len(arrays.x))
    assert sorted(nodes) == list(range(len(arrays.x)))
    assert np.array_equal(arrays.x[nodes], arrays.x), "features differ within an orbit"
    image = rows(arrays, same, after)
    return np.array_equal(rows(arrays, nodes, before), image), np.array_equal(rows(arrays, same, before), image)


def whole(graph: Graph, arrays: NeuronArrays) -> None:
    """Every element of every parameter is the weight of exactly one edge."""
    numbered, start = {}, 1
    for name, p in graph.parameters().items():
        numbered[name] = np.arange(start, start + p.size, dtype=np.float64).reshape(p.shape)
        start += p.size
    column = arrays.values(numbered)
    assert sorted(column[arrays.edge_mark == 0]) == list(range(1, start))
    back = arrays.places(column)
    assert all(np.array_equal(back[name], numbered[name]) for name in numbered)
    assert list(back) == list(numbered)


@pytest.mark.parametrize("name", [*NETS, *IMAGES])
def test_the_symmetry_of_a_network_permutes_its_graph(name: str) -> None:
    graph = net(name)
    whole(graph, neuron_arrays(graph))
    image, same = equivariant(graph)
    assert image
    assert not same, "the element moves nothing: no test"


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_every_op_with_weights_has_its_edges(name: str) -> None:
    graph = example_graph(REGISTRY[name])
    whole(graph, neuron_arrays(graph))
    assert equivariant(graph)[0]


@pytest.mark.parametrize("name", ["digits_resnet", "kan", "resnet20", "skipnet", "tagger"])
def test_examples(name: str) -> None:
    graph = load(EXAMPLES / f"{name}.arch")
    image, same = equivariant(graph)
    assert image
    assert not same


def test_one_weight_out_of_place_is_seen() -> None:
    """A permutation of all but one member of a class is no isomorphism."""
    graph = net("residual")
    axes = group(graph)
    arrays, element, weights = neuron_arrays(graph, axes), axis_part(sample(axes, 1)), random_weights(graph, 1)
    moved = apply(axes, element, weights)
    moved["linear.weight"] = weights["linear.weight"]
    nodes = arrays.moved(element)
    image = rows(arrays, np.arange(len(arrays.x)), arrays.values(moved))
    assert not np.array_equal(rows(arrays, nodes, arrays.values(weights)), image)


def test_pinned_places_know_which_they_are_and_free_ones_do_not() -> None:
    arrays = neuron_arrays(loads("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 3]\ny = x -> linear(8) -> linear(3)"))
    by_set = [arrays.x[s.base : s.base + s.size] for s in arrays.sets]
    distinct = {(s.size, len(np.unique(x, axis=0))) for s, x in zip(arrays.sets, by_set, strict=True)}
    assert distinct == {(4, 4), (8, 1), (3, 3), (1, 1)}


def test_zero_weights_are_edges() -> None:
    graph = net("glu")
    weights = random_weights(graph, 0)
    zeros = {name: np.zeros_like(w) for name, w in weights.items()}
    full, empty = neuron_graph(graph, weights), neuron_graph(graph, zeros)
    assert full.edge_index.equal(empty.edge_index)
    assert (empty.edge_attr[empty.edge_mark == 0, 0] == 0).all()


def test_operands_of_a_product_are_told_apart_and_those_of_a_sum_are_not() -> None:
    names = edge_types(vocabulary())
    one = neuron_arrays(loads("arch a\ninput x: f32[N, 3, 3]\noutput y: f32[N, 3, 3]\nlet h = x -> linear(3)\n"
                              "y = matmul(h -> linear(3), h -> linear(3)) -> linear(3)"))  # fmt: skip
    kinds = {names[k] for k in one.edge_type}
    assert {"link.matmul[0]", "link.matmul[1]"} <= kinds
    assert "link.add[1]" not in names
    assert "link.concat[1]" not in names


def test_a_shared_weight_has_its_edges_once_and_copies() -> None:
    graph = net("shared")
    arrays = neuron_arrays(graph)
    assert (arrays.edge_mark == 1).sum() == 72
    weights = random_weights(graph, 0)
    values = arrays.values(weights)
    first = int(arrays.offsets[arrays.names.index("s.weight")])
    assert np.array_equal(values[first : first + 64], values[arrays.edge_mark == 1][:64])
    assert not np.array_equal(
        arrays.edge_index[:, first : first + 64], arrays.edge_index[:, arrays.edge_mark == 1][:, :64]
    )


def test_taps_of_a_kernel_are_coordinates() -> None:
    arrays = neuron_arrays(net("depthwise"))
    place = arrays.names.index("conv1.weight")
    taps = arrays.edge_attr[arrays.offsets[place] : arrays.offsets[place + 1], 1:3].reshape(6, 3, 3, 2)
    assert taps[0, :, 0, 0].tolist() == [-1, 0, 1] == taps[3, 2, :, 1].tolist()


def test_graphs_are_batched() -> None:
    from torch_geometric.loader import DataLoader

    graphs = [neuron_graph(net(name), random_weights(net(name), 0)) for name in ("glu", "concat")]
    (batch,) = DataLoader(graphs, batch_size=2)
    assert batch.num_graphs == 2
    assert batch.num_nodes == sum(g.num_nodes for g in graphs)
    second = batch.edge_index[:, graphs[0].num_edges :]
    assert second.equal(graphs[1].edge_index + graphs[0].num_nodes)
    weights = batch.edge_attr[batch.edge_mark == 0, 0]
    assert len(weights) == sum(int(g.offsets[-1]) for g in graphs)


def test_too_many_edges_are_refused_before_they_are_made() -> None:
    with pytest.raises(CompileError) as caught:
        neuron_arrays(load(EXAMPLES / "resnet50.arch"))
    (found,) = caught.value.diagnostics
    assert found.code == "E0811"
    assert "25,610,152 edges" in found.message
    assert "tensor" in (found.help or "")


def test_weights_that_are_not_finite_or_not_its_own_are_refused() -> None:
    graph = net("glu")
    weights = random_weights(graph, 0)
    arrays = neuron_arrays(graph)
    for wrong in (np.nan, np.inf):
        bad = weights | {"linear.weight": np.full_like(weights["linear.weight"], wrong)}
        with pytest.raises(CompileError) as caught:
            arrays.values(bad)
        assert caught.value.diagnostics[0].code == "E0812"
    with pytest.raises(CompileError) as caught:
        arrays.values(random_weights(net("concat"), 0))
    assert caught.value.diagnostics[0].code.startswith("E060")
