"""Layers in two thin ones: the best of their rank, exact where nothing is cut, and cheaper."""

from __future__ import annotations

import numpy as np
import pytest
from transformed import applied, compiled_difference

from archc.backends.inputs import random_inputs
from archc.grammar.load import loads
from archc.ir.cost import cost
from archc.ir.diagnostics import CompileError
from archc.ir.dims import substitute
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

MLP = "arch mlp()\ninput x: f32[N, 24]\noutput y: f32[N, 12]\ny = x -> linear(32) -> relu -> linear(12, bias = false)\n"
IMAGE = """arch image()
input x: f32[N, 4, 9, 8]
output y: f32[N, 6, 4, 3]
y = x -> conv(8, kernel = 3) -> relu -> conv(6, kernel = [3, 2], stride = 2, dilation = [1, 2], padding = [0, 0])
"""
SIGNAL = "arch signal()\ninput x: f32[N, 6, 16]\noutput y: f32[N, 8, 16]\ny = x -> conv(8, kernel = 5, causal = true)\n"
TOKENS = """arch tokens()
input x: f32[N, T, 16]
output y: f32[N, T, 16]
y = x -> residual(layer_norm -> attention(4, kv_heads = 2, causal = true, positions = "rope", gate = "head"))
"""
ROUTED = """arch routed()
input x: f32[N, 5, 8]
output y: f32[N, 5, 8]
y = x -> moe(router = linear(3), experts = copies(3, linear(16) -> gelu -> linear(8)), top_k = 2)
"""


@pytest.mark.parametrize("source", [MLP, IMAGE, SIGNAL, TOKENS, ROUTED])
def test_nothing_is_lost_where_all_singular_values_stay(source: str) -> None:
    done = applied(source, "low_rank(energy = 1, always = true, attention = true)")
    for mode in ("eval", "train"):
        assert done.same(mode).ok
    name = next(n for n in done.after if n.endswith("_narrow.weight"))
    assert not done.same(weights=done.after | {name: done.after[name] * 1.001}).ok


def test_a_layer_becomes_two() -> None:
    assert applied(MLP, "low_rank(rank = 4)").text == (
        'y = x\n    -> linear(4, bias = false, name = "linear_narrow")\n    -> linear(32, name = "linear")\n'
        '    -> relu(name = "relu")\n    -> linear(4, bias = false, name = "linear1_narrow")\n'
        '    -> linear(12, bias = false, name = "linear1")'
    )
    assert applied(SIGNAL, "low_rank(rank = 4)").text == (
        'y = x\n    -> conv(4, kernel = 5, causal = true, bias = false, name = "conv_narrow")\n'
        '    -> conv(8, kernel = 1, name = "conv")'
    )


def test_the_matrix_is_the_best_of_its_rank() -> None:
    """Eckart and Young: the error is what the singular values left out make."""
    done = applied(MLP, "low_rank(rank = 5)")
    for layer in ("linear", "linear1"):
        weight = done.before[f"{layer}.weight"]
        new = done.after[f"{layer}.weight"] @ done.after[f"{layer}_narrow.weight"]
        values = np.linalg.svd(weight, compute_uv=False)
        best = np.sqrt((values[5:] ** 2).sum())
        assert np.linalg.norm(new - weight) == pytest.approx(best, rel=1e-9)
        measured = next(m for m in done.context.measured if m.site == layer)
        assert measured.value == pytest.approx(best / np.linalg.norm(weight), rel=1e-9)


def test_energy_takes_the_ranks_that_it_needs() -> None:
    rng = np.random.default_rng(0)
    thin = rng.standard_normal((32, 3)) @ rng.standard_normal((3, 24))
    done = applied(MLP, "low_rank(energy = 0.999)", ["linear"], weights={"linear.weight": thin})
    assert done.after["linear_narrow.weight"].shape == (3, 24)
    assert done.same().ok


