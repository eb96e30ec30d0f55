"""Small networks, and commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archc.facade.compile import build
from archc.facade.model import loads

MLP = """\
arch mlp

input  x: f32[N, 13]
output y: f32[N, 3]

y = x -> linear(8) -> relu -> linear(3)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for all these tests, apart from the user's."""
    folder = tmp_path_factory.getbasetemp() / "hardening-cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("ARCHC_CACHE", str(folder))
    return folder


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str = MLP, seed: int = 0, threads: int = 1) -> Path:
        path = tmp_path / f"{loads(text).name}-{seed}-{threads}.archc"
        build(loads(text), path, seed=seed, threads=threads)
        return path

    return make


@pytest.fixture
def python() -> Callable[..., str]:
    """Runs a program in a process of its own; what it printed."""

    def run(code: str, **environment: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def archc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A command as `archc` would run it, in this process: exit code, stdout, stderr."""
    from archc.cli.main import INTERNAL, run

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        caught = capsys.readouterr()
        assert "Traceback" not in caught.out + caught.err
        assert code != INTERNAL, caught.err
        return code, caught.out, caught.err

    return call
