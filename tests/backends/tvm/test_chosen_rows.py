"""What a gate or an exit leaves out is not run: nothing, some or all of a batch chosen, against torch in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archc.backends import runtime
from archc.backends.profile import profile
from archc.backends.runtime import Artifact
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.facade.weights import resolve
from archc.grammar.load import loads
from archc.ir.graph import Graph

HEAD = "arch net\ninput x: f32[N, SHAPE]\noutput y: f32[N, RESULT]\n"
GATE = "def gate = fn(a) { return a -> flatten -> mean(1, keepdim = true) -> sigmoid }\n"  # open where the mean is > 0
BY_TOKEN = "def gate = fn(a) { return a -> mean(2, keepdim = true) -> sigmoid }\n"
IMAGE, TOKENS = ("3, 6, 6", "3, 6, 6"), ("5, 8", "5, 8")
PROGRAMS: dict[str, tuple[tuple[str, str], str]] = {
    "a convolution": (
        IMAGE,
        GATE + "def body = residual(conv(3, kernel = 3) -> batch_norm -> relu -> conv(3, kernel = 1))\n"
        'y = x -> conv(3, kernel = 1, bias = false, init = "constant(0.3)") -> skip(gate = gate, body = body)\n'
        "    -> conv(3, kernel = 3)",
    ),
    "attention": (TOKENS, GATE + "y = x -> skip(gate = gate, body = residual(layer_norm -> attention(2)))"),
    "in one another": (
        TOKENS,
        GATE + "let c = x -> mean(1) -> tanh\n"
        "def inner = skip(gate = gate, body = fn(r) { return (r -> linear(8)) * (r -> mean(1, keepdim = true)) })\n"
        "y = x -> skip(gate = gate, body = fn(r) { return (r -> linear(8) -> inner) * (c -> mean(0)) })",
    ),
    "a loop": (
        TOKENS,
        GATE + "def cell = fn(a, h) { let new = linear(8)(a) + linear(8)(h) -> tanh return new, new }\n"
        "def walk = fn(r) { let ys, end = r -> scan(cell, state = [[8]], axis = 1) return ys }\n"
        "y = x -> skip(gate = gate, body = walk)",
    ),
    "tokens": (
        TOKENS,
        BY_TOKEN + "def body = fn(r) { return silu(r -> layer_norm -> linear(16)) * (r -> linear(16)) -> linear(8) }\n"
        "y = x -> skip(gate = gate, body = body)",
    ),
    "nothing to do": (IMAGE, GATE + "y = x -> skip(gate = gate, body = identity)"),
    "an exit": (
        ("3, 6, 6", "4"),
        "def head = fn(a) {\n    let m = a -> flatten -> mean(1, keepdim = true)\n"
        "    return concat(0 * m, 0 * m, 0 * m, -9 * m, axis = 1)\n}\n"
        "def rest = conv(4, kernel = 3) -> relu -> global_avg_pool -> linear(4)\n"
        "y = x -> exit(head = head, rest = rest, threshold = 0.5)",
    ),
}  # fmt: skip
SIGNS = {"none": [-1] * 5, "one": [-1, -1, 1, -1, -1], "some": [1, -1, 1, 1, -1], "all": [1] * 5}


def graph_of(name: str) -> Graph:
    (shape, result), body = PROGRAMS[name]
    return loads(HEAD.replace("SHAPE", shape).replace("RESULT", result) + body)


def weights_of(graph: Graph) -> dict[str, Any]:
    return {name: np.asarray(a) for name, a in resolve(graph, None).arrays.items()}


def draw(graph: Graph, signs: list[int]) -> np.ndarray:
    """Inputs with means of these signs; small, so that the sign of the mean survives a layer."""
    shape = [int(str(d)) for d in graph.inputs[0].type.shape[1:]]
    noise = np.random.default_rng(0).normal(size=(len(signs), *shape)) * 0.1
    return (noise + np.array(signs).reshape(-1, *[1] * len(shape))).astype(np.float32)


def build(graph: Graph, weights: dict[str, Any], path: Path) -> Artifact:
    compile_graph(graph, weights, path, spec=parse_target("cpu", threads=1))
    return runtime.load(path)


def judged(graph: Graph, weights: dict[str, Any], x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        made: np.ndarray = to_torch(graph, weights, dtype="f64").eval()(torch.from_numpy(x).double()).numpy()
    return made


@pytest.fixture(scope="module", params=PROGRAMS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    graph = graph_of(request.param)
    weights = weights_of(graph)
    with build(graph, weights, tmp_path_factory.mktemp("rows") / "net") as artifact:
        yield graph, weights, artifact


@pytest.mark.parametrize("chosen", SIGNS)
def test_chosen_rows(network: Any, chosen: str) -> None:
    graph, weights, artifact = network
    x = draw(graph, SIGNS[chosen])
    found, needed = artifact.run({"x": x})["y"], judged(graph, weights, x)
    np.testing.assert_allclose(found, needed, atol=1e-5)
    assert np.abs(found - judged(graph, weights, -x)).max() > 1e-3, "any choice would have done"
    assert artifact.run({"x": x[:0]})["y"].shape == found[:0].shape


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        ("residual(linear(8) -> gelu)", {}),
        ("residual(linear(8) -> gelu)", {"N": 1, "T": 5}),
        ("reshape([N, T, 2, 4]) -> softmax -> reshape([N, T, 8])", {}),
        ("attention(2)", {"N": 2}),
    ],
)
def test_tokens(body: str, sizes: dict[str, int], tmp_path: Path) -> None:
    """Each token has a gate. Where tokens meet, or parameters name their number, the body sees all of them."""
    head = "arch net\ninput x: f32[N, T, 8]\noutput y: f32[N, T, 8]\n"
    graph = loads(head + BY_TOKEN + f"y = x -> skip(gate = gate, body = {body})", dims=sizes)
    weights = weights_of(graph)
    rng = np.random.default_rng(0)
    with build(graph, weights, tmp_path / "net") as artifact:
        for share in (0.0, 0.5, 1.0):
            signs = np.where(rng.random((sizes.get("N", 3), sizes.get("T", 5), 1)) < share, 1, -1)
            x = (signs + 0.1 * rng.normal(size=(*signs.shape[:2], 8))).astype(np.float32)
            np.testing.assert_allclose(artifact.run({"x": x})["y"], judged(graph, weights, x), atol=1e-5)
            ran = [k.name for k in profile(artifact, {"x": x}, runs=1).kernels if "_body" in k.name]
            assert bool(ran) == (share > 0 and body.startswith("residual") and (signs > 0).any())


@pytest.mark.parametrize(("name", "batch"), [("a convolution", 1), ("a convolution", 4), ("an exit", 1)])
def test_a_fixed_batch(name: str, batch: int, tmp_path: Path) -> None:
    from archc.facade.compile import fix_batch
    from archc.facade.model import Model

    graph = fix_batch(Model(graph_of(name)), batch).graph
    weights = weights_of(graph)
    with build(graph, weights, tmp_path / "net") as artifact:
        for signs in ([1] * batch, [-1] * batch, [(-1) ** i for i in range(batch)]):
            x = draw(graph, signs)
            np.testing.assert_allclose(artifact.run({"x": x})["y"], judged(graph, weights, x), atol=1e-5)


def test_what_is_closed_is_not_run(network: Any) -> None:
    """The functions that are called, by the share of the batch that is chosen."""
    graph, _, artifact = network
    calls: dict[str, list[str]] = {}
    for chosen, signs in SIGNS.items():
        kernels = profile(artifact, {"x": draw(graph, signs)}, runs=1).kernels
        calls[chosen] = [k.name for k in kernels]
    assert not [name for name in calls["none"] if "_body" in name or "take_rows" in name or "scatter" in name]
    assert [name for name in calls["all"] if "_body" in name]
    assert not [name for name in calls["all"] if "_some" in name]  # nothing is copied
    assert [name for name in calls["some"] if "_some" in name]


@pytest.mark.parametrize("batch", [None, 1])
def test_weights_of_what_is_closed_are_not_read(batch: int | None, tmp_path: Path) -> None:
    """The bodies are poisoned: with closed gates nothing shows, with an open one it does."""
    from archc.facade.compile import fix_batch
    from archc.facade.model import Model

    model = Model(graph_of("a convolution"))
    graph = (fix_batch(model, batch) if batch else model).graph
    weights = weights_of(graph)
    for name in weights:
        if ".body." in name and name.endswith("conv.weight"):
            weights[name] = np.full_like(weights[name], np.nan)
    with build(graph, weights, tmp_path / "net") as artifact:
        closed, opened = (artifact.run({"x": draw(graph, [sign] * (batch or 5))})["y"] for sign in (-1, 1))
        assert np.isfinite(closed).all()
        assert np.isnan(opened).any()
