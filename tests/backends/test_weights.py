"""Safetensors files: round trips, stable bytes, and hostile files that must be refused with the right code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from archc.backends.weights import (
    Array,
    atomic_file,
    check_weights,
    read_weights,
    serialise,
    type_of,
    write_weights,
)
from archc.ir.diagnostics import CompileError
from archc.ir.types import TensorType


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ARRAYS: dict[str, Array] = {
    "stem.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False, True]),
    "half": np.array([1.5, -2.0, 3.25], ml_dtypes.bfloat16),
    "bytes": np.array([1, 2, 3], np.uint8),
}


def test_round_trip_and_agreement_with_the_reference_library(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    sha256 = write_weights(path, ARRAYS, {"task": "digits", "note": "ünï"})
    weights = read_weights(path)
    assert weights.sha256 == sha256
    assert weights.metadata == {"task": "digits", "note": "ünï"}
    reference = load_file(path)
    for name, array in ARRAYS.items():
        assert type_of(weights.arrays[name]) == type_of(array)
        assert weights.arrays[name].tobytes() == array.tobytes() == reference[name].tobytes()
        assert not weights.arrays[name].flags.writeable


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "w.safetensors", {"a": "b"})
    weights = read_weights(tmp_path / "w.safetensors")
    assert {name: array.tobytes() for name, array in weights.arrays.items()} == {
        name: array.tobytes() for name, array in ARRAYS.items()
    }


def test_equal_content_gives_equal_bytes_and_other_content_other_bytes() -> None:
    metadata = {str(i): "x" for i in range(8)}
    backwards = dict(reversed(metadata.items()))
    assert serialise(ARRAYS, metadata) == serialise(dict(reversed(ARRAYS.items())), backwards)
    assert serialise(ARRAYS, metadata) != serialise({**ARRAYS, "scalar": np.array(8)}, metadata)


def test_non_contiguous_and_big_endian_arrays_are_written_as_they_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert serialise({"w": np.asfortranarray(array)}) == serialise({"w": array})
    assert serialise({"w": array.astype(">f4")}) == serialise({"w": array})


EIGHT = b"\0" * 8
HOSTILE = {
    "nothing": (b"", "at least 8 bytes"),
    "seven bytes": (b"\0" * 7, "at least 8 bytes"),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + b"{}", "the limit is"),
    "a truncated header": ((100).to_bytes(8, "little") + b"{}", "truncated"),
    "not JSON": (raw(b"{nonsense"), "not JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "deep nesting": (raw(b"[" * 100_000), "not JSON"),
    "a number of a million digits": (raw(b'{"a": ' + b"9" * 10**6 + b"}"), "not JSON"),
    "a name that moves the cursor": (raw({"\x1b[2J": entry()}, EIGHT), "cannot be printed"),
    "a list": (raw([]), "not a JSON object"),
    "a name twice": (raw(b'{"a": 1, "a": 2}'), "`a` stands twice"),
    "metadata that is not text": (raw({"__metadata__": {"a": 1}}), "must map text to text"),
    "an entry without a shape": (raw({"a": {"dtype": "F32"}}), "must have exactly"),
    "an unknown dtype": (raw({"a": entry("F3")}, EIGHT), "dtype 'F3'"),
    "a dtype that is a list": (raw({"a": entry(["F32"])}, EIGHT), "dtype ['F32']"),
    "a negative size": (raw({"a": entry(shape=[-2])}, EIGHT), "a shape that is not"),
    "a size that is true": (raw({"a": entry(shape=[True, 2])}, EIGHT), "a shape that is not"),
    "a hundred axes": (raw({"a": entry(shape=[1] * 99 + [2])}, EIGHT), "at most 32"),
    "a product beyond 64 bits": (raw({"a": entry(shape=[2**40, 2**40])}, EIGHT), "its offsets hold 8"),
    "offsets the wrong way": (raw({"a": entry(offsets=[8, 0])}, EIGHT), "its offsets hold -8"),
    "truncated data": (raw({"a": entry()}, EIGHT[:5]), "truncated: the tensors need 8 bytes, 5 are there"),
    "more data than claimed": (raw({"a": entry()}, EIGHT * 2), "bytes that no tensor claims"),
    "an overlap": (raw({"a": entry(), "b": entry(offsets=[4, 12])}, EIGHT * 2), "`b` overlaps `a`"),
    "a hole": (raw({"a": entry(), "b": entry(offsets=[12, 20])}, EIGHT * 3), "`b` leaves a hole after `a`"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(CompileError) as caught:
        read_weights(path)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "E0602"
    assert reason in diagnostic.label


def test_the_sound_neighbour_of_the_hostile_files_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.safetensors"
    path.write_bytes(raw({"a": entry(), "b": entry(offsets=[8, 16])}, EIGHT * 2))
    assert sorted(read_weights(path).arrays) == ["a", "b"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_escape_as_another_exception(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = bytearray(serialise(ARRAYS, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(good[: data.draw(st.integers(0, len(good)))])
    assert code_of(path) in {None, "E0602"}


def code_of(path: Path) -> str | None:
    """The code with which reading fails; None when it does not. Any other exception goes through."""
    try:
        read_weights(path)
    except CompileError as error:
        return error.diagnostics[0].code
    return None


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would block for ever
    for name, exit_code, label in (
        ("absent", 2, "No such file"),
        (".", 1, "a directory"),
        ("pipe", 1, "not a regular"),
    ):
        with pytest.raises(CompileError) as caught:
            read_weights(tmp_path / name)
        assert caught.value.diagnostics[0].code == "E0601"
        assert caught.value.exit_code == exit_code
        assert label in caught.value.diagnostics[0].label


NEEDED = {"stem.weight": TensorType((16, 3), "f32"), "stem.bias": TensorType((16,), "f32")}


def problems(found: dict[str, Array]) -> list[tuple[str, str, str | None]]:
    with pytest.raises(CompileError) as caught:
        check_weights(NEEDED, found, where="w.safetensors")
    return [(d.code, d.label, d.help) for d in caught.value.diagnostics]


def test_every_difference_is_reported_at_once() -> None:
    found: dict[str, Array] = {"stem.weigth": np.zeros((16, 3), np.float32), "stem.bias": np.zeros(8, np.float32)}
    assert problems(found) == [
        ("E0603", "needed f32[16, 3], found nothing", "did you mean `stem.weigth`?"),
        ("E0604", "found f32[16, 3] in w.safetensors", "did you mean `stem.weight`?"),
        ("E0605", "needed f32[16], found f32[8]", "were they trained with other `--set` values?"),
    ]


def test_a_wrong_dtype_is_not_a_wrong_shape() -> None:
    found: dict[str, Array] = {"stem.weight": np.zeros((16, 3), np.float64), "stem.bias": np.zeros(16, np.float32)}
    assert problems(found) == [("E0606", "needed f32[16, 3], found f64[16, 3]", "cast the weights first")]


def test_a_renamed_tensor_is_found_by_its_type() -> None:
    found: dict[str, Array] = {"conv1.kernel": np.zeros((16, 3), np.float32), "stem.bias": np.zeros(16, np.float32)}
    assert problems(found)[0] == ("E0603", "needed f32[16, 3], found nothing", "`conv1.kernel` has the same type")


def test_matching_weights_pass() -> None:
    check_weights(NEEDED, {"stem.weight": np.zeros((16, 3), np.float32), "stem.bias": np.zeros(16, np.float32)})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": np.zeros(2, np.float32)})
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="halfway"), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise RuntimeError("halfway")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_an_impossible_place_is_a_diagnostic(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="E0608"):
        write_weights(tmp_path / "absent" / "w.safetensors", {"a": np.zeros(2, np.float32)})
    with pytest.raises(CompileError, match="E0608"):
        write_weights(tmp_path / "w.safetensors", {"a": np.zeros(2, np.complex64)})
