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
