"""Equal input, equal bytes: in another process, folder, environment, with another hash seed and another history."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archc.facade.compile import build
from archc.facade.model import loads

NET = """\
arch net(width = 6)

input  x: f32[N, 3, 8, 8]
output y: f32[N, 4]
output z: f32[N, 3]

let h = x -> conv(width, 3) -> batch_norm -> relu
y = h -> avg_pool(2) -> flatten -> linear(4)
z = h -> mean([2, 3]) -> linear(3) -> softmax(axis = 1)
"""
WINE = """\
arch wine
input  x: f32[N, 13]
output y: f32[N, 3]
y = x -> linear(8) -> relu -> linear(3)
"""
COMMANDS = (
    ("compile", "net.arch", "-o", "out.archc", "--threads", "1", "--no-cache", "-q"),
    ("train", "wine.arch", "--task", "wine", "-o", "w.safetensors", "--epochs", "2", "--threads", "1", "-q"),
)


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "net.arch").write_text(NET, encoding="utf-8")
    (path / "wine.arch").write_text(WINE, encoding="utf-8")
    return path


def made(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("out.archc", "w.safetensors", "wine.archc")]


def trained(source: Path, weights: Path, out: Path) -> tuple[str, ...]:
    return "compile", str(source), "--weights", str(weights), "-o", str(out), "--threads", "1", "-q"


def test_neither_hash_seed_nor_folder_nor_history_reaches_the_bytes(
    archc, python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor mask, locale, time zone, the path of the source or the weights, or a cache that has it already."""
    here, there = folder(tmp_path / "a"), folder(tmp_path / "b" / "c d" / "é")
    other = loads("arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\ny = x -> gelu -> softmax(axis = 1)")
    build(other, tmp_path / "other.archc", threads=1, cache=False)  # this process has a history
    monkeypatch.chdir(here)
    assert [archc(*command)[0] for command in COMMANDS] == [0, 0]
    relative = trained(Path("wine.arch"), Path("w.safetensors"), Path("wine.archc"))
    assert archc(*relative)[0] == 0
    cold = (here / "wine.archc").read_bytes()
    assert archc(*relative)[0] == 0
    assert (here / "wine.archc").read_bytes() == cold, "from the cache"

    absolute = trained(there / "wine.arch", tmp_path / "elsewhere.safetensors", there / "wine.archc")
    code = f"""
import os, shutil
from archc.cli.main import run
os.chdir({str(there)!r})
os.umask(0o077)
codes = [run(command) for command in {[list(c) for c in COMMANDS]}]
shutil.copyfile("w.safetensors", {str(tmp_path / "elsewhere.safetensors")!r})
os.chdir("/")
print([*codes, run({[*absolute, "--no-cache"]})])
"""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {"PYTHONHASHSEED": seed, "TMPDIR": tmp_path, "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    assert python(code, OMP_NUM_THREADS=1, **environment).splitlines()[-1] == "[0, 0, 0]"
    assert made(here) == made(there)

    assert archc(*COMMANDS[0], "--seed", 1)[0] == archc(*COMMANDS[1], "--seed", 1)[0] == archc(*relative)[0] == 0
    assert not any(one == two for one, two in zip(made(here), made(there), strict=True)), "the control"
