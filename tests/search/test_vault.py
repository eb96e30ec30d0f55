"""The vault: every file under the address of what it was made from, whole or not there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from archc.ir.diagnostics import CompileError
from archc.search import vault
from archc.search.records import Result

KEY, OTHER = "ab" * 32, "cd" * 32
RESULT = Result(number=3, status="finished", values={"accuracy": 0.75}, weights=KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vault.make(tmp_path)
    return tmp_path


def test_a_result_is_there_or_not(folder: Path) -> None:
    assert vault.read_result(folder, KEY) is None
    vault.write_result(folder, KEY, RESULT)
    assert vault.read_result(folder, KEY) == RESULT
    assert vault.read_result(folder, OTHER) is None


def test_a_damaged_result_is_worked_out_again(folder: Path) -> None:
    vault.write_result(folder, KEY, RESULT)
    path = vault.result_path(folder, KEY)
    path.write_bytes(path.read_bytes()[:-5])
    assert vault.read_result(folder, KEY) is None


@pytest.mark.parametrize("key", ["../../etc/passwd", "ab/cd", "", "AB" * 32, "ab" * 33])
def test_no_address_leads_elsewhere(folder: Path, key: str) -> None:
    for path in (vault.result_path, vault.weights_path, vault.artifact_path):
        with pytest.raises(AssertionError):
            path(folder, key)


def test_equal_weights_are_one_file(folder: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32)}
    first, again = vault.store_weights(folder, arrays), vault.store_weights(folder, arrays)
    other = vault.store_weights(folder, {"a": arrays["a"] + 1})
    assert first == again != other
    assert vault.sizes(folder)[vault.WEIGHTS][0] == 2
    assert (vault.load_weights(folder, first).arrays["a"] == arrays["a"]).all()


def test_weights_are_what_their_name_says(folder: Path) -> None:
    """Files of another origin hold no digest of themselves: then the name tells."""
    first, other = (vault.store_weights(folder, {"a": np.full(3, i, np.float32)}) for i in range(2))
    vault.weights_path(folder, first).write_bytes(vault.weights_path(folder, other).read_bytes())
    with pytest.raises(CompileError) as caught:
        vault.load_weights(folder, first)
    assert caught.value.diagnostics[0].code == "E0729"
    assert vault.load_weights(folder, other).sha256 == other


def test_collecting_keeps_what_is_needed(folder: Path) -> None:
    kept, gone = (vault.store_weights(folder, {"a": np.full(30, i, np.float32)}) for i in range(2))
    for key in (KEY, OTHER):
        vault.artifact_path(folder, key).write_bytes(b"x" * 1000)
        vault.write_result(folder, key, RESULT)
    freed = vault.collect(folder, {kept}, {KEY}, pretend=True)
    assert freed == 1000 + vault.weights_path(folder, gone).stat().st_size
    assert vault.has_weights(folder, gone)
    assert vault.collect(folder, {kept}, {KEY}) == freed
    assert vault.has_weights(folder, kept)
    assert not vault.has_weights(folder, gone)
    assert vault.artifact_path(folder, KEY).exists()
    assert not vault.artifact_path(folder, OTHER).exists()
    assert vault.read_result(folder, OTHER) == RESULT


def test_collecting_clears_up_after_processes_that_were_killed(folder: Path) -> None:
    old, new = folder / vault.WEIGHTS / ".old.safetensors", folder / vault.WEIGHTS / ".new.safetensors"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    assert vault.collect(folder, (), ()) == 4
    assert not old.exists()
    assert new.exists(), "somebody may be writing it"
