"""The artifact: one file that holds a compiled network and all that is known about it; read without tvm or torch.

Layout, little-endian::

    0    8  magic "\\x93ARCHC\\r\\n" (the line end catches transfers in text mode)
    8    4  format version
    12   4  length of the manifest, M
    16   8  length of the file
    24  32  SHA-256 of bytes 0–24 and of the manifest
    56   M  the manifest: JSON, `Manifest` below
         …  the sections in the manifest's order, each from the next multiple of 64; zeros between them

The manifest holds each section's length and SHA-256, so the one digest in the header covers every byte of the file. It
holds no offsets: sections cannot overlap or point outside. And no time and no path: equal input, equal bytes.

The sections: `library`, the code (an ELF shared library; for a foreign processor an object file); `weights`, the large
constants as safetensors, mapped into memory and never copied; `source`, the `.arch` text; `report`, what the compilers
said about the kernels, as JSON.
"""

from __future__ import annotations

import ast
import hashlib
import json
import mmap
import operator
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from archc.backends.arrays import open_regular
from archc.backends.preprocessing import Preprocessing
from archc.backends.tvm.targets import TargetSpec
from archc.backends.weights import Array, atomic_file, dtype_name, view_weights
from archc.ir.diagnostics import CompileError, fail

MAGIC = b"\x93ARCHC\r\n"
FORMAT = 1
ALIGNMENT = 64  # TVM's kernels load whole cache lines
MAX_MANIFEST = 16 << 20
_HEADER = struct.Struct("<8sIIQ")
_DIGEST = 32
_CHUNK = 8 << 20

