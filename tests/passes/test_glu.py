"""Feed-forward blocks become gated, and compute what they did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformed import applied, compiled_difference

from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.passes.functions import function_of
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

HEAD = "arch net()\ninput x: f32[N, 5, 6]\noutput y: f32[N, 5, 6]\n"


def block(activation: str = "silu", hidden: int = 8) -> str:
    body = f"layer_norm -> linear({hidden}) -> {activation} -> linear(6)"
    return f"{HEAD}def ffn = residual({body})\ny = x -> ffn -> ffn\n"


IMAGE = """arch image()
input x: f32[N, 4, 5, 5]
output y: f32[N, 4, 5, 5]
y = x -> residual(batch_norm -> conv(8, kernel = 1, bias = false) -> hardswish -> dropout(0.2) -> conv(4, kernel = 1))
"""
TIED = HEAD + "share ffn = linear(8) -> gelu -> linear(6)\ny = x -> ffn -> ffn\n"
ROUTED = HEAD + "y = x -> moe(router = linear(3), experts = copies(3, linear(8) -> silu -> linear(6)), top_k = 2)\n"


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
        ("glu", block("relu -> square")),
        ("glu(reglu)", block("relu -> square")),
        ("glu(reglu, expand = true)", block("relu -> square")),
        ("glu(bilinear)", block("square -> dropout(0.1)")),
        ("glu(expand = true)", block("mish")),
        ("glu(expand = true)", IMAGE),
        ("glu(glu, expand = true)", block("silu")),
    ],
)
def test_gated_blocks_compute_what_they_did(spec: str, source: str) -> None:
    got = applied(source, spec)
    assert got.same().ok
    assert got.same("train").ok
    assert any(n.op.name == "mul" for n in got.new.walk())
    name = next(n for n in got.after if ".up." in f".{n}" and n.endswith("bias"))
    assert not got.same(weights={**got.after, name: got.after[name] + 0.1}).ok


def test_the_program_after() -> None:
    text = applied(f"{HEAD}y = x -> linear(8) -> silu -> linear(6)\n", "glu(glu)").text
    assert text == (
        'let linear_1 = x -> linear(8, name = "linear")\n'
        'let linear_2 = x -> linear(8, name = "up")\n'
        'let sigmoid_1 = linear_1 -> sigmoid(name = "sigmoid")\n'
        'y = mul(sigmoid_1, linear_2, name = "gated") -> linear(6, name = "linear1")'
    )


def test_blocks_that_share_weights_share_the_new_layer() -> None:
    assert [n for n in applied(TIED, "glu").after if "up" in n] == ["ffn.up.weight", "ffn.up.bias"]


def test_born_equal_from_initial_values_too() -> None:
    """Of a network whose weights are not known, the initial ones say that the gate's partner is 1."""
    new = loads(block("gelu"))
    run_passes(new, [parse_pass("glu")])
    inits = {name: str(p.init) for name, p in new.parameters().items()}
    assert (inits["ffn.up.weight"], inits["ffn.up.bias"]) == ("zeros", "ones")


@pytest.mark.parametrize(("source", "spec"), [(ROUTED, "glu(glu)"), (IMAGE, "glu(expand = true)")])
def test_compiled(source: str, spec: str) -> None:
    got = applied(source, spec)
    assert compiled_difference(got.new, got.stored()) < 1e-5


@pytest.mark.parametrize(
    ("activation", "spec", "bound"),
    [
        ("gelu", "glu(swiglu, approximate = true)", 0.03),
        ("relu", "glu(geglu, approximate = true)", 0.1),
        ("tanh", "glu(glu, approximate = true)", 0.1),
        ("mish", "glu(bilinear, approximate = true)", 0.3),
        ("gelu", "glu(approximate = true)", 1e-12),
    ],
)
def test_other_gates_are_fitted(activation: str, spec: str, bound: float) -> None:
    got = applied(block(activation, 32), spec)
    assert got.same().relative < bound
    assert got.same("train").relative < bound
    for m in got.context.measured:
        assert m.of == "relative error of the activation"
        assert m.value < bound


