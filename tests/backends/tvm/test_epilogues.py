"""What follows a matrix product or a convolution and changes the size of its result: borders, and slices from the first
element. TVM takes both for elementwise; a special kernel that did so left out elements or moved them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from archc.backends.initial import InitialWeights
from archc.backends.runtime import load
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads

FOLLOWS = {
    "x -> conv(7, 3, padding = 1) -> pad([0, 1])": "f32[N, 7, 6]",
    "x -> conv(7, 3, padding = 1, groups = 7) -> pad([0, 3])": "f32[N, 7, 8]",
    "x -> conv(7, 3, padding = 1) -> relu -> slice(1, to = 3)": "f32[N, 3, 5]",
    "x -> linear(9) -> pad([0, 2])": "f32[N, 7, 11]",
    "x -> linear(9) -> pad([0, 0, 0, 2])": "f32[N, 9, 9]",
    "x -> linear(9) -> slice(1, to = 4) -> relu": "f32[N, 4, 9]",
    "x -> linear(9) -> select(1, 0) -> relu": "f32[N, 9]",
    "matmul(x, x -> transpose(1, 2)) -> slice(2, to = 3)": "f32[N, 7, 3]",
    "x -> softmax -> pad([0, 2])": "f32[N, 7, 7]",
}


def test_results_that_change_their_size(tmp_path: Path) -> None:
    lines = ["arch follows", "input x: f32[N, 7, 5]"]
    lines += [f"output o{i}: {type_}" for i, type_ in enumerate(FOLLOWS.values())]
    lines += [f"o{i} = {body}" for i, body in enumerate(FOLLOWS)]
    graph = loads("\n".join(lines) + "\n")
    weights = InitialWeights(graph)
    compile_graph(graph, weights, tmp_path / "a.archc", spec=parse_target("cpu", threads=1))
    x = np.random.default_rng(0).standard_normal((2, 7, 5)).astype(np.float32)
    with load(tmp_path / "a.archc") as artifact, torch.no_grad():
        needed = to_torch(graph, weights, dtype="f64").eval()(torch.from_numpy(x).double())
        for body, found, wanted in zip(FOLLOWS, artifact(x), needed, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5, err_msg=body)
