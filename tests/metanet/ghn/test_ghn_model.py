"""A hypernetwork predicts every parameter of every net, by what the graph says and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.load import load, loads
from archc.grammar.op_page import example_graph
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY
from archc.metanet.ghn.decoder import planes
from archc.metanet.ghn.model import Ghn, GhnConfig
from archc.metanet.ghn.plan import weight_plans
from archc.metanet.ghn.subject import subject
from archc.metanet.ghn.turns import product, turned

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.arch"))
SMALL = 12_000_000
"""Parameters of the largest example that the default tests predict."""


@pytest.fixture(scope="module")
def model() -> Ghn:
    return Ghn(GhnConfig(hidden=16, rank=8, width=8, mix=8), ["digits"])


def predicted(model: Ghn, graph: Graph) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model([subject(graph, model.words)], [0])[0]


def covers(model: Ghn, graph: Graph) -> None:
    parameters = graph.parameters()
    found = predicted(model, graph)
    assert {n: tuple(w.shape) for n, w in found.items()} == {n: p.shape for n, p in parameters.items()}
    for name, weight in found.items():
        assert torch.isfinite(weight).all(), name
    for plan in weight_plans(graph):
        assert sum(p.size for p in plan.slots[0]) in (1, plan.shape[0] if plan.shape else 1)
        if plan.rule == "matrix":
            assert found[plan.name].std() > 0, plan.name


@pytest.mark.parametrize("name", sorted(n for n, op in REGISTRY.items() if op.example and op.weights))
def test_every_op_with_weights_has_them_predicted(name: str, model: Ghn) -> None:
    graph = example_graph(REGISTRY[name])
    if name.startswith("quantized"):
        with pytest.raises(CompileError) as error:
            predicted(model, graph)
        assert error.value.diagnostics[0].code == "E0820"
    else:
        covers(model, graph)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_parameter_of_the_examples_is_predicted(path: Path, model: Ghn) -> None:
    graph = load(path)
    if sum(p.size for p in graph.parameters().values()) > SMALL:
        pytest.skip("large: only its plans are checked by default")
    covers(model, graph)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_plans_fit_shapes(path: Path) -> None:
    graph = load(path)
    plans = weight_plans(graph)
    assert [p.name for p in plans] == list(graph.parameters())
    for plan in plans:
        sizes = [sum(piece.size for piece in slot) for slot in plan.slots]
        assert sizes[0] * sizes[1] * sizes[2] == plan.size, plan


NET = """
arch a
input x: f32[N, 1, 6, 6]
output y: f32[N, 3]
let a = x -> {routing} -> flatten -> linear(8) -> tanh
let b = x -> flatten -> linear(8) -> tanh
y = concat(a, b, axis = 1) -> linear(3)
"""


def test_equal_nets_get_equal_weights_whatever_the_order_of_their_text(model: Ghn) -> None:
    one = loads(NET.format(routing="flip(2)"))
    other = loads(
        """
        arch renamed
        input x: f32[N, 1, 6, 6]
        output y: f32[N, 3]
        let b = x -> flatten -> linear(8) -> tanh
        let a = x -> flip(2) -> flatten -> linear(8) -> tanh
        y = concat(a, b, axis = 1) -> linear(3)
        """
    )
    first, second = predicted(model, one), predicted(model, other)
    assert list(first) != list(second)
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], atol=1e-5), name
    different = predicted(model, loads(NET.format(routing="identity")))
    last = list(first)[-2]
    assert not torch.allclose(first[last], different[last], atol=1e-5)


def test_without_messages_a_layer_does_not_hear_of_its_routing() -> None:
    nets = [loads(NET.format(routing=r)) for r in ("flip(2)", "flip(3)")]
    for messages, same in (("none", True), ("all", False)):
        model = Ghn(GhnConfig(hidden=16, rank=8, width=8, mix=8, messages=messages), ["digits"])
        with torch.no_grad():  # an untrained model takes every op for one that turns nothing
            model.encoder.turn.weight.normal_()
        a, b = (next(iter(predicted(model, net).values())) for net in nets)
        assert torch.allclose(a, b) == same


def test_turning_a_plane_turns_its_coefficients() -> None:
    grid = torch.randn(1, 8, 8, 2)
    plane = (planes(6, 6, 8) @ grid[0].flatten(0, 1)).view(6, 6, 2)
    images = {1: plane.flip(1), 2: plane.flip(0), 3: plane.flip(0, 1), 4: plane.transpose(0, 1)}
    for number, image in images.items():
        found = (planes(6, 6, 8) @ turned(grid, torch.eye(8)[number : number + 1])[0].flatten(0, 1)).view(6, 6, 2)
        assert torch.allclose(found, image, atol=1e-5)
        assert not torch.allclose(found, plane, atol=1e-1)


def test_turns_compose() -> None:
    grid, one = torch.randn(1, 4, 4, 2), torch.eye(8)
    for a in range(8):
        for b in range(8):
            after = turned(turned(grid, one[b : b + 1]), one[a : a + 1])
            assert torch.allclose(after, turned(grid, one[product(a, b)][None]))


def test_widths_beyond_the_tables_are_not_repeated(model: Ghn) -> None:
    graph = loads("arch a  input x: f32[N, 500]  output y: f32[N, 300]  y = x -> linear(400) -> relu -> linear(300)")
    for name, weight in predicted(model, graph).items():
        if weight.ndim == 2:
            rows = {tuple(row) for row in weight[:, :4].tolist()}
            assert len(rows) == len(weight), name
            assert torch.linalg.matrix_rank(weight) == model.config.rank


def test_untrained_weights_keep_the_size_of_what_passes() -> None:
    from archc.backends.torch.module import to_torch

    model = Ghn(GhnConfig(), ["digits"])
    layers = " -> ".join(["linear(64) -> tanh"] * 6)
    graph = loads(f"arch a  input x: f32[N, 64]  output y: f32[N, 10]  y = x -> {layers} -> linear(10)")
    module = to_torch(graph, predicted(model, graph))
    with torch.no_grad():
        y = module(torch.randn(256, 64, generator=torch.Generator().manual_seed(0)))
    assert 0.05 < float(y.std(0).mean()) < 5


def test_weights_with_and_without_gradients_are_equal(model: Ghn) -> None:
    graph = loads(NET.format(routing="flip(3)"))
    with_gradients = model([subject(graph, model.words)], [0])[0]
    for name, weight in predicted(model, graph).items():
        assert torch.allclose(weight, with_gradients[name], rtol=1e-4, atol=1e-6), name


def test_the_gradient_of_scaling_is_that_of_numbers(model: Ghn) -> None:
    from archc.metanet.ghn.decoder import _Scaled

    flat = torch.randn(9, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(2, dtype=torch.float64, requires_grad=True)
    matrix, sizes = torch.tensor([True, False]), torch.tensor([5, 4])
    assert torch.autograd.gradcheck(lambda x, f: _Scaled.apply(x, f, matrix, sizes), (flat, factor))
