"""Networks get early exits, compute what they did, and let samples leave."""

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
    -> residual(conv_bn(6)) -> global_avg_pool -> linear(4)
"""
TOKENS = """arch tokens()
input x: f32[N, 5, 6]
output y: f32[N, 3]
def layer = residual(layer_norm -> attention(2)) -> residual(layer_norm -> linear(8) -> gelu -> linear(6))
y = x -> repeat(2) { layer } -> layer_norm -> select(1, 0) -> linear(3)
"""
PLAIN = """arch plain()
input x: f32[N, 6]
output y: f32[N, 3]
y = x -> linear(8) -> relu -> linear(8) -> tanh -> linear(8) -> relu -> linear(3)
"""
SKIPPED = """arch skipped()
input x: f32[N, 6]
output y: f32[N, 3]
def gated = skip(gate = linear(1) -> sigmoid, body = residual(linear(6) -> tanh))
y = x -> gated -> gated -> gated -> linear(3)
"""
AROUND = """arch around()
input x: f32[N, 6]
output y: f32[N, 3]
let a = x -> residual(linear(6) -> tanh)
let b = a -> residual(linear(6) -> tanh) -> residual(linear(6) -> tanh)
y = concat(a -> exp, b -> residual(linear(6)), axis = 1) -> linear(3)
"""


def exits(graph: Graph) -> list[Node]:
    return [n for n in graph.walk() if n.op.name == "exit"]


def with_heads(weights: dict[str, Any], spread: float) -> dict[str, Any]:
    """Weights with new heads that have learned something."""
    rng = np.random.default_rng(2)
    return {n: spread * rng.normal(size=w.shape) if ".head.linear" in n else w for n, w in weights.items()}


@pytest.mark.parametrize("source", [IMAGES, TOKENS, PLAIN, SKIPPED])
@pytest.mark.parametrize(
    "spec",
    [
        "early_exit",
        "early_exit(exits = 2)",
        "early_exit(exits = 1, confidence = entropy)",
        "early_exit(confidence = margin, threshold = 0.01)",
        "early_exit(head = copy, threshold = 1.1)",
    ],
)
def test_exits_are_born_closed(spec: str, source: str) -> None:
    """The function is kept in evaluation and in training; heads that know something change it."""
    if source is PLAIN and "copy" in spec:
        return
    got = applied(source, spec)
    assert exits(got.new)
    assert got.same().ok
    assert got.same("train").ok
    if "copy" not in spec:
        assert not got.same(weights=with_heads(got.after, 50.0)).ok
        assert got.same("train", with_heads(got.after, 50.0)).ok


def test_born_closed_from_initial_values_too() -> None:
    new = loads(TOKENS)
    run_passes(new, [parse_pass("early_exit")])
    _, aux = to_torch(new, seed=1).eval().forward_with_aux(torch.randn(4, 5, 6))
    assert {n: float(v) for n, v in aux.items() if n.endswith(".left")} == {
        f"stat/{n}.left": 0.0 for n in ("layer.exit", "layer.exit1", "layer1.exit")
    }


def test_the_program_after() -> None:
    assert applied(PLAIN, "early_exit(exits = 1)").text == (
        'y = x\n    -> linear(8, name = "linear")\n    -> relu(name = "relu")\n    -> linear(8, name = "linear1")\n'
        '    -> tanh(name = "tanh")\n'
        '    -> exit(head = linear(3, bias = false, init = "zeros"), '
        'rest = linear(8, name = "linear2") -> relu(name = "relu1") -> linear(3, name = "linear3"), '
        'threshold = 0.9, name = "exit")'
    )


def test_copied_heads_are_worth_something_at_once() -> None:
    """In evaluation samples leave, with the logits of the network's own head; that is not called exact."""
    contract = parse_pass("early_exit(head = copy)").contract
    assert (contract.eval, contract.train) == ("approximate", "exact")
    assert parse_pass("early_exit(head = copy, threshold = 1.1)").contract.eval == "exact"
    got = applied(TOKENS, "early_exit(head = copy, threshold = 0.34)", at=["layer.add"])
    assert got.same("train").ok
    assert not got.same().ok
    (exit,) = exits(got.new)
    assert [n.op.name for n in exit.regions[0].nodes] == ["layer_norm", "select", "linear"]
    np.testing.assert_array_equal(got.after["layer.exit.head.linear.weight"], got.before["linear.weight"])
    without = loads(TOKENS.replace("repeat(2) { layer }", "residual(layer_norm -> attention(2))"))
    names = {n: n if n.split(".")[0] in ("layer_norm1", "linear") else f"layer.{n}" for n in without.parameters()}
    names |= {n: n.replace("layer_norm1", "layer_norm") for n in names if n.startswith("layer_norm1")}
    expected = to_torch(without, {n: got.stored()[old] for n, old in names.items()}).eval()
    module, x = to_torch(got.new, got.stored()).eval(), torch.randn(6, 5, 6)
    y, aux = module.forward_with_aux(x)
    assert float(aux["stat/layer.exit.left"]) == 1.0
    torch.testing.assert_close(y, expected(x))


def test_exits_are_spread_and_nested() -> None:
    got = applied(IMAGES, "early_exit(exits = 2)")
    (outer,) = [n for n in got.new.nodes if n.op.name == "exit"]
    (inner,) = [n for n in outer.regions[1].nodes if n.op.name == "exit"]
    assert (outer.name, inner.name) == ("block1.exit", "exit")
    assert [n.name for n in exits(applied(IMAGES, "early_exit", at=["block"]).new)] == ["block.exit"]


