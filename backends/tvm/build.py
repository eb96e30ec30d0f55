"""From a Relax module to an artifact: schedule, lift the large constants, generate code, link, write.

For the CPU all of it happens here, in this process. GPU code is built in a child process (`archc.backends.tvm.cuda`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from archc.backends.artifact import Facts, Manifest, write_artifact
from archc.backends.tvm.canonical import pipeline
from archc.backends.tvm.codegen import object_files
from archc.backends.tvm.cuda import build_cuda
from archc.backends.tvm.elf import function_sizes
from archc.backends.tvm.lift import lift_constants
from archc.backends.tvm.link import Linker, linker_for, toolchain
from archc.backends.tvm.load import tvm
from archc.backends.tvm.targets import TargetSpec
from archc.backends.weights import atomic_file

Optimise = Callable[..., Any]
ROOM = 32 << 20  # bytes for the object files of a network and their library; the largest examples need a few MB


@dataclass(frozen=True)
class Library:
    """Compiled code: an ELF shared library, or for a processor that we cannot link for, an archive of object files."""

    data: bytes
    code: Literal["shared", "object"]
    toolchain: Mapping[str, str]
    report: Mapping[str, Any] = field(default_factory=dict)


def compile_module(
    module: Any,
    path: Path | str,
    *,
    spec: TargetSpec,
    facts: Facts,
    source: str = "",
    optimise: Optimise | None = None,
) -> Manifest:
    """Compile a `tvm.IRModule` and write the artifact to `path`, atomically.

    The module's function `main` takes `facts.inputs` in order and returns one tensor, or a tuple, for `facts.outputs`;
    weights are constants in it. `optimise(module, target, threads=…)` schedules for the CPU; by default it is
    `archc.backends.tvm.cpu.optimise`. Equal arguments give equal bytes.

    Raises E0502 (no CUDA compiler), E0503 (an architecture it does not know), E0504 (no C++ compiler); exit code 4.
    """
    if spec.kind == "cuda":
        module, constants = lift_constants(module)
        library = Library(*build_cuda(module, spec))
    else:
        target = spec.to_tvm()
        schedule = optimise or _own_schedule()
        module, constants = lift_constants(schedule(module, target, threads=spec.threads))
        library = build(module, spec)
    return write_artifact(
        path,
        facts=facts,
        target=spec,
        code=library.code,
        toolchain=library.toolchain,
        library=library.data,
        constants=constants,
        source=source,
        report=library.report,
    )


def _own_schedule() -> Optimise:
    from archc.backends.tvm.cpu import optimise

    return optimise


def build(module: Any, spec: TargetSpec) -> Library:
    """Generate code for a CPU and link it. What `module` does is not changed: schedule it first."""
    target = spec.to_tvm()
    linker = linker_for(spec)
    with tempfile.TemporaryDirectory(prefix="archc-") as name:
        folder = Path(name)
        _demand_room(folder)
        objects = object_files(module, target, pipeline(tvm.relax.get_pipeline("default")), folder)
        Linker(linker)(str(folder / "library"), objects)
        data = (folder / "library").read_bytes()
    return Library(data, "shared" if linker else "object", toolchain(linker), cpu_report(data))


def _demand_room(folder: Path) -> None:
    """E0608 when object files may not fit into `folder`: LLVM ends the process when it cannot write one."""
    with atomic_file(folder / "room") as temporary, open(temporary, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, ROOM)
    (folder / "room").unlink()


def cpu_report(library: bytes) -> dict[str, Any]:
    """Each kernel of a shared library with the size of its code in bytes, the largest first."""
    sizes = function_sizes(library)
    kernels = [
        {"name": n.removeprefix("__tvm_ffi_"), "bytes": s} for n, s in sizes.items() if n.startswith("__tvm_ffi_")
    ]
    return {"kernels": sorted(kernels, key=lambda k: (-int(k["bytes"]), k["name"]))}
