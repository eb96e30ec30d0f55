"""Wider and deeper networks that compute what they did (Net2Net), with generic weights, in eval and in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformed import applied, compiled_difference

from archc.facade.sameness import same_function
from archc.grammar.load import load, loads
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

EXAMPLES = Path(__file__).parents[2] / "examples"

IMAGES = """arch images()
input x: f32[N, 3, 8, 8]
output y: f32[N, 5]
def half(c, groups = 1) = conv(c, kernel = 3, groups = groups, bias = false) -> batch_norm -> relu6
def block(c) = residual(half(2 * c) -> half(2 * c, groups = 2 * c) -> conv(c, kernel = 1) -> group_norm(4)) -> relu
let a = x -> half(16)
let b = concat(a -> block(16) -> max_pool(2), a -> conv(8, kernel = 2, stride = 2, groups = 4), axis = 1)
y = concat(b -> flatten, b -> global_avg_pool, axis = 1) -> linear(12) -> layer_norm -> gelu -> linear(5)
"""
TOKENS = """arch tokens()
input ids: i64[N, 6]
output y: f32[N, 6, 20]
def cell = fn(x, h) { let new = tanh((x -> linear(12)) + (h -> linear(12))) return new, new }
def recur = fn(x) { let s, last = x -> scan(cell, state = [[12]], axis = 1) return s -> kan(12, grid = 3) }
y = ids -> embedding(20, 12) -> positions -> residual(rms_norm -> attention(4, kv_heads = 2, bias = false))
    -> residual(layer_norm -> moe(router = linear(3), experts = copies(3, linear(8) -> gelu -> linear(12)), top_k = 2))
    -> recur -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = rms_norm -> linear(12)) -> linear(20)
"""


@pytest.mark.parametrize(
    "spec", ["widen", "widen(factor = 3, noise = 0.7)", "widen(heads = true)", "widen(factor = 1.5, heads = true)"]
)
@pytest.mark.parametrize("source", [IMAGES, TOKENS], ids=["images", "tokens"])
def test_wider_it_computes_what_it_did(source: str, spec: str) -> None:
    got = applied(source, spec)
    assert got.same().ok
    assert got.same("train").ok
    grown = [n for n, p in got.new.parameters().items() if p.shape != got.old.parameters()[n].shape]
    assert len(grown) > 8
    # the negative control: shares that do not add up
    assert not got.same(weights={**got.after, **{n: 1.01 * got.after[n] for n in grown}}).ok


EXACT: dict[str, dict[str, Any]] = {
    "gpt2_small": {"dim": 24, "depth": 2, "heads": 4, "vocab": 40, "context": 16},
    "llama_like": {"dim": 24, "depth": 2, "heads": 6, "kv_heads": 2, "hidden": 16, "vocab": 40},
    "lstm": {"vocab": 50, "dim": 12},
    "skipnet": {"width": 4, "depth": 2},
    "wrn16_4": {"width": 1},
}


@pytest.mark.parametrize(
    ("name", "spec"),
    [(n, "widen(heads = true, noise = 0.3)") for n in EXACT] + [(n, "deepen(count = 2)") for n in EXACT if n != "lstm"],
)
def test_examples(name: str, spec: str) -> None:
    old = load(EXAMPLES / f"{name}.arch", EXACT[name])
    new, weights = clone(old), random_weights(old, 0)
    context = Context(dict(weights), wide=True)
    run_passes(new, [parse_pass(spec)], context)
    assert context.weights is not None
    for mode in ("eval", "train"):
        assert same_function(old, new, weights, context.weights, mode=mode).ok  # type: ignore[arg-type]


def test_copies_share_what_reads_them() -> None:
    source = "arch net()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(3) -> relu -> linear(2)"
    got = applied(source, "widen(factor = 2)")
    rows, columns = got.after["linear.weight"], got.after["linear1.weight"]
    np.testing.assert_array_equal(rows[:3], rows[3:])
    np.testing.assert_array_equal(columns[:, :3], columns[:, 3:])
    np.testing.assert_allclose(columns[:, :3] * 2, got.before["linear1.weight"])
    assert got.text == 'y = x -> linear(6, name = "linear") -> relu(name = "relu") -> linear(2, name = "linear1")'
    uneven = applied(source, "widen(factor = 2, noise = 0.5)").after["linear1.weight"]
    assert not np.allclose(uneven[:, :3], uneven[:, 3:])
    np.testing.assert_allclose(uneven[:, :3] + uneven[:, 3:], got.before["linear1.weight"])


HEAD = "arch net()\ninput x: f32[N, 3, 4]\noutput y: f32[N, 3, 4]\n"


@pytest.mark.parametrize(
    ("body", "spec", "why"),
    [
        ("x -> linear(6) -> softmax(-1) -> linear(4)", "widen", "`softmax` looks along it"),
        ("x -> linear(6) -> layer_norm -> linear(4)", "widen(factor = 1.5)", "a whole `factor`"),
        ("concat(x, x -> linear(6), axis = 2) -> layer_norm -> linear(4)", "widen", "would not be copied"),
        ("x * (x -> linear(6) -> sum(2, keepdim = true))", "widen", "`sum` looks along it"),
        ('einsum("ntc,nuc->ntu")(x -> linear(6), x -> linear(6)) -> linear(4)', "widen", "tensors meet along it"),
        ('x -> attention(2, head_dim = 4, positions = "rope")', "widen", "as many channels in a head's values"),
    ],
)
def test_where_copies_would_be_seen(body: str, spec: str, why: str) -> None:
    with pytest.raises(CompileError) as e:
        applied(f"{HEAD}y = {body}", spec)
    (d,) = e.value.diagnostics
    assert d.code == "E0422"
    assert why in d.message


def test_a_table_that_makes_and_reads_is_refused() -> None:
    tied = "arch net()\ninput x: i64[N, 3]\noutput y: f32[N, 3, 9]\nshare table = embedding(9, 4)\n"
    with pytest.raises(CompileError, match="is shared by what makes it and what reads it"):
        applied(f"{tied}y = x -> table -> tied_linear(table)", "widen")


@pytest.mark.parametrize(
    ("source", "spec"),
    [(IMAGES, "deepen"), (TOKENS, "deepen(count = 2)"), (IMAGES, "deepen(kind = identity)")],
)
def test_deeper_it_computes_what_it_did(source: str, spec: str) -> None:
    got = applied(source, spec)
    assert got.same().ok
    assert got.same("train").ok
    (*_, last) = (n for n in got.after if "deeper" in n and n.endswith("bias"))
    assert not got.same(weights={**got.after, last: got.after[last] + 0.5}).ok


def test_a_new_block_is_born_silent() -> None:
    text = applied(f"{HEAD}y = x -> residual(layer_norm -> linear(8) -> silu -> linear(4))", "deepen").text
    assert (
        text
        == """\
