"""Linear layers get learned functions on their edges, and compute what they did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformed import applied, compiled_difference

from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.passes.kan_basis import edges
from archc.passes.manager import run_passes
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
    from archc.metanet.symmetry import random_weights

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
