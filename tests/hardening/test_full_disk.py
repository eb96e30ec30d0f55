"""No room: a coded diagnostic, the old file as it was, no temporary file left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from archc.backends.weights import write_weights
from archc.facade.train import checkpoint_path
from archc.ir.diagnostics import CompileError

WIDE = """\
arch wide(hidden = 400)

input  x: f32[N, 13]
output y: f32[N, 3]

y = x -> linear(hidden) -> relu -> linear(hidden) -> relu -> linear(3)
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "wide.arch"
    path.write_text(WIDE, encoding="utf-8")
    return path


def limited(*arguments: object, limit: int = 1 << 16) -> tuple[int, str]:
    """A command in a process whose files may have `limit` bytes: its exit code, and what it told."""
    code = (
        "import resource, sys\nfrom archc.cli.main import run\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nsys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_full_disk_keeps_the_old_file(tiny: Path, tmp_path: Path, wide: Path, archc) -> None:
    """For everything that a command writes: an artifact, weights, outputs."""
    roomy = tmp_path / "roomy.archc"
    assert archc("compile", wide, "-o", roomy, "--threads", 1)[0] == 0
    np.save(tmp_path / "x.npy", np.zeros((50_000, 13), np.float32))
    train = ("train", wide, "--task", "wine", "--epochs", 1, "--threads", 1, "--quiet")
    commands = {
        "a.archc": ("compile", wide, "--threads", 1),
        "w.safetensors": train,
        "y.npz": ("run", roomy, "--input", tmp_path / "x.npy", "--threads", 1),
        "n.onnx": ("export", wide, "--format", "onnx"),
    }
    for name, command in commands.items():
        out = tiny / name
        out.write_bytes(b"old")
        ended, _, told = archc(*command, "-o", out)
        named = checkpoint_path(out) if name == "w.safetensors" else out
        assert (ended, f"cannot write `{named}`" in told, "No space left" in told) == (1, True, True), (name, told)
        assert out.read_bytes() == b"old"
        assert sorted(p.name for p in tiny.iterdir()) == [name]
        ended, _, told = archc(*command, "-o", tmp_path / name)  # the control: there is room elsewhere
        assert ended == 0, (name, told)
        out.unlink()


def test_a_full_cache_does_not_keep_from_running(tiny: Path, tmp_path: Path, wide: Path, archc, monkeypatch) -> None:
    """What is compiled must go somewhere; what is loaded may lie elsewhere."""
    roomy = tmp_path / "roomy.archc"
    assert archc("compile", wide, "-o", roomy, "--threads", 1)[0] == 0
    np.save(tmp_path / "x.npy", np.zeros((1, 13), np.float32))
    (tiny / "filler").write_bytes(bytes(250 << 10))
    monkeypatch.setenv("ARCHC_CACHE", str(tiny))
    out = tmp_path / "o.archc"
    ended, _, told = archc("compile", wide, "-o", out, "--threads", 1)
    assert (ended, "E0530" in told, "--no-cache" in told) == (1, True, True), told
    assert not out.exists()
    assert [p.name for p in tmp_path.glob(".*")] == []
    assert list((tiny / "artifacts").iterdir()) == []
    assert archc("compile", wide, "-o", out, "--threads", 1, "--no-cache")[0] == 0
    assert archc("run", out, "--input", tmp_path / "x.npy")[0] == 0


def test_no_room_for_what_is_in_between(tiny: Path, tmp_path: Path, wide: Path, archc, monkeypatch) -> None:
    """The folder for temporary files is full: object files, libraries (LLVM would end the process)."""
    (tiny / "filler").write_bytes(bytes(250 << 10))
    monkeypatch.setattr("tempfile.tempdir", str(tiny))
    ended, _, told = archc("compile", wide, "-o", tmp_path / "o.archc", "--threads", 1, "--no-cache")
    assert (ended, "E0608" in told, "No space left" in told) == (1, True, True), told
    assert not (tmp_path / "o.archc").exists()
    assert sorted(p.name for p in tiny.iterdir()) == ["filler"]


def test_a_limit_on_file_sizes(tmp_path: Path, wide: Path) -> None:
    out = tmp_path / "o.archc"
    out.write_bytes(b"old")
    ended, told = limited("compile", wide, "-o", out, "--threads", 1, "--no-cache")
    assert (ended, "E0608" in told, "File too large" in told) == (1, True, True), told
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.archc", "wide.arch"]


def test_weights_that_do_not_fit(tiny: Path) -> None:
    path = tiny / "w.safetensors"
    write_weights(path, {"a": np.zeros(10_000, np.float32)})
    before = path.read_bytes()
    for size in (60_000, 10**6):  # the second would not fit into an empty one either
        with pytest.raises(CompileError, match="E0608"):
            write_weights(path, {"a": np.ones(size, np.float32)})
        assert path.read_bytes() == before
        assert os.listdir(tiny) == ["w.safetensors"]
    write_weights(path, {"a": np.ones(10_000, np.float32)})
    assert path.read_bytes() != before


def test_an_artifact_is_loaded_where_nothing_can_be_written(tmp_path: Path, compiled, python) -> None:
    """Its code cannot be unpacked anywhere: that is said."""
    out = compiled()
    (tmp_path / "temporary").mkdir()
    code = f"""
import resource
from archc.backends.runtime import load
from archc.ir.diagnostics import CompileError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    load({str(out)!r})
except CompileError as error:
    print(error.diagnostics[0].code)
"""
    assert python(code, ARCHC_CACHE=tmp_path / "cache", TMPDIR=tmp_path / "temporary") == "E0530\n"
    assert list((tmp_path / "temporary").iterdir()) == []
    assert python(code.replace("4096", "1 << 20"), ARCHC_CACHE=tmp_path / "cache") == ""
