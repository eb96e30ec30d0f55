"""Residual blocks with a gate."""

from __future__ import annotations

import numpy as np
import pytest
from transformed import applied, compiled_difference

from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass, parse_transform

TOKENS = """arch tokens()
input x: f32[N, T, 16]
output y: f32[N, T, 16]
y = x -> residual(layer_norm -> attention(4)) -> residual(layer_norm -> linear(32) -> gelu -> linear(16))
"""
IMAGE = """arch image()
input x: f32[N, 4, 6, 6]
output y: f32[N, 8, 3, 3]
y = x -> residual(conv(4, kernel = 3) -> batch_norm) -> relu
    -> residual(conv(8, kernel = 3, stride = 2) -> batch_norm, shortcut = conv(8, kernel = 1, stride = 2)) -> relu
"""
SIGNAL = "arch signal()\ninput x: f32[N, 4, 9]\noutput y: f32[N, 4, 9]\ny = x -> residual(conv(4, kernel = 3))\n"


@pytest.mark.parametrize("spec", ["rezero", "rezero(per = channel)"])
@pytest.mark.parametrize("source", [TOKENS, IMAGE, SIGNAL])
def test_born_equal(source: str, spec: str) -> None:
    done = applied(source, spec)
    for mode in ("eval", "train"):
        assert done.same(mode).ok
    names = [name for name in done.after if "alpha" in name]
    assert len(names) == (1 if source is SIGNAL else 2)
    assert not done.same(weights=done.after | {names[0]: done.after[names[0]] * 0.9}).ok
    assert compiled_difference(done.new, done.stored()) < 1e-5


def test_a_gate_stands_before_the_sum() -> None:
    text = applied(SIGNAL, "rezero(per = channel)").text
    assert text == (
        'let conv_1 = x -> conv(4, kernel = 3, name = "conv")\n'
        'let parameter_1 = parameter(shape = [4, 1], init = "constant(1.0)", name = "alpha")\n'
        'let mul_1 = mul(conv_1, parameter_1, name = "gated")\n'
        'y = add(mul_1, x, name = "add")'
    )


def test_a_fresh_network_is_born_equal_too() -> None:
    graph = loads(TOKENS)
    run_passes(graph, [parse_pass("rezero")], Context())
    assert [p.init.a for name, p in graph.parameters().items() if "alpha" in name] == [1.0, 1.0]


def test_from_zero_every_block_is_the_identity() -> None:
    done = applied(TOKENS, "rezero(init = 0)")
    transform, options = parse_transform("rezero(init = 0)")
    assert transform.contract(options).eval == "reinitialised"
    assert not done.same().ok
    identity = loads("arch tokens input x: f32[N, T, 16] output y: f32[N, T, 16] y = x + 0.0")
    from archc.facade.sameness import same_function

    assert same_function(identity, done.new, {}, done.after).ok
    assert all(np.all(done.after[n] == 0) for n in done.after if "alpha" in n)


@pytest.mark.parametrize(
    ("source", "spec", "code"),
    [
        ("arch a input x: f32[N, 4] output y: f32[N, 4] y = x -> linear(4)", "rezero", "E0402"),
        ("arch a input x: f32[N, C] output y: f32[N, C] y = x -> residual(relu)", "rezero(per = channel)", "E0403"),
        (TOKENS, "rezero(per = head)", "E0205"),
        (TOKENS, "rezero(alpha = 1)", "E0204"),
    ],
)
def test_refusals(source: str, spec: str, code: str) -> None:
    with pytest.raises(CompileError) as raised:
        applied(source, spec)
    assert raised.value.diagnostics[0].code == code
