"""Weights on disk: safetensors files whose keys are the IR's parameter names.

A file is read as hostile: nothing is unpickled, no length is believed before it is checked, and what is wrong is said
with what was needed and what was found. The same tensors and metadata always give the same bytes (the reference
writer orders metadata at random), so that a weights file can be named by its SHA-256. A file of ours also holds that of
its own bytes, under `archc.sha256` in its metadata: no flipped bit of a weight goes unseen.

Layout (https://github.com/huggingface/safetensors#format): a little-endian u64 with the header's length, the header as
JSON `{"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the data, every byte
of it claimed by exactly one tensor.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from archc.ir.diagnostics import CompileError, Diagnostic, Note, did_you_mean, fail
from archc.ir.types import MAX_RANK, NUMPY_NAMES, TensorType

Array = np.ndarray[Any, np.dtype[Any]]

MAX_HEADER_BYTES = 100_000_000  # the reference reader's limit
METADATA = "__metadata__"
DIGEST = "archc.sha256"  # in the metadata: the SHA-256 of the file with zeros in the digest's own place
_NO_DIGEST = "0" * 64
_DIGEST_FIELD = re.compile(rb'"archc\.sha256":"([0-9a-f]{64})"')

# By our name the name in numpy; the integers that no program has are those of buffers and generator states.
_NUMPY = {**NUMPY_NAMES, "i16": "int16", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8"}
_NAMES = {numpy_name: name for name, numpy_name in _NUMPY.items()}
_STORED = {name.upper(): name for name in _NUMPY}  # a file says F32 and BOOL

Entry = tuple[np.dtype[Any], tuple[int, ...], int]  # dtype, shape and offset of a tensor in a file


MAX_TOLD = 10
"""Differences between weights and network that are told one by one."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file in memory: read-only arrays by parameter name, metadata, and the file's SHA-256."""

    arrays: Mapping[str, Array] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""


def dtype_name(array: Array) -> str:
    """The IR's name of an array's dtype.

    >>> dtype_name(np.zeros(3, np.float32))
    'f32'
    """
    name = _NAMES.get(array.dtype.name)
    if name is None:
        raise fail("E0608", f"weights cannot hold dtype `{array.dtype}`", help=f"cast to one of {', '.join(_NUMPY)}")
    return name


def type_of(array: Array) -> TensorType:
    """
    >>> str(type_of(np.zeros((64, 3), np.float32)))
    'f32[64, 3]'
    """
    return TensorType(tuple(array.shape), dtype_name(array))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of an IR dtype name; `bf16` comes from ml_dtypes."""
    if name == "bf16":
        import ml_dtypes  # arrives with apache-tvm; numpy has no bfloat16 of its own

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(_NUMPY[name])


def serialise(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file; equal tensors and metadata give equal bytes, whatever their order.

    >>> w, b = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    >>> serialise({"w": w, "b": b}) == serialise({"b": b, "w": w})
    True
    """
    for key, value in (metadata or {}).items():
        assert (type(key), type(value)) == (str, str), f"metadata is text to text: {key!r}: {value!r}"
        assert key != DIGEST, f"`{DIGEST}` is written here"
    header: dict[str, Any] = {METADATA: {DIGEST: _NO_DIGEST, **dict(sorted((metadata or {}).items()))}}
    blobs, offset = [], 0
    # Widest elements first: then every tensor is aligned to its element, as the data starts on a multiple of 8.
    for name in sorted(arrays, key=lambda n: (-arrays[n].itemsize, n)):
        assert name != METADATA, f"`{METADATA}` is the format's own key"
        array = arrays[name]
        dtype = dtype_name(array)
        blob = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = len(text).to_bytes(8, "little")
    place = text.index(_NO_DIGEST.encode())  # the first entry of the header
    digest = _sha256([begin, text, *blobs]).encode()
    return b"".join([begin, text[:place], digest, text[place + len(digest) :], *blobs])


