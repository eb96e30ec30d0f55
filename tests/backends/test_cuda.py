"""CUDA without a GPU: real machine code for several architectures, by nvcc or nvrtc, and no stub in this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archc.backends import native
from archc.backends.artifact import Port, open_artifact
from archc.backends.profile import static_report
from archc.backends.runtime import load
from archc.backends.tvm.cuda import (
    compile_source,
    demand_arches,
    fatbin_images,
    find_cuda_compiler,
    keep_nan,
    ptxas_report,
)
from archc.backends.tvm.link import find_compiler
from archc.backends.tvm.targets import parse_target
from archc.ir.diagnostics import CompileError

PROBE = 'extern "C" __global__ void probe(float* x) { x[threadIdx.x] += 1.0f; }'


needs_compiler = pytest.mark.usefixtures("cuda_compiler")


@pytest.fixture(scope="session")
def cuda_path(compile_relax: Callable[..., Path], mlp: Any) -> Path:
    return compile_relax(mlp.module(), mlp.facts(name="mlp-cuda"), spec=parse_target("cuda"))


@needs_compiler
def test_machine_code_for_both_architectures_and_ptx(cuda_path: Path) -> None:
    opened = open_artifact(cuda_path)
    assert fatbin_images(bytes(opened.section("library"))) == ["sm_80", "sm_90", "ptx 90"]
    assert opened.report["images"] == ["sm_80", "sm_90", "ptx 90"]
    assert b'extern "C" __global__' not in bytes(opened.section("library")), "no source in place of code"
    assert opened.manifest.constants == 1
    assert str(opened.manifest.target) == "cuda:sm_80,sm_90"


@needs_compiler
def test_what_ptxas_said_is_kept(cuda_path: Path) -> None:
    if "nvcc" not in open_artifact(cuda_path).manifest.toolchain:
        pytest.skip("only nvcc reports on kernels")
    kernels = static_report(open_artifact(cuda_path))["kernels"]
    assert {k["arch"] for k in kernels} == {"sm_80", "sm_90"}
    assert all(0 < k["registers"] <= 255 for k in kernels)
    assert all(k["spill_store_bytes"] == 0 for k in kernels)
    assert any(k["shared_bytes"] for k in kernels), "dlight's matmul stages tiles in shared memory"


@needs_compiler
def test_equal_input_gives_equal_bytes(cuda_path: Path, compile_relax: Callable[..., Path], mlp: Any) -> None:
    again = compile_relax(mlp.module(), mlp.facts(name="mlp-cuda"), spec=parse_target("cuda:sm_90,sm_80"))
    assert again.read_bytes() == cuda_path.read_bytes()


@needs_compiler
def test_the_stub_driver_never_reaches_this_process(cuda_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc")
    assert "archc-cuda-" not in maps.read_text()


@needs_compiler
def test_without_a_gpu_it_says_so(cuda_path: Path) -> None:
    if native.cuda_problem() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(CompileError, match="E0508") as caught:
        load(cuda_path)
    assert caught.value.exit_code == 4
    assert caught.value.diagnostics[0].label == native.cuda_problem()


@needs_compiler
def test_on_a_gpu_it_computes(cuda_path: Path, mlp: Any) -> None:
    if native.cuda_problem():
        pytest.skip(f"no GPU: {native.cuda_problem()}")
    artifact = load(cuda_path)
    for batch in (1, 33):
        x = np.random.default_rng(batch).standard_normal((batch, 64), dtype=np.float32)
        np.testing.assert_allclose(artifact(x), mlp.reference(x), rtol=1e-3, atol=1e-4)


@needs_compiler
def test_an_unknown_architecture_is_refused(compile_relax: Callable[..., Path], mlp: Any) -> None:
    with pytest.raises(CompileError, match="E0503") as caught:
        compile_relax(mlp.module(), mlp.facts(), spec=parse_target("cuda:sm_35"))
    assert caught.value.exit_code == 4
    demand_arches(find_cuda_compiler(), ["sm_90a"])


def test_no_compiler_is_a_diagnostic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHC_CUDA_COMPILER", "/nowhere/nvcc")
    with pytest.raises(CompileError, match="E0502") as caught:
        find_cuda_compiler()
    assert caught.value.exit_code == 4
    assert "nvidia-cuda-nvrtc" in (caught.value.diagnostics[0].help or "")


def test_nvrtc_makes_the_same_kind_of_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHC_CUDA_COMPILER", "nvrtc")
    try:
        find_cuda_compiler()
    except CompileError:
        pytest.skip("nvrtc is not installed")
    code = f"""
