"""What is left of a pruned network computes what the network computes with the rest masked: nothing is patched up, and
nothing is lost besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformed import applied, compiled_difference

from archc.facade.sameness import Sameness, same_function
from archc.grammar.load import load, loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.cost import graph_flops
from archc.ir.diagnostics import CompileError
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, run_passes
from archc.passes.masking import masked
from archc.passes.prune import PruneOptions, choose
from archc.passes.spec import parse_pass, parse_transform
from archc.passes.transform import find_sites

EXAMPLES = Path(__file__).parents[2] / "examples"

IMAGES = """arch images()
input x: f32[N, 3, 8, 8]
output y: f32[N, 5]
def half(c, groups = 1) = conv(c, kernel = 3, groups = groups, bias = false) -> batch_norm -> relu6
def block(c) = residual(half(2 * c) -> half(2 * c, groups = 2 * c) -> conv(c, kernel = 1) -> group_norm(4)) -> silu
let a = x -> half(16)
let b = concat(a -> block(16) -> max_pool(2), a -> conv(8, kernel = 2, stride = 2, groups = 4), axis = 1)
y = concat(b -> flatten, b -> global_avg_pool, axis = 1) -> linear(12) -> layer_norm -> gelu -> linear(5)
"""
TOKENS = """arch tokens()
input ids: i64[N, 6]
output y: f32[N, 6, 20]
share table = embedding(20, 24)
def mix = fn(x) {
    let q = x -> linear(24) -> unflatten(2, [4, 6]) -> transpose(1, 2)
    let k = x -> linear(24) -> unflatten(2, [4, 6]) -> transpose(1, 2)
    let v = x -> linear(32) -> reshape([N, 6, 4, 8]) -> permute([0, 2, 1, 3])
    return scaled_dot_product(q, k, v) -> transpose(1, 2) -> flatten(2) -> linear(24)
}
y = ids -> table -> positions -> residual(rms_norm -> attention(4, kv_heads = 2)) -> residual(rms_norm -> mix)
    -> residual(layer_norm -> moe(router = linear(3), experts = copies(3, linear(16) -> gelu -> linear(24)), top_k = 2))
    -> rms_norm -> tied_linear(table)
"""
WITHIN = """arch within()
input x: f32[N, 4, 6]
output y: f32[N, 2]
def cell = fn(x, h) { let new = tanh((x -> linear(12)) + (h -> linear(12))) return new, new }
let s, last = x -> scan(cell, state = [[12]], axis = 1)
let gated = s -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = kan(10, grid = 3) -> linear(12), threshold = 0.5)
let scores = einsum("ntc,nuc->ntu")(gated -> linear(8) -> sigmoid, gated -> linear(8) -> sigmoid)
y = concat(scores -> softmax(-1) -> sum(2), last, axis = 1) -> pad([1, 1]) -> linear(9) -> max(1, keepdim = true)
    -> linear(2)
