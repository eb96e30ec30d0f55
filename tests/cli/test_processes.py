"""What only a real process shows: imports, broken pipes, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "tvm", "numpy", "networkx", "rapidfuzz", "matplotlib", "sklearn", "onnx", "rich")


def imported(*arguments: object, heavy: tuple[str, ...] = HEAVY) -> tuple[int, set[str]]:
    """The exit code of a command, and which of the heavy packages it loaded."""
    code = (
        "import sys\nfrom archc.cli.main import run\n"
        f"code = run({[str(a) for a in arguments]!r})\n"
        f"print('loaded', code, *(m for m in {heavy!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    _, result, *names = done.stdout.splitlines()[-1].split()
    return int(result), set(names)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("check", "examples/resnet50.arch"),
        ("hash", "examples/gpt2_small.arch"),
        ("summary", "examples/unet.arch"),
        ("fmt", "examples/vit_s16.arch", "--check"),
        ("explain", "E0301"),
        ("ops",),
    ],
    ids=" ".join,
)
def test_reading_needs_nothing_heavy(arguments):
    assert imported(*arguments) == (0, set())


def test_the_check_can_fail():
    assert imported("symmetry", "examples/digits_resnet.arch")[1] >= {"torch", "numpy"}


def test_compiling_again_needs_neither_tvm_nor_torch(wine, tmp_path):
    def compile_to(out: Path) -> tuple[int, set[str]]:
        return imported("compile", wine, "-o", out, "--threads", 1, "--seed", 5, heavy=("tvm", "torch"))

    first, again = tmp_path / "first.archc", tmp_path / "again.archc"
    assert compile_to(first) == (0, {"tvm"})
    assert compile_to(again) == (0, set())
    assert again.read_bytes() == first.read_bytes()


def test_running_needs_neither_tvm_nor_torch(wine_artifact, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((1, 13), np.float32))
    run = ("run", wine_artifact, "--input", tmp_path / "x.npy")
    assert imported(*run, heavy=("tvm", "torch", "lark")) == (0, set())


def test_a_reader_that_goes_away_is_no_error():
    summary = [sys.executable, "-m", "archc", "summary", "examples/resnet50.arch"]
    for lines in (0, 1):
        process = subprocess.Popen(summary, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    environment = {**os.environ, "_ARCHC_COMPLETE": f"source_{shell}"}
    script = subprocess.run(
        [Path(sys.executable).with_name("archc")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "_ARCHC_COMPLETE" in script.stdout
    asked = {"COMP_WORDS": "archc che", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "archc che"}
    asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    environment = {**os.environ, **asked, "_ARCHC_COMPLETE": f"complete_{shell}"}
    found = subprocess.run(
        [Path(sys.executable).with_name("archc")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "check" in found.stdout