from archc.backends.tvm.cuda import compile_source, fatbin_images, find_cuda_compiler
print(fatbin_images(compile_source({PROBE!r}, ["sm_80", "sm_90"], find_cuda_compiler())[0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "['sm_80', 'sm_90', 'ptx 90']"


@needs_compiler
def test_one_architecture_only() -> None:
    compiler = find_cuda_compiler()
    binary, report = compile_source(PROBE, ["sm_80"], compiler)
    assert fatbin_images(binary) == ["sm_80", "ptx 80"]
    assert [k["name"] for k in report] in (["probe"], [])
    assert fatbin_images(b"no such thing") == []


def test_spills_are_read_from_ptxas() -> None:
    (kernel,) = ptxas_report(
        "ptxas info    : Compiling entry function 'conv' for 'sm_80'\n"
        "ptxas info    : Function properties for conv\n"
        "    144 bytes stack frame, 312 bytes spill stores, 400 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 49152 bytes smem, 400 bytes cmem[0]\n"
    )
    assert kernel == {
        "name": "conv",
        "arch": "sm_80",
        "registers": 255,
        "shared_bytes": 49152,
        "stack_bytes": 144,
        "spill_store_bytes": 312,
        "spill_load_bytes": 400,
    }


@needs_compiler
def test_a_convolution_with_symbolic_batch(compile_relax: Callable[..., Path], mlp: Any) -> None:
    from archc.backends.tvm.load import tvm

    relax = tvm.relax
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("N", "int64"), 16, 32, 32), "float32"))
    weight = np.random.default_rng(0).standard_normal((32, 16, 3, 3), dtype=np.float32)
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.relu(relax.op.nn.conv2d(x, relax.const(weight), padding=1)))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    ports = {
        "inputs": (Port(name="x", dtype="f32", dims=("N", 16, 32, 32)),),
        "outputs": (Port(name="y", dtype="f32", dims=("N", 32, 32, 32)),),
    }
    path = compile_relax(builder.get(), mlp.facts(name="conv", **ports), spec=parse_target("cuda:sm_90"))
    opened = open_artifact(path)
    assert opened.report["images"] == ["sm_90", "ptx 90"]
    np.testing.assert_array_equal(opened.constants()[0], weight)


def test_max_and_min_keep_nan(tmp_path: Path) -> None:
    """The functions that kernels get for `max` and `min`, run on the CPU: what CUDA's do would drop NaN."""
    code = keep_nan('extern "C" __global__ void f(float* x) { x[0] = max(x[0], min(x[1], x[2])); }')
    assert "archc_max(x[0], archc_min(x[1], x[2]))" in code
    templates, _ = code.split('extern "C" __global__')
    source, program = tmp_path / "nan.cc", tmp_path / "nan"
    source.write_text(
        "#include <cmath>\n#define __device__\n#define __forceinline__ inline\n"
        + templates
        + """int main() {
  float n = std::nanf(""), one = 1, two = 2;
  bool kept = std::isnan(archc_max(n, one)) && std::isnan(archc_max(one, n)) && std::isnan(archc_min(n, one))
           && std::isnan(archc_min(one, n));
  bool plain = archc_max(one, two) == 2 && archc_min(one, two) == 1 && archc_max(3L, 2) == 3;
  return kept && plain && !std::isnan(std::fmax(n, one)) ? 0 : 1;
}
"""
    )
    subprocess.run([find_compiler(), "-o", str(program), str(source)], check=True)
    assert subprocess.run([str(program)], check=False).returncode == 0


def test_a_reduction_begins_with_infinity() -> None:
    lowest = "-0x1.fffffep+127f/*-3.402823e+38*/"
    head = 'extern "C" __global__ void f(float* y, float* x) {\n'
    code = keep_nan(f"{head}  y[0] = {lowest};\n  y[0] = max(y[0], x[1]);\n  x[0] = {lowest};\n}}")
    assert "y[0] = __int_as_float(0xff800000);" in code
    assert f"x[0] = {lowest};" in code, "not so where nothing is reduced"
    assert keep_nan(f"{head} y[0] = {lowest};\n}}") == f"{head} y[0] = {lowest};\n}}"


@needs_compiler
def test_what_tvm_cannot_compile_is_a_diagnostic(compile_relax: Callable[..., Path], mlp: Any) -> None:
    from archc.backends.tvm.load import tvm

    relax = tvm.relax
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(builder.call_te(_calls_nothing, x))
        builder.emit_func_output(y)
    with pytest.raises(CompileError, match="E0532") as caught:
        compile_relax(builder.get(), mlp.facts(name="bad"), spec=parse_target("cuda:sm_90"))
    assert caught.value.exit_code == 4
    report = Path(re.findall(r"\S+archc-report-\S+", caught.value.diagnostics[0].help or "")[0])
    assert "Traceback" in report.read_text()
    report.unlink()


def _calls_nothing(x: Any) -> Any:
    """A kernel that calls what no GPU has."""
    from tvm import te, tirx

    return te.compute(
        x.shape, lambda i: tirx.call_pure_extern("float32", "no_such_function", x[i]), name="no_such_kernel"
    )