SectionName = Literal["library", "weights", "source", "report"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _checked_dim(dim: int | str) -> int | str:
    if isinstance(dim, str):
        dim_value(dim, None)
    return dim


Size = Annotated[int, Field(ge=0, lt=2**48)]
DimText = Annotated[Size | Annotated[str, Field(max_length=1000)], AfterValidator(_checked_dim)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Port(_Record):
    """An input or output: a dimension is a size, a symbol (`"N"`) or an expression over symbols (`"2*N + 1"`).

    `below` bounds an input of indices: each is at least 0 and less than it.
    """

    name: str
    dtype: Literal["f64", "f32", "f16", "bf16", "i64", "i32", "i8", "bool"]
    dims: tuple[DimText, ...]
    below: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


class SizeNeed(_Record):
    """An expression over the symbols of the inputs that must not be negative, and what that means in words."""

    size: Annotated[str, Field(max_length=1000), AfterValidator(_checked_dim)]
    words: Annotated[str, Field(max_length=2000)]


class Facts(_Record):
    """What the caller knows of a network that it compiles."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    needs: tuple[SizeNeed, ...] = ()
    ir_hash: str
    weights_hash: str
    weights_origin: str = "file"  # or `seed:0`, `predicted:MODEL`
    passes: tuple[str, ...] = ()
    model_parameters: Size = 0
    preprocessing: Preprocessing | None = None

    @property
    def seed_initialised(self) -> bool:
        """Whether the weights are nothing but an initialisation."""
        return self.weights_origin.startswith("seed:")


class Section(_Record):
    name: SectionName
    length: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Sha256


class Manifest(Facts):
    """What an artifact says of itself."""

    format: Literal[1] = 1
    created_by: str
    entry: str = "main"
    code: Literal["shared", "object"]
    target: TargetSpec
    toolchain: Mapping[str, str]
    constants: Size = 0
    sections: tuple[Section, ...]

    @field_validator("sections")
    @classmethod
    def _once_each(cls, sections: tuple[Section, ...]) -> tuple[Section, ...]:
        names = [s.name for s in sections]
        if len(set(names)) < len(names) or "library" not in names:
            raise ValueError("needed a library and no section twice")
        return sections


_OPERATORS: Mapping[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def dim_value(text: str, symbols: Mapping[str, int] | None) -> int | None:
    """The value of a dimension's expression; None while one of its symbols is unknown (`symbols=None`: check only).

    >>> dim_value("2*N + 1", {"N": 3})
    7
    """

    def value(node: ast.expr) -> int | None:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name):
                return None if symbols is None else symbols.get(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = value(operand)
                return None if inner is None else -inner
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                a, b = value(left), value(right)
                if a is None or b is None or (b == 0 and isinstance(op, ast.FloorDiv | ast.Mod)):
                    return None
                return int(_OPERATORS[type(op)](a, b))
        raise ValueError(f"`{text}` is not a dimension")

    try:
        return value(_parsed(text))
    except RecursionError as error:
        raise ValueError(f"`{text}` is not a dimension") from error


@lru_cache(1024)
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"`{text}` is not a dimension") from error


@dataclass(frozen=True)
class Container:
    """An open artifact: its manifest, and the file as memory. Nothing of it is executed."""

    path: Path
    manifest: Manifest
    digest: str
    _buffer: memoryview

    def section(self, name: SectionName) -> memoryview:
        """The bytes of a section, empty when there is none; a view of the mapped file."""
        return dict(self._layout()).get(name, self._buffer[:0])

    def _layout(self) -> Iterator[tuple[SectionName, memoryview]]:
        for section, begin in _places(self.manifest.sections, self._first):
            yield section.name, self._buffer[begin : begin + section.length]

    @property
    def _first(self) -> int:
        return _HEADER.size + _DIGEST + int(_HEADER.unpack_from(self._buffer)[2])

    def constants(self) -> list[Array]:
        """The weights that the code is called with, as views of the file."""
        if not self.manifest.constants:
            return []
        arrays, _ = view_weights(self.section("weights"), self.path)
        if arrays.keys() != {str(i) for i in range(len(arrays))} or len(arrays) != self.manifest.constants:
            raise _damaged(self.path, "the weights are not those that the manifest lists")
        return [arrays[str(i)] for i in range(self.manifest.constants)]

    @property
    def source(self) -> str:
        """The `.arch` text that was compiled."""
        return bytes(self.section("source")).decode("utf-8", errors="replace")

    @property
    def report(self) -> dict[str, Any]:
        """What the compilers said about the kernels."""
        try:
            report = json.loads(bytes(self.section("report")) or b"{}")
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path, f"the report is not JSON: {error}") from error
        return report if isinstance(report, dict) else {}

    def verify(self) -> None:
        """Check every byte of the sections and of the zeros between them; E0511 when one differs."""
        reached = self._first
        for section, begin in _places(self.manifest.sections, reached):
            if any(self._buffer[reached:begin]):
                raise _damaged(self.path, f"bytes that belong to nothing before section `{section.name}`")
            reached = begin + section.length
            if _sha256([self._buffer[begin:reached]]) != section.sha256:
                raise _damaged(self.path, f"section `{section.name}` does not have the SHA-256 that it should")


def is_artifact(path: Path | str) -> bool:
    """Whether the file begins as an artifact does."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of an artifact, checked; its sections are not."""
    return open_artifact(path, verify=False).manifest


def open_artifact(path: Path | str, *, verify: bool = True) -> Container:
    """Open an artifact and check it, every byte of it unless `verify` is false.

    Raises E0509 (cannot be read; exit code 2 when missing), E0510 (not an artifact), E0511 (damaged), E0512 (another
    format version), E0513 (a manifest that this version does not understand).
    """
    path = Path(path)
    buffer = _mapped(path)
    if bytes(buffer[: len(MAGIC)]) != MAGIC[: len(buffer)] or not len(buffer):
        raise fail("E0510", f"`{path}` is not an artifact", help="`archc compile` writes artifacts")
    start = _HEADER.size + _DIGEST
    if len(buffer) < start:
        raise _damaged(path, f"truncated: the header needs {start} bytes, found {len(buffer)}")
    _, version, manifest_length, length = _HEADER.unpack_from(buffer)
    if version != FORMAT:
        raise fail(
            "E0512",
            f"`{path}` has artifact format {version}; this archc reads format {FORMAT}",
            help="compile it again with this version",
        )
    if length != len(buffer) or manifest_length > min(MAX_MANIFEST, length - start):
        raise _damaged(path, f"needed {length} bytes with a manifest of {manifest_length}, found {len(buffer)}")
    text = bytes(buffer[start : start + manifest_length])
    digest = _sha256([buffer[: _HEADER.size], text])
    if digest != buffer[_HEADER.size : start].hex():
        raise _damaged(path, "the manifest does not have the SHA-256 that it should")
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise fail(
            "E0513",
            f"the manifest of `{path}` is not understood",
            label=f"{place}: {first['msg']}" if place else first["msg"],
            help="it was written by another version of archc: compile it again",
        ) from None
    end = start + manifest_length
    for section, begin in _places(manifest.sections, end):
        end = begin + section.length
    if end != length:
        raise _damaged(path, f"the manifest's sections end at byte {end}, the file at {length}")
    container = Container(path, manifest, digest, buffer)
    if verify:
        container.verify()
    return container


def write_artifact(
    path: Path | str,
    *,
    facts: Facts,
    target: TargetSpec,
    code: Literal["shared", "object"],
    toolchain: Mapping[str, str],
    library: bytes,
    constants: Sequence[Array] = (),
    source: str = "",
    report: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write an artifact: to a temporary file that is synced and renamed, so `path` is old or new and never half."""
    chunks: dict[SectionName, list[Any]] = {"library": [library]}
    if constants:
        chunks["weights"] = _safetensors(constants)
    if source:
        chunks["source"] = [source.encode()]
    if report:
        chunks["report"] = [json.dumps(report, sort_keys=True, separators=(",", ":")).encode()]
    manifest = Manifest(
        **dict(facts),
        created_by=f"archc {_version()}",
        code=code,
        target=target,
        toolchain=dict(sorted(toolchain.items())),
        constants=len(constants),
        sections=tuple(
            Section(name=name, length=sum(memoryview(c).nbytes for c in parts), sha256=_sha256(parts))
            for name, parts in chunks.items()
        ),
    )
    text = manifest.model_dump_json().encode()
    first = end = _HEADER.size + _DIGEST + len(text)
    for section, begin in _places(manifest.sections, first):
        end = begin + section.length
    header = _HEADER.pack(MAGIC, FORMAT, len(text), end)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(header + bytes.fromhex(_sha256([header, text])) + text)
        for section, begin in _places(manifest.sections, first):
            file.write(bytes(begin - file.tell()))
            for chunk in chunks[section.name]:
                file.write(chunk)
    return manifest


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("archc")
    except PackageNotFoundError:  # a plain checkout
        return "0"


def _places(sections: Iterable[Section], reached: int) -> Iterator[tuple[Section, int]]:
    """Each section with its first byte, from byte `reached` on."""
    for section in sections:
        begin = -(-reached // ALIGNMENT) * ALIGNMENT
        yield section, begin
        reached = begin + section.length


def _safetensors(constants: Sequence[Array]) -> list[Any]:
    """A safetensors file in pieces, its tensors named by their number.

    Tensors of whole cache lines come first, so that they stay aligned (the header is padded); the rest, which is small,
    is copied when it is loaded. `archc.backends.weights.serialise` would hold it all in memory a second time.
    """
    names = {"f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "i8": "I8"}
    names |= {"u8": "U8", "bool": "BOOL", "i16": "I16", "u32": "U32", "u64": "U64"}
    order = sorted(
        range(len(constants)), key=lambda i: (constants[i].nbytes % ALIGNMENT != 0, -constants[i].itemsize, i)
    )
    header, offset, data = {}, 0, []
    for i in order:
        array = np.ascontiguousarray(constants[i])
        header[str(i)] = {
            "dtype": names[dtype_name(array)],
            "shape": list(constants[i].shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
        data.append(array.reshape(-1).view(np.uint8))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *data]


def _sha256(chunks: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _damaged(path: Path, label: str) -> CompileError:
    return fail(
        "E0511", f"the artifact `{path}` is damaged", label=label, help="copy the file again, or compile it again"
    )


def _mapped(path: Path) -> memoryview:
    """The file as memory: private, so that a stray write never reaches the disk."""
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise fail(
            "E0509",
            f"cannot read the artifact `{path}`",
            label=getattr(error, "strerror", None) or str(error),
            help="`archc compile` writes artifacts" if missing else None,
            exit_code=2 if missing else 1,
        ) from error
