"""Softmax attention as linear attention: what it computes, how near that is, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformed import Applied, applied, compiled_difference

from archc.backends.inputs import random_inputs
from archc.facade.model import loads
from archc.facade.sameness import observer, same_function
from archc.ir.cost import cost
from archc.ir.diagnostics import CompileError
from archc.ir.dims import substitute
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

OPTIONS = 'kv_heads = 2, positions = "rope", gate = "head", qk_norm = true'


def tokens(options: str = "", length: str = "T") -> str:
    return (
        f"arch tokens()\ninput x: f32[N, {length}, 16]\noutput y: f32[N, {length}, 16]\n"
        f"y = x -> residual(layer_norm -> attention(4{', ' * bool(options)}{options}))\n"
    )


BARE = """arch bare()
input q: f32[N, 4, T, 8]
input k: f32[N, 2, U, 8]
input v: f32[N, 2, U, 6]
output y: f32[N, 4, T, 6]
y = scaled_dot_product(q, k, v)
"""


def told(done: Applied) -> float:
    (measured,) = done.context.measured
    return measured.value


def bare(spec: str, causal: bool) -> tuple[Any, Any]:
    """What a product of queries, keys and values becomes, and what it should be, in numpy."""
    source = BARE.replace("U", "T").replace("v)", "v, causal = true)") if causal else BARE
    done = applied(source, spec)
    inputs = random_inputs(done.old, 0, None, "f64")
    (found,) = observer(inputs)(done.new, done.after, done.new.outputs)
    q, k, v = (inputs[n] for n in "qkv")
    k, v = np.repeat(k, 2, 1), np.repeat(v, 2, 1)

    def features(x: Any) -> Any:
        return np.where(x > 0, x + 1, np.exp(x)) if "relu" not in spec else np.maximum(x, 0) + 1e-6

    scores = features(q) @ features(k).swapaxes(2, 3)
    if causal:
        scores = np.tril(scores)
    return found, scores @ v / scores.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spec", ["linear_attention", "linear_attention(relu)"])
def test_it_is_what_the_paper_says(spec: str, causal: bool) -> None:
    found, needed = bare(spec, causal)
    assert np.allclose(found, needed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 8, 13])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunks_and_steps_are_the_same(length: int, chunk: int) -> None:
    """A number of tokens that is known, in chunks, whole ones or not; and one that is not, token by token."""
    options = f"causal = true, {OPTIONS}"
    by_chunks = applied(tokens(options, str(length)), f"linear_attention(chunk = {chunk})")
    if chunk > 1 and length not in (7, 8):
        return
    by_steps = applied(tokens(options), "linear_attention")
    fixed = {name: by_chunks.after[name] for name in by_steps.after}
    x = random_inputs(by_chunks.old, 0, None, "f64")
    (a,), (b,) = (observer(x)(graph, fixed, graph.outputs) for graph in (by_chunks.new, by_steps.new))
    assert np.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_no_token_sees_a_later_one() -> None:
    done = applied(tokens("causal = true", "9"), "linear_attention(favor, chunk = 4)")
    x = random_inputs(done.old, 0, None, "f64")["x"]
    other = x.copy()
    other[:, 6:] = -other[:, 6:]
    (a,), (b,) = (observer({"x": v})(done.new, done.after, done.new.outputs) for v in (x, other))
    assert np.allclose(a[:, :6], b[:, :6], atol=1e-9)
    assert not np.allclose(a[:, 6:], b[:, 6:], atol=1e-3)


def test_random_features_come_near_to_softmax() -> None:
    errors = {spec: told(applied(tokens(length="12"), spec)) for spec in (
        "linear_attention", "linear_attention(favor, features = 16)", "linear_attention(favor, features = 2048)",
    )}  # fmt: skip
    coarse, fine = [*errors.values()][1:]
    assert fine < 0.1 < errors["linear_attention"]
    assert fine < 0.4 * coarse


def test_the_error_told_is_that_of_the_heads() -> None:
    done = applied(tokens(length="12"), "linear_attention(hedgehog)")
    assert 0.01 < told(done) < 1
    difference = same_function(done.old, done.new, done.before, done.after)
    assert not difference.ok
    assert difference.relative < 1


@pytest.mark.parametrize("spec", ["linear_attention", "linear_attention(favor)", "linear_attention(hedgehog)"])
def test_parameters_stay(spec: str) -> None:
    done = applied(tokens(OPTIONS), spec)
    for name, value in done.before.items():
        assert np.array_equal(done.after[name], value)
    assert set(done.after) - set(done.before) <= {"attention.directions.weight"}


def test_cost_grows_with_the_number_of_tokens() -> None:
    def flops(causal: str, length: int) -> int:
        done = applied(tokens(causal, str(length)), "linear_attention(chunk = 32)")
        return int(str(substitute(cost(done.new).flops, {"N": 1})))

    for options in ("", "causal = true"):
        assert flops(options, 512) < 2.1 * flops(options, 256)
    old = [int(str(substitute(cost(loads(tokens("", str(t))).graph).flops, {"N": 1}))) for t in (256, 512)]
    assert old[1] > 2.5 * old[0]


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        (BARE.replace("U", "T").replace("v)", "v, causal = true)"), "linear_attention"),
        (tokens("causal = true", "9"), "linear_attention(favor, chunk = 4)"),
        (BARE, "linear_attention(hedgehog)"),
    ],
)
def test_compiled_as_torch_runs_it(source: str, spec: str) -> None:
    done = applied(source, spec)
    assert compiled_difference(done.new, done.stored()) < 2e-5


def test_structure_alone() -> None:
    graph = loads(tokens("causal = true")).graph
    run_passes(graph, [parse_pass("linear_attention(favor)")], Context())
    assert "scan" in {n.op.name for n in graph.nodes}
    assert "softmax" not in {n.op.name for n in graph.nodes}


@pytest.mark.parametrize(
    ("source", "spec", "code", "words"),
    [
        (tokens('positions = "alibi"'), "linear_attention", "E0403", "alibi"),
        (
            "arch m input x: f32[N, 6, 8] input m: bool[6, 6] output y: f32[N, 6, 8] y = attention(2)(x, x, x, m)",
            "linear_attention", "E0403", "it takes a mask",
        ),
        ("arch a input x: f32[N, 8] output y: f32[N, 8] y = x -> linear(8)", "linear_attention", "E0402", "attention"),
        (tokens(), "linear_attention(cosine)", "E0205", "favor"),
        (tokens(), "linear_attention(features = 8)", "E0205", "favor"),
    ],
)  # fmt: skip
def test_refusals(source: str, spec: str, code: str, words: str) -> None:
    with pytest.raises(CompileError) as raised:
        applied(source, spec)
    assert raised.value.diagnostics[0].code == code
    assert words in str(raised.value)
