"""What there is to see: every node once, shapes on edges, what is open."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from archc.drawing.layout import place
from archc.drawing.picture import Box, Cluster, Edge, Picture, compose, opened
from archc.grammar.load import load, loads
from archc.grammar.parser import parse
from archc.grammar.program import Program
from archc.grammar.values import tensors_of
from archc.ir.graph import Graph, Node
from archc.ir.op import REGISTRY

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(p.stem for p in EXAMPLES.glob("*.arch"))


def example(name: str) -> Graph:
    return load(EXAMPLES / f"{name}.arch")


def represented(picture: Picture) -> list[Node]:
    """Every node that some row or structural cluster stands for."""
    found: list[Node] = []
    for block in picture.root.blocks():
        rows = [r.node for r in block.rows] if isinstance(block, Box) else [block.node] if block.node else []
        found += [n for node in rows for n in picture.tree.covers[node]]
    return found


def titled(picture: Picture, title: str) -> list[Cluster]:
    return [c for c in picture.root.clusters() if c.title == title]


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_in_the_picture_once(name: str) -> None:
    graph = example(name)
    assert Counter(map(id, represented(compose(graph)))) == Counter(map(id, graph.walk()))


def test_the_check_above_can_fail() -> None:
    picture = compose(example("resnet18"))
    box = next(b for b in picture.root.blocks() if isinstance(b, Box) and b.rows)
    box.rows.pop()
    assert Counter(map(id, represented(picture))) != Counter(map(id, picture.tree.graph.walk()))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gpt2_small", [12]),
        ("mixtral_like", [6, 8]),  # layers, experts
        ("densenet121", [6, 12, 24, 16]),
        ("resnet50", [2, 3, 5, 2]),  # the first block of a stage projects: it stands alone
    ],
)
def test_multipliers(name: str, counts: list[int]) -> None:
    assert [c.count for c in compose(example(name)).root.clusters() if c.count > 1] == counts


def test_a_module_counts_the_parameters_of_all_its_copies() -> None:
    graph = example("gpt2_small")
    (layer,) = titled(compose(graph), "layer")
    expected = sum(p.size for p in graph.parameters().values() if re.match(r"layer\d*\.", p.name))
    assert layer.params == expected


def test_edges_carry_the_shapes_of_their_values() -> None:
    picture = compose(
        loads(
            "arch a\ninput x: f32[N, 3, 8, 8]\noutput y: f32[N, 4, 8, 8]\n"
            "let a = x -> conv(4, kernel = 3)\ny = a + (a -> conv(4, kernel = 1) -> relu)"
        )
    )
    edges = {(_name(e.tail[0]), _name(e.head[0])): e for e in picture.root.edges}
    assert edges["x", "conv"].type == "f32[N, 3, 8, 8]"
    assert edges["conv", "+"].type == edges["conv", "conv"].type == "f32[N, 4, 8, 8]"
    assert [e.label for e in picture.root.edges].count("N×4×8×8") == 3  # once for each value, the input's in its box


def _name(block: object) -> str:
    assert isinstance(block, Box)
    return block.title or block.rows[0].node.op.name


def test_copies_that_grow_say_from_what_to_what() -> None:
    picture = compose(example("densenet121"))
    rows = [r for b in picture.root.blocks() if isinstance(b, Box) for r in b.rows]
    assert "N×64…224×56×56" in {r.shape for r in rows}


def test_a_residual_is_an_edge_past_the_box() -> None:
    (layer,) = titled(compose(example("gpt2_small")), "layer")
    joins = [b for b in layer.children if isinstance(b, Box) and b.kind == "join"]
    assert [b.title for b in joins] == ["+", "+"]
    into = [e for e in layer.edges if e.head[0] is joins[0]]
    assert {e.tail[0] is None for e in into} == {True, False}  # from the layer's input, and from its attention


def test_routing_decides_and_experts_compute() -> None:
    picture = compose(example("mixtral_like"))
    (moe,) = (c for c in picture.root.clusters() if c.node is not None)
    assert moe.title == "moe, top 2 of 8"
    styles = {e.tail[0].title: e.style for e in moe.edges if isinstance(e.tail[0], Cluster)}
    assert styles == {"router": "control", "expert": "data"}


def test_a_scan_has_its_state_loop() -> None:
    picture = compose(example("lstm"))
    loops = [e for c in picture.root.clusters() for e in c.edges if e.style == "loop"]
    assert len(loops) == 4  # two layers, two states each
    assert all(e.tail[0] is e.head[0] for e in loops)


def test_shared_weights_have_one_letter() -> None:
    picture = compose(example("gpt2_small"))
    rows = [r for b in picture.root.blocks() if isinstance(b, Box) for r in b.rows]
    assert [(r.node.op.name, r.shared) for r in rows if r.shared] == [("embedding", "A"), ("tied_linear", "A")]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_open_by_default_fits_a_page(name: str) -> None:
    picture = compose(example(name))
    chosen = opened(picture)
    shown = [b for c in picture.root.clusters() if c.id in chosen for b in c.children]
    assert 3 <= sum(len(b.rows) or 1 for b in shown if isinstance(b, Box)) <= 80


def test_collapse_levels() -> None:
    picture = compose(example("resnet50"))
    everything = {c.id for c in picture.root.clusters()}
    assert opened(picture, "none") == everything
    assert opened(picture, "all") == opened(picture, 0) == {picture.root.id}
    assert opened(picture, "all") < opened(picture, 1) < opened(picture, 2) == everything


def test_edges_end_at_blocks_of_their_cluster() -> None:
    for name in ("tagger", "moe_lm"):
        for cluster in compose(example(name)).root.clusters():
            for edge in cluster.edges:
                assert _ends_inside(cluster, edge)


def _ends_inside(cluster: Cluster, edge: Edge) -> bool:
    (tail, out), (head, port) = edge.tail, edge.head
    outs = cluster.ins if tail is None else tail.outs
    ins = cluster.outs if head is None else head.ins
    known = [b for b in (tail, head) if b is not None]
    wide = isinstance(head, Box) and head.kind == "choice"  # takes any number at one place
    return all(b in cluster.children for b in known) and out < max(len(outs), 1) and (wide or port < len(ins))


@pytest.mark.parametrize("name", sorted(n for n, op in REGISTRY.items() if op.example))
def test_every_operator_can_be_drawn(name: str) -> None:
    op = REGISTRY[name]
    ports = "".join(f"input x{i}: {t}\n" for i, t in enumerate(op.example_inputs))
    feed = ", ".join(f"x{i}" for i in range(len(op.example_inputs)))
    program = Program(parse(f"arch e\n{ports}let r = {f'({feed})' if ',' in feed else feed} -> {op.example}\n"))
    program.check()
    found = tensors_of(program.env.names["r"])
    assert found is not None
    graph = program.graph
    assert graph is not None
    graph.outputs = [t.value for t in found]
    graph.output_names = [f"o{i}" for i in range(len(found))]
    picture = compose(graph)
    assert Counter(map(id, represented(picture))) == Counter(map(id, graph.walk()))
    assert place(picture.root, lambda _: True).width > 0
