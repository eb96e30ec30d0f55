"""Floats in compiled code are floats: NaN, infinities, -0 and rounding come out as torch has them.

TVM's simplifier has rules that hold for whole numbers only (`backends/tvm/exact.py` lists them). Everything here is one
artifact with many outputs, over all pairs of special values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from archc.backends import runtime
from archc.backends.initial import InitialWeights
from archc.backends.torch.module import to_torch
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads

Array = NDArray[Any]

FOLDED = [
    "x - x", "x * 0.0", "-0.0 * x", "x / 0.0", "0.0 / x", "x + 0.0", "x - -0.0", "0.0 - x", "-(-x)",
    "(x + y) - y", "x - (x + y)", "(x + 1.0) - 1.0", "1.0 - (x + 1.0)", "(x * 0.0) + 1.0",
    "(x -> log) - (x -> log)", "(x -> log) * 0.0", "maximum(x, x)", "minimum(x, y)", "x -> relu",
    "where(x < y, x, where(x >= y, y, 3.0 * x))", "where(x <= y, x, where(y < x, y, 3.0 * x))",
    "where(x < 0.0, x, where(x >= 0.0, y, -x))", "where(logical_not(x < y), x, y)",
    "x -> tanh", "x -> elu", "x -> log1p", "x -> expm1", "x -> sigmoid", "pow(x, y)", "x -> sign",
]  # fmt: skip
FOLDED_BOOLS = [
    "x == x", "x != x", "x <= x", "x != y", "logical_or(x < y, x >= y)", "logical_or(y <= x, x < y)",
    "logical_or(x < 1.0, x >= 1.0)", "logical_not(x < y)", "logical_not(x <= y)", "(x -> log) == (x -> log)",
]  # fmt: skip
WHOLE = ["x - x", "(x + y) - y", "x * y", "-x", "x -> abs", "x -> sign", "x * 0", "x -> clamp(min = -3, max = 5)"]
WHOLE_BOOLS = ["abs(x) >= 0", "x * x >= 0", "logical_or(x < y, x >= y)", "(x + y) - x == y"]


def test_floats(tmp_path: Path) -> None:
    special = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -1e-40, 3e38, -3e38, 0.3, 1e-6]
    results, needed = _both("f32", FOLDED, FOLDED_BOOLS, special, tmp_path)
    # torch multiplies by the reciprocal, which of a denormal is infinite
    needed["0.0 / x"] = np.where(np.abs(_pairs("f32", special)["x"]) == np.float32(1e-40), -0.0, needed["0.0 / x"])
    assert {e: bad for e in results if (bad := _wrong(results[e], needed[e]))} == {}


def test_the_border_of_a_maximum_is_infinite(tmp_path: Path) -> None:
    graph = loads(
        "arch a\ninput x: f32[N, 2, 4]\noutput y: f32[N, 2, 4]\noutput z: f32[N, 2, 4]\n"
        "y = x -> max_pool(3, stride = 1, padding = 1)\nz = x -> conv(2, 1) -> max_pool(3, stride = 1, padding = 1)\n"
    )
    weights = InitialWeights(graph)
    compile_graph(graph, weights, tmp_path / "a.archc", spec=parse_target("cpu", threads=1))
    x = np.full((3, 2, 4), -np.inf, np.float32)
    x[1:] = np.random.default_rng(0).standard_normal((2, 2, 4))
    x[1, 0, 1] = np.nan
    with runtime.load(tmp_path / "a.archc") as artifact, torch.no_grad():
        for result, needed in zip(artifact(x), to_torch(graph, weights).eval()(torch.from_numpy(x)), strict=True):
            np.testing.assert_allclose(result, needed.numpy(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["i64", "i32"])
def test_whole_numbers_wrap(dtype: str, tmp_path: Path) -> None:
    info = np.iinfo({"i64": "int64", "i32": "int32"}[dtype])
    special = [0, 1, -1, 2, -3, 7, info.max, info.min, info.max - 1, info.min + 1]
    results, needed = _both(dtype, WHOLE, WHOLE_BOOLS, special, tmp_path)
    assert {e: bad for e in results if (bad := _wrong(results[e], needed[e]))} == {}


def test_what_tvm_would_fold_and_a_veil_keeps() -> None:
    from archc.backends.tvm.exact import veil
    from archc.backends.tvm.load import tvm

    tirx, analyzer = tvm.tirx, tvm.sym.Analyzer()
    x, y = (tirx.Var(name, "float32") for name in "xy")
    plain = [tirx.Sub(x, x), tirx.Sub(tirx.Add(x, y), y), tirx.EQ(x, x), tirx.Or(x < y, x >= y)]
    veiled = [
        tirx.Sub(x, veil(x)),
        tirx.Sub(tirx.Add(x, y), veil(y)),
        tirx.EQ(x, veil(x)),
        tirx.Or(tirx.LT(x, veil(y)), tirx.GE(x, veil(y, "uint"))),
    ]
    for loose, kept in zip(plain, veiled, strict=True):
        assert "reinterpret" in str(analyzer.simplify(kept))
        assert str(analyzer.simplify(loose)) in ("x", "T.float32(0.0)", "T.bool(True)")  # else the veil is needless


def _pairs(dtype: str, special: Sequence[float]) -> dict[str, Array]:
    numpy = {"f32": "float32", "i64": "int64", "i32": "int32"}[dtype]
    pairs = list(itertools.product(np.array(special, numpy), repeat=2))
    return {name: np.ascontiguousarray([p[i] for p in pairs]) for i, name in enumerate("xy")}


def _both(
    dtype: str, values: list[str], bools: list[str], special: Sequence[float], folder: Path
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What compiled code and torch make of expressions, over all pairs of special values."""
    expressions = [(e, dtype) for e in values] + [(e, "bool") for e in bools]
    lines = ["arch table", *(f"input {name}: {dtype}[N]" for name in "xy")]
    lines += [f"output o{i}: {type_}[N]" for i, (_, type_) in enumerate(expressions)]
    lines += [f"o{i} = {e}" for i, (e, _) in enumerate(expressions)]
    graph = loads("\n".join(lines) + "\n")
    compile_graph(graph, InitialWeights(graph), folder / "a.archc", spec=parse_target("cpu", threads=1))
    inputs = _pairs(dtype, special)
    with runtime.load(folder / "a.archc") as artifact:
        made = artifact.run(inputs)
    with torch.no_grad():
        judged = to_torch(graph, InitialWeights(graph)).eval()(*(torch.from_numpy(x) for x in inputs.values()))
    names = [e for e, _ in expressions]
    return dict(zip(names, made.values(), strict=True)), dict(zip(names, (t.numpy() for t in judged), strict=True))


def _wrong(result: Array, needed: Array) -> str:
    """Where NaN, infinities, signs (of zeros too) or numbers differ."""
    if result.dtype.kind != "f":
        return "" if (result == needed).all() else f"{(result != needed).sum()} elements differ"
    nan = np.isnan(needed)
    if (np.isnan(result) != nan).any():
        return "NaN in other places"
    if (np.signbit(result) != np.signbit(needed))[~nan].any():
        return "other signs"
    if (np.isinf(result) != np.isinf(needed)).any():
        return "infinities in other places"
    finite = np.isfinite(needed)
    return "" if np.allclose(result[finite], needed[finite], rtol=1e-6, atol=1e-44) else "other numbers"
