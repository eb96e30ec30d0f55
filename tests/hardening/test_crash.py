"""`kill -9` in the middle of work: files are old or new, and the work done again ends with the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from archc.backends.cache import Cache, cache_key

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import crash


def test_kills_leave_nothing_half() -> None:
    rows = crash.kill_many(8, seed=1, epochs=20)
    assert [row["wrong"] for row in rows if row["wrong"]] == []
    assert {row["kind"] for row in rows if row["landed"]} == {"compile", "train", "fmt", "cache"}


def test_a_writer_that_is_not_atomic_would_be_caught(tmp_path: Path) -> None:
    """The control: the judge of the kills sees a file that is half, in each place."""
    (tmp_path / "cache").mkdir(mode=0o700)
    key = cache_key(entry=0)
    crash.fill_cache(str(tmp_path / "cache"))
    work = crash.Work("compile", crash.compile_arguments(0), ".", "out", b"old file", b"new file", 0.0)
    (tmp_path / "out").write_bytes(b"old file")
    assert crash.judge(work, tmp_path) == []
    assert crash.judge(work, tmp_path, finished=True) == ["out is not the new file"]
    (tmp_path / "out").write_bytes(b"new")
    entry = Cache(tmp_path / "cache").path(key)
    entry.write_bytes(entry.read_bytes()[:1000])
    library = next((tmp_path / "cache" / "lib").iterdir())
    library.write_bytes(b"half")
    checkpoint = tmp_path / "out.checkpoint.safetensors"
    checkpoint.write_bytes(b"half of it")
    assert [
        line.partition(":")[0] for line in crash.judge(crash.Work(**{**vars(work), "kind": "train"}), tmp_path)
    ] == [
        "out is neither old nor new",
        "half a checkpoint",
        "a damaged entry in the cache",
        "a damaged library in the cache",
    ]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, compiled) -> None:
    """And what a living one is writing is neither shown nor verified away."""
    source, cache, key = compiled(), Cache(tmp_path / "cache"), cache_key(graph="a")
    folder = cache.path(key).parent
    other = folder / f".{'0' * 64}.{'1' * 16}.archc"
    for name in (f".{key}.{'2' * 16}.archc", f"..{key}.{'2' * 16}.{'3' * 16}.archc", other.name):
        (folder / name).write_bytes(b"half")
    assert cache.entries() == []
    assert cache.verify() == []
    cache.get_or_build(key, lambda path: path.write_bytes(source.read_bytes()))
    assert {p.name for p in folder.iterdir()} == {f"{key}.archc", other.name}


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_many_processes_compile_one_network_once(tmp_path: Path, count: int) -> None:
    import os
    import subprocess

    from archc.backends.artifact import open_artifact

    (tmp_path / "net.arch").write_text(crash.NET, encoding="utf-8")
    code = """
import sys
from archc.cli.main import run
code = run(["compile", "net.arch", "-o", sys.argv[1], "--threads", "1", "-q"])
print(code, "tvm" in sys.modules)  # only who compiles needs tvm
"""
    environment = {**os.environ, "ARCHC_CACHE": str(tmp_path / "cache")}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"{i}.archc"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(count)
    ]
    said = [child.communicate(timeout=300)[0].splitlines()[-1] for child in children]
    assert sorted(said) == ["0 False"] * (count - 1) + ["0 True"]
    assert len({(tmp_path / f"{i}.archc").read_bytes() for i in range(count)}) == 1
    open_artifact(tmp_path / "0.archc")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
