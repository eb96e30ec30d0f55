"""Indices that a network computes: as torch where they name something, E0529 where they do not, never other memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from archc.backends import runtime
from archc.backends.initial import InitialWeights
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError

PROGRAM = """
arch look_ups
input x: f32[N, T]
input whole: i64[N, 6]
input i: i64[N, 3]
input a: i64[]
input b: i64[]
input c: i64[]
input d: i64[]
output gathered: f32[N, 3]
output numbers: i64[N, 3]
output rows: f32[3, T]
output table: f32[N, 3, 4]
output best: f32[N, 1]
gathered = gather(x, i + a, axis = 1)
numbers = gather(whole, i + b, axis = 1)
rows = index_select(x, (i + c) -> select(0, axis = 0), axis = 0)
table = (i + d) -> cast("i32") -> embedding(6, 4)
best = gather(x, x -> argmax(1, keepdim = true), axis = 1)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runtime.Artifact]:
    path = tmp_path_factory.mktemp("indices") / "a.archc"
    graph = loads(PROGRAM)
    compile_graph(graph, InitialWeights(graph), path, spec=parse_target("cpu", threads=1))
    with runtime.load(path) as loaded:
        yield loaded


def inputs(**shifts: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {name: np.asarray(shifts.get(name, 0)) for name in "abcd"}
    given["x"] = rng.standard_normal((3, 6)).astype(np.float32)
    given["whole"] = rng.integers(0, 99, (3, 6))
    given["i"] = np.array([[0, 2, 1], [5, 4, 3], [0, 0, 2]])
    return given


def test_what_is_inside_is_as_in_torch(artifact: runtime.Artifact) -> None:
    graph, given = loads(PROGRAM), inputs()
    with torch.no_grad():
        needed = to_torch(graph, InitialWeights(graph))(*(torch.from_numpy(given[v.name]) for v in graph.inputs))
    for result, wanted in zip(artifact.run(given).values(), needed, strict=True):
        np.testing.assert_array_equal(result, wanted.numpy())


@pytest.mark.parametrize("shift", [1, -1, 1 << 20, 1 << 40, -(1 << 40)])
@pytest.mark.parametrize("of", ["a", "b", "c"])
def test_what_is_outside_is_told(of: str, shift: int, artifact: runtime.Artifact) -> None:
    with pytest.raises(CompileError) as error:
        artifact.run(inputs(**{of: shift}))
    assert [d.code for d in error.value.diagnostics] == ["E0529"]
    name = {"a": "`gather`", "b": "`numbers.gather`", "c": "`rows.index_select`"}[of]
    assert name in error.value.diagnostics[0].message
    artifact.run(inputs())  # the artifact is as good as before


@pytest.mark.parametrize("shift", [1, -1, 1 << 20])
def test_a_table_too(shift: int, artifact: runtime.Artifact) -> None:
    with pytest.raises(CompileError, match="E0529"):
        artifact.run(inputs(d=shift))


def test_which_indices_need_no_check() -> None:
    """An input that is checked before each call, an argmax along the axis that is indexed, and no other."""
    from archc.backends.inputs import index_bounds
    from archc.backends.tvm.lower import lower

    graph = loads(PROGRAM)
    script = lower(graph, InitialWeights(graph), bounds=index_bounds(graph)).script()
    assert script.count("= R.call_tir(cls.checked") == 4  # not for `best`
    tokens = loads("arch a\ninput i: i64[N]\noutput y: f32[N, 2]\ny = i -> embedding(7, 2)\n")
    weights = InitialWeights(tokens)
    assert "checked" not in lower(tokens, weights, bounds=index_bounds(tokens)).script()
    assert "checked" in lower(tokens, weights).script()
