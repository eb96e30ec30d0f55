"""Modules from names, repeats from structure: what is folded, and what must not be."""

from __future__ import annotations

import pytest

from archc.drawing.hierarchy import Hierarchy, Item, Repeat, Scope, build
from archc.grammar.load import loads
from archc.ir.graph import Node

HEAD = "arch a\ninput x: f32[N, 8]\noutput y: f32[N, 8]\n"
BLOCK = "def block = residual(linear(16) -> relu -> linear(8))\n"


def outline(tree: Hierarchy, items: list[Item] | None = None) -> list[object]:
    """The tree as nested lists: names of ops, ("scope", …), (3, …) for three copies."""

    def of(item: Item) -> object:
        if isinstance(item, Node):
            return item.op.name
        inner = outline(tree, item.items)
        return (item.name if isinstance(item, Scope) else item.count, inner)

    return [of(item) for item in (tree.items if items is None else items)]


def tree_of(body: str) -> Hierarchy:
    return build(loads(HEAD + BLOCK + f"y = {body}"))


def test_equal_blocks_in_sequence_are_one_repeat() -> None:
    tree = tree_of("x -> repeat(5) { block } -> relu")
    assert outline(tree) == [(5, [("block", ["linear", "relu", "linear", "add"])]), "relu"]


def test_a_different_parameter_ends_the_run() -> None:
    other = "residual(linear(32) -> relu -> linear(8))"
    tree = tree_of(f"x -> repeat(3) {{ block }} -> {other} -> repeat(2) {{ block }}")
    counts = [i.count for i in tree.items if isinstance(i, Repeat)]
    assert counts == [3, 2]


def test_runs_without_scopes_have_their_period_found() -> None:
    tree = tree_of("x -> repeat(6) { linear(8) -> relu -> sigmoid }")
    assert outline(tree) == [(6, ["linear", "relu", "sigmoid"])]


def test_repeats_inside_repeats() -> None:
    tree = tree_of("x -> repeat(3) { linear(8) -> repeat(4) { residual(linear(8) -> tanh) } -> sigmoid }")
    assert outline(tree) == [(3, ["linear", (4, ["linear", "tanh", "add"]), "sigmoid"])]


def test_growing_sizes_fold_as_the_layers_of_a_dense_block_do() -> None:
    tree = build(
        loads(
            "arch a\ninput x: f32[N, 8]\noutput y: f32[N, 20]\n"
            "def layer = fn(x) { return concat(x, x -> linear(16) -> relu -> linear(4), axis = 1) }\n"
            "y = x -> repeat(3) { layer }"
        )
    )
    assert outline(tree) == [(3, [("layer", ["linear", "relu", "linear", "concat"])])]


def test_a_link_that_is_read_elsewhere_is_not_folded_away() -> None:
    body = "let a = x -> block\nlet b = a -> block\ny = (b -> block) + a"
    tree = build(loads(HEAD + BLOCK + body))
    assert [c for c in outline(tree) if isinstance(c, tuple) and c[0] == 3] == []
    assert all(len(nodes) == 1 for node, nodes in tree.covers.items() if node.name.startswith("a."))


def test_parallel_equals_are_not_a_sequence() -> None:
    tree = build(loads(HEAD + BLOCK + "let a = x -> block\nlet b = x -> block\ny = a + b"))
    assert not any(isinstance(i, Repeat) for i in tree.items)


@pytest.mark.parametrize(("tied", "expected"), [("true", True), ("false", False)])
def test_tied_weights_are_told_from_fresh_ones(tied: str, expected: bool) -> None:
    tree = tree_of(f"x -> repeat(4, tied = {tied}) {{ block }}")
    (repeat,) = tree.items
    assert isinstance(repeat, Repeat)
    assert repeat.tied is expected


def test_experts_are_one_region_with_a_count() -> None:
    tree = build(
        loads(
            "arch a\ninput x: f32[N, T, 8]\noutput y: f32[N, T, 8]\n"
            "def e = linear(16) -> relu -> linear(8)\n"
            "y = x -> moe(router = linear(4), experts = copies(4, e), top_k = 2)"
        )
    )
    (regions,) = tree.regions.values()
    assert [(r.name, r.count) for r in regions] == [("router", 1), ("expert", 4)]


@pytest.mark.parametrize(
    "body",
    [
        "x -> repeat(3) { repeat(2) { block } -> relu }",
        "x -> repeat(2) { linear(8) -> repeat(3) { linear(8) -> tanh -> sigmoid } -> relu }",
        "x -> block -> relu -> block -> relu -> block -> relu -> linear(8)",
    ],
)
def test_every_node_is_stood_for_once(body: str) -> None:
    tree = tree_of(body)
    covered = [n.name for nodes in tree.covers.values() for n in nodes]
    assert sorted(covered) == sorted(n.name for n in tree.graph.walk())
    assert {tree.node_for(n) for n in tree.graph.walk()} == set(tree.covers)
    assert set(tree.nodes(tree.items)) == set(tree.covers)


def test_a_name_may_have_any_number_of_parts() -> None:
    tree = tree_of(f'x -> linear(8, name = "{"a." * 5000}b") -> linear(8, name = "{"a." * 5000}c") -> relu')
    assert len(tree.covers) == 3
