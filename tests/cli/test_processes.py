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


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("ops --json >&-", 0, False),
        ("ops >&- 2>&- <&-", 0, False),
        ("ops >/dev/full", 1, True),
        ("ops --json >/dev/full 2>/dev/full", 1, False),
        ("check --help >/dev/full", 1, True),
    ],
)
def test_closed_and_full_streams(command, code, said):
    """A closed one is like /dev/null; results that find no room are an error, remarks are not."""
    script = f'"$0" -m archc {command}'
    ran = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, "error[E0608]" in ran.stderr) == (code, said), ran.stderr
    assert "report" not in ran.stderr


def test_errors_keep_their_exit_code_without_a_reader():
    for streams in ("--json >&-", "2>&-"):
        script = f'"$0" -m archc check examples/README.md {streams}'
        assert subprocess.run(["bash", "-c", script, sys.executable], capture_output=True, timeout=60).returncode == 1


def test_training_goes_on_when_nobody_reads_its_progress(wine, tmp_path):
    out = tmp_path / "w.safetensors"
    script = f'"$0" -m archc train {wine} --task wine --epochs 2 -o {out} 2>&1 | head -n 1'
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {script}", sys.executable], capture_output=True, timeout=120)
    assert (ran.returncode, out.exists()) == (0, True), ran


def test_every_character_can_be_printed_in_every_locale():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "archc", "ops", "gelu"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (ran.returncode, "\\u03a6" in ran.stdout, ran.stderr) == (0, True, "")  # Φ


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