def test_given_data_keep_the_outputs_better_than_the_matrix() -> None:
    graph = loads(MLP)
    rng = np.random.default_rng(1)
    given = {"x": rng.standard_normal((512, 6)) @ rng.standard_normal((6, 24))}  # in a space of 6 dimensions
    errors = {}
    for spec in ("low_rank(rank = 6)", "low_rank(rank = 6, data = false)"):
        done = applied(MLP, spec, ["linear"], data=given)
        wrong = done.after["linear.weight"] @ done.after["linear_narrow.weight"] - done.before["linear.weight"]
        errors[spec] = np.linalg.norm(given["x"] @ wrong.T) / np.linalg.norm(
            given["x"] @ done.before["linear.weight"].T
        )
        if "false" not in spec:
            told = next(m.value for m in done.context.measured if "outputs" in m.of)
            assert told == pytest.approx(errors[spec], rel=1e-6)
    assert errors["low_rank(rank = 6)"] < 0.02 < 0.2 < errors["low_rank(rank = 6, data = false)"]
    assert random_inputs(graph)["x"].shape == (2, 24)  # without data nothing is fitted to the few random rows
    assert not [m for m in applied(MLP, "low_rank(rank = 6)").context.measured if "outputs" in m.of]


def test_data_for_convolutions_are_windows() -> None:
    """On data that fill all directions evenly, nothing speaks for other singular vectors than the matrix's own."""
    rng = np.random.default_rng(2)
    done = applied(IMAGE, "low_rank(rank = 3, data = true)", data={"x": rng.standard_normal((64, 4, 9, 8))})
    told = [m for m in done.context.measured if m.site == "conv"]
    assert [m.of.partition(" at")[0] for m in told] == ["relative error of the matrix", "relative error of its outputs"]
    assert told[1].value == pytest.approx(told[0].value, rel=0.1)


@pytest.mark.parametrize("source", [MLP, IMAGE, SIGNAL])
def test_it_costs_less(source: str) -> None:
    done = applied(source, "low_rank(ratio = 0.5)")
    old, new = cost(done.old), cost(done.new)
    assert new.params < 0.62 * old.params
    flops = [int(str(substitute(c.flops, {"N": 1}))) for c in (old, new)]
    assert flops[1] < 0.62 * flops[0]


@pytest.mark.parametrize("source", [MLP, IMAGE, TOKENS])
def test_compiled_as_torch_runs_it(source: str) -> None:
    done = applied(source, "low_rank(ratio = 0.6, attention = true)")
    assert compiled_difference(done.new, done.stored()) < 1e-5


def test_structure_alone() -> None:
    graph = loads(MLP)
    run_passes(graph, [parse_pass("low_rank(energy = 0.5)")], Context())
    assert [n.name for n in graph.nodes] == ["linear_narrow", "linear", "relu", "linear1_narrow", "linear1"]


@pytest.mark.parametrize(
    ("source", "spec", "code", "words"),
    [
        (MLP, "low_rank(rank = 30)", "E0424", "a matrix of 32 x 24 has at most rank 24"),
        (MLP, "low_rank(rank = 20)", "E0403", "of 32 x 24, only rank 13 and below does"),
        (MLP, "low_rank(energy = 0.9999)", "E0402", "it takes `linear` 24 of 24"),
        (MLP, "low_rank(rank = 4, data = true)", "E0408", "needs data"),
        (MLP, "low_rank(rank = 4, energy = 0.5)", "E0205", "give one of them"),
        (MLP, "low_rank(energy = 1.5)", "E0205", "1.5"),
        (MLP, "low_rank(rank = 0)", "E0205", "positive whole number"),
        (MLP, "low_rank(rnk = 4)", "E0204", "rank"),
        ("arch a input x: f32[N, 4] output y: f32[N, 4] y = x -> relu", "low_rank", "E0402", "linear layers"),
        (
            "arch a input x: f32[N, 8, 5] output y: f32[N, 8, 5] y = x -> conv(8, kernel = 3, groups = 2)",
            "low_rank(rank = 1)", "E0403", "each group is a matrix of its own",
        ),
        (
            "arch a input x: f32[N, 8] output y: f32[N, 8] share f = linear(8) y = x -> f -> f",
            "low_rank(rank = 1)", "E0403", "2 layers use them",
        ),
    ],
)  # fmt: skip
def test_refusals(source: str, spec: str, code: str, words: str) -> None:
    with pytest.raises(CompileError) as raised:
        applied(source, spec)
    assert raised.value.diagnostics[0].code == code
    assert words in str(raised.value)
