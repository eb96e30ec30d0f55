"""Profiles: the kernels are those of the program, the times add up, and the trace and the chart open elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archc.backends.profile import OVERHEAD, Profile, profile, static_report
from archc.backends.runtime import load

X = np.random.default_rng(0).standard_normal((256, 64), dtype=np.float32)


@pytest.fixture(scope="module")
def measured(mlp_path: Path) -> Profile:
    return profile(load(mlp_path), {"x": X}, runs=5)


def test_kernels_and_their_shares(measured: Profile) -> None:
    kernels = {k.name: k for k in measured.kernels}
    assert kernels.keys() == {"fused_matmul_add_relu", "fused_matmul1_add1_relu1", OVERHEAD}
    assert kernels["fused_matmul_add_relu"].calls == 1
    assert sum(k.share for k in measured.kernels) == pytest.approx(1)
    assert [k.ms for k in measured.kernels] == sorted((k.ms for k in measured.kernels), reverse=True)
    # 64·128 multiply-adds per row against 128·10
    assert kernels["fused_matmul_add_relu"].ms > kernels["fused_matmul1_add1_relu1"].ms


def test_events_lie_one_after_another(measured: Profile) -> None:
    events = [e for e in measured.events if e.name.startswith("fused")]
    assert [e.name for e in events] == ["fused_matmul_add_relu", "fused_matmul1_add1_relu1"]
    assert events[0].start_us + events[0].duration_us <= events[1].start_us
    assert events[0].operands[0] == "float32[256, 64]"


def test_measuring_does_not_slow_the_artifact_down_later(mlp_path: Path) -> None:
    artifact = load(mlp_path)
    before = artifact(X)
    seen = profile(artifact, {"x": X}, runs=1)
    count = len(seen.events)
    np.testing.assert_array_equal(artifact(X), before)
    assert len(seen.events) == count


def test_recursion_counts_no_time_twice(compile_relax: Callable[..., Path], mlp: Any) -> None:
    from tvm.script import ir as I
    from tvm.script import relax as R

    from archc.backends.artifact import Port
    from archc.backends.tvm.load import tvm

    wide = tvm.relax.const(np.ones((2048, 512), np.float32))

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2048, 512), "float32")) -> R.Tensor((2048, 512), "float32"):
            y: R.Tensor((2048, 512), "float32") = Module.inner(x)
            return y

        @R.function
        def inner(x: R.Tensor((2048, 512), "float32")) -> R.Tensor((2048, 512), "float32"):
            return R.add(x, wide)

    port = Port(name="x", dtype="f32", dims=(2048, 512))
    artifact = load(compile_relax(Module, mlp.facts(name="nested", inputs=(port,), outputs=(port,))))
    found = {k.name: k for k in profile(artifact, {"x": np.ones((2048, 512), np.float32)}, runs=5).kernels}
    assert found["add"].ms > 5 * found["inner"].ms, "the caller's own time leaves out its kernel's"


def test_the_trace_is_chromes(measured: Profile, tmp_path: Path) -> None:
    measured.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(spans) == len(measured.events)
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    assert json.loads(json.dumps(measured.to_json()))["runs"] == 5


def test_the_chart_is_a_picture(measured: Profile, tmp_path: Path) -> None:
    measured.chart(tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.width > 400
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    measured.chart(tmp_path / "chart.svg")
    assert "<svg" in (tmp_path / "chart.svg").read_text()


def test_the_static_report_needs_no_run(mlp_path: Path) -> None:
    report = static_report(load(mlp_path))
    sizes = {k["name"]: k["bytes"] for k in report["kernels"]}
    assert sizes["fused_matmul_add_relu"] > 100
    assert report["bytes"]["weights"] > 64 * 128 * 4
    assert report["target"]["kind"] == "cpu"
