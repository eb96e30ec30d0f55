"""Experts of a mixture that run as one, and those that cannot, against torch in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archc.backends import runtime
from archc.backends.profile import profile
from archc.backends.runtime import Artifact
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_graph, prepare
from archc.backends.tvm.lowerings.experts import alike
from archc.backends.tvm.targets import parse_target
from archc.facade.weights import resolve
from archc.grammar.load import loads
from archc.ir.graph import Graph
from archc.ir.ops.structural import moe_regions

FLAT, TOKENS, IMAGES = "T, 6", "N, T, 6", "N, 3, 4, 4"
FFN = "def expert = linear(33) -> gelu -> linear(6)\n"
SWIGLU = """def dense(out) = linear(out, bias = false)
def expert = fn(r) { return silu(r -> dense(16)) * (r -> dense(16)) -> dense(6) }
"""
MOE = "y = x -> moe(router = linear(5), experts = copies(5, expert), top_k = 2"
TOGETHER = {
    "two layers": (FLAT, FFN + MOE + ")"),
    "SwiGLU": (TOKENS, SWIGLU + MOE + ")"),
    "one of them": (FLAT, FFN + MOE.replace("top_k = 2", "top_k = 1, normalize = false") + ")"),
    "all of them": (FLAT, FFN + MOE.replace("top_k = 2", "top_k = 5") + ")"),
    "a limit": (TOKENS, FFN + MOE + ", capacity = 0.6)"),
    "chosen by the experts": (TOKENS, FFN + MOE + ', routing = "expert", capacity = 1.25)'),
    "more columns than a tile": (FLAT, "def expert = linear(300) -> relu -> linear(70) -> linear(6)\n" + MOE + ")"),
    "not a layer first": (FLAT, "def expert = relu -> linear(6)\n" + MOE + ")"),
    "what they read comes again": (FLAT, "def expert = residual(linear(9) -> tanh -> linear(6))\n" + MOE + ")"),
    "a value from outside": (
        FLAT,
        "let c = x -> mean(0) -> tanh\ndef expert = fn(r) { return (r -> linear(6)) * c -> linear(6) }\n" + MOE + ")",
    ),
    "a shared one": (FLAT, FFN + MOE + ", shared = expert)"),
    "one with no limit to speak of": (
        FLAT,
        FFN + MOE.replace("5", "1").replace("top_k = 2", "top_k = 1, capacity = 1.0") + ")",
    ),
    "only one": (FLAT, FFN + MOE.replace("5", "1").replace("top_k = 2", "top_k = 1") + ")"),
}
APART = {
    "unlike ones": (FLAT, FFN + MOE.replace("copies(5, expert)", "[expert, linear(6), expert, relu, tanh]") + ")"),
    "a norm with weights": (FLAT, "def expert = layer_norm -> linear(6)\n" + MOE + ")"),
    "rows that meet": (FLAT, "def expert = fn(r) { return r - (r -> softmax(axis = 0)) -> linear(6) }\n" + MOE + ")"),
    "images": (
        IMAGES,
        "def pick = fn(a) { return a -> global_avg_pool -> linear(3) }\n"
        "y = x -> moe(router = pick, experts = copies(3, conv(3, kernel = 3)), top_k = 2)",
    ),
}  # fmt: skip


def graph_of(*programs: tuple[str, str]) -> Graph:
    """One network of several programs, each with an output of its own: what is compiled as one is compiled sooner."""
    (shape,) = {shape for shape, _ in programs}
    outputs = "".join(f"output y{i}: f32[{shape}]\n" for i in range(len(programs)))
    bodies = [re.sub(r'\b(y|c|pick|dense|expert)\b(?!")', rf"\g<1>{i}", body) for i, (_, body) in enumerate(programs)]
    return loads(f"arch net\ninput x: f32[{shape}]\n{outputs}" + "\n".join(bodies))


def weights_of(graph: Graph) -> dict[str, Any]:
    return {name: np.asarray(a) for name, a in resolve(graph, None).arrays.items()}


def judged(graph: Graph, weights: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        made = to_torch(graph, weights, dtype="f64").eval()(torch.from_numpy(x).double())
    return [y.numpy() for y in (made if isinstance(made, tuple) else (made,))]


def assert_right(artifact: Artifact, graph: Graph, weights: dict[str, Any], x: np.ndarray) -> list[np.ndarray]:
    found = list(artifact.run({"x": x}).values())
    for i, (y, needed) in enumerate(zip(found, judged(graph, weights, x), strict=True)):
        np.testing.assert_allclose(y, needed, atol=2e-6, err_msg=f"output {i}")
    return found


def build(graph: Graph, weights: dict[str, Any], path: Path, threads: int = 1) -> Artifact:
    compile_graph(graph, weights, path, spec=parse_target("cpu", threads=threads))
    return runtime.load(path)


def draw(graph: Graph, seed: int, **sizes: int) -> np.ndarray:
    shape = [d if isinstance(d, int) else sizes[str(d)] for d in graph.inputs[0].type.shape]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [FLAT, TOKENS, IMAGES])
def test_experts(shape: str, tmp_path: Path) -> None:
    programs = {name: p for name, p in (TOGETHER | APART).items() if p[0] == shape}
    graph = graph_of(*programs.values())
    weights = weights_of(graph)
    mixtures = [n for n in prepare(graph, weights).graph.nodes if n.op.name == "moe"]
    assert {name: alike(moe_regions(n.call)[1]) for name, n in zip(programs, mixtures, strict=True)} == {
        name: name in TOGETHER for name in programs
    }
    with build(graph, weights, tmp_path / "net") as artifact:
        for seed, tokens in enumerate((0, 1, 2, 23)):
            x = draw(graph, seed, N=3, T=tokens)
            found = assert_right(artifact, graph, weights, x)
        for y, other in zip(found, judged(graph, weights, x[::-1].copy()), strict=True):
            assert np.abs(y - other).max() > 1e-2, "rows of another order would have done"


@pytest.mark.parametrize("tokens", [1, 64])
def test_fixed_sizes_and_threads(tokens: int, tmp_path: Path) -> None:
    """Few rows take wider tiles; threads share the columns out."""
    shape = FLAT.replace("T", str(tokens))
    bodies = [TOGETHER[name][1] for name in ("two layers", "SwiGLU", "more columns than a tile")]
    graph = graph_of(*((shape, body) for body in bodies))
    weights = weights_of(graph)
    with build(graph, weights, tmp_path / "net", threads=2) as artifact:
        assert_right(artifact, graph, weights, draw(graph, 0))


@pytest.mark.parametrize("name", ["two layers", "images"])
def test_experts_without_rows_are_not_read(name: str, tmp_path: Path) -> None:
    """All rows go to the first two experts; the others are poisoned. Then the second is, too."""
    graph = graph_of((TOGETHER | APART)[name])
    weights = weights_of(graph)
    (bias,) = [k for k in weights if ".router." in k and k.endswith("bias")]
    weights[bias] = np.array([60.0, 58.0, *[0.0] * (len(weights[bias]) - 2)], np.float32)
    experts = [r"\.experts\.[2-9]\.", r"\.experts\.[1-9]\."]
    for poisoned, finite in zip(experts, (True, False), strict=True):
        spoilt = {k: np.full_like(a, np.nan) if re.search(poisoned, k) else a for k, a in weights.items()}
        assert any(np.isnan(a).any() for a in spoilt.values())
        x = draw(graph, 0, N=7, T=33)
        with build(graph, spoilt, tmp_path / f"net{finite}") as artifact:
            found = artifact.run({"x": x})["y0"]
            assert np.isfinite(found).all() == finite
            if finite:
                np.testing.assert_allclose(found, judged(graph, weights, x)[0], atol=2e-6)


def test_the_number_of_kernels_is_that_of_layers(tmp_path: Path) -> None:
    calls = []
    for experts in (4, 12):
        graph = graph_of((FLAT, FFN + MOE.replace("5", str(experts)) + ")"))
        with build(graph, weights_of(graph), tmp_path / f"net{experts}") as artifact:
            kernels = profile(artifact, {"x": draw(graph, 0, T=9)}, runs=1).kernels
        calls.append({k.name: k.calls for k in kernels if "grouped" in k.name})
    assert calls[0] == calls[1]
    assert sum(calls[0].values()) == 2


@pytest.mark.parametrize(("top_k", "most"), [(2, 2), (8, 8)])
def test_memory_follows_what_runs(top_k: int, most: int) -> None:
    """No tensor has more rows than are sent to experts; the control sends each row to all of them."""
    from archc.backends.tvm.cpu import optimise
    from archc.backends.tvm.load import tvm
    from archc.backends.tvm.lower import lower

    tokens, hidden = 64, 512
    body = f"def expert = linear({hidden}) -> gelu -> linear(6)\n"
    graph = graph_of(
        (f"{tokens}, 6", body + f"y = x -> moe(router = linear(8), experts = copies(8, expert), top_k = {top_k})")
    )
    prepared = prepare(graph, resolve(graph, None).arrays)
    target = parse_target("cpu", threads=1).to_tvm()
    module = optimise(lower(prepared.graph, prepared.weights), target, threads=1)
    largest = 0

    def look(value: Any) -> None:
        nonlocal largest
        if isinstance(value, tvm.relax.Call) and isinstance(value.ty, tvm.relax.TensorType):
            largest = max(largest, int(np.prod([int(d) for d in value.ty.shape])))

    tvm.relax.analysis.post_order_visit(module["main"], look)
    assert largest == most * tokens * hidden
