"""Blocks that are alike get one set of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformed import applied, compiled_difference

from archc.facade.model import loads
from archc.ir.cost import cost
from archc.ir.diagnostics import CompileError
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass, parse_transform

ENCODER = """arch encoder()
input x: f32[N, T, 8]
output y: f32[N, T, 8]
def layer = residual(layer_norm -> attention(2)) -> residual(layer_norm -> linear(16) -> gelu -> linear(8))
y = x -> repeat(3) { layer } -> linear(8)
"""
RESNET = """arch resnet()
input x: f32[N, 4, 6, 6]
output y: f32[N, 8, 3, 3]
def block(c) = residual(conv(c, kernel = 3, bias = false) -> batch_norm -> relu)
def stage(c, s) = conv(c, kernel = 3, stride = s) -> block(c) -> block(c)
y = x -> stage(4, 1) -> stage(8, 2)
"""
FLAT = """arch flat()
input x: f32[N, 8]
output y: f32[N, 8]
y = x -> residual(linear(8) -> relu) -> residual(linear(8) -> relu) -> residual(linear(8) -> tanh)
"""
ROUTED = """arch routed()
input x: f32[N, 5, 8]
output y: f32[N, 5, 8]
def layer = moe(router = linear(3), experts = copies(3, linear(16) -> gelu -> linear(8)), top_k = 2)
y = x -> repeat(2) { layer }
"""


def repeated(source: str) -> dict[str, Any]:
    """Weights with which every block is as the first one of its kind."""
    done = applied(source, "share_weights")
    weights = dict(done.before)
    for old, new in zip(done.old.walk(), done.new.walk(), strict=True):
        for role, parameter in old.weights.items():
            weights[parameter.name] = done.before[new.weights[role].name]
    return weights


@pytest.mark.parametrize("source", [ENCODER, RESNET, FLAT, ROUTED])
def test_what_is_the_same_is_shared_and_the_function_kept(source: str) -> None:
    done = applied(source, "share_weights(how = equal)", weights=repeated(source))
    assert cost(done.new).params < cost(done.old).params
    for mode in ("eval", "train"):
        assert done.same(mode).ok
    name = next(p.name for n in done.new.walk() for p in n.weights.values() if p.trainable)
    assert not done.same(weights=done.after | {name: done.after[name] * 1.01}).ok


def test_depth_without_parameters() -> None:
    done = applied(ENCODER, "share_weights")
    assert set(done.after) == {n for n in done.before if not n.startswith(("layer1.", "layer2."))}
    for name, value in done.after.items():
        assert np.array_equal(value, done.before[name])
    told = [m.value for m in done.context.measured]
    assert told[0] == 0
    assert min(told[1:]) > 0.1
    assert not done.same().ok  # they were not the same


def test_the_mean() -> None:
    done = applied(ENCODER, "share_weights(how = mean)", ["layers 1..2"])
    three = [done.before[f"layer{i}.linear.weight"] for i in (1, 2)]
    assert np.allclose(done.after["layer1.linear.weight"], sum(three) / 2, atol=1e-15)
    assert np.array_equal(done.after["layer.linear.weight"], done.before["layer.linear.weight"])


def test_running_estimates_stay_each_blocks_own() -> None:
    done = applied(RESNET, "share_weights")
    assert {n for n in done.before if n not in done.after} == {
        f"stage{i}.block1.{n}" for i in ("", "1") for n in ("conv.weight", "batch_norm.weight", "batch_norm.bias")
    }


def test_the_text() -> None:
    assert applied(FLAT, "share_weights", ["linear", "linear1"]).text == (
        'share weight_1 = parameter([8, 8], init = "uniform(0.35355339059327373)", weight = "linear.weight")\n'
        'share weight_2 = parameter([8], init = "uniform(0.35355339059327373)", weight = "linear.bias")\n\n'
        'let relu_1 = x -> linear(8, weight = weight_1, bias = weight_2, name = "linear") -> relu(name = "relu")\n'
        'let add_1 = add(relu_1, x, name = "add")\n'
        'let relu_2 = add_1 -> linear(8, weight = weight_1, bias = weight_2, name = "linear1") '
        '-> relu(name = "relu1")\n'
        'let add_2 = add(relu_2, add_1, name = "add1")\n'
        'let tanh_1 = add_2 -> linear(8, name = "linear2") -> tanh(name = "tanh")\n'
        'y = add(tanh_1, add_2, name = "add2")'
    )


def test_compiled_as_torch_runs_it() -> None:
    done = applied(ENCODER, "share_weights")
    assert compiled_difference(done.new, done.stored()) < 1e-5


def test_contract_and_structure_alone() -> None:
    for spec, kept in (("share_weights", "reinitialised"), ("share_weights(how = equal)", "exact")):
        transform, options = parse_transform(spec)
        assert transform.contract(options).eval == kept
    graph = loads(ENCODER).graph
    run_passes(graph, [parse_pass("share_weights")], Context())
    assert "layer1.linear.weight" not in graph.parameters()


@pytest.mark.parametrize(
    ("source", "spec", "at", "code", "words"),
    [
        (ENCODER, "share_weights(how = equal)", (), "E0426", "is not what `layer."),
        (ENCODER, "share_weights", ("layers 1",), "E0402", "takes two blocks"),
        (FLAT, "share_weights", ("linear2",), "E0403", "no other block is like it"),
        ("arch a input x: f32[N, 8] output y: f32[N, 8] y = x -> linear(8)", "share_weights", (), "E0402", "repeated"),
        (ENCODER, "share_weights(how = last)", (), "E0205", "mean"),
    ],
)
def test_refusals(source: str, spec: str, at: tuple[str, ...], code: str, words: str) -> None:
    with pytest.raises(CompileError) as raised:
        applied(source, spec, at)
    assert raised.value.diagnostics[0].code == code
    assert words in str(raised.value)
