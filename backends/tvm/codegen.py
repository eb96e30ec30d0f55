"""Kernels to object files, several at a time.

`tvm.compile` lowers all kernels in one thread and sends them through one LLVM module; that is most of the time a
compilation takes. Here each kernel is a module of its own. TVM and LLVM leave Python's lock while they work, so that
threads do. What is written does not depend on how many there are.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from archc.backends.tvm.cpu.program import WRITTEN
from archc.backends.tvm.load import tvm, tvm_ffi

tirx, s_tir = tvm.tirx, tvm.s_tir
_pack = tvm_ffi.get_global_func("runtime.ModulePackImportsToLLVM")

PIPELINE = "archc_cpu"
"""The name of our list of passes for `tvm.compile(…, tir_pipeline=PIPELINE)`; it is `object_files`'s."""

_EXTERNAL = "external_mods"  # where `tvm.compile` looks for modules to link


def object_files(module: Any, target: Any, passes: Any, folder: Path) -> list[str]:
    """Compile Relax and its kernels; the object files in `folder`: one for each kernel, in the order of their names,
    and one with everything else.

    `passes` is the Relax pipeline; what it leaves are kernels and calls of them by name.
    """
    files: list[str] = []

    @tvm.transform.module_pass(opt_level=0, name="BuildKernels")  # type: ignore[untyped-decorator]
    def build_kernels(module: Any, _context: Any) -> Any:
        kernels = {gv: f for gv, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
        rest = {gv: f for gv, f in module.functions.items() if gv not in kernels}
        built = _build_kernels(kernels, target, folder)
        files.extend(file for _, file in built)
        return tvm.IRModule(rest, attrs={**dict(module.attrs or {}), _EXTERNAL: [kernel for kernel, _ in built]})

    executable = tvm.compile(module, target, relax_pipeline=tvm.transform.Sequential([passes, build_kernels]))
    program = _pack(executable.mod, False, str(target), "")  # the virtual machine's code, and small constants
    files.append(str(folder / "program.o"))
    program.write_to_file(files[-1])
    return files


def _build_kernels(kernels: dict[Any, Any], target: Any, folder: Path) -> list[tuple[Any, str]]:
    """Each kernel as TVM's module, and the object file of its code."""

    def build(number: int, name: Any) -> tuple[Any, str]:
        kernel = tirx.build(tvm.IRModule({name: kernels[name]}), target, pipeline=PIPELINE)
        file = str(folder / f"{number}.o")
        kernel.write_to_file(file)
        return kernel, file

    names = sorted(kernels, key=lambda name: str(name.name_hint))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(build, range(len(names)), names))


@tvm.transform.module_pass(opt_level=0, name="LowerKernels")  # type: ignore[untyped-decorator]
def _lower_kernels(module: Any, _context: Any) -> Any:
    ours = all(WRITTEN in (f.attrs or {}) for f in module.functions.values())
    return tvm.transform.Sequential(_passes(ours))(module)


def _passes(ours: bool) -> list[Any]:
    """TVM's own list (`tvm.s_tir.pipeline`) without what is for GPUs, and for our kernels without looking for the part
    of each buffer that is used: it is all of it, and the search takes a quarter of the time.
    """
    compact = [] if ours else [s_tir.transform.CompactBufferAllocation()]
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        *compact,
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        *([_keep_on_stack] if ours else []),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),
    ]


@tirx.transform.prim_func_pass(opt_level=0, name="KeepOnStack")  # type: ignore[untyped-decorator]
def _keep_on_stack(function: Any, _module: Any, _context: Any) -> Any:
    """TVM takes local buffers from a pool by two calls, and LLVM then stores every sum before the second one. On the
    stack they become registers. (A mark of the kernel's writer would not do: `StorageRewrite` drops it.)
    """

    def mark(allocation: Any) -> Any:
        if allocation.buffer.scope() != "local":
            return allocation
        return tirx.AllocBuffer(allocation.buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)})

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, mark)))


def _pipeline() -> tuple[Any, Any, Any]:
    _, *finish = tirx.get_tir_pipeline("s_tir")
    return (_lower_kernels, *finish)


tirx.compilation_pipeline.PIPELINE_MAP[PIPELINE] = _pipeline
