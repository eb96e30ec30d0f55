"""Compilations from the cache: what the key depends on, and what a hit does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archc.backends.cache import Cache
from archc.backends.initial import InitialWeights
from archc.backends.tvm.compile import compile_cached, facts_of
from archc.backends.tvm.targets import parse_target
from archc.grammar.load import loads

PROGRAM = """
arch tiny()
input  x: f32[N, 4]
output y: f32[N, 3]
y = x -> linear(3, init = "normal(0.02)")
"""


class Keys(Cache):
    """A cache that notes what it is asked for, and gives nothing."""

    asked: str

    def get_or_build(self, key: str, build: Any) -> Path:
        self.asked = key
        raise LookupError


def key_of(folder: Path, weights: Any, program: str = PROGRAM, **options: Any) -> str:
    """The cache key of compiling a program; nothing else follows the program's text here."""
    cache = Keys(folder / "cache")
    with pytest.raises(LookupError):
        compile_cached(loads(program), weights, folder / "a.archc", spec=parse_target("cpu"), cache=cache, **options)
    return cache.asked


def test_initial_weights_are_in_the_key_by_what_decides_them(tmp_path: Path) -> None:
    def key(program: str = PROGRAM, seed: int = 0) -> str:
        return key_of(tmp_path, InitialWeights(loads(program), seed), program)

    other_scale = PROGRAM.replace("0.02", "0.03")
    other_name = PROGRAM.replace("y = x ->", "let h = x ->") + "y = h\n"
    assert key() == key()
    assert len({key(), key(seed=1), key(other_scale), key(other_name)}) == 4


def test_drawing_is_left_until_a_value_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = InitialWeights(loads(PROGRAM))
    drawn: list[str] = []
    draw = InitialWeights.__getitem__
    monkeypatch.setattr(InitialWeights, "__getitem__", lambda self, name: drawn.append(name) or draw(self, name))
    key_of(tmp_path, weights)
    assert drawn == []
    facts_of(loads(PROGRAM), weights, "seed:0", None, ())
    assert sorted(drawn) == sorted(weights)


def test_given_weights_are_in_the_key_by_value(tmp_path: Path) -> None:
    given = {name: array.copy() for name, array in InitialWeights(loads(PROGRAM)).items()}
    before = key_of(tmp_path, given)
    assert key_of(tmp_path, {name: array.copy() for name, array in given.items()}) == before
    given["linear.bias"][0] += 1
    assert key_of(tmp_path, given) != before


def test_initial_weights_cannot_be_changed_behind_the_key() -> None:
    weights = InitialWeights(loads(PROGRAM))
    with pytest.raises(ValueError, match="read-only"):
        weights["linear.bias"][0] = 1
    assert np.array_equal(weights["linear.weight"], InitialWeights(loads(PROGRAM))["linear.weight"])
    assert not np.array_equal(weights["linear.weight"], InitialWeights(loads(PROGRAM), 1)["linear.weight"])


def test_a_hit_imports_neither_tvm_nor_torch(tmp_path: Path) -> None:
    file = tmp_path / "tiny.arch"
    file.write_text(PROGRAM)
    code = (
        "import sys; from pathlib import Path; from archc.facade.compile import build\n"
        f"manifest = build({str(file)!r}, {str(tmp_path / 'a.archc')!r})\n"
        "print(manifest.weights_hash, sorted({'tvm', 'torch'} & set(sys.modules)))\n"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split(
            maxsplit=1
        )
        for _ in range(2)
    )
    assert first[1] == "['tvm']\n"
    assert second == [first[0], "[]\n"]
    digest = facts_of(loads(PROGRAM), InitialWeights(loads(PROGRAM)), "seed:0", None, ()).weights_hash
    assert digest == first[0]
