"""Linear layers get learned functions on their edges, and compute what they did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformed import applied, compiled_difference

from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.facade.sameness import observer, same_function
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.metanet.symmetry import random_weights
from archc.passes.kan_basis import basis, edges
from archc.passes.kan_symbolic import symbolic, table
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

HEAD = "arch net()\ninput x: f32[N, 5, 6]\noutput y: f32[N, 5, 6]\n"


def block(activation: str = "silu", bias: str = "true") -> str:
    return f"{HEAD}y = x -> residual(layer_norm -> linear(8) -> {activation} -> linear(6, bias = {bias}))\n"


TIED = HEAD + "share f = relu -> linear(6)\ny = x -> f -> f -> tanh -> dropout(0.1) -> linear(6)\n"
IMAGE = """arch image()
input x: f32[N, 3, 6, 6]
output y: f32[N, 4]
share c = conv(4, kernel = 3, padding = 1)
y = x -> conv(4, kernel = 3, stride = 2, bias = false) -> batch_norm -> relu -> c -> gelu -> c
    -> sigmoid -> conv(4, kernel = [2, 3], padding = 0) -> global_avg_pool
"""
ROUTED = HEAD + "y = x -> moe(router = linear(3), experts = copies(3, linear(8) -> silu -> linear(6)), top_k = 2)\n"


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("kan", block("silu")),
        ("kan(grid = 3, order = 2, range = [-1, 2])", block("leaky_relu", "false")),
        ("kan(fourier, grid = 4)", block("softplus")),
        ("kan(fourier)", block("gelu", "false")),
        ("kan(chebyshev)", block("sigmoid", "false")),
        ("kan(grkan, groups = 4)", block("gelu")),
        ("kan(grkan, plain = true)", block("silu", "false")),
        ("kan(plain = true)", block('gelu(approximate = "tanh") -> dropout(0.1)')),
        ("kan", TIED),
        ("kan(grkan, groups = 2, plain = true)", TIED),
        ("kan", ROUTED),
        ("kan", IMAGE),
        ("kan(chebyshev, plain = true)", IMAGE),
        ("kan(grkan, groups = 2) at c", IMAGE),
    ],
)
def test_layers_with_functions_on_their_edges_compute_what_they_did(spec: str, source: str) -> None:
    got = applied(source, spec)
    assert got.same().ok
    assert got.same("train").ok
    assert any(n.op.name == "kan" for n in got.new.walk())
    name = next(n for n in got.after if n.endswith(("coefficients", "numerator")))
    assert not got.same(weights={**got.after, name: got.after[name] + 0.1}).ok


NETWORK = """arch net()
input x: f32[N, 6]
output y: f32[N, 3]
y = x -> kan(5, grid = 4, range = [-2, 2]) -> kan(4, {more}) -> kan(3, order = 2, bias = true, range = [-1.5, 3])
"""


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ("kan_refine", 'base = "none"'),
        ("kan_refine(factor = 3)", "order = 1"),
        ("kan_refine(factor = 2)", 'basis = "fourier", base = "silu"'),
    ],
)
def test_a_finer_grid_changes_nothing(spec: str, more: str) -> None:
    got = applied(NETWORK.format(more=more), spec)
    assert got.same().ok
    assert got.same("train").ok
    assert got.after["kan.coefficients"].shape[2] > got.before["kan.coefficients"].shape[2]
    assert not got.same(weights={**got.after, "kan1.coefficients": got.after["kan1.coefficients"] * 1.01}).ok


PRUNABLE = """arch net()
input x: f32[N, 6]
output y: f32[N, 3]
y = x -> kan(8, grid = 4, range = [-2, 2]) -> kan(8, basis = "chebyshev", base = "relu") -> kan(3, range = [-1.5, 3])
"""


def weak(source: str) -> dict[str, Any]:
    """Weights of which a node of each hidden layer, and an edge of the first layer, hardly say anything."""
    weights = random_weights(loads(source), 0)
    for role in ("coefficients", "base_weight"):
        weights[f"kan.{role}"][2] *= 1e-4  # nothing much comes in
        weights[f"kan2.{role}"][:, 5] *= 1e-4  # nothing much is made of it
        weights[f"kan.{role}"][0, 3] *= 1e-4
    return weights


def test_pruning_takes_what_says_nothing() -> None:
    data = random_inputs(loads(PRUNABLE), 0, {"N": 200}, "f64")
    got = applied(PRUNABLE, "kan_prune(threshold = 0.005)", data=data, weights=weak(PRUNABLE))
    assert [got.after[f"{n}.coefficients"].shape[:2] for n in ("kan", "kan1", "kan2")] == [(7, 6), (7, 7), (3, 7)]
    assert not got.after["kan.coefficients"][0, 3].any()
    assert got.same().relative < 1e-3
    half = applied(PRUNABLE, "kan_prune(ratio = 0.5)", data=data, weights=weak(PRUNABLE))
    assert [half.after[f"{n}.coefficients"].shape[:2] for n in ("kan", "kan1", "kan2")] == [(4, 6), (4, 4), (3, 4)]
    assert half.same().relative > got.same().relative


@pytest.mark.parametrize(
    ("activation", "spec", "bound"),
    [
        ("silu", "kan(fit = true)", 0.02),
        ('gelu(approximate = "tanh")', "kan(fit = true, grid = 20)", 1e-3),
        ("relu", "kan(fourier, grid = 12, fit = true)", 0.15),
        ("tanh", "kan(chebyshev, fit = true)", 1e-10),  # T_1 is tanh itself
        ("gelu", "kan(grkan, fit = true, groups = 2)", 0.01),
        ("identity", "kan(plain = true, fit = true, range = [-4, 4])", 1e-10),  # splines of degree 3 hold lines
    ],
)
def test_functions_fitted_to_an_activation(activation: str, spec: str, bound: float) -> None:
    plain = f"{HEAD}y = x -> tanh -> layer_norm -> linear(6)\n"
    source = plain if activation == "identity" else block(activation, "false")
    got = applied(source, spec)
    assert got.same().relative < bound
    largest = [m.value for m in got.context.measured if "largest" in m.of]
    assert largest
    assert max(largest) < 2 * bound
    assert not any(n.op.name in ("silu", "gelu", "relu") for n in got.new.nodes)


def test_a_coarser_fit_is_worse() -> None:
    def error(grid: int) -> float:
        return applied(block("silu"), f"kan(fit = true, grid = {grid})").same().relative

    assert error(12) < 0.1 * error(2)


def test_the_program_after() -> None:
    text = applied(f"{HEAD}y = x -> silu -> linear(6)\n", "kan(range = [-2, 2])").text
    assert text == (
        'y = x\n    -> kan(6, base = "silu", range = [-2.0, 2.0], noise = 0.0, bias = true, '
        'base_weight = "linear.weight", name = "linear")'
    )


@pytest.mark.parametrize(
    ("source", "spec", "code", "needed"),
    [
        (block("leaky_relu(0.3)"), "kan", "E0403", "found leaky_relu(negative_slope = 0.3)"),
        (block("prelu(5)"), "kan", "E0403", "the base function of an edge is silu"),
        (block("relu"), "kan(grkan, fit = true)", "E0403", "a rational function is known for silu, gelu, identity"),
        (block("prelu(5)"), "kan(fit = true)", "E0403", "a fit needs an activation whose function is known"),
        (TIED, "kan(fit = true)", "E0403", "is shared"),
        (IMAGE.replace("kernel = 3, padding = 1", "kernel = 3, dilation = 2"), "kan at c", "E0403", "without dilation"),
        (IMAGE.replace("[2, 3], padding = 0", "3"), "kan at conv1", "E0403", "a function that is 0 at 0"),
        (IMAGE.replace("6, 6", "H, 6"), "kan(plain = true) at conv", "E0403", "of a known size"),
        (block("gelu"), "kan(grkan, groups = 3)", "E0403", "a multiple of so many channels"),
        (f"{HEAD}y = x -> linear(6)\n", "kan", "E0402", "`plain = true`"),
        (block(), "kan(range = [1, 1])", "E0205", "should be [low, high]"),
        (block(), "kan(groups = 2)", "E0205", "basis = grkan only"),
        (block(), "kan(spline)", "E0205", "spline"),
        (NETWORK.format(more='basis = "chebyshev"'), "kan_refine at kan1", "E0403", "needs splines or frequencies"),
        (NETWORK.format(more=""), "kan_refine(grid = 3)", "E0403", "should be finer"),
        (NETWORK.format(more=""), "kan_refine(factor = 1)", "E0205", "factor"),
        (NETWORK.format(more=""), "kan_refine(factor = 2, grid = 9)", "E0205", "not both"),
        (NETWORK.format(more='basis = "grkan"'), "kan_prune at kan1", "E0403", "on edges, not on channels"),
        (NETWORK.format(more=""), "kan_prune(threshold = 0.1, ratio = 0.5)", "E0205", "not both"),
        (NETWORK.format(more=""), "kan_prune(ratio = 1)", "E0205", "ratio"),
    ],
)
def test_where_there_are_no_functions_on_edges(source: str, spec: str, code: str, needed: str) -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(loads(source.replace("{more}", "")), [parse_pass(spec)])
    assert caught.value.diagnostics[0].code == code
    assert needed in str(caught.value)


def test_a_finer_grid_on_the_same_range_is_fitted() -> None:
    got = applied(NETWORK.format(more=""), "kan_refine(grid = 12)")
    assert got.after["kan.coefficients"].shape == (5, 6, 15)
    (first, *_) = [m.value for m in got.context.measured if m.site == "kan"]
    assert first < 1e-10  # 12 is a multiple of 4: within the range the coarse splines are among the finer ones
    (second,) = [m.value for m in got.context.measured if m.site == "kan1"]
    assert 1e-6 < second < 0.2
    assert got.same().relative < 0.1


def test_edges_on_arrays_are_those_of_torch() -> None:
    for more in ("grid = 3", 'basis = "fourier"', 'basis = "chebyshev", base = "mish"', 'basis = "grkan", groups = 2'):
        graph = loads(f"arch a\ninput x: f64[9, 6]\noutput y: f64[9, 4]\ny = x -> kan(4, bias = false, {more})")
        x, weights = random_inputs(graph, 1, None, "f64")["x"], random_weights(graph, 0)
        own = {name.partition(".")[2]: w for name, w in weights.items()}
        expected = to_torch(graph, weights)(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(edges(graph.nodes[0], own, x).sum(2), expected, atol=1e-12)


@pytest.mark.parametrize(("source", "spec"), [(IMAGE, "kan at c")])
def test_compiled(source: str, spec: str) -> None:
    got = applied(source, spec)
    assert compiled_difference(got.new, got.stored()) < 2e-5


FORMULAS = """arch formulas()
input x: f32[N, 3]
output y: f32[N, 2]
y = x -> kan(2, grid = 20, range = [-4, 4], base = "none")
"""
WANTED = [("sin", 2, -0.5, 1, 0), ("exp", 0.5, 0, 2, 0), ("x^2", 1, 0.5, 1, -0.25), ("x", -2, 3, 1, 0)]
WANTED += [("x", 0, 1, 1, 0)]


def known_edges() -> dict[str, Any]:
    """Weights whose edges are known functions; the last one is no formula of the library."""
    functions = [
        *(lambda x: np.sin(2 * x - 0.5), lambda x: 2 * np.exp(0.5 * x), lambda x: x**2 + x, lambda x: 3 - 2 * x),
        *(lambda x: 0 * x + 1, lambda x: np.sin(3 * x) * np.sin(x * x)),
    ]
    x = np.linspace(-4, 4, 400, endpoint=False)
    terms = basis(loads(FORMULAS).nodes[0].call.params, x)
    made = [np.linalg.lstsq(terms, f(x), rcond=None)[0] for f in functions]
    return {"kan.coefficients": np.reshape(made, (2, 3, -1))}


def test_formulas_are_read_off_edges() -> None:
    graph = loads(FORMULAS)
    data = observer(random_inputs(graph, 0, {"N": 300}, "f64"))
    found = symbolic(graph, Context(known_edges(), wide=True, observe=data))
    best = [edge.formulas[0].simple() for edge in found]
    assert [f.symbol for f in best[:5]] == [w[0] for w in WANTED]
    np.testing.assert_allclose([(f.a, f.b, f.c, f.d) for f in best[:5]], [w[1:] for w in WANTED], atol=0.01)
    assert [str(f) for f in best[3:5]] == ["-2x + 3", "1"]
    assert all(f.r2 > 0.9999 for f in best[:5])
    assert best[5].r2 < 0.9
    assert max(edge.weight for edge in found) == 1
    assert table(found)[0]["formulas"][0]["symbol"] == "sin"


def test_edges_become_their_formulas() -> None:
    data = random_inputs(loads(FORMULAS), 0, {"N": 300}, "f64")
    got = applied(FORMULAS, "kan_symbolic", data=data, weights=known_edges())
    assert {n.op.name for n in got.new.nodes} >= {"sin", "exp", "square", "linear", "kan"}
    (share,) = [m.value for m in got.context.measured]
    assert share == pytest.approx(5 / 6)
    inside = {"x": np.clip(data["x"], -2.2, 2.2)}
    assert same_function(got.old, got.new, got.before, got.after, inputs=inside).relative < 2e-3
    spoilt = got.after | {"kan.sin.a.weight": got.after["kan.sin.a.weight"] * 1.1}
    assert same_function(got.old, got.new, got.before, spoilt, inputs=inside).relative > 1e-2
    lines = known_edges()
    lines["kan.coefficients"][:] = lines["kan.coefficients"][1, 0]
    nodes = applied(FORMULAS, "kan_symbolic", data=data, weights=lines).new.nodes
    assert [n.op.name for n in nodes] == ["linear", "parameter", "add"]


def test_where_there_are_no_formulas() -> None:
    with pytest.raises(CompileError, match="E0416"):
        run_passes(loads(FORMULAS), [parse_pass("kan_symbolic")])
    data = random_inputs(loads(FORMULAS), 0, {"N": 300}, "f64")
    noise = {"kan.coefficients": np.random.default_rng(0).normal(size=(2, 3, 23))}
    with pytest.raises(CompileError, match=r"no edge is a formula of R² 0\.99"):
        applied(FORMULAS, "kan_symbolic", data=data, weights=noise)
