"""numpy's files, `.npy` and `.npz`, read as hostile: nothing is unpickled, no size is believed before it is checked."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MAX_BYTES = 8 << 30
"""Of all arrays in a file."""
MAX_FILLING = 200
"""An .npz that unpacks to more than `FREE_BYTES`, and so many times its own size, is a bomb."""
FREE_BYTES = 256 << 20
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Unreadable(ValueError):
    """A file that holds no arrays, with the reason; `missing` when there is none."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


def read_arrays(path: Path | str) -> dict[str, Array]:
    """The arrays of a numpy file by name, in the order of their names; that of an `.npy` file is called "".

    Raises: Unreadable.
    """
    try:
        with open_regular(path) as file:
            if file.read(2) == b"PK":
                return _archive(file)
            file.seek(0)
            return {"": _array(file, os.fstat(file.fileno()).st_size, "it")}
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error), isinstance(error, FileNotFoundError)) from error
    # The readers of numpy and zipfile signal broken files by ValueError, SyntaxError, tokenize.TokenError, EOFError,
    # BadZipFile, zlib.error, RuntimeError, NotImplementedError, RecursionError, MemoryError and more.
    except Exception as error:
        raise Unreadable(str(error).partition("\n")[0] or type(error).__name__) from error


@contextlib.contextmanager
def open_regular(path: Path | str) -> Iterator[IO[bytes]]:
    """A file to read, if it is one: a pipe would block for ever, a device would never end.

    Raises: Unreadable, OSError.
    """
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unreadable("it is not a regular file")
        yield file


def _archive(file: IO[bytes]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(file) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.filename)
        total, size = sum(member.file_size for member in members), os.fstat(file.fileno()).st_size
        if total > MAX_BYTES or total > max(FREE_BYTES, MAX_FILLING * size):
            raise Unreadable(f"{size} bytes that unpack to {total}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays or name == member.filename:
                raise Unreadable(f"`{member.filename}` {'stands in it twice' if name in arrays else 'is no array'}")
            with archive.open(member) as packed:
                arrays[name] = _array(packed, member.file_size, f"`{member.filename}`")
                if packed.read(1):  # reaching the end checks the CRC
                    raise Unreadable(f"`{member.filename}` has bytes that belong to nothing")
    return arrays


def _array(file: IO[bytes], size: int, what: str) -> Array:
    """The array in `size` bytes of a file."""
    begin = file.read(8)
    version = tuple(begin[6:8])
    if begin[:6] != b"\x93NUMPY" or len(version) < 2:
        raise Unreadable(f"{what} is not in numpy's format")
    if version not in _READERS:
        raise Unreadable(f"{what} is of .npy version {version[0]}.{version[1]}")
    try:
        shape, fortran, dtype = _READERS[version](file)
    except Exception as error:  # see above; what numpy says of it quotes the header, and may advise to trust it
        raise Unreadable(f"{what} has no sound header") from error
    if dtype.hasobject:
        raise Unreadable(f"{what} holds Python objects, which are never unpickled")
    if not dtype.itemsize or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise Unreadable(f"{what} has dtype {dtype} and shape {shape}")
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if not needed <= min(left, MAX_BYTES):
        raise Unreadable(f"{what} claims {needed} bytes of data and has {left}")
    data: Any = np.empty(needed, np.uint8)
    room = memoryview(data)
    while room and (count := file.readinto(room)):  # type: ignore[attr-defined]
        room = room[count:]
    if room:
        raise Unreadable(f"{what} is truncated")
    array: Array = data.view(dtype).reshape(shape, order="F" if fortran else "C")
    return array