"""
SMALL: dict[str, dict[str, Any]] = {
    "digits_resnet": {},
    "kan": {},
    "lstm": {"vocab": 50, "dim": 12},
    "skipnet": {"width": 4, "depth": 2},
    "llama_like": {"dim": 24, "depth": 2, "heads": 6, "kv_heads": 2, "hidden": 16, "vocab": 40},
    "mixtral_like": {"dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 8, "experts": 4, "vocab": 40},
    "gpt2_small": {"dim": 24, "depth": 2, "heads": 4, "vocab": 40, "context": 16},
    "mlp_mixer": {"dim": 16, "depth": 1, "tokens_dim": 8, "channels_dim": 16, "classes": 5},
}


def against_masking(old: Graph, spec: str, mode: Any = "eval", spoilt: bool = False) -> tuple[Sameness, float]:
    """The pruned network against the old one masked, and how far it is from the old one."""
    transform, options = parse_transform(spec)
    assert isinstance(options, PruneOptions)
    weights = random_weights(old, 0)
    units = [site.found for site in find_sites(transform, old, options).sites]
    choice = choose(old, units, options, Context(dict(weights), wide=True))
    new, context = clone(old), Context(dict(weights), wide=True)
    run_passes(new, [parse_pass(spec)], context)
    assert structurally_equal(new, loads(print_graph(new))) is None
    assert graph_flops(new) != graph_flops(old)
    assert context.weights is not None
    if spoilt:  # other elements than those that went
        for leaf, table in choice.tables.items():
            gone = [e for e in range(int(str(leaf.size))) if e not in table.reshape(-1, table.shape[-1])[0]]
            table[..., 0] = gone[0] if gone else table[..., 0]
    reference, kept = masked(old, units[0].axes, choice, dict(weights))
    far = same_function(old, new, weights, context.weights, mode=mode).relative
    return same_function(reference, new, kept, context.weights, mode=mode), far


@pytest.mark.parametrize("spec", ["prune(round_to = 1)", "prune(ratio = 0.6, across = global, of = params)"])
@pytest.mark.parametrize("source", [IMAGES, TOKENS, WITHIN], ids=["images", "tokens", "within"])
def test_it_is_the_network_with_what_goes_masked(source: str, spec: str) -> None:
    for mode in ("eval", "train"):
        same, far = against_masking(loads(source), spec, mode)
        assert same.ok, f"{mode}: {same.relative}"
        assert far > 1e-3


@pytest.mark.parametrize("source", [IMAGES, TOKENS, WITHIN], ids=["images", "tokens", "within"])
def test_masking_other_elements_is_something_else(source: str) -> None:
    same, _ = against_masking(loads(source), "prune(round_to = 1)", spoilt=True)
    assert same.relative > 1e-3


@pytest.mark.parametrize("name", sorted(SMALL))
def test_examples(name: str) -> None:
    assert against_masking(load(EXAMPLES / f"{name}.arch", SMALL[name]), "prune(by = random)")[0].ok


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.arch")), ids=lambda f: f.stem)
def test_examples_at_full_size(file: Path) -> None:
    same, _ = against_masking(load(file), "prune(ratio = 0.25)")
    assert same.ok


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.arch")), ids=lambda f: f.stem)
@pytest.mark.parametrize("ratio", [0.25, pytest.param(0.5, marks=pytest.mark.slow)])
def test_every_example_loses_what_it_is_to_lose(file: Path, ratio: float) -> None:
    old = load(file)
    new = clone(old)
    context = Context()
    run_passes(new, [parse_pass(f"prune(ratio = {ratio})")], context)
    (measured,) = context.measured
    assert ratio <= measured.value < ratio + 0.2
    assert [str(v.type) for v in new.outputs] == [str(v.type) for v in old.outputs]


def test_the_program_after() -> None:
    head = "arch net()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\n"
    assert applied(f"{head}y = x -> linear(8) -> relu -> linear(2)", "prune(ratio = 0.5)").text == (
        'y = x -> linear(4, name = "linear") -> relu(name = "relu") -> linear(2, name = "linear1")'
    )
    heads = applied(
        "arch net()\ninput x: f32[N, 5, 12]\noutput y: f32[N, 5, 12]\ny = x -> attention(4, kv_heads = 2)",
        "prune(ratio = 0.4)",
    ).text
    assert heads == (
        'y = attention(x, x, x, 2, kv_heads = 1, head_dim = 2, scale = 0.5773502691896257, name = "attention")'
    )


def test_the_smallest_goes_first() -> None:
    source = "arch net()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(6) -> relu -> linear(2)"
    weights = random_weights(loads(source), 0)
    for name, axis in (("linear.weight", 0), ("linear.bias", 0), ("linear1.weight", 1)):
        scale = np.array([1.0, 1e-3, 1.0, 1e-3, 1.0, 1.0])
        weights[name] = weights[name] * scale.reshape([-1 if i == axis else 1 for i in range(weights[name].ndim)])
    got = applied(source, "prune(ratio = 0.3, round_to = 1)", weights=weights)
    np.testing.assert_array_equal(got.after["linear.bias"], weights["linear.bias"][[0, 2, 4, 5]])
    assert got.same().relative < 1e-4


def test_by_variance_what_is_constant_goes_first() -> None:
    source = "arch net()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(4) -> relu -> linear(2)"
    weights = random_weights(loads(source), 0)
    weights["linear.bias"][:2] = -100.0  # never above 0, however large the weights
    got = applied(source, "prune(ratio = 0.5, by = variance, round_to = 1)", weights=weights)
    np.testing.assert_array_equal(got.after["linear.bias"], weights["linear.bias"][2:])
    assert got.same().ok
    # the negative control: by magnitude others go
    other = applied(source, "prune(ratio = 0.5, round_to = 1)", weights=weights)
    assert not np.array_equal(other.after["linear.bias"], got.after["linear.bias"])


def test_sizes_that_stay_are_round() -> None:
    source = "arch net()\ninput x: f32[N, 8]\noutput y: f32[N, 2]\ny = x -> linear(100) -> relu -> linear(40) -> relu"
    source += " -> linear(2)"
    new = applied(source, "prune(ratio = 0.4, round_to = 8)").new
    sizes = [n.call.params.out for n in new.nodes if n.op.name == "linear"]
    assert [s % 8 for s in sizes[:2]] == [0, 0]
    assert sizes[2] == 2


def test_heads_can_be_left_alone() -> None:
    source = "arch net()\ninput x: f32[N, 5, 16]\noutput y: f32[N, 5, 16]\ny = x -> attention(4)"
    (whole,) = applied(source, "prune(ratio = 0.5, heads = false)").new.nodes
    (fewer,) = applied(source, "prune(ratio = 0.5)", at=["attention"]).new.nodes
    assert (whole.call.params.heads, whole.call.params.head_dim) == (4, 2)
    assert fewer.call.params.heads < 4


def test_experts_of_a_mixture_stay_alike() -> None:
    new = applied(TOKENS, "prune(across = global, round_to = 1)").new
    (mixture,) = [n for n in new.nodes if n.op.name == "moe"]
    hidden = {n.call.params.out for r in mixture.regions[1:] for n in r.nodes if n.op.name == "linear"}
    assert len(hidden) == 2  # the hidden width of all, and the width of what they return


def test_whole_experts_go_as_if_they_were_never_chosen() -> None:
    got = applied(TOKENS, "prune(experts = 0.3)")
    (old,) = [n for n in got.old.nodes if n.op.name == "moe"]
    (new,) = [n for n in got.new.nodes if n.op.name == "moe"]
    assert len(new.regions) == len(old.regions) - 1
    rows = {n for n, p in got.old.parameters().items() if "router" in n}
    kept = {n: got.after[n] for n in rows}
    (bias,) = (n for n in rows if n.endswith("bias"))
    gone = [i for i, b in enumerate(got.before[bias]) if b not in kept[bias]]
    never = {**got.before, bias: np.where(np.isin(np.arange(3), gone), -1e9, got.before[bias])}
    assert same_function(got.old, got.new, never, got.after).ok
    assert not got.same().ok


DEAD = """arch dead()
input x: f32[N, 3, 8, 8]
output y: f32[N, 5]
let a = x -> conv(8, kernel = 3, bias = false) -> batch_norm -> relu -> max_pool(2)
let b = concat(a, a -> conv(6, kernel = 3) -> tanh, axis = 1) -> dropout(0.1) -> flatten
y = b -> linear(7) -> sigmoid -> linear(5)
"""


def test_dead_elements_go_and_the_function_stays() -> None:
    weights = random_weights(loads(DEAD), 0)
    for name in ("a.batch_norm.weight", "a.batch_norm.bias"):  # always 0, whoever reads it
        weights[name][[1, 4]] = 0.0
    weights["linear1.weight"][:, 3] = 0.0  # sigmoid makes 1/2 of 0, but nobody reads it
    got = applied(DEAD, "prune(dead = true)", weights=weights)
    assert got.same().ok
    assert got.same("train").ok
    assert [n.output.type.shape[1] for n in got.new.nodes if n.op.name in ("conv", "linear")] == [6, 6, 6, 5]
    # the controls: without gain but with a bias it is not 0, and a norm over the axis counts its elements
    weights["a.batch_norm.bias"][[1, 4]] = 1.0
    weights["linear1.weight"][:, 3] = 1.0
    with pytest.raises(CompileError, match="E0402"):
        applied(DEAD, "prune(dead = true)", weights=weights)
    normed = "arch n()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(6) -> layer_norm -> linear(2)"
    weights = random_weights(loads(normed), 0)
    weights["linear1.weight"][:, 3] = 0.0
    with pytest.raises(CompileError, match="every element does something"):
        applied(normed, "prune(dead = true)", weights=weights)


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        (DEAD, "prune(ratio = 0.4, round_to = 1)"),
        pytest.param(IMAGES, "prune(ratio = 0.4)", marks=pytest.mark.slow),
        pytest.param(TOKENS, "prune(ratio = 0.4)", marks=pytest.mark.slow),
        pytest.param(WITHIN, "prune", marks=pytest.mark.slow),
    ],
)
def test_compiled_it_is_the_same(source: str, spec: str) -> None:
    got = applied(source, spec)
    assert compiled_difference(got.new, got.stored()) < 1e-4


def test_initial_values_that_are_written_out_stay_with_their_elements() -> None:
    source = (
        "arch net()\ninput x: f32[N, 2]\noutput y: f32[N, 1]\n"
        'y = x -> linear(2, bias = false, init = "values(1, 2, 3, 4)") -> relu -> linear(1)'
    )
    new = loads(source)
    run_passes(new, [parse_pass("prune(ratio = 0.3, round_to = 1)")])
    (first, *_) = new.parameters().values()
    assert first.init.values in ((1.0, 2.0), (3.0, 4.0))
    assert structurally_equal(new, loads(print_graph(new))) is None


def test_what_cannot_be() -> None:
    head = "arch net()\ninput x: f32[N, 3, 4]\noutput y: f32[N, 3, 4]\n"
    with pytest.raises(CompileError) as nothing:
        applied(f"{head}y = x -> softmax(-1)", "prune")
    assert [d.code for d in nothing.value.diagnostics] == ["E0402"]
    product = f"{head}y = matmul(matmul(x -> linear(6), x -> linear(6) -> transpose(1, 2), scaled = true), x)"
    with pytest.raises(CompileError) as scaled:
        applied(product, "prune")
    (d,) = scaled.value.diagnostics
    assert d.code == "E0421"
    assert "divides by the length" in d.message
    with pytest.raises(CompileError) as rope:
        applied(f'{head}y = x -> attention(2, head_dim = 4, positions = "rope")', "prune(heads = false)")
    assert [d.code for d in rope.value.diagnostics] == ["E0421"]
    with pytest.raises(CompileError) as much:
        applied(f"{head}y = x -> linear(8) -> relu -> linear(4)", "prune(ratio = 0.99)")
    (d,) = much.value.diagnostics
    assert d.code == "E0420"
    assert "at most 7" in d.label


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("prune(ratio = 0)", "E0205"),
        ("prune(ratio = 1)", "E0205"),
        ("prune(ratio = 0.5, dead = true)", "E0205"),
        ("prune(by = taylor)", "E0205"),
        ("prune(round_to = 0)", "E0205"),
        ("prune(rate = 0.5)", "E0204"),
    ],
)
def test_options_that_cannot_be(spec: str, code: str) -> None:
    with pytest.raises(CompileError) as e:
        parse_pass(spec)
    assert [d.code for d in e.value.diagnostics] == [code]
