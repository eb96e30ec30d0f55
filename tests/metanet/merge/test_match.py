"""Matching a permuted copy of a network gives the permutation back, exactly; a spoiled one is refused."""

from __future__ import annotations

import numpy as np
import pytest

from archc.grammar.load import loads
from archc.ir.axes import AxisVar
from archc.ir.diagnostics import CompileError
from archc.metanet import symmetry
from archc.metanet.merge.align import match
from archc.metanet.merge.blocks import cut, inner_product
from archc.metanet.merge.many import match_many
from archc.metanet.merge.network import check_same
from archc.metanet.merge.problem import Problem
from archc.metanet.merge.solve import Solver

NETS = {
    "mlp": "input x: f32[N, 4] output y: f32[N, 3] y = x -> linear(9) -> relu -> linear(7) -> tanh -> linear(3)",
    "conv and batch norm": "input x: f32[N, 2, 6, 6] output y: f32[N, 3]\n"
    "def block = residual(conv(6, kernel = 3, bias = false) -> batch_norm -> relu -> conv(6, kernel = 3))\n"
    "y = x -> conv(6, kernel = 3) -> block -> block -> global_avg_pool -> linear(3)",
    "grouped conv": "input x: f32[N, 4, 5, 5] output y: f32[N, 2]\n"
    "y = x -> conv(12, kernel = 1) -> relu -> conv(12, kernel = 3, groups = 3) -> relu -> conv(8, kernel = 1)"
    " -> group_norm(4) -> relu -> global_avg_pool -> linear(2)",
    "attention heads": "input x: f32[N, 5, 6] output y: f32[N, 5, 2]\n"
    "y = x -> linear(12) -> residual(layer_norm -> attention(4, kv_heads = 2)) -> linear(2)",
    "moe": "input x: f32[N, 5] output y: f32[N, 2]\n"
    "def expert = linear(6) -> relu -> linear(8)\n"
    "y = x -> linear(8) -> residual(moe(router = linear(4), experts = copies(4, expert), top_k = 2)) -> linear(2)",
    "scan": "input x: f32[N, 4, 3] output y: f32[N, 4, 2]\n"
    "def cell = fn(x, h) {\n    let next = tanh(linear(6)(x) + linear(6)(h))\n    return next, next\n}\n"
    "let states, last = x -> scan(cell, state = [[6]], axis = 1)\ny = states -> linear(2)",
    "concatenation": "input x: f32[N, 4] output y: f32[N, 2]\n"
    "let h = x -> linear(5) -> relu\ny = concat(h -> linear(4) -> relu, h -> linear(3) -> tanh, axis = 1) -> linear(2)",
    "tied": "input x: i64[N, 6] output y: f32[N, 6, 9]\nshare table = embedding(9, 8)\n"
    "y = x -> table -> residual(linear(16) -> gelu -> linear(8)) -> tied_linear(table)",
}


def graph_of(name: str):
    return loads(f"arch net\n{NETS[name]}")


def permuted(graph, seed):
    """Generic weights, and a copy that a random element of the group has moved."""
    axes, a = symmetry.group(graph), symmetry.random_weights(graph, seed)
    return a, symmetry.apply(axes, symmetry.sample(axes, seed + 1), a)


@pytest.mark.parametrize("name", NETS)
def test_a_permuted_copy_is_brought_back(name):
    graph = graph_of(name)
    a, b = permuted(graph, 1)
    found = match(graph, a, b)
    assert any(not np.array_equal(b[n], a[n]) for n in a)
    assert all(np.array_equal(found.weights[n], a[n]) for n in a)
    assert found.product[0] < found.product[1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["mlp", "conv and batch norm", "attention heads"])
def test_activations_bring_a_permuted_copy_back(name):
    from archc.backends.inputs import random_inputs

    graph = graph_of(name)
    a, b = permuted(graph, 2)
    found = match(graph, a, b, random_inputs(graph, 0, {"N": 64}))
    assert found.by_weights == 0
    assert all(np.array_equal(found.weights[n], a[n]) for n in a)


