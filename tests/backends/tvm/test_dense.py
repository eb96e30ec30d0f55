"""What a GPU gets in place of rows that go their own ways: dense forms, run on the CPU and judged by torch in f64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archc.backends.initial import InitialWeights
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_graph, prepare
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError

FEATURES = "arch net()\ninput x: f32[N, 6]\noutput y: f32[N, 6]\n"
TOKENS = "arch net()\ninput x: f32[N, T, 6]\noutput y: f32[N, T, 6]\n"
CLASSES = "arch net()\ninput x: f32[N, 6]\noutput y: f32[N, 3]\n"
IMAGES = "arch net()\ninput x: f32[N, 2, 3, 3]\noutput y: f32[N, 2, 3, 3]\n"
LOOP = """arch net()
input x: f32[N, 9, 6]
output y: f32[N, 9, 4]
output last: f32[N, 4]
def cell = fn(a, h) { let new = linear(4)(a) + linear(4)(h) -> tanh return new, new }
let ys, end = x -> scan(cell, state = [[4]], axis = 1, reverse = REVERSE)
y = ys
last = end
"""
EXPERTS = "moe(router = linear(4), experts = copies(4, linear(6) -> tanh), top_k = 2"
PROGRAMS = {
    "moe, by token": TOKENS + f"y = x -> {EXPERTS}, normalize = false)",
    "moe, shared, capacity": FEATURES + f"y = x -> {EXPERTS}, shared = linear(6), capacity = 0.6)",
    "moe, experts choose": FEATURES + f'y = x -> {EXPERTS}, routing = "expert", capacity = 0.6, score = "sigmoid")',
    "skip": IMAGES
    + "def gate = fn(a) { return sigmoid(a -> flatten -> linear(1)) }\n"
    + "y = x -> skip(gate = gate, body = conv(2, kernel = 3, padding = 1))",
    "skip, by token": TOKENS + "y = x -> skip(gate = linear(1) -> sigmoid, body = linear(6) -> tanh)",
    "skip, budget": TOKENS + "y = x -> skip(gate = linear(1) -> sigmoid, body = attention(2), budget = 0.5)",
    "exit": CLASSES
    + 'y = x -> exit(head = linear(3), rest = linear(8) -> linear(3), threshold = 0.2, confidence = "margin")',
    "scan": LOOP.replace("REVERSE", "false"),
    "scan, reversed": LOOP.replace("REVERSE", "true"),
}


@pytest.fixture(scope="module")
def lowered() -> tuple[Any, str]:
    """All programs as lowered for CUDA, in one module for the CPU; and its text."""
    from archc.backends.tvm.codegen import PIPELINE
    from archc.backends.tvm.cpu import optimise
    from archc.backends.tvm.load import tvm
    from archc.backends.tvm.lower import add_function

    target, builder = parse_target("cpu", threads=1).to_tvm(), tvm.relax.BlockBuilder()
    for i, source in enumerate(PROGRAMS.values()):
        graph = loads(source)
        prepared = prepare(graph, InitialWeights(graph, seed=3))
        add_function(builder, f"f{i}", prepared.graph, prepared.weights, "cuda")
    module = builder.get()
    text = module.script()
    return tvm.relax.VirtualMachine(
        tvm.compile(optimise(module, target, threads=1), target, tir_pipeline=PIPELINE), tvm.runtime.cpu()
    ), text


@pytest.mark.parametrize("name", PROGRAMS)
def test_dense_forms_compute_the_same(name: str, lowered: tuple[Any, str]) -> None:
    from archc.backends.tvm.load import tvm

    graph = loads(PROGRAMS[name])
    judge = to_torch(graph, InitialWeights(graph, seed=3), dtype="f64").eval()
    sizes = {"N": 7, "T": 5}
    shape = [d if isinstance(d, int) else sizes[str(d)] for d in graph.inputs[0].type.shape]
    x = (2 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)
    with torch.no_grad():
        needed = judge(torch.from_numpy(x).double())
    machine, _ = lowered
    found = machine[f"f{list(PROGRAMS).index(name)}"](tvm.runtime.tensor(x))
    results = [found] if hasattr(found, "numpy") else list(found)
    for a, b in zip(results, needed if isinstance(needed, tuple) else [needed], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5)


def test_nothing_depends_on_values(lowered: tuple[Any, str]) -> None:
    """No sizes from data, no branches; the control is the form for the CPU, which has them."""
    from archc.backends.tvm.lower import lower

    _, text = lowered
    assert "tensor_to_shape" not in text
    for name in ("skip", "scan"):
        graph = loads(PROGRAMS[name])
        prepared = prepare(graph, InitialWeights(graph))
        sparse = lower(prepared.graph, prepared.weights, "cpu").script()
        assert ("tensor_to_shape" in sparse) == (name != "scan")
        assert "_either" in sparse
    assert "_either" not in text


@pytest.mark.parametrize(("length", "asked"), [("T", "--dim T=128"), ("300", "--target cpu")])
def test_loops_without_a_form_are_refused(length: str, asked: str, tmp_path: Path) -> None:
    graph = loads(LOOP.replace("9", length).replace("REVERSE", "false"))
    with pytest.raises(CompileError, match="E0531") as caught:
        compile_graph(graph, InitialWeights(graph), tmp_path / "net", spec=parse_target("cuda:sm_90"))
    assert caught.value.exit_code == 4
    (problem,) = caught.value.diagnostics
    assert problem.span is not None
    assert asked in str(problem.help)