share weight_1 = parameter([4, 8], init = "constant(0.0)", weight = "deeper.linear1.weight")
share weight_2 = parameter([4], init = "constant(0.0)", weight = "deeper.linear1.bias")

let linear_1 = x
    -> layer_norm(name = "layer_norm")
    -> linear(8, name = "linear")
    -> silu(name = "silu")
    -> linear(4, name = "linear1")
let add_1 = add(linear_1, x, name = "add")
let linear_2 = add_1
    -> layer_norm(name = "deeper.layer_norm")
    -> linear(8, name = "deeper.linear")
    -> silu(name = "deeper.silu")
    -> linear(4, weight = weight_1, bias = weight_2, name = "deeper.linear1")
y = add(add_1, linear_2, name = "deeper.add")"""
    )


def test_an_identity_convolution_reads_its_neighbours_with_0() -> None:
    source = "arch net()\ninput x: f32[N, 2, 5, 5]\noutput y: f32[N, 3, 5, 5]\ny = x -> conv(3, kernel = 3) -> relu"
    got = applied(source, "deepen(kind = identity, kernel = 3)")
    assert got.same().ok
    (weight,) = (w for n, w in got.after.items() if n.endswith("deeper.weight"))
    np.testing.assert_array_equal(weight[:, :, 1, 1], np.eye(3))
    assert np.count_nonzero(weight) == 3
    assert applied(source, "deepen(kind = identity)").same().ok


def test_a_body_that_no_weight_brings_to_0_is_refused() -> None:
    with pytest.raises(CompileError) as e:
        applied(f"{HEAD}y = x -> residual(linear(4) -> sigmoid)", "deepen")
    (d,) = e.value.diagnostics
    assert (d.code, d.label) == ("E0423", "it ends in `sigmoid`")
    with pytest.raises(CompileError, match="E0402"):
        applied(f"{HEAD}y = x -> linear(4) -> gelu", "deepen")
    with pytest.raises(CompileError, match="a second activation has to change nothing"):
        applied(f"{HEAD}y = x -> linear(4) -> gelu", "deepen(kind = identity)")


@pytest.mark.parametrize("spec", ["widen(heads = true)", "deepen"])
def test_compiled_it_is_the_same(spec: str) -> None:
    body = "residual(layer_norm -> attention(2)) -> residual(linear(8) -> relu -> linear(4))"
    got = applied(f"{HEAD}y = x -> linear(4) -> {body} -> linear(4)", spec)
    assert compiled_difference(got.new, got.stored()) < 1e-5


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("widen(factor = 1)", "E0205"),
        ("widen(factor = 100)", "E0205"),
        ("widen(noise = 2)", "E0205"),
        ("widen(width = 8)", "E0204"),
        ("deepen(count = 0)", "E0205"),
        ("deepen(kind = identity, kernel = 2)", "E0205"),
        ("deepen(kernel = 3)", "E0205"),
        ("deepen(kind = copy)", "E0205"),
    ],
)
def test_options_that_cannot_be(spec: str, code: str) -> None:
    with pytest.raises(CompileError) as e:
        parse_pass(spec)
    assert [d.code for d in e.value.diagnostics] == [code]


def test_without_weights_the_structure_is_made() -> None:
    for spec in ("widen", "deepen"):
        new = loads(TOKENS)
        run_passes(new, [parse_pass(spec)])
        assert sum(p.size for p in new.parameters().values()) > sum(p.size for p in loads(TOKENS).parameters().values())
