"""The parameter graph at tensor level: nothing is lost, order counts where it counts, and loaders batch it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.load import load, loads
from archc.grammar.op_page import example_graph
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY
from archc.metanet.tensor_graph import FLOWS, ORIGIN_COLUMNS, REGIONS, TensorGraph, tensor_arrays, tensor_graph
from archc.metanet.vocabulary import Vocabulary, attributes, op_columns, vocabulary

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.arch"))


def net(body: str, x: str = "f32[N, 6]", y: str = "f32[N, 6]") -> Graph:
    return loads(f"arch a\ninput x: {x}\noutput y: {y}\n{body}")


def counted(arrays: TensorGraph, graph: Graph) -> None:
    parameters = graph.parameters()
    assert arrays.names == list(parameters)
    assert arrays.parameter_size.tolist() == [p.size for p in parameters.values()]
    assert arrays.parameter_size.sum() == sum(p.size for p in parameters.values())
    uses = sum(len(node.weights) for node in graph.walk())
    assert arrays.weighs.shape == (2, uses)
    assert set(arrays.weighs[0]) == set(range(len(parameters)))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_parameter_of_the_examples_is_there(path: Path) -> None:
    graph = load(path)
    arrays = tensor_arrays(graph)
    counted(arrays, graph)
    assert np.isfinite(arrays.op_attributes).all()
    assert np.isfinite(arrays.op_position).all()
    assert (arrays.feeds[0] < arrays.feeds[1]).all(), "places are in topological order"


@pytest.mark.parametrize("name", sorted(n for n, op in REGISTRY.items() if op.example))
def test_every_op_has_words_for_all_that_it_says(name: str) -> None:
    """Its own columns hold what it encodes; a column that another op's schema happens to have does not count."""
    op = REGISTRY[name]
    graph = example_graph(op)
    counted(tensor_arrays(graph), graph)
    for node in graph.walk():
        assert {column for column, _ in attributes(node)} <= set(op_columns(node.op))


