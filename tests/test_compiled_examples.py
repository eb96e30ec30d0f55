"""Every example, compiled for this CPU, against torch in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archc.backends import runtime
from archc.backends.tvm.compile import compile_graph
from archc.backends.tvm.targets import parse_target
from archc.facade.numerics import Verification, verify_run
from archc.facade.weights import resolve
from archc.grammar.load import load
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.arch")) + sorted((EXAMPLES / "einspace").glob("*.arch"))

SMALL = {
    "digits_resnet": {"width": 4},
    "gpt2_small": {"dim": 24, "depth": 1, "heads": 4, "vocab": 40, "context": 16},
    "lstm": {"vocab": 50, "dim": 12},
    "mixtral_like": {"dim": 16, "depth": 1, "heads": 4, "kv_heads": 2, "hidden": 8, "experts": 4, "vocab": 40},
    "skipnet": {"width": 4, "depth": 1},
}


def judged(graph: Graph, folder: Path, broken: bool = False) -> Verification:
    """Compile with generic weights (running statistics that do something, scales that are not 1) and judge."""
    weights = {
        name: value.astype("float32") if value.dtype == "float64" else value
        for name, value in random_weights(graph, 0).items()
    }
    path = folder / "a.archc"
    compile_graph(graph, weights, path, spec=parse_target("cpu", threads=1))
    if broken:  # as if the compiler had lost one weight in a thousand
        name = max(weights, key=lambda n: weights[n].size)
        weights[name] = weights[name].copy()
        weights[name].reshape(-1)[::1000] += 0.01
    with runtime.load(path) as artifact:
        return verify_run(graph, weights, artifact.run)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_small_example_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    verification = judged(load(EXAMPLES / f"{name}.arch", SMALL[name]), tmp_path)
    assert verification.ok, verification


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_an_example_computes_what_torch_computes(file: Path, tmp_path: Path) -> None:
    verification = judged(load(file), tmp_path)
    assert verification.ok, verification


def test_a_slightly_wrong_result_is_noticed(tmp_path: Path) -> None:
    verification = judged(load(EXAMPLES / "digits_resnet.arch", {"width": 4}), tmp_path, broken=True)
    assert not verification.ok
    assert "off by" in verification.outputs[0].reason


def test_an_index_outside_its_table_is_refused(tmp_path: Path) -> None:
    graph = load(EXAMPLES / "lstm.arch", SMALL["lstm"])
    compile_graph(graph, resolve(graph, None).arrays, tmp_path / "a.archc", spec=parse_target("cpu", threads=1))
    with runtime.load(tmp_path / "a.archc") as artifact:
        assert artifact(np.array([[0, 49]])).shape == (1, 2, 50)
        for index in (-1, 50, 10**9):
            with pytest.raises(CompileError) as caught:
                artifact(np.array([[0, index]]))
            (diagnostic,) = caught.value.diagnostics
            assert diagnostic.code == "E0529"
            assert f"found {index} at [0, 1]" in diagnostic.message
