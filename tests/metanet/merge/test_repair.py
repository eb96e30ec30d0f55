"""After a repair, layers vary between as much as in the networks that were merged."""

from __future__ import annotations

import numpy as np
import pytest

from archc.backends.inputs import random_inputs
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.metanet.merge.average import average
from archc.metanet.merge.network import Network
from archc.metanet.merge.repair import Repair
from archc.metanet.symmetry import random_weights

NORMLESS = "input x: f32[N, 6] output y: f32[N, 3]\ny = x -> linear(16) -> relu -> linear(16) -> relu -> linear(3)"
BATCH_NORM = (
    "input x: f32[N, 2, 5, 5] output y: f32[N, 3]\n"
    "def block = conv(8, kernel = 3, bias = false) -> batch_norm -> relu\n"
    "y = x -> block -> residual(block) -> global_avg_pool -> linear(3)"
)
EXPERTS = (
    "input x: f32[N, 6] output y: f32[N, 3]\ndef expert = linear(8) -> relu -> linear(6)\n"
    "y = x -> residual(moe(router = linear(3), experts = copies(3, expert), top_k = 2)) -> linear(3)"
)
HALF = (0.5, 0.5)


def setting(text, samples=200):
    graph = loads(f"arch net\n{text}")
    a, b = (random_weights(graph, s) for s in (0, 1))
    inputs = random_inputs(graph, 0, {"N": samples}, "f64")
    return graph, a, b, average((a, b), HALF), Repair(graph, (a, b), inputs), inputs


def moments(graph, weights, inputs, op="linear"):
    values = [n.output for n in graph.nodes if n.op.name == op][:-1]
    return [(y.mean(0), y.std(0)) for y in Network(graph, values)(weights, inputs)]


def test_layers_get_the_deviations_and_means_between_those_of_the_networks():
    graph, a, b, middle, repair, inputs = setting(NORMLESS)
    mended = repair(middle, HALF)
    assert (mended.layers, mended.norms, mended.left) == (2, 0, 0)
    ends = moments(graph, a, inputs), moments(graph, b, inputs)
    for (mean, std), (mean_a, std_a), (mean_b, std_b) in zip(
        moments(graph, mended.weights, inputs), *ends, strict=True
    ):
        assert mean == pytest.approx((mean_a + mean_b) / 2, abs=2e-3)
        assert std == pytest.approx((std_a + std_b) / 2, rel=1e-2)
    before = np.mean([std.mean() for _, std in moments(graph, middle, inputs)])
    assert before < 0.9 * np.mean([std.mean() for _, std in moments(graph, mended.weights, inputs)])


def test_a_network_that_is_whole_is_left_as_it_is():
    graph, a, _, _, _, inputs = setting(NORMLESS)
    mended = Repair(graph, (a, a), inputs)(a, HALF)
    assert all(np.allclose(mended.weights[n], a[n], rtol=1e-2, atol=1e-3) for n in a)


def test_running_estimates_are_those_of_the_data():
    graph, _, _, middle, repair, inputs = setting(BATCH_NORM)
    mended = repair(middle, HALF)
    assert (mended.layers, mended.norms) == (0, 2)
    seen = [n.inputs[0] for n in graph.nodes if n.op.name == "batch_norm"]
    norms = [n for n in graph.nodes if n.op.name == "batch_norm"]
    for norm, y in zip(norms, Network(graph, seen)(mended.weights, inputs), strict=True):
        mean, variance = (mended.weights[norm.weights[r].name] for r in ("running_mean", "running_var"))
        assert mean == pytest.approx(y.mean((0, 2, 3)), abs=1e-3)
        assert variance == pytest.approx(y.var((0, 2, 3)), rel=1e-2)
    untouched = {n for n, p in graph.parameters().items() if p.trainable}
    assert all(np.array_equal(mended.weights[n], middle[n]) for n in untouched)


def test_experts_are_repaired_where_they_see_enough_rows():
    *_, middle, repair, _ = setting(EXPERTS)
    assert repair(middle, HALF).layers == 7
    *_, middle, repair, _ = setting(EXPERTS, samples=2)
    few = repair(middle, HALF)
    assert (few.layers, few.left) == (0, 7)


def test_one_number_has_no_variance():
    graph, a, b, _, _, _ = setting(NORMLESS)
    with pytest.raises(CompileError, match="E0844"):
        Repair(graph, (a, b), random_inputs(graph, 0, {"N": 1}, "f64"))


def test_whole_numbers_that_differ_are_not_averaged():
    a, b = {"codes": np.array([1, 2], np.int8)}, {"codes": np.array([1, 3], np.int8)}
    assert average((a, a), HALF)["codes"].tolist() == [1, 2]
    with pytest.raises(CompileError, match="E0842"):
        average((a, b), HALF)
