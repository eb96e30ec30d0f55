"""Gates on attention, on convolutions and over tokens, born open."""

from __future__ import annotations

import pytest
from transformed import applied, compiled_difference

from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.passes.manager import run_passes
from archc.passes.spec import parse_pass

TOKENS = "arch net()\ninput x: f32[N, 5, 6]\noutput y: f32[N, 5, 6]\n"
ATTENTIVE = TOKENS + "y = x -> residual(layer_norm -> attention(2, kv_heads = 1, head_dim = 4, {more})) -> linear(6)\n"
CROSS = """arch cross()
input x: f32[N, 5, 6]
input z: f32[N, 7, 4]
output y: f32[N, 5, 6]
y = attention(2, bias = false)(x, z, z)
"""
TIED_ATTENTION = TOKENS + "share a = attention(2)\ny = x -> a -> relu -> a\n"
PICTURES = """arch pictures(act = relu)
input x: f32[N, 4, 6, 6]
output y: f32[N, 8, 6, 6]
y = x -> conv(8, kernel = 3, bias = {bias}) -> {act} -> residual(conv(8, kernel = 3, groups = 2)) -> conv(8, kernel = 1)
"""
MIXER = TOKENS + "y = x -> residual(layer_norm -> linear(8) -> gelu -> linear(6))\n"
GATED = TOKENS + "def g = fn(x) { return (x -> linear(8) -> silu) * (x -> linear(8)) -> linear(6) }\ny = x -> g -> g\n"
TWICE = TOKENS + "share ffn = linear(8) -> gelu -> linear(6)\ny = x -> ffn -> ffn\n"
SMALL_PICTURES = """arch net()
input x: f32[N, 4, 3, 5]
output y: f32[N, 4, 3, 5]
y = x -> conv(8, kernel = 1) -> gelu -> conv(4, kernel = 1)
"""


@pytest.mark.parametrize(
    ("spec", "source", "gate"),
    [
        ("gated_attention", ATTENTIVE.format(more='causal = true, positions = "rope"'), "gate_weight"),
        ("gated_attention(element)", ATTENTIVE.format(more="qk_norm = true"), "gate_bias"),
        ("gated_attention", CROSS, "gate_weight"),
        ("gated_attention", TIED_ATTENTION, "gate_bias"),
        ("gated_conv", PICTURES.format(act="relu", bias="true"), "gate.weight"),
        ("gated_conv", PICTURES.format(act="silu", bias="false"), "gate.weight"),
        ("gated_conv", PICTURES.format(act="batch_norm", bias="true"), "gate.bias"),
        ("gmlp", MIXER, "spatial.bias"),
        ("gmlp(own = true)", MIXER, "spatial.weight"),
        ("gmlp(own = true)", TWICE, "spatial.weight"),
        ("gmlp(own = true)", GATED, "spatial.weight"),
        ("gmlp", SMALL_PICTURES, "spatial.weight"),
        ("gmlp(own = true)", SMALL_PICTURES, "spatial.weight"),
    ],
)
def test_gates_are_born_open(spec: str, source: str, gate: str) -> None:
    got = applied(source, spec)
    assert got.same().ok
    assert got.same("train").ok
    name = next(n for n in got.after if n.endswith(gate))
    assert not got.same(weights={**got.after, name: got.after[name] + 0.3}).ok


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("gated_attention", ATTENTIVE.format(more="causal = true")),
        ("gated_conv", PICTURES.format(act="silu", bias="true")),
        ("gmlp(own = true)", MIXER),
    ],
)
def test_compiled(spec: str, source: str) -> None:
    got = applied(source, spec)
    assert compiled_difference(got.new, got.stored()) < 1e-5


def test_what_shares_weights_shares_the_gate() -> None:
    got = applied(TIED_ATTENTION, "gated_attention")
    assert [n for n in got.after if "gate" in n] == ["a.gate_weight", "a.gate_bias"]
    got = applied(TIED_ATTENTION, "gated_attention at a")
    assert [n for n in got.after if "gate" in n] == ["a.gate_weight", "a.gate_bias"]
    assert got.same().ok


@pytest.mark.parametrize(
    ("spec", "source", "code", "needed"),
    [
        ("gated_attention", MIXER, "E0402", "`attention` nodes"),
        ("gated_attention", ATTENTIVE.format(more='gate = "head"'), "E0403", "without a gate"),
        ("gated_attention(channel)", MIXER, "E0205", "channel"),
        ("gated_conv(3)", MIXER, "E0207", "argument"),
        ("gated_conv", MIXER, "E0402", "kernel larger than 1"),
        ("gmlp", MIXER.replace("f32[N, 5, 6]", "f32[N, T, 6]"), "E0403", "known number of tokens"),
        ("gmlp", MIXER.replace("y = x", "y = x -> attention(2, causal = true)"), "E0403", "is causal"),
    ],
)
def test_where_there_is_no_gate(spec: str, source: str, code: str, needed: str) -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(loads(source), [parse_pass(spec)])
    assert caught.value.diagnostics[0].code == code
    assert needed in str(caught.value)
