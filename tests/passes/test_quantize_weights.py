"""Weights of 8 and 4 bits: what they stand for, how far they are off, and that the kernels read them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformed import Applied, applied, compiled_difference

import archc
from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.facade.model import Model, loads
from archc.facade.sameness import observer
from archc.ir.diagnostics import CompileError
from archc.ir.ops.quantised import unpack
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

MLP = "arch mlp()\ninput x: f32[N, 24]\noutput y: f32[N, 12]\ny = x -> linear(32) -> relu -> linear(12, bias = false)\n"
IMAGE = """arch image()
input x: f32[N, 4, 9, 8]
output y: f32[N, 6, 4, 3]
y = x -> conv(8, kernel = 3) -> relu -> conv(8, kernel = 3, groups = 8) -> batch_norm -> conv(8, kernel = 1)
    -> conv(6, kernel = [3, 2], stride = 2, dilation = [1, 2], padding = [0, 0])
"""
TOKENS = """arch tokens()
input x: f32[N, T, 16]
output y: f32[N, T, 16]
y = x -> residual(layer_norm -> attention(4, kv_heads = 2, causal = true, positions = "rope", gate = "head"))
      -> residual(layer_norm -> linear(32) -> gelu -> linear(16))
"""
ROUTED = """arch routed()
input x: f32[N, 5, 8]
output y: f32[N, 5, 8]
y = x -> moe(router = linear(3), experts = copies(3, linear(16) -> gelu -> linear(8)), top_k = 2)
"""
SPECS = [
    "quantize_weights",
    "quantize_weights(bits = 4)",
    "quantize_weights(symmetric = false)",
    "quantize_weights(bits = 4, group = 4)",
    "quantize_weights(bits = 4, group = 8, symmetric = false)",
]


def matrices(done: Applied, layer: str) -> tuple[Any, Any]:
    """The weights of a layer before and after, as matrices of floats."""
    old = done.before[f"{layer}.weight"].reshape(len(done.before[f"{layer}.weight"]), -1)
    node = next(n for n in done.new.walk() if n.name == layer)
    codes = unpack(done.after[f"{layer}.weight"].reshape(len(old), -1), node.call.params.bits, old.shape[1])
    scale = done.after[f"{layer}.scale"].reshape(len(old), -1)
    zero = done.after.get(f"{layer}.zero", np.zeros_like(scale)).reshape(scale.shape)
    each = old.shape[1] // scale.shape[1]
    return old, np.repeat(scale, each, 1) * (codes - np.repeat(zero, each, 1))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("source", [MLP, IMAGE, TOKENS, ROUTED])
def test_each_weight_goes_to_the_nearest_code(source: str, spec: str) -> None:
    done = applied(source, spec)
    layers = [n for n in done.new.walk() if n.op.name.startswith("quantized")]
    assert not [n for n in done.new.walk() if n.op.name in ("linear", "conv", "attention")]
    for node in layers:
        if f"{node.name}.weight" not in done.before:
            continue  # a projection: its name is new
        old, new = matrices(done, node.name)
        scale = done.after[f"{node.name}.scale"].reshape(len(old), -1)
        assert np.all(np.abs(new - old) <= np.repeat(scale, old.shape[1] // scale.shape[1], 1) * 0.5000001)
        told = next(m for m in done.context.measured if m.site == node.name)
        assert told.value == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6)
        assert told.value < (0.01 if node.call.params.bits == 8 else 0.12)
        assert not any(p.trainable for role, p in node.weights.items() if role != "bias")
    for mode in ("eval", "train") if source is not ROUTED else ():  # a router's choice may turn
        assert done.same(mode).relative < (0.05 if "4" not in spec else 0.5)


def test_whole_numbers_are_kept() -> None:
    """Weights that are codes times a power of two lose nothing: the function is the same."""
    rng = np.random.default_rng(0)

    def codes(most: int, *shape: int) -> Any:
        made = rng.integers(-most, most + 1, shape).astype(np.float64)
        made[:, 0] = most
        return made / 64

    for bits, most in ((8, 127), (4, 7)):
        weights = {"linear.weight": codes(most, 32, 24), "linear1.weight": codes(most, 12, 32)}
        done = applied(MLP, f"quantize_weights(bits = {bits})", weights=weights)
        assert done.same().ok
        spoilt = done.after["linear.weight"].copy()
        spoilt[0, 0] ^= 1
        assert not done.same(weights=done.after | {"linear.weight": spoilt}).ok


def test_the_text() -> None:
    assert applied(MLP, "quantize_weights(bits = 4, group = 8)").text == (
        'y = x\n    -> quantized_linear(32, bits = 4, group = 8, name = "linear")\n    -> relu(name = "relu")\n'
        '    -> quantized_linear(12, bits = 4, group = 8, bias = false, name = "linear1")'
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_greedy_path_following_is_closer_on_the_data(bits: int) -> None:
    """Against rounding, on other rows of the same kind, through the whole network."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((6, 24))
    given, others = (
        {"x": rng.standard_normal((256, 6)) @ mix + 0.1 * rng.standard_normal((256, 24))} for _ in range(2)
    )
    errors = {}
    for method in ("rtn", "gpfq"):
        done = applied(MLP, f"quantize_weights(bits = {bits}, method = {method})", data=given)
        a, b = (
            observer(others)(graph, weights, graph.outputs)[0]
            for graph, weights in ((done.old, done.before), (done.new, done.after))
        )
        errors[method] = np.linalg.norm(a - b) / np.linalg.norm(a)
        told = [m for m in done.context.measured if "outputs" in m.of]
        assert len(told) == 2
        assert all(m.value < 0.2 for m in told)
    assert errors["gpfq"] < 0.6 * errors["rtn"]


