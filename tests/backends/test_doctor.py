"""The doctor tells the truth about this machine, and survives probes that crash or hang."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from archc.backends import doctor
from archc.backends.doctor import diagnose


def test_it_tries_everything_and_explains_what_fails() -> None:
    checks = {c.name: c for c in diagnose()}
    assert list(checks) == [
        "cpu",
        "cache",
        "torch",
        "tvm",
        "c++ compiler",
        "cuda compile",
        "cuda run",
        "drawing",
        "onnx",
        "onnxruntime",
        "ray",
    ]
    assert checks["tvm"].ok
    assert checks["tvm"].detail.startswith("0.27")
    assert checks["c++ compiler"].ok
    assert checks["cache"].ok
    for check in checks.values():
        assert check.detail
        assert bool(check.remedy) != check.ok, check


def test_a_probe_that_crashes_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = doctor._python("crash", "import os; os.abort()", "buy another", "life")
    hang = doctor._python("hang", "import time; time.sleep(60)", "wait", "life")
    fail = doctor._python("fail", "raise SystemExit('no such thing')", "install it", "life")
    works = doctor._python("works", "print('1.0')", "-", "life")
    monkeypatch.setattr(doctor, "_PROBES", [crash, hang, fail, works])
    found = diagnose(timeout=2)
    assert [(c.name, c.ok) for c in found] == [("crash", False), ("hang", False), ("fail", False), ("works", True)]
    assert found[1].detail == "no answer within 2 s"
    assert found[2].detail == "no such thing"


def test_a_missing_package_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = doctor._package("ghost", "archc_ghost", "pip install ghost", "nothing")
    assert (probe(1).ok, probe(1).detail, probe(1).remedy) == (False, "not installed", "pip install ghost")


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check = doctor._linker(1)
    assert not check.ok
    assert "g++" in check.remedy


def test_looking_imports_neither_tvm_nor_torch() -> None:
    import subprocess

    code = "import sys, archc.backends.doctor; print({'tvm', 'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
