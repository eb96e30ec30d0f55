"""Object files to one file: the C++ compiler as linker, its absence as a diagnostic, and `ar`'s format without `ar`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archc.backends.tvm.targets import TargetSpec, host
from archc.ir.diagnostics import fail


def toolchain(compiler: str | None) -> dict[str, str]:
    """The versions of everything that decides the code."""
    from archc.backends.tvm.load import tvm, tvm_ffi

    versions = {
        "tvm": str(tvm.__version__),
        "tvm-ffi": str(tvm_ffi.__version__),
        "llvm": str(tvm_ffi.get_global_func("target.llvm_version_major")()),
    }
    if compiler:
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
        versions["cxx"] = said.splitlines()[0] if said else Path(compiler).name
    return versions


def find_compiler() -> str:
    """The C++ compiler that links libraries: `$CXX`, or what is on the path; E0504 (exit code 4) when there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "gcc", "clang", "cc"):
        if name and (path := shutil.which(name)):
            return path
    raise fail(
        "E0504",
        "linking the compiled code needs a C++ compiler, and none is on the PATH",
        help="install g++ or clang++ (Debian, Ubuntu: `apt install g++`), or name one in $CXX",
        exit_code=4,
    )


def linker_for(spec: TargetSpec) -> str | None:
    """The compiler that links for `spec`'s processor; None for a foreign one whose cross compiler is not here."""
    if spec.machine == host()[0]:
        return find_compiler()
    return shutil.which(f"{spec.triple}-g++")


class Linker:
    """What TVM's `export_library` calls with the object files: a linker, or without one, `ar`'s format."""

    object_format = "o"

    def __init__(self, compiler: str | None) -> None:
        self.compiler = compiler

    def __call__(self, output: str, objects: Sequence[str], **_: Any) -> None:
        if self.compiler is None:
            Path(output).write_bytes(archive([(Path(o).name, Path(o).read_bytes()) for o in objects]))
            return
        # relative names: the temporary folder's must not reach the library
        names = [Path(o).name for o in objects]
        command = [self.compiler, "-shared", "-fPIC", "-o", Path(output).name, *names]
        done = subprocess.run(command, cwd=Path(output).parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise fail(
                "E0504",
                f"`{self.compiler}` cannot link the compiled code",
                label=done.stderr.strip()[-2000:],
                help="check the compiler with `archc doctor`",
                exit_code=4,
            )


def archive(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A static library (`.a`) without times or owners; a linker for the target reads it.

    >>> archive([("a.o", b"xyz")])[:8]
    b'!<arch>\\n'
    """
    out = bytearray(b"!<arch>\n")
    for name, data in members:
        assert len(name) < 16, "short names only"
        out += f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return bytes(out)