FAMILIES = {
    "group_norm": "x -> conv(4, kernel = 1) -> group_norm(2) -> global_avg_pool",
    "rms_norm": "x -> flatten(2) -> permute([0, 2, 1]) -> rms_norm -> linear(4) -> mean(1)",
    "kan": "x -> flatten -> kan(4)",
    "conv of one axis": "x -> flatten(2) -> conv(4, kernel = 3) -> mean(2)",
    "experts": "x -> flatten -> moe(router = linear(2), experts = copies(2, linear(4)), top_k = 1)",
    "skipped": "x -> flatten -> skip(gate = linear(1) -> sigmoid, body = linear(8)) -> linear(4)",
    "attention": "x -> flatten(2) -> permute([0, 2, 1]) -> linear(4) -> attention(2, qk_norm = true) -> mean(1)",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_parameter_is_dropped(name: str) -> None:
    graph = loads(f"arch a\ninput x: f32[N, 2, 2, 2]\noutput y: f32[N, 4]\ny = {FAMILIES[name]}")
    arrays = tensor_arrays(graph)
    counted(arrays, graph)
    short = TensorGraph(**{f: getattr(arrays, f) for f in TensorGraph.__slots__})
    short.parameter_size = arrays.parameter_size[:-1]
    with pytest.raises(AssertionError):
        counted(short, graph)


def test_a_shared_parameter_is_one_node_with_an_edge_for_each_use() -> None:
    arrays = tensor_arrays(net("share s = linear(6)\ny = x -> s -> relu -> s -> relu -> s"))
    assert arrays.names == ["s.weight", "s.bias"]
    assert np.bincount(arrays.weighs[0]).tolist() == [3, 3]
    assert arrays.parameter_init[:, -1].tolist() == [2.0, 2.0]  # log2(1 + 3)


def feeds(text: str) -> set[tuple[str, str, int]]:
    arrays = tensor_arrays(loads(f"arch a\ninput x: f32[N, 3, 3]\noutput y: f32[N, 3, 3]\n{text}"))
    ends = zip(*arrays.feeds.tolist(), arrays.feeds_attr.tolist(), strict=True)
    return {(arrays.ops[s], arrays.ops[t], attr[1]) for s, t, attr in ends}


def test_the_order_of_operands_counts_where_it_does() -> None:
    branches = "let a = x -> linear(3) -> relu\nlet b = x -> linear(3) -> tanh\n"
    assert feeds(branches + "y = matmul(a, b)") != feeds(branches + "y = matmul(b, a)")
    assert feeds(branches + "y = a - b") != feeds(branches + "y = b - a")
    assert feeds(branches + "y = a + b") == feeds(branches + "y = b + a")


def test_regions_are_nested_ops() -> None:
    graph = net("y = x -> moe(router = linear(3), experts = copies(3, linear(6) -> relu), top_k = 1)")
    arrays = tensor_arrays(graph)
    moe = arrays.ops.index("moe")
    assert set(arrays.inside[1]) == {moe}
    assert sorted({(REGIONS[k], n) for k, n in arrays.inside_attr.tolist()}) == [
        ("experts", 0),
        ("experts", 1),
        ("experts", 2),
        ("router", 0),
    ]
    flows = [FLOWS[k] for k in arrays.feeds_attr[:, 0]]
    assert flows.count("enter") == flows.count("leave") == 4
    assert arrays.op_level[arrays.inside[0]].tolist() == [1] * arrays.inside.shape[1]


def test_what_an_axis_carries() -> None:
    graph = loads(
        "arch a\ninput x: f32[N, 1, 6, 4]\noutput y: f32[N, 5]\n"
        "y = x -> permute([0, 1, 3, 2]) -> flip(3) -> im2col(kernel = 2, stride = 2) "
        "-> linear(6) -> flatten -> linear(5)"
    )
    arrays = tensor_arrays(graph)

    def carried(op: str, axis: int) -> set[str]:
        row = arrays.op_origin[arrays.ops.index(op)].reshape(8, -1)[axis]
        return {ORIGIN_COLUMNS[k] for k in row.nonzero()[0]}

    assert carried("x", 0) == {"outer3", "inner3"}
    assert carried("permute", 0) == {"outer2", "inner2"}
    assert carried("flip", 0) == {"outer2", "inner2", "outerreversed", "innerreversed"}
    assert carried("im2col", 1) == {"outer3", "inner2", "innerreversed"}
    assert carried("linear", 0) == set()


def test_positions_are_the_same_for_ops_that_may_change_places() -> None:
    arrays = tensor_arrays(net("let h = x -> linear(6)\ny = (h -> linear(6) -> relu) + (h -> linear(6) -> relu)"))
    alike = [i for i, name in enumerate(arrays.ops) if name.startswith("relu")]
    assert len(alike) == 2
    assert np.array_equal(*arrays.op_position[alike])
    assert len(np.unique(arrays.op_position, axis=0)) > 3


def test_one_layer_written_two_ways_is_the_same() -> None:
    ways = [
        loads(
            f"arch a\ninput x: f32[N, 2, 8, 8]\noutput y\ny = x -> {layer}".replace(
                "output y", "output y: f32[N, 4, 8, 8]"
            )
        )
        for layer in ("conv(4, kernel = 3)", "conv(4, kernel = [3, 3], stride = 1, padding = 1, dilation = [1, 1])")
    ]
    first, second = (tensor_arrays(g).op_attributes for g in ways)
    assert np.array_equal(first, second)
    other = loads("arch a\ninput x: f32[N, 2, 8, 8]\noutput y: f32[N, 4, 8, 8]\ny = x -> conv(4, kernel = 5)")
    assert not np.array_equal(first, tensor_arrays(other).op_attributes)


def test_a_word_that_a_model_has_not_is_said() -> None:
    words = vocabulary()
    short = Vocabulary(tuple(op for op in words.ops if op != "relu"), words.roles, words.attributes)
    graph = net("y = x -> linear(6) -> relu")
    with pytest.raises(CompileError) as caught:
        tensor_arrays(graph, short)
    (found,) = caught.value.diagnostics
    assert found.code == "E0810"
    assert "`relu`" in found.message
    tensor_arrays(net("y = x -> linear(6) -> tanh"), short)
    again = Vocabulary.from_json(words.to_json())
    assert again.places == words.places


def test_graphs_are_batched() -> None:
    from torch_geometric.loader import DataLoader

    graphs = [tensor_graph(net(y)) for y in ("y = x -> linear(6)", "y = x -> linear(4) -> relu -> linear(6)")]
    (batch,) = DataLoader(graphs, batch_size=2)
    assert batch["op"].kind.tolist() == [k for g in graphs for k in g["op"].kind.tolist()]
    assert batch["parameter"].num_nodes == 6
    weighs = batch["parameter", "weighs", "op"]
    assert weighs.edge_index.tolist() == [[0, 1, 2, 3, 4, 5], [1, 1, 4, 4, 6, 6]]
    assert batch.names == [g.names for g in graphs]
    assert batch["op", "rev_weighs", "parameter"].edge_index.equal(weighs.edge_index.flip(0))
