"""Feed-forward blocks become gated, and compute what they did."""

from __future__ import annotations

import pytest
from transformed import TOKENS, applied

from archc.facade.sameness import same_function
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.equal import structurally_equal
from archc.passes.manager import run_passes
from archc.passes.spec import parse_pass


def block(activation: str = "silu", hidden: int = 8) -> str:
    body = f"layer_norm -> linear({hidden}) -> {activation} -> linear(6)"
    return f"{TOKENS}def ffn = residual({body})\ny = x -> ffn -> ffn\n"


IMAGE = """arch image()
input x: f32[N, 4, 5, 5]
output y: f32[N, 4, 5, 5]
y = x -> residual(batch_norm -> conv(8, kernel = 1, bias = false) -> hardswish -> dropout(0.2) -> conv(4, kernel = 1))
"""
TIED = TOKENS + "share ffn = linear(8) -> gelu -> linear(6)\ny = x -> ffn -> ffn\n"
ROUTED = (
    TOKENS + "y = x -> moe(router = linear(3), experts = copies(3, linear(8) -> silu -> linear(6)), top_k = 2)\n"
)


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("glu", block("gelu")),
        ("glu", block('gelu(approximate = "tanh")')),
        ("glu", block("leaky_relu(0.3)")),
        ("glu", IMAGE),
        ("glu", TIED),
        ("glu", ROUTED),
        ("glu(glu)", block("silu")),
        ("glu(glu)", block("sigmoid")),
        ("glu(glu)", ROUTED),
        ("glu(reglu)", block("relu")),
        ("glu(geglu)", TIED),
        ("glu(swiglu)", ROUTED),
        ("glu(expand = true)", block("mish")),
        ("glu(expand = true)", IMAGE),
        ("glu(glu, expand = true)", block("silu")),
    ],
)
def test_gated_blocks_compute_what_they_did(spec: str, source: str) -> None:
    old, new, weights, changed = applied(source, spec)
    for mode in ("eval", "train"):
        assert same_function(old, new, weights, changed, mode=mode).ok
    assert structurally_equal(new, loads(print_graph(new))) is None
    assert any(n.op.name == "mul" for n in new.walk())
    spoilt = dict(changed)
    name = next(n for n in spoilt if ".up." in f".{n}" and n.endswith("bias"))
    spoilt[name] = spoilt[name] + 0.1
    assert not same_function(old, new, weights, spoilt).ok


def test_born_equal_from_initial_values_too() -> None:
    """Of a network whose weights are not known, the initial ones say that the gate's partner is 1."""
    new = loads(block("gelu"))
    run_passes(new, [parse_pass("glu")])
    inits = {name: p.init for name, p in new.parameters().items()}
    assert str(inits["ffn.up.weight"]) == "zeros"
    assert str(inits["ffn.up.bias"]) == "ones"
