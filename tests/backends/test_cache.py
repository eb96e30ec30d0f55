"""The compile cache: one build among many, nothing damaged is served, nobody else may write to it, it stays small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from archc.backends import cache as module
from archc.backends.artifact import read_manifest, write_artifact
from archc.backends.cache import Cache, CacheWarning, cache_key, cache_root, copy_out
from archc.ir.diagnostics import CompileError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def build(mlp: Any, mlp_path: Path) -> Any:
    """Writes a small artifact that runs nowhere, and counts how often it was asked to."""

    def write(path: Path, size: int = 1000) -> None:
        write.calls += 1  # type: ignore[attr-defined]
        target = read_manifest(mlp_path).target
        write_artifact(path, facts=mlp.facts(), target=target, code="shared", toolchain={}, library=bytes(size))

    write.calls = 0  # type: ignore[attr-defined]
    return write


def test_a_second_request_builds_nothing(cache: Cache, build: Any) -> None:
    key = cache_key(graph="a")
    first = cache.get_or_build(key, build)
    assert cache.get_or_build(key, build) == first == cache.get(key)
    assert build.calls == 1
    cache.get_or_build(cache_key(graph="b"), build)
    assert build.calls == 2
    assert [e.name for e in cache.entries()] == ["mlp", "mlp"]


def test_the_key_follows_every_fact() -> None:
    facts = {"graph": "a", "inputs": [["x", "f32", ["N", 3]]], "passes": [], "threads": 1}
    keys = {cache_key(**facts | change) for change in ({}, {"threads": 2}, {"inputs": [["y", "f32", ["N", 3]]]})}
    assert len(keys) == 3
    assert cache_key(**facts) == cache_key(**dict(reversed(facts.items())))


def test_the_key_follows_our_own_code_and_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(graph="a")
    for change in ({"apache-tvm": "9"}, {"archc": "edited"}):
        monkeypatch.setattr(module, "_toolchain", lambda c=change: c)
        assert cache_key(graph="a") != before


def test_a_failed_build_leaves_nothing(cache: Cache, build: Any) -> None:
    key = cache_key(graph="a")

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_build(key, fails)
    assert cache.entries() == []
    assert list((cache.root / "artifacts").iterdir()) == []
    assert cache.get_or_build(key, build).exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_entry_is_built_again_with_a_warning(cache: Cache, build: Any, damage: str) -> None:
    key = cache_key(graph="a")
    path = cache.get_or_build(key, build)
    good = path.read_bytes()
    bad = {"flip": good[:700] + bytes([good[700] ^ 1]) + good[701:], "truncate": good[:-9], "empty": b""}[damage]
    path.write_bytes(bad)
    with pytest.warns(CacheWarning, match="damaged"):
        assert cache.get_or_build(key, build).read_bytes() == good
    assert build.calls == 2


def test_verify_removes_the_damaged_and_only_those(cache: Cache, build: Any) -> None:
    paths = [cache.get_or_build(cache_key(graph=name), build) for name in "abc"]
    assert cache.verify() == []
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    assert [e.path for e in cache.verify()] == [paths[1]]
    assert {e.path for e in cache.entries()} == {paths[0], paths[2]}


def test_clear_frees_everything(cache: Cache, build: Any) -> None:
    path = cache.get_or_build(cache_key(graph="a"), build)
    size = path.stat().st_size
    assert cache.clear() >= size
    assert cache.entries() == []


def test_the_least_recently_used_go_first(cache: Cache, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [cache.get_or_build(cache_key(graph=name), lambda p: build(p, 100_000)) for name in "abcd"]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (time.time() - 1000 - age,) * 2)
    assert cache.get(cache_key(graph="a")) == paths[0]  # used just now
    cache.limit = 350_000
    cache.get_or_build(cache_key(graph="e"), lambda p: build(p, 100_000))
    left = {e.path for e in cache.entries()}
    assert paths[0] in left, "just used"
    assert paths[1] not in left
    assert paths[2] not in left
    assert paths[3] in left
    monkeypatch.setattr(module, "GRACE", 10_000.0)  # the control: nobody's file is taken from under them
    cache.limit = 0
    cache.get_or_build(cache_key(graph="f"), lambda p: build(p, 100_000))
    assert {e.path for e in cache.entries()} > left


def test_sixteen_processes_build_once(tmp_path: Path, mlp_path: Path) -> None:
    code = f"""
import os, shutil, sys, time
from pathlib import Path
from archc.backends.cache import Cache, cache_key
root = Path({str(tmp_path)!r})
def build(path):
    (root / f"built-{{os.getpid()}}").touch()
    time.sleep(0.3)
    shutil.copyfile({str(mlp_path)!r}, path)
print(Cache(root / "cache").get_or_build(cache_key(graph="a"), build).stat().st_size)
print("tvm" in sys.modules or "torch" in sys.modules)
"""
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(16)]
    said = {child.communicate(timeout=120)[0] for child in children}
    assert said == {f"{mlp_path.stat().st_size}\nFalse\n"}
    assert len(list(tmp_path.glob("built-*"))) == 1


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path / "new"))
    assert cache_root().stat().st_mode & 0o777 == 0o700
    (tmp_path / "new").chmod(0o777)
    with pytest.raises(CompileError, match="E0530"):
        cache_root()
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path / "file"))
    with pytest.raises(CompileError, match="E0530"):
        cache_root()


def test_copies_are_whole(cache: Cache, build: Any, tmp_path: Path) -> None:
    path = cache.get_or_build(cache_key(graph="a"), build)
    copy_out(path, tmp_path / "out.archc")
    assert (tmp_path / "out.archc").read_bytes() == path.read_bytes()