def test_convolutions_follow_their_windows() -> None:
    rng = np.random.default_rng(4)
    smooth = np.cumsum(np.cumsum(rng.standard_normal((8, 4, 9, 8)), 2), 3)  # neighbours are alike
    done = {
        method: applied(IMAGE, f"quantize_weights(bits = 4, method = {method})", data={"x": smooth})
        for method in ("rtn", "gpfq")
    }
    for layer in ("conv", "conv1"):
        told = {
            method: next(m.value for m in d.context.measured if m.site == layer and "outputs" in m.of)
            for method, d in done.items()
        }
        assert told["gpfq"] < 0.8 * told["rtn"]


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        (IMAGE, "quantize_weights"),
        (IMAGE, "quantize_weights(bits = 4)"),
        (TOKENS, "quantize_weights(bits = 4, group = 8, symmetric = false)"),
    ],
)
def test_compiled_as_torch_runs_it(source: str, spec: str) -> None:
    done = applied(source, spec)
    assert compiled_difference(done.new, done.stored()) < 1e-5


@pytest.mark.parametrize("spec", ["quantize_weights", "quantize_weights(bits = 4, group = 8)"])
def test_any_number_of_rows(spec: str) -> None:
    """Few rows go by codes, many by a block of floats, and the last of them are not whole tiles."""
    done = applied(MLP, spec)
    weights = done.stored()
    module = to_torch(done.new, weights).eval()
    with archc.compile(Model(done.new), weights=weights, cache=False) as artifact:
        for rows in (1, 3, 16, 17, 50):
            x = np.random.default_rng(rows).standard_normal((rows, 24)).astype(np.float32)
            with torch.no_grad():
                needed = module(torch.from_numpy(x)).numpy()
            assert np.abs(artifact(x) - needed).max() < 1e-5 * np.abs(needed).max()


def test_the_artifact_holds_codes(tmp_path: Path) -> None:
    """A quarter of the bytes for 8 bits, an eighth for 4, besides what is no weight; and kernels of our own."""
    source = "arch m input x: f32[N, 512] output y: f32[N, 512] y = x -> linear(1024) -> relu -> linear(512)"
    sizes = []
    for spec in (None, "quantize_weights", "quantize_weights(bits = 4)"):
        path = tmp_path / "m.archc"
        model = loads(source) if spec is None else archc.transform(loads(source), spec).model
        archc.compile(model, batch=1, out=path, cache=False).close()
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.28 * sizes[0]
    assert sizes[2] < 0.15 * sizes[0]


def test_no_kernel_is_tvms() -> None:
    from archc.backends.initial import InitialWeights
    from archc.backends.tvm.cpu.pipeline import generic_kernels, optimise
    from archc.backends.tvm.lower import lower
    from archc.backends.tvm.targets import parse_target

    for source in (MLP, IMAGE):
        graph = applied(source, "quantize_weights(bits = 4)").new
        module = optimise(lower(graph, InitialWeights(graph)), parse_target("cpu").to_tvm(), threads=1)
        assert generic_kernels(module) == []
        text = str(module)
        assert "int8" in text
        assert "astype" not in text  # no weights are made floats by a kernel of their own


def test_structure_alone() -> None:
    graph = loads(MLP).graph
    run_passes(graph, [parse_pass("quantize_weights(bits = 4)")], Context())
    weights = graph.parameters()
    assert str(weights["linear.weight"].type) == "i8[32, 12]"
    assert random_inputs(graph)["x"].shape == (2, 24)


@pytest.mark.parametrize(
    ("source", "spec", "code", "words"),
    [
        (MLP, "quantize_weights(group = 64)", "E0425", "it has 24 inputs"),
        (MLP, "quantize_weights(method = gpfq)", "E0408", "needs data"),
        (ROUTED, "quantize_weights(method = gpfq)", "E0403", "inside a region"),
        (MLP, "quantize_weights(bits = 3)", "E0205", "bits"),
        (MLP, "quantize_weights(method = best)", "E0205", "gpfq"),
        ("arch a input x: f32[N, 4] output y: f32[N, 4] y = x -> relu", "quantize_weights", "E0402", "linear layers"),
        (
            "arch a input x: f32[N, 8] output y: f32[N, 8] share f = linear(8) y = x -> f -> f",
            "quantize_weights", "E0403", "2 layers use them",
        ),
    ],
)  # fmt: skip
def test_refusals(source: str, spec: str, code: str, words: str) -> None:
    with pytest.raises(CompileError) as raised:
        applied(source, spec)
    assert raised.value.diagnostics[0].code == code
    assert words in str(raised.value)