@pytest.mark.parametrize("spec", ["glu(match = true)", "glu(swiglu, match = true)", "glu(bilinear, match = true)"])
def test_matched_blocks_have_as_many_weights_and_nearly_the_function(spec: str) -> None:
    source = block("gelu -> dropout(0.1)", 96).replace("[N, 5, 6]", "[N, 5, 24]").replace("linear(6)", "linear(24)")
    got = applied(source, spec, data=random_inputs(loads(source), 0, {"N": 64}, "f64"))
    before, after = (sum(w.size for w in ws.values()) for ws in (got.before, got.after))
    assert abs(after / before - 1) < 0.04
    errors = {m.site: m.value for m in got.context.measured if "not seen" in m.of}
    assert len(errors) == 2
    assert max(errors.values()) < 0.5


def test_matched_images_and_experts() -> None:
    for source in (IMAGE, ROUTED):
        got = applied(source, "glu(match = true)")
        assert got.new.parameters().keys() > got.old.parameters().keys()
        assert {p.shape[0] for n, p in got.new.parameters().items() if n.endswith("up.weight")} == {5}
        new = loads(source)
        run_passes(new, [parse_pass("glu(match = true)")], Context())
        assert new.parameters().keys() == got.new.parameters().keys()


def test_fits_on_next_to_nothing_and_on_no_numbers() -> None:
    source = "arch net()\ninput x: f32[1, 6]\noutput y: f32[1, 6]\ny = x -> log -> linear(9) -> gelu -> linear(6)\n"
    for fill in (1.5, -1.0):  # one row; and none, as its logarithm is no number
        got = applied(source, "glu(bilinear, match = true)", data={"x": np.full((1, 6), fill)})
        assert got.after["linear1.weight"].shape == (6, 6)
        assert all(np.isfinite(w).all() for w in got.after.values())
        assert all(np.isfinite(m.value) for m in got.context.measured)


@pytest.mark.parametrize(
    ("source", "spec", "code", "needed"),
    [
        (block("gelu"), "glu(glu)", "E0403", "keeps the function of blocks with sigmoid or silu alone"),
        (block("tanh"), "glu(expand = true)", "E0403", "`expand` needs a gate times its argument"),
        (TIED, "glu(match = true)", "E0403", "`ffn.linear.weight` is shared"),
        (f"{HEAD}y = x -> linear(6)\n", "glu", "E0402", "feed-forward blocks"),
        (block("gelu"), "glu(relu)", "E0205", 'did you mean "reglu"'),
        (block("gelu"), "glu(size = 3)", "E0204", "no argument `size`"),
    ],
)
def test_where_there_is_no_gated_block(source: str, spec: str, code: str, needed: str) -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(loads(source), [parse_pass(spec)])
    assert caught.value.diagnostics[0].code == code
    assert needed in str(caught.value)


def test_a_gated_block_is_not_gated_again() -> None:
    graph = loads(block("gelu"))
    run_passes(graph, [parse_pass("glu")])
    with pytest.raises(CompileError, match="its gelu is gated already"):
        run_passes(graph, [parse_pass("glu")])


ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu(0.2)", "elu(alpha = 0.7)", "gelu", 'gelu(approximate = "tanh")', "sigmoid", "silu"),
    *("hardsigmoid", "hardswish", "tanh", "softplus(beta = 2)", "mish", "square", "sin", "cos"),
)


def test_functions_on_arrays_are_those_of_torch() -> None:
    x = np.linspace(-30, 30, 1001)
    for activation in ACTIVATIONS:
        graph = loads(f"arch a\ninput x: f64[N]\noutput y: f64[N]\ny = x -> {activation}")
        found = function_of(graph.nodes[0])
        assert found is not None
        np.testing.assert_allclose(found(x), to_torch(graph)(torch.from_numpy(x)).numpy(), rtol=1e-13, atol=1e-13)
