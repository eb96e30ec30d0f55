"""Residual blocks get gates, compute what they did, and can be skipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformed import applied

import archc
from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.facade.model import Model
from archc.facade.sameness import same_function
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph, Node
from archc.passes.manager import run_passes
from archc.passes.spec import parse_pass

IMAGES = """arch images()
input x: f32[N, 3, 6, 6]
output y: f32[N, 4]
def conv_bn(c) = conv(c, kernel = 3, bias = false) -> batch_norm
def block = residual(conv_bn(4) -> relu -> dropout(0.1) -> conv_bn(4)) -> relu
y = x -> conv_bn(4) -> relu -> block -> block -> residual(conv_bn(6), shortcut = conv(6, kernel = 1)) -> relu
    -> global_avg_pool -> linear(4)
"""
TOKENS = """arch tokens()
input x: f32[N, T, 6]
output y: f32[N, T, 6]
def layer = residual(layer_norm -> attention(2, causal = true))
    -> residual(layer_norm -> linear(8) -> gelu -> linear(6))
y = x -> repeat(3) { layer }
"""
ROWS = """arch rows()
input x: f32[N, 6]
output y: f32[N, 6]
def layer = residual(linear(6) -> tanh)
y = x -> repeat(5) { layer }
"""
ROUTED = """arch routed()
input x: f32[N, 3, 4]
output y: f32[N, 3, 4]
def expert = linear(4) -> residual(tanh -> linear(4))
y = x -> residual(moe(router = linear(3), experts = copies(3, expert), top_k = 2))
"""
SIGNAL = """arch signal()
input x: f32[N, 4, L]
output y: f32[N, 4, L]
y = x -> residual(conv(4, kernel = 3) -> relu) -> relu6 -> residual(conv(4, kernel = 3)) -> relu6
"""
FIXED = """arch fixed()
input x: f32[2, 3, 8]
output y: f32[2, 3, 8]
y = x -> residual(reshape([2, 24]) -> linear(24) -> reshape([2, 3, 8])) -> residual(linear(8))
"""

EXACT = [
    ("skip", IMAGES),
    ("skip(cost = 0.1, target = 0.5, threshold = 0.9)", IMAGES),
    ("skip(mode = soft)", IMAGES),
    ("skip(span = 2, hidden = 0)", IMAGES),
    ("skip", TOKENS),
    ("skip(hidden = 3, mode = soft)", TOKENS),
    ("skip(span = 2)", TOKENS),
    ("skip(token)", TOKENS),
    ("skip(token, mode = soft, cost = 1)", TOKENS),
    ("skip(middle)", TOKENS),
    ("skip(middle, span = 1, levels = 2, per = token)", TOKENS),
    ("skip(depth, budget = 1)", TOKENS),
    ("skip(depth, budget = 1.0, mode = soft)", TOKENS),
    ("skip", ROWS),
    ("skip(middle)", ROWS),
    ("skip(middle, levels = 1)", ROWS),
    ("skip", ROUTED),
    ("skip", SIGNAL),
]


def skips(graph: Graph) -> list[Node]:
    return [n for n in graph.walk() if n.op.name == "skip"]


def set_gates(weights: dict[str, Any], level: float, spread: float = 0.0) -> dict[str, Any]:
    """Weights whose gates all have the logit `level`, but for what `spread` lets the input decide."""
    rng = np.random.default_rng(1)
    given = {n: rng.normal(size=w.shape) * spread for n, w in weights.items() if ".gate.linear" in n}
    biases = {n: np.full_like(w, level) for n, w in weights.items() if n.endswith("gate.bias.weight")}
    return {**weights, **given, **biases}


@pytest.mark.parametrize(("spec", "source"), EXACT)
def test_gates_are_born_open(spec: str, source: str) -> None:
    """The function is kept, in training too; closed gates change it."""
    got = applied(source, spec)
    assert skips(got.new)
    assert got.same().ok
    assert got.same("train").ok
    if "depth, budget = 1)" not in spec:
        assert not got.same(weights=set_gates(got.after, -9.0)).ok


@pytest.mark.parametrize(("spec", "source"), [e for e in EXACT if e[0] in ("skip", "skip(mode = soft)", "skip(token)")])
def test_born_open_from_initial_values_too(spec: str, source: str) -> None:
    new = loads(source)
    run_passes(new, [parse_pass(spec)])
    module = to_torch(new, seed=3).eval()
    state = {n: w.double().numpy() for n, w in module.state_dict().items()}
    old = loads(source)
    assert same_function(old, new, {n: state[n] for n in old.parameters()}, state).ok


def test_the_program_after() -> None:
    source = "arch net()\ninput x: f32[N, 8, 6]\noutput y: f32[N, 8, 6]\ny = x -> relu -> residual(linear(6)) -> relu\n"
    assert applied(source, "skip(token, cost = 0.1)").text == (
        """y = x -> relu(name = "relu") -> skip(gate = fn(x_1) {
    let linear_1 = x_1 -> linear(1, bias = false, init = "zeros", name = "skip.gate.linear")
    let parameter_1 = parameter(shape = [1], init = "constant(2.0)", name = "skip.gate.bias")
    let sigmoid_1 = add(linear_1, parameter_1, name = "skip.gate.add") -> sigmoid(name = "skip.gate.sigmoid")
    return sigmoid_1
}, body = fn(x_2) {
    let linear_2 = x_2 -> linear(6, name = "linear")
    let relu_1 = add(linear_2, x_2, name = "add") -> relu(name = "relu1")
    return relu_1
}, cost = 0.1, name = "skip")"""
    )


def test_an_activation_is_skipped_where_that_changes_nothing() -> None:
    """relu(x + f(x)) may be passed by when x is a relu's: of the signal, the second block, whose x is relu6's."""
    first, second = skips(applied(SIGNAL, "skip").new)
    assert [n.op.name for n in first.regions[1].nodes] == ["conv", "relu", "add"]
    assert [n.op.name for n in second.regions[1].nodes] == ["conv", "add", "relu6"]
    blocks = skips(applied(IMAGES, "skip").new)
    assert [b.regions[1].nodes[-1].op.name for b in blocks] == ["relu", "relu"]


@pytest.mark.parametrize("spec", ["skip", "skip(span = 2)", "skip(mode = soft)"])
def test_closed_gates_let_x_pass(spec: str) -> None:
    got = applied(IMAGES, spec)
    without = loads(IMAGES.replace("-> block -> block ", ""))
    weights = {n: got.before[n] for n in without.parameters()}
    closed = set_gates(got.after, -800.0)
    assert same_function(without, got.new, weights, closed).ok
    assert same_function(without, got.new, weights, closed, mode="train").ok


def test_the_middle_is_skipped_from_the_outside_in() -> None:
    """Of five layers, the first gate decides for 1..3, the second, behind layer 1, for layer 2."""
    got = applied(ROWS, "skip(middle)")
    x = np.random.default_rng(0).normal(size=(4, 6))
    outer, inner = "skip.gate.bias.weight", "layer2.skip.gate.bias.weight"
    runs = [((), (0, 1, 2, 3, 4)), ((inner,), (0, 1, 3, 4)), ((outer,), (0, 4)), ((outer, inner), (0, 4))]
    for closed, layers in runs:
        expected = x
        for i in layers:
            w, b = (got.after[f"layer{i or ''}.linear.{role}"] for role in ("weight", "bias"))
            expected = expected + np.tanh(expected @ w.T + b)
        weights = {**got.after, **{name: np.array([-9.0]) for name in closed}}
        module = to_torch(got.new).double().eval()
        module.load_state_dict({n: torch.from_numpy(np.asarray(w, np.float64)) for n, w in weights.items()})
        np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    "spec",
    [
        "skip",
        "skip(mode = soft)",
        "skip(token)",
        "skip(token, mode = soft)",
        "skip(middle)",
        "skip(depth, budget = 0.5)",
        "skip(depth, budget = 1.0, mode = soft)",
    ],
)
def test_gates_can_learn_from_the_first_step_on(spec: str) -> None:
    got = applied(TOKENS, spec)
    module = to_torch(got.new, got.stored(), dtype="f64").train()
    y, aux = module.forward_with_aux(torch.randn(4, 5, 6, dtype=torch.float64))
    y.square().sum().backward()
    gates = {n: p.grad for n, p in module.named_parameters() if n.endswith((".gate.linear.weight", "gate.bias.weight"))}
    assert len(gates) == 2 * len(skips(got.new))
    assert all(g is not None and g.abs().max() > 1e-6 for g in gates.values())
    shares = {float(v) for n, v in aux.items() if n.endswith(".open")}
    assert max(shares) == min(shares) == pytest.approx(0.4 if "0.5" in spec else 1.0)


def test_a_budget_below_one_is_called_approximate() -> None:
    assert parse_pass("skip(depth, budget = 0.5)").contract.eval == "approximate"
    assert parse_pass("skip(depth, budget = 1.0)").contract.eval == "exact"
    assert not applied(TOKENS, "skip(depth, budget = 0.5)").same().ok


@pytest.mark.parametrize(
    ("spec", "source", "level"),
    [
        ("skip", IMAGES, 3.0),
        ("skip(token)", TOKENS, 0.0),
        ("skip(middle)", ROWS, 0.0),
        ("skip(depth, budget = 0.5)", TOKENS, 0.0),
    ],
)
def test_compiled(spec: str, source: str, level: float) -> None:
    """With gates that depend on the input: some open, some not."""
    got = applied(source, spec)
    weights = {n: w.astype(np.float32) for n, w in set_gates(got.stored(), level, 4.0).items()}
    module, inputs = to_torch(got.new, weights).eval(), random_inputs(got.new, 0, {"N": 8})
    expected, aux = module.forward_with_aux(torch.from_numpy(inputs["x"]))
    assert any(0 < float(v) < 1 for n, v in aux.items() if n.endswith(".open"))
    with archc.compile(Model(got.new), weights=weights, cache=False) as artifact:
        found = artifact.run(inputs)["y"]
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_places_are_chosen_and_others_told() -> None:
    got = applied(IMAGES, "skip", at=["block1"])
    ((_, found),) = got.context.applied
    assert [s.anchor.name for s in found.sites] == ["block1.add"]
    assert [n.name for n in skips(got.new)] == ["block1.skip"]
    ((_, found),) = applied(IMAGES, "skip").context.applied
    assert [(r.anchor.name, r.code) for r in found.refusals] == [("add", "E0413")]
    assert [n.name for n in skips(applied(TOKENS, "skip").new)][:4] == ["layer.skip", "layer.skip1", "layer1.skip",
                                                                       "layer1.skip1"]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "source", "code", "needed"),
    [
        ("skip(token)", IMAGES, "E0413", "needs tokens, [N, T, C]"),
        ("skip(token)", SIGNAL, "E0413", "needs tokens, [N, T, C]"),
        ("skip", IMAGES.replace("-> block -> block ", ""), "E0413", "it changes the shape"),
        ("skip", FIXED.replace(" -> residual(linear(8))", ""), "E0413", "for only some of the samples"),
        ("skip", ROWS.replace("linear(6) -> ", "").replace("[N, 6]", "[N, C]"), "E0413", "known"),
        ("skip(span = 6)", ROWS, "E0414", "found 5 from here"),
        ("skip(middle, levels = 3)", ROWS, "E0414", "3 nested gates need 7 layers"),
        ("skip(middle)", IMAGES, "E0414", "1 nested gate needs 3 layers of one shape in a row"),
        ("skip", ROWS.replace("residual(linear(6) -> tanh)", "linear(6)"), "E0402", "residual blocks"),
        ("skip(depth)", TOKENS, "E0205", "needs a `budget`"),
        ("skip(budget = 0.5)", TOKENS, "E0205", "nothing else has one"),
        ("skip(depth, budget = 1.5)", TOKENS, "E0205", "budget"),
        ("skip(depth, budget = 1.0, cost = 1)", TOKENS, "E0205", "there is no `cost`"),
        ("skip(target = 0.5)", TOKENS, "E0205", "needs a `cost`"),
        ("skip(levels = 2)", TOKENS, "E0205", "are for `kind = middle`"),
        ("skip(token, hidden = 3)", TOKENS, "E0205", "gates that speak of samples"),
        ("skip(threshold = 1.0)", TOKENS, "E0205", "threshold"),
        ("skip(tokens)", TOKENS, "E0205", 'did you mean "token"'),
        ("skip(size = 3)", TOKENS, "E0204", "no argument `size`"),
    ],
)  # fmt: skip
def test_what_cannot_be_skipped(spec: str, source: str, code: str, needed: str) -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(loads(source), [parse_pass(spec)])
    assert caught.value.diagnostics[0].code == code
    assert needed in str(caught.value)


def test_what_is_fixed_to_the_batch_is_left_out_alone() -> None:
    got = applied(FIXED, "skip")
    ((_, found),) = got.context.applied
    assert [r.anchor.name for r in found.refusals] == ["add"]
    assert len(skips(got.new)) == 1


def test_a_block_is_not_skipped_twice() -> None:
    graph = loads(IMAGES)
    run_passes(graph, [parse_pass("skip")])
    with pytest.raises(CompileError, match="it is skipped already"):
        run_passes(graph, [parse_pass("skip", ["block"])])


def test_a_budget_and_a_cost_exclude_each_other() -> None:
    gate = "gate = linear(1) -> sigmoid, body = linear(6)"
    with pytest.raises(CompileError) as caught:
        loads(f"arch a\ninput x: f32[N, T, 6]\noutput y: f32[N, T, 6]\ny = x -> skip({gate}, budget = 0.5, cost = 1)")
    assert caught.value.diagnostics[0].code == "E0311"


DIGITS = """arch digits_mlp()
input image: f32[N, 1, 8, 8]
output logits: f32[N, 10]
def block = residual(linear(32) -> relu -> linear(32))
logits = image -> flatten -> linear(32) -> block -> block -> block -> linear(10)
"""


def test_gates_learn_to_close() -> None:
    """On digits, trained on from trained weights: where open gates cost, blocks are skipped and accuracy stays; with a
    target, more stay open."""
    base = archc.train(Model(loads(DIGITS)), "digits", epochs=8, threads=1)
    assert base.result.test is not None
    opened = {}
    for target in (0.0, 0.6):
        spec = f"skip(cost = 0.5, target = {target})"
        new, weights = archc.transform(Model(loads(DIGITS)), spec, weights=base.weights)
        result = archc.train(new, "digits", weights=weights, epochs=8, threads=1, keep="last").result
        assert result.test is not None
        assert result.test.metrics["accuracy"] > base.result.test.metrics["accuracy"] - 0.04
        first, *_, last = [row["stats"] for row in result.history]
        assert last["train"].keys() == last["val"].keys() == result.test.stats.keys()
        assert set(first["val"].values()) == {1.0}
        opened[target] = np.mean(list(result.test.stats.values()))
    assert opened[0.0] < opened[0.6] < 0.8
