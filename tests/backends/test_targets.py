"""Targets are parsed without tvm, resolve to a concrete machine, and agree with LLVM about this one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from archc.backends.tvm import targets
from archc.backends.tvm.targets import host, native_mcpu, parse_target
from archc.ir.diagnostics import CompileError


@pytest.mark.parametrize(
    ("text", "kind", "mcpu", "isa", "arches"),
    [
        ("x86-64-v2", "cpu", "x86-64-v2", "sse", ()),
        ("x86-64-v3", "cpu", "x86-64-v3", "avx2", ()),
        ("x86-64-v4", "cpu", "x86-64-v4", "avx512", ()),
        ("aarch64", "cpu", "generic", "neon", ()),
        ("llvm -mcpu=znver3", "cpu", "znver3", "avx2", ()),
        ('{"kind": "llvm", "mcpu": "skylake-avx512"}', "cpu", "skylake-avx512", "avx512", ()),
        ('{"kind": "llvm", "mcpu": "x86-64-v2", "mattr": ["+avx2", "+fma"]}', "cpu", "x86-64-v2", "avx2", ()),
        ("cuda", "cuda", "x86-64-v2", "sse", ("sm_80", "sm_90")),
        ("cuda:sm_90, sm_80", "cuda", "x86-64-v2", "sse", ("sm_80", "sm_90")),
        (
            '{"kind": "cuda", "arch": "sm_86", "host": {"kind": "llvm", "mcpu": "znver3"}}',
            "cuda",
            "znver3",
            "avx2",
            ("sm_86",),
        ),
        ('{"kind": "cuda", "arch": "sm_86"}', "cuda", "x86-64-v2", "sse", ("sm_86",)),
    ],
)
def test_targets_that_exist(text: str, kind: str, mcpu: str, isa: str, arches: tuple[str, ...]) -> None:
    if mcpu == "x86-64-v2" and kind == "cuda" and host()[0] != "x86_64":
        mcpu, isa = "generic", "neon"
    spec = parse_target(text)
    assert (spec.kind, spec.mcpu, spec.isa, spec.arches) == (kind, mcpu, isa, arches)
    assert targets.TargetSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpuu", "did you mean `cpu`?"),
        ("x86-64-v5", "did you mean `x86-64-v"),
        ("tpu", "`cpu`"),
        ("", "`cpu`"),
        ("cuda:sm90", "did you mean `sm_90`?"),
        ("cuda:", "`cuda"),
        ("cuda:sm_90;rm", "`cuda"),
        ('{"kind": "opencl"}', "`cpu`"),
        ('{"kind": "llvm", "mpcu": "znver4"}', "did you mean `mcpu`?"),
        ('{"kind": "llvm", "mattr": "+avx2"}', "`cpu`"),
        ('{"kind": "llvm", "mcpu": 4}', "`cpu`"),
        ('{"kind": "cuda", "host": "x"}', "`cpu`"),
        ('{"kind": "cuda", "host": {"kind": "cuda"}}', "`cpu`"),
        ("{" * 100_000, "`cpu`"),
        ("llvm mcpu=znver4", "`cpu`"),
    ],
)
def test_targets_that_do_not(text: str, said: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_target(text)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "E0501"
    assert caught.value.exit_code == 4
    assert said in (diagnostic.help or "")


def test_a_hidden_feature_gives_an_older_name() -> None:
    zen4 = targets._AMD["znver4"]
    assert native_mcpu(zen4) == "znver4"
    assert native_mcpu(zen4 - {"avx512f"}) == "znver1"  # no clwb in the list that a hypervisor left
    assert native_mcpu(zen4 - {"avx512f", "avx2"}) == "x86-64-v2"
    assert native_mcpu(targets._INTEL["icelake-server"]) == "icelake-server"
    assert native_mcpu(targets._INTEL["icelake-server"] - {"gfni"}) == "cascadelake"


def test_the_host_lacks_nothing_that_it_was_detected_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_target("cpu")
    assert spec.missing_features == ()
    machine, flags = host()
    monkeypatch.setattr(targets, "host", lambda: (machine, flags - {"avx2"}))
    if machine == "x86_64" and "avx2" in flags:
        assert spec.missing_features == ("avx2",)
    monkeypatch.setattr(targets, "host", lambda: ("riscv64", frozenset()))
    assert spec.missing_features == (machine,)


def test_parsing_imports_no_tvm() -> None:
    code = "from archc.backends.tvm.targets import parse_target as p; p('cpu'); p('cuda')"
    code += "; import sys; print('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_llvm_agrees_about_this_machine() -> None:
    from archc.backends.tvm.load import tvm_ffi

    target = parse_target("cpu").to_tvm()
    has = tvm_ffi.get_global_func("target.llvm_cpu_has_feature")
    if host()[0] == "x86_64":
        for llvm, kernel in (("avx2", "avx2"), ("avx512f", "avx512f"), ("fma", "fma")):
            assert bool(has(llvm, target)) <= (kernel in host()[1]), "code must not use what the machine lacks"
    system = tvm_ffi.get_global_func("target.llvm_get_system_cpu")()
    if system in targets._KNOWN and targets._KNOWN[system] <= host()[1]:
        assert parse_target("cpu").mcpu == system


def test_a_cpu_that_llvm_does_not_know_is_refused() -> None:
    with pytest.raises(CompileError, match="E0501"):
        parse_target('{"kind": "llvm", "mcpu": "znver99"}').to_tvm()