def test_what_no_value_shows_is_matched_by_weights():
    from archc.backends.inputs import random_inputs

    graph = graph_of("moe")
    a, b = permuted(graph, 2)
    found = match(graph, a, b, random_inputs(graph, 0, {"N": 64}))
    assert found.by_weights == 2, "the experts, and what each has inside"
    assert all(np.array_equal(found.weights[n], a[n]) for n in a)


@pytest.mark.parametrize("name", ["attention heads", "moe", "grouped conv"])
def test_what_is_inside_counts(name):
    """The control of the hierarchy: heads, experts and groups of a noisy copy that are chosen before what is inside
    them are often the wrong ones."""
    graph, gains = graph_of(name), {True: 0.0, False: 0.0}
    for seed in range(6):
        a, b = permuted(graph, seed)
        rng = np.random.default_rng(seed)
        noisy = {n: w + w.std() * rng.standard_normal(w.shape) for n, w in b.items()}
        for hierarchical in gains:
            gains[hierarchical] += match(graph, a, noisy, hierarchical=hierarchical, restarts=1).product[1]
    assert gains[True] > 1.1 * gains[False]


def test_experts_in_place_are_not_brought_back():
    graph = graph_of("moe")
    a, b = permuted(graph, 1)
    assert match(graph, a, b, replicas=False).product[1] < 0.999


def test_an_assignment_is_the_best_of_all():
    """Four units, all 24 permutations tried."""
    from itertools import permutations

    leaf, rng = AxisVar(4), np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 5))
    blocks = list(cut(a, b, [leaf, AxisVar(5)], {leaf}))
    found = Solver().solve(blocks, {leaf: ()})
    best = max((a * b[list(p)]).sum() for p in permutations(range(4)))
    assert inner_product(blocks, found, {leaf: ()}) == pytest.approx(best)


def test_a_spoiled_permutation_fails_the_check(monkeypatch):
    """The bias of a layer is left behind."""
    graph = graph_of("mlp")
    a, b = permuted(graph, 3)
    right = Problem.aligned
    monkeypatch.setattr(Problem, "aligned", lambda *args: {**right(*args), "linear.bias": b["linear.bias"]})
    with pytest.raises(CompileError) as caught:
        match(graph, a, b)
    assert [d.code for d in caught.value.diagnostics] == ["E0843"]
    assert caught.value.exit_code == 3


def test_the_check_lets_rounding_through():
    graph = graph_of("conv and batch norm")
    a, b = permuted(graph, 0)
    error, conditioning = check_same(graph, a, b)
    assert error <= 1e-12 * conditioning
    with pytest.raises(CompileError):
        check_same(graph, a, {**b, "conv.weight": b["conv.weight"] * (1 + 1e-7)})


def test_numbers_that_are_none_are_refused():
    graph = graph_of("mlp")
    a, b = permuted(graph, 0)
    b["linear.weight"] = b["linear.weight"].copy()
    b["linear.weight"][0, 0] = np.nan
    with pytest.raises(CompileError, match="B has weights that are no numbers"):
        match(graph, a, b)


def test_nothing_to_permute_is_told():
    graph = loads("arch net input x: f32[N, 4] output y: f32[N, 3] y = x -> linear(3)")
    a, b = (symmetry.random_weights(graph, s) for s in (0, 1))
    with pytest.raises(CompileError, match="E0841"):
        match(graph, a, b)


def test_many_permuted_copies_are_brought_back():
    graph = graph_of("mlp")
    axes, a = symmetry.group(graph), symmetry.random_weights(graph, 0)
    others = [symmetry.apply(axes, symmetry.sample(axes, s), a) for s in (1, 2)]
    for found in match_many(graph, [a, *others]):
        assert all(np.array_equal(found.weights[n], a[n]) for n in a)
