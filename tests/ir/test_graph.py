"""Graphs keep their use lists, order and types; the verifier notices when they do not."""

from __future__ import annotations

import pytest

from archc.ir.diagnostics import CompileError
from archc.ir.dims import symbol
from archc.ir.graph import Graph, Value
from archc.ir.ops.convolution import CONV, ConvParams
from archc.ir.ops.elementwise import ADD
from archc.ir.ops.linear import LINEAR, LinearParams
from archc.ir.types import TensorType
from archc.ir.verify import VerifyError, verify
from archc.ir.view import to_networkx


def small() -> Graph:
    graph = Graph("small")
    x = graph.add_input("x", TensorType((symbol("N"), 8)))
    a = graph.add(LINEAR, [x], LinearParams(out=8), name="a").output
    b = graph.add(LINEAR, [a], LinearParams(out=8, bias=False), name="b").output
    y = graph.add(ADD, [a, b], name="sum").output
    graph.outputs, graph.output_names = [y], ["y"]
    return graph


def test_a_graph_knows_types_weights_and_uses() -> None:
    graph = small()
    verify(graph)
    a, b, s = graph.nodes
    assert str(s.output.type) == "f32[N, 8]"
    assert sorted(graph.parameters()) == ["a.bias", "a.weight", "b.weight"]
    assert a.output.uses == {b: 1, s: 1}
    assert graph.use_count(s.output) == 1
    assert graph.symbols() == ["N"]


def test_replace_and_erase() -> None:
    graph = small()
    a, b, s = graph.nodes
    b.output.replace_all_uses(a.output, graph)
    graph.erase(b)
    verify(graph)
    assert a.output.uses == {s: 2}
    assert [n.name for n in graph.nodes] == ["a", "sum"]
    with pytest.raises(AssertionError, match="still used"):
        graph.erase(a)


def test_sort_restores_topological_order() -> None:
    graph = small()
    graph.nodes.reverse()
    with pytest.raises(VerifyError, match="before it is defined"):
        verify(graph)
    graph.sort()
    verify(graph)
    assert [n.name for n in graph.nodes] == ["a", "b", "sum"]


def test_the_verifier_notices_a_wrong_type_and_a_stale_use() -> None:
    graph = small()
    graph.nodes[0].output.type = TensorType((symbol("N"), 9))
    with pytest.raises(VerifyError, match="results should be"):
        verify(graph)
    graph = small()
    graph.nodes[0].output.uses.clear()
    with pytest.raises(VerifyError, match="use list"):
        verify(graph)


@pytest.mark.parametrize(
    ("shape", "op", "params", "code", "words"),
    [
        ((2, 6, 8, 8), CONV, ConvParams(out=8, kernel=3, groups=4), "E0305", "divisible by 4"),
        ((2, 6, 2, 8), CONV, ConvParams(out=8, kernel=5, padding=0), "E0308", "leaves nothing"),
        ((2,), CONV, ConvParams(out=8, kernel=3), "E0302", "rank at least 2"),
        ((2, symbol("C")), LINEAR, LinearParams(out=8), "E0307", "fixed size"),
    ],
)
def test_a_misapplied_op_says_what_it_needs(
    shape: tuple[int, ...], op: object, params: object, code: str, words: str
) -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType(shape))
    with pytest.raises(CompileError) as caught:
        graph.add(op, [x], params)  # type: ignore[arg-type]
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.code, words in diagnostic.message) == (code, True)
    assert not graph.nodes


def test_networkx_view_has_every_use() -> None:
    view = to_networkx(small())
    assert view.number_of_nodes() == 5
    assert view.number_of_edges() == 5
    assert isinstance(next(iter(small().inputs)), Value)