@pytest.mark.parametrize("source", [IMAGES, TOKENS])
def test_heads_can_learn_from_the_first_step_on(source: str) -> None:
    got = applied(source, "early_exit")
    module = to_torch(got.new, got.stored(), dtype="f64").train()
    inputs = random_inputs(got.new, 0, {"N": 6}, "f64")
    _, aux = module.forward_with_aux(torch.from_numpy(inputs["x"]))
    logits = [v for n, v in aux.items() if n.startswith("exit/")]
    assert len(logits) == len(exits(got.new)) == 3
    sum(torch.nn.functional.cross_entropy(v, torch.arange(6) % 3) for v in logits).backward()  # type: ignore[union-attr]
    heads = {n: p.grad for n, p in module.named_parameters() if n.endswith("head.linear.weight")}
    assert len(heads) == 3
    assert all(g is not None and g.abs().max() > 1e-6 for g in heads.values())


def half_sure(module: torch.nn.Module, exit: str, x: torch.Tensor) -> None:
    """Scale the weights of a head so that some of the samples that reach it leave."""
    weight, low, high = module.get_parameter(f"{exit}.head.linear.weight").data, 0.0, 50.0
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    share = 0.0
    while not 0.25 < share < 0.75:
        weight.copy_(drawn * (low + high) / 2)
        share = float(module.forward_with_aux(x)[1][f"stat/{exit}.left"])  # type: ignore[operator]
        low, high = (low, (low + high) / 2) if share > 0.5 else ((low + high) / 2, high)


@pytest.mark.parametrize("source", [IMAGES, TOKENS])
def test_compiled(source: str) -> None:
    """With heads that are sure of some samples: some leave at the first exit, some later, some never."""
    got = applied(source, "early_exit(exits = 2, threshold = 0.7)")
    module, inputs = to_torch(got.new, got.stored()).eval(), random_inputs(got.new, 0, {"N": 16})
    x = torch.from_numpy(inputs["x"])
    for exit in exits(got.new)[::-1]:  # regions come first, so the inner one does
        half_sure(module, exit.name, x)
    expected, aux = module.forward_with_aux(x)
    left = [float(v) for n, v in aux.items() if n.endswith(".left")]
    assert len(left) == 2
    assert all(0 < share < 1 for share in left)
    assert [float(v) for n, v in aux.items() if n.endswith(".rows")] == [16, 16 * (1 - left[0])]
    weights = {n: w.numpy() for n, w in module.state_dict().items()}
    with archc.compile(Model(got.new), weights=weights, cache=False) as artifact:
        found = artifact.run(inputs)["y"]
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


LOGITS = PLAIN.replace("f32[N, 3]", "f32[N, 1]").replace("linear(3)", "linear(1)")


@pytest.mark.parametrize(
    ("spec", "source", "code", "needed"),
    [
        ("early_exit", PLAIN.replace("[N, ", "[N, 2, "), "E0415", "one output, the logits of each sample"),
        ("early_exit", LOGITS, "E0415", "at least 2"),
        ("early_exit(threshold = 0.3)", PLAIN, "E0415", "above 1/3"),
        ("early_exit(exits = 5)", IMAGES, "E0415", "5 exits need as many places"),
        ("early_exit", PLAIN.replace("-> tanh -> linear(8) -> relu ", ""), "E0415", "more behind it"),
        ("early_exit", PLAIN.replace(" -> relu", "").replace(" -> tanh", ""), "E0402", "residual blocks"),
        (
            "early_exit(head = copy)",
            IMAGES.replace("-> residual(conv_bn(6)) ", ""),
            "E0415",
            "head reads f32[N, 6, 6, 6]",
        ),
        ("early_exit(confidence = margin, threshold = 0.0001)", PLAIN, "E0205", "below 0.01"),
        ("early_exit(threshold = 0)", PLAIN, "E0205", "threshold"),
        ("early_exit(exits = 0)", PLAIN, "E0205", "exits"),
        ("early_exit(head = own)", PLAIN, "E0205", "head"),
        ("early_exit(size = 3)", PLAIN, "E0204", "no argument `size`"),
    ],
)
def test_where_nobody_can_leave(spec: str, source: str, code: str, needed: str) -> None:
    with pytest.raises(CompileError) as caught:
        run_passes(loads(source), [parse_pass(spec)])
    assert caught.value.diagnostics[0].code == code
    assert needed in str(caught.value)


def test_what_goes_around_a_place_is_told() -> None:
    got = applied(AROUND, "early_exit")
    ((_, found),) = got.context.applied
    assert [(r.anchor.name, r.code) for r in found.refusals] == [("b.add", "E0415"), ("b.add1", "E0415")]
    assert [n.name for n in exits(got.new)] == ["a.exit"]
    assert got.same().ok


DIGITS = """arch digits_mlp()
input image: f32[N, 1, 8, 8]
output logits: f32[N, 10]
logits = image -> flatten -> linear(32) -> relu -> linear(32) -> relu -> linear(10)
"""


def test_samples_learn_to_leave() -> None:
    """On digits: an exit of a trained network learns beside it, and easy samples leave."""
    options = {"epochs": 8, "lr": 0.02, "threads": 1}
    base = archc.train(Model(loads(DIGITS)), "digits", **options)
    new, weights = archc.transform(Model(loads(DIGITS)), "early_exit(exits = 1, threshold = 0.8)", weights=base.weights)
    result = archc.train(new, "digits", weights=weights, keep="last", **options).result
    assert base.result.test is not None
    assert result.test is not None
    assert result.test.metrics["accuracy"] > base.result.test.metrics["accuracy"] - 0.04
    assert 0.1 < result.test.stats["exit.left"] < 1
