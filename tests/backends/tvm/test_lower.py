"""Lowering as a whole: sizes that stay open, loops of any length, the cache, and what cannot be lowered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from archc.backends.initial import InitialWeights
from archc.backends.runtime import load
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_cached, compile_graph
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError

SPEC = parse_target("cpu", threads=1)

LOOP = """arch loop()
input x: f32[N, T, 3]
output y: f32[N, T, 4]
def cell = fn(a, h) { let new = linear(4)(a) + linear(4)(h) -> tanh return new, new }
let ys, last = x -> scan(cell, state = [[4]], axis = 1)
y = ys
"""
EXPERTS = """arch experts()
input x: f32[N, 6]
output y: f32[N, 5]
y = x -> moe(router = linear(4), experts = copies(4, linear(5)), top_k = 1)
"""


@pytest.mark.parametrize(
    ("source", "shapes"),
    [
        (LOOP, [(2, 0, 3), (1, 1, 3), (2, 37, 3), (1, 10_000, 3)]),
        (EXPERTS, [(1, 6), (3, 6), (64, 6)]),  # with one row, three experts get none
    ],
    ids=["loop", "experts"],
)
def test_one_artifact_for_every_size(source: str, shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    graph = loads(source)
    weights = InitialWeights(graph)
    compile_graph(graph, weights, tmp_path / "net.archc", spec=SPEC)
    judge = to_torch(graph, weights, dtype="f64").eval()
    rng = np.random.default_rng(0)
    with load(tmp_path / "net.archc") as artifact:
        for shape in shapes:
            x = rng.standard_normal(shape).astype(np.float32)
            with torch.no_grad():
                needed = judge(torch.from_numpy(x).double()).numpy()
            found = artifact(x)
            assert found.shape == needed.shape
            np.testing.assert_allclose(found, needed, atol=2e-5)


def test_a_size_that_no_input_tells(tmp_path: Path) -> None:
    source = "arch square()\ninput x: f32[T*T, 4]\noutput y: f32[T*T, 3]\ny = x -> linear(3)\n"
    graph = loads(source)
    with pytest.raises(CompileError) as error:
        compile_graph(graph, InitialWeights(graph), tmp_path / "net.archc", spec=SPEC)
    assert error.value.diagnostics[0].code == "E0507"


EXPRESSIONS = """arch pairs()
input x: f32[N, 4*H, 2*W + 1]
input y: f32[H + W, 3]
output a: f32[N, 4*H, 2*W + 1]
output b: f32[N, H, 4, 2*W + 1]
output c: f32[H + W, 4]
output d: f32[N, 2*W + 1]
a = x -> softmax(axis = 1) -> relu
b = x -> reshape([N, H, 4, 2*W + 1])
c = y -> linear(4) -> tanh
d = scan(fn(t, h) { return h + t, h + t }, x, state = [[2*W + 1]], axis = 1)[1]
"""


def test_sizes_inside_expressions_are_solved_for(tmp_path: Path) -> None:
    graph = loads(EXPRESSIONS)
    weights = InitialWeights(graph)
    compile_graph(graph, weights, tmp_path / "net.archc", spec=SPEC)
    judge, rng = to_torch(graph, weights, dtype="f64").eval(), np.random.default_rng(0)
    with load(tmp_path / "net.archc") as artifact:
        for n, h, w in ((2, 3, 4), (1, 1, 0), (3, 2, 7)):
            x, y = (rng.standard_normal(s).astype(np.float32) for s in ((n, 4 * h, 2 * w + 1), (h + w, 3)))
            with torch.no_grad():
                needed = judge(torch.from_numpy(x).double(), torch.from_numpy(y).double())
            for found, wanted in zip(artifact(x, y), needed, strict=True):
                np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
        for x_shape, y_shape, words in (
            ((2, 13, 5), (5, 3), "input `x`, axis 1: needs 4*H = 12; found 13"),
            ((2, 12, 5), (6, 3), "input `y`, axis 0: needs H + W = 5; found 6"),
            ((2, 4, 0), (1, 3), "input `x`, axis 2: needs 2*W + 1, at least 1; found 0"),
        ):
            with pytest.raises(CompileError) as error:
                artifact(np.ones(x_shape, np.float32), np.ones(y_shape, np.float32))
            assert words in [d.message for d in error.value.diagnostics]


def test_a_known_compilation_starts_no_tvm(tmp_path: Path) -> None:
    graph = loads(EXPERTS)
    first = compile_cached(graph, InitialWeights(graph), tmp_path / "a.archc", spec=SPEC, weights_origin="seed:0")
    again = f"""
import sys
from archc.backends.initial import InitialWeights
from archc.backends.tvm.compile import compile_cached
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads
graph = loads({EXPERTS!r})
spec = parse_target("cpu", threads=1)
compile_cached(graph, InitialWeights(graph), {str(tmp_path / "b.archc")!r}, spec=spec, weights_origin="seed:0")
assert "tvm" not in sys.modules
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", again], check=True)
    assert (tmp_path / "a.archc").read_bytes() == (tmp_path / "b.archc").read_bytes()
    assert first.weights_origin == "seed:0"
