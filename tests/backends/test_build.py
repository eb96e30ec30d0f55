"""Building: constants lifted through calls and branches, code for other processors, links without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archc.backends.artifact import Port, open_artifact
from archc.backends.runtime import load
from archc.backends.tvm.elf import function_sizes
from archc.backends.tvm.link import find_compiler
from archc.backends.tvm.targets import parse_target
from archc.ir.diagnostics import CompileError


def recursive() -> Any:
    """`repeat(n, x)` adds a constant n times, by halving; `main` adds another one that only it needs."""
    from tvm.script import ir as I
    from tvm.script import relax as R

    from archc.backends.tvm.load import tvm

    step = tvm.relax.const(np.arange(4, dtype=np.float32))
    first = tvm.relax.const(np.full(4, 100, np.float32))

    @I.ir_module
    class Module:
        @R.function
        def main(n: R.Tensor((), "int32"), x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            y = R.add(x, first)
            z: R.Tensor((4,), "float32") = Module.repeat(R.const(0, "int32"), n, y)
            return z

        @R.function
        def repeat(low: R.Tensor((), "int32"), high: R.Tensor((), "int32"), x: R.Tensor((4,), "float32")) -> R.Tensor(
            (4,), "float32"
        ):
            last: R.Tensor((), "bool") = R.less_equal(R.subtract(high, low), R.const(1, "int32"))
            if last:
                y: R.Tensor((4,), "float32") = R.add(x, step)
            else:
                middle: R.Tensor((), "int32") = R.floor_divide(R.add(low, high), R.const(2, "int32"))
                a: R.Tensor((4,), "float32") = Module.repeat(low, middle, x)
                y: R.Tensor((4,), "float32") = Module.repeat(middle, high, a)
            return y

    return Module


def test_constants_are_lifted_through_calls_and_branches(compile_relax: Any, mlp: Any, monkeypatch: Any) -> None:
    from archc.backends.tvm import lift

    module, constants = lift.lift_constants(recursive(), smallest=16)
    assert [c.tolist() for c in constants] == [[100] * 4, [0, 1, 2, 3]] or len(constants) == 2
    assert all(len(f.params) == n for name, n in (("main", 3), ("repeat", 4)) for f in [module[name]])

    monkeypatch.setattr(lift.lift_constants, "__kwdefaults__", {"entry": "main", "smallest": 16})
    ports = {
        "inputs": (Port(name="n", dtype="i32", dims=()), Port(name="x", dtype="f32", dims=(4,))),
        "outputs": (Port(name="y", dtype="f32", dims=(4,)),),
    }
    path = compile_relax(recursive(), mlp.facts(name="recursive", **ports))
    assert open_artifact(path).manifest.constants == 2
    y = load(path)(np.int32(1000), np.zeros(4, np.float32))
    np.testing.assert_array_equal(y, 100 + 1000 * np.arange(4))


def test_what_is_small_stays(mlp: Any) -> None:
    from archc.backends.tvm.lift import lift_constants

    module = mlp.module()
    same, constants = lift_constants(module, smallest=1 << 20)
    assert same is module
    assert constants == []


def test_shared_constants_are_lifted_once() -> None:
    from archc.backends.tvm.lift import lift_constants
    from archc.backends.tvm.load import tvm

    relax = tvm.relax
    weight = relax.const(np.ones((64, 64), np.float32))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x]):
        y = builder.emit(relax.op.matmul(builder.emit(relax.op.matmul(x, weight)), weight))
        builder.emit_func_output(y)
    _, constants = lift_constants(builder.get())
    assert len(constants) == 1


def test_code_for_a_processor_that_is_not_here(compile_relax: Any, mlp: Any) -> None:
    if shutil.which("aarch64-linux-gnu-g++") or parse_target("cpu").machine == "aarch64":
        pytest.skip("aarch64 can be linked here")
    spec = parse_target("aarch64")
    path = compile_relax(mlp.module(), mlp.facts(), spec=spec)
    opened = open_artifact(path)
    assert opened.manifest.code == "object"
    library = bytes(opened.section("library"))
    assert library.startswith(b"!<arch>\n0.o/")
    elf = library[68:]
    assert elf[:4] == b"\x7fELF"
    assert int.from_bytes(elf[18:20], "little") == 183, "AArch64"
    assert path.read_bytes() == compile_relax(mlp.module(), mlp.facts(), spec=spec).read_bytes()
    with pytest.raises(CompileError, match="E0505") as caught:
        load(path)
    assert caught.value.exit_code == 4


def test_older_levels_run_here_and_agree(compile_relax: Any, mlp: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        spec = parse_target(level)
        if spec.missing_features:
            continue
        artifact = load(compile_relax(mlp.module(), mlp.facts(), spec=spec))
        np.testing.assert_allclose(artifact(x), mlp.reference(x), rtol=1e-4, atol=1e-5)


def test_no_compiler_is_a_diagnostic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Path(find_compiler()).exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompileError, match="E0504") as caught:
        find_compiler()
    assert caught.value.exit_code == 4


def test_a_compiler_that_fails_is_a_diagnostic(compile_relax: Any, mlp: Any, monkeypatch: Any, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho ld: disk on fire >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(CompileError, match="E0504") as caught:
        compile_relax(mlp.module(), mlp.facts())
    assert "disk on fire" in caught.value.diagnostics[0].label


def test_function_sizes_are_those_of_the_symbol_table(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text(
        "int tiny(void) { return 1; }\nint big(int x) { for (int i = 0; i < x; i++) x ^= i * x; return x; }\n"
    )
    compiler = find_compiler()
    subprocess.run([compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", tmp_path / "a.so", source], check=True)
    sizes = function_sizes((tmp_path / "a.so").read_bytes())
    assert 0 < sizes["tiny"] < sizes["big"] < 500
    assert function_sizes(b"not an ELF file at all") == {}


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")
def test_the_number_of_threads_can_be_set_at_run_time(compile_relax: Any, mlp: Any) -> None:
    from tvm.script import ir as I
    from tvm.script import relax as R
    from tvm.script import tirx as T

    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True, private=True)
        def spread(x: T.Buffer((64, 65536), "float32"), y: T.Buffer((64, 65536), "float32")):
            for i in T.parallel(64):
                for j in range(65536):
                    with T.sblock("y"):
                        a, b = T.axis.remap("SS", [i, j])
                        y[a, b] = T.exp(x[a, b]) + T.sin(x[a, b])

        @R.function
        def main(x: R.Tensor((64, 65536), "float32")) -> R.Tensor((64, 65536), "float32"):
            cls = Module
            y = R.call_tir(cls.spread, (x,), out_ty=R.Tensor((64, 65536), "float32"))
            return y

    port = Port(name="x", dtype="f32", dims=(64, 65536))
    path = compile_relax(Module, mlp.facts(name="spread", inputs=(port,), outputs=(port,)))
    code = f"""
import sys
from pathlib import Path
import numpy as np
from archc.backends.runtime import load
x = np.ones((64, 65536), np.float32)
def busy():
    tasks = Path("/proc/self/task").iterdir()
    return {{t.name: int((t / "stat").read_text().rsplit(")", 1)[1].split()[11]) for t in tasks}}
for threads in map(int, sys.argv[1:]):
    artifact, before = load({str(path)!r}, threads=threads), busy()
    for _ in range(20):
        artifact(x)
    print(sum(after > before.get(task, 0) + 1 for task, after in busy().items()))
"""
    command = [sys.executable, "-c", code, "1", "2", "1", "3", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    most = max(2, os.cpu_count() or 1)
    assert [int(n) for n in done.stdout.split()] == [1, 2, 1, min(3, most), 2]