def write_weights(path: Path | str, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically (old or new, never half); the SHA-256 of its bytes.

    Raises E0608 when the place cannot be written.
    """
    data = serialise(arrays, metadata)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


_unfinished: dict[Path, Path] = {}  # temporary files that are being written, and what they become


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` to write to; synced and renamed over `path` if the block succeeds.

    The temporary name keeps the suffix, for writers that choose a format by it. A link stays a link, and a file keeps
    its mode; what is no file, such as /dev/null, is not replaced by one. Raises E0608 when the place cannot be written.
    """
    path = Path(path)
    inner = path in _unfinished  # somebody's temporary file, who will rename it: it can be written as it is
    final = path if inner else Path(os.path.realpath(path))
    stem = os.fsdecode(os.fsencode(final.stem)[:120])  # a file name has 255 bytes at most
    temporary = path if inner else final.with_name(f".{stem}.{secrets.token_hex(8)}{final.suffix[:16]}")
    named = _unfinished.setdefault(temporary, path)
    try:
        mode = None if inner else _mode(final)
        if not inner:
            # Not tempfile: its files are private, and ours should have the mode that a plain open() gives.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        if not inner:
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
                if mode is not None:
                    os.fchmod(written.fileno(), mode)
            os.replace(temporary, final)
    except OSError as error:
        raise fail(
            "E0608", f"cannot write `{named}`", label=error.strerror or str(error), help="choose another place"
        ) from error
    finally:
        if not inner:
            del _unfinished[temporary]
            with contextlib.suppress(OSError):
                temporary.unlink()  # gone already, unless something failed


def _mode(path: Path) -> int | None:
    """The mode of the file that is to be replaced, None where there is none; OSError for what is no file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file")
    return stat.S_IMODE(mode)


def read_weights(path: Path | str, needed: Mapping[str, TensorType] | None = None) -> Weights:
    """Read a safetensors file; with `needed`, also check that it holds exactly these tensors.

    Raises E0601 (cannot be opened; exit code 2 when missing), E0602 (not a sound safetensors file) and, gathered,
    E0603–E0606 (see `check_weights`).
    """
    path = Path(path)
    data = _read_file(path)
    arrays, metadata = view_weights(data, path)
    for array in arrays.values():
        array.flags.writeable = False
    if needed is not None:
        check_weights(needed, arrays, where=str(path))
    return Weights(arrays, metadata, hashlib.sha256(data).hexdigest())


def view_weights(data: bytes | memoryview, path: Path | str) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors and metadata of a safetensors file in memory, as views of `data` wherever they are aligned.

    Raises E0602 (not a sound safetensors file); `path` is for the message.
    """
    begin, entries, metadata = _read_header(data, path)
    if (digest := metadata.pop(DIGEST, None)) is not None and digest != _own_digest(data, begin):
        raise _unsound(
            path,
            "it does not have the SHA-256 that it holds",
            f"copy the file again; if another program changed it on purpose, take `{DIGEST}` out of its metadata",
        )
    arrays: dict[str, Array] = {}
    for name, (dtype, shape, offset) in entries.items():
        array = np.frombuffer(data, dtype.newbyteorder("<"), math.prod(shape), begin + offset)
        if sys.byteorder == "big" or (begin + offset) % dtype.itemsize:
            array = array.astype(dtype)  # other writers do not always align
        arrays[name] = array.view(dtype).reshape(shape)
    return arrays, metadata


def _own_digest(data: bytes | memoryview, begin: int) -> str:
    """The SHA-256 of a file with zeros for its digest; empty where the digest is not written as we write it."""
    found = list(_DIGEST_FIELD.finditer(header := bytes(data[:begin])))
    if len(found) != 1:
        return ""
    first, last = found[0].span(1)
    return _sha256([header[:first], _NO_DIGEST.encode(), header[last:], memoryview(data)[begin:]])


def _sha256(chunks: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _unsound(path: Path | str, label: str, help: str = "copy or download the file again") -> CompileError:
    return fail("E0602", f"`{path}` is not a sound safetensors file", label=label, help=help)


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device would never end
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise fail("E0601", f"cannot read weights from `{path}`", label=f"it is {what}")
        with open(path, "rb") as file:
            if status.st_size:  # the header is checked before memory is taken for the rest
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                    _read_header(view, path)
            return file.read()
    except MemoryError:
        raise fail("E0601", f"there is no memory for the {status.st_size} bytes of `{path}`") from None
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise fail(
            "E0601",
            f"cannot read weights from `{path}`",
            label=getattr(error, "strerror", None) or str(error),
            help="`archc train` writes weights" if missing else None,
            exit_code=2 if missing else 1,
        ) from error


def _read_header(data: bytes | memoryview, path: Path | str) -> tuple[int, dict[str, Entry], dict[str, str]]:
    """Where the data begins, the tensors, and the metadata; E0602 unless all of it is sound."""

    def bad(label: str) -> CompileError:
        return _unsound(path, label)

    if len(data) < 8:
        raise bad(f"needed at least 8 bytes, found {len(data)}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise bad(f"the header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
    begin = 8 + length
    if begin > len(data):
        raise bad(f"truncated: the header needs {length} bytes, {len(data) - 8} are left")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise bad(f"`{name}` stands twice in the header")
        return table

    try:
        header = json.loads(bytes(data[8:begin]).decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise bad(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise bad("the header is not a JSON object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad(f"`{METADATA}` must map text to text")

    entries: dict[str, Entry] = {}
    claims: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if not name.isprintable():  # names are shown on terminals
            raise bad(f"the name {name!r} has characters that cannot be printed")
        dtype, shape, first = entries[name] = _read_entry(name, entry, bad)
        claims.append((first, first + math.prod(shape) * dtype.itemsize, name))
    reached, before = 0, "the header"
    for first, last, name in sorted(claims):
        if first != reached:
            what = "overlaps" if first < reached else "leaves a hole after"
            raise bad(f"`{name}` {what} {before}: needed to start at byte {reached}, found {first}")
        reached, before = last, f"`{name}`"
    if reached != len(data) - begin:
        what = "truncated" if reached > len(data) - begin else "bytes that no tensor claims"
        raise bad(f"{what}: the tensors need {reached} bytes, {len(data) - begin} are there")
    return begin, entries, metadata


def _read_entry(name: str, entry: Any, bad: Any) -> Entry:
    def natural(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad(f"`{name}` must have exactly `dtype`, `shape` and `data_offsets`")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise bad(f"`{name}` has dtype {dtype!r}; known are {', '.join(_STORED)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(natural, shape)):
        raise bad(f"`{name}` has a shape that is not a list of at most {MAX_RANK} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(natural, offsets)):
        raise bad(f"`{name}` has offsets that are not [begin, end]")
    stored, (first, last) = numpy_dtype(_STORED[dtype]), offsets
    needed = math.prod(shape) * stored.itemsize
    if last - first != needed:
        raise bad(f"`{name}` is {dtype} {shape}, {needed} bytes; its offsets hold {last - first}")
    return stored, tuple(shape), first


def check_weights(
    needed: Mapping[str, TensorType], found: Mapping[str, Array | TensorType], *, where: str = "the weights"
) -> None:
    """Raise, gathered, every way in which `found` differs from `needed`.

    E0603 a missing parameter, E0604 a name that the network has not, E0605 a wrong shape, E0606 a wrong dtype.

    >>> needed = {"stem.weight": TensorType((16, 3, 3, 3), "f32")}
    >>> check_weights(needed, {"stem.weigth": np.zeros((16, 3, 3, 3), np.float32)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    archc.ir.diagnostics.CompileError: error[E0603]: `stem.weight` is missing from the weights
      needed f32[16, 3, 3, 3], found nothing
    ...
    """
    specs = {name: value if isinstance(value, TensorType) else type_of(value) for name, value in found.items()}
    missing = [name for name in needed if name not in specs]
    extra = [name for name in specs if name not in needed]
    problems = [
        Diagnostic(
            "E0603",
            f"`{name}` is missing from {where}",
            label=f"needed {needed[name]}, found nothing",
            help=_renamed(name, needed[name], extra, specs),
        )
        for name in missing
    ]
    problems += [
        Diagnostic(
            "E0604",
            f"the network has no parameter `{name}`",
            label=f"found {specs[name]} in {where}",
            help=did_you_mean(name, missing or needed),
        )
        for name in extra
    ]
    for name in needed:
        if name not in specs or specs[name] == needed[name]:
            continue
        code, what = ("E0605", "shape") if specs[name].shape != needed[name].shape else ("E0606", "dtype")
        problems.append(
            Diagnostic(
                code,
                f"`{name}` in {where} has another {what}",
                label=f"needed {needed[name]}, found {specs[name]}",
                help="were they trained with other `--set` values?" if what == "shape" else "cast the weights first",
            )
        )
    if len(problems) > MAX_TOLD:
        rest = Note(f"{len(problems) - MAX_TOLD} more do not fit: are these the weights of another network?")
        problems[MAX_TOLD:] = []
        problems[-1] = replace(problems[-1], notes=(rest,))
    if problems:
        raise CompileError(*problems)


def _renamed(name: str, spec: TensorType, extra: Sequence[str], found: Mapping[str, TensorType]) -> str | None:
    """A guess where a missing tensor went: a close name, else the one unclaimed tensor of its type."""
    if close := did_you_mean(name, extra):
        return close
    alike = [other for other in extra if found[other] == spec]
    return f"`{alike[0]}` has the same type" if len(alike) == 1 else None
