"""GPU code without a GPU: machine code for several architectures, and PTX, in one library.

TVM's CUDA runtime loads only where the driver's `libcuda.so.1` is, and without it TVM quietly embeds C source instead
of machine code. So code is generated in a child process that finds a stub driver when there is no real one, and that
replaces TVM's compiler callback by ours. The caller's process never sees the stub.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from archc.backends.native import cuda_libraries
from archc.backends.tvm.link import Linker, find_compiler, toolchain
from archc.backends.tvm.targets import TargetSpec
from archc.ir.diagnostics import CompileError, Diagnostic, fail
from archc.ir.dims import symbols
from archc.ir.graph import Graph

# What libtvm_runtime_cuda.so takes from the driver. The stub's answer is CUDA_ERROR_UNKNOWN: it is never to be called.
_DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)


@dataclass(frozen=True)
class CudaCompiler:
    """What turns CUDA C into machine code: `nvcc`, or `nvrtc` (a library, from PyPI)."""

    kind: Literal["nvcc", "nvrtc"]
    path: str
    version: str


def find_cuda_compiler() -> CudaCompiler:
    """nvcc on the PATH or under $CUDA_HOME, else nvrtc; E0502 (exit code 4) when there is neither.

    `$ARCHC_CUDA_COMPILER` decides otherwise: it is `nvrtc`, or the path of an nvcc.
    """
    choice = os.environ.get("ARCHC_CUDA_COMPILER", "")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + ["/usr/local/cuda"]
    candidates = [choice] if choice else [shutil.which("nvcc"), *(f"{home}/bin/nvcc" for home in homes)]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
            if found := re.search(r"release ([\d.]+), V([\d.]+)", said):
                return CudaCompiler("nvcc", candidate, found[2])
    if choice in ("", "nvrtc"):
        from archc.backends.tvm.nvrtc import find_nvrtc

        if version := find_nvrtc():
            return CudaCompiler("nvrtc", "", version)
    raise fail(
        "E0502",
        "compiling for CUDA needs nvcc or nvrtc, and neither works here",
        label=f"$ARCHC_CUDA_COMPILER names `{choice}`" if choice else "",
        help="install the CUDA toolkit, or: pip install cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-runtime "
        "nvidia-cuda-cccl nvidia-cuda-crt nvidia-nvfatbin",
        exit_code=4,
    )


def demand_arches(compiler: CudaCompiler, arches: Sequence[str]) -> None:
    """E0503 (exit code 4) when the compiler does not know one of the architectures."""
    if compiler.kind == "nvcc":
        command = [compiler.path, "--list-gpu-code"]
        known = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    else:
        from archc.backends.tvm.nvrtc import known_arches

        known = known_arches()
    base = {re.sub(r"[af]$", "", arch) for arch in arches}  # `sm_90a` is a dialect of sm_90 that lists leave out
    if unknown := sorted(base - set(known)):
        raise fail(
            "E0503",
            f"{compiler.kind} {compiler.version} compiles for {', '.join(known)}; needed `{unknown[0]}`",
            help="name one of these, as in `cuda:sm_90`, or use another version of CUDA",
            exit_code=4,
        )


LONGEST_LOOP = 256
"""Steps of a `scan` that are written out one by one for a GPU."""


def demand_static(graph: Graph) -> None:
    """E0531 (exit code 4) when the network holds what has no form for a GPU: loops of an open or large length."""
    refused = []
    for node in graph.walk():
        if node.op.name != "scan":
            continue
        length = node.inputs[0].type.shape[node.params.axis]  # type: ignore[attr-defined]
        if isinstance(length, int) and length <= LONGEST_LOOP:
            continue
        ways = "compile with `--target cpu`"
        if not isinstance(length, int):
            ways += "".join(f", or fix the size: `--dim {s}=128`" for s in sorted(symbols(length)))
        refused.append(
            Diagnostic(
                "E0531",
                f"`scan` for CUDA needs a known number of steps, {LONGEST_LOOP} at most",
                node.span,
                label=f"here it is {length}",
                help=ways,
            )
        )
    if refused:
        raise CompileError(*dict.fromkeys(refused), exit_code=4)


def build_cuda(module: Any, spec: TargetSpec) -> tuple[bytes, Literal["shared"], dict[str, str], dict[str, Any]]:
    """Library, kind, versions and kernel report of a Relax module for `spec.arches`.

    Constants should have been lifted: the module travels to the child process as JSON.

    Raises: CompileError E0532 (exit code 4) when TVM or the CUDA compiler fails on the module.
    """
    from archc.backends.tvm.load import tvm

    compiler, linker = find_cuda_compiler(), find_compiler()
    demand_arches(compiler, spec.arches)
    with tempfile.TemporaryDirectory(prefix="archc-cuda-") as name:
        folder = Path(name)
        (folder / "module.json").write_text(tvm.ir.save_json(module))
        (folder / "spec.json").write_text(spec.model_dump_json())
        child = subprocess.run(
            [sys.executable, "-m", "archc.backends.tvm.cuda", name],
            env=_environment(folder, linker),
            capture_output=True,
            text=True,
            check=False,
        )
        outcome = folder / "outcome.json"
        said: dict[str, Any] = {"error": f"the compilation ended with status {child.returncode}"}
        if outcome.exists():
            said = json.loads(outcome.read_text())
        if "diagnostic" in said:
            raise CompileError(Diagnostic(**said["diagnostic"]), exit_code=4)
        if "error" in said:
            raise _failed(spec, said["error"], said.get("kernel", ""), child.stderr, module)
        library = (folder / "library").read_bytes()
    return library, "shared", said["toolchain"] | {compiler.kind: compiler.version}, said["report"]


def _failed(spec: TargetSpec, error: str, kernel: str, trace: str, module: Any) -> CompileError:
    """E0532, and a file with what is needed to find out why."""
    with tempfile.NamedTemporaryFile("w", prefix="archc-report-", suffix=".txt", delete=False) as file:
        file.write(f"target {spec}\nkernel {kernel}\n{error}\n\n{trace}\n\n{module.script()}")
    where = f" the kernel `{kernel}`" if kernel else ""
    return fail(
        "E0532",
        f"TVM could not compile{where or ' the network'} for `{spec}`",
        label=error.strip().splitlines()[-1][-300:] if error.strip() else "",
        help=f"`--target cpu` takes every network; please report this with {file.name}",
        exit_code=4,
    )


def _environment(folder: Path, linker: str) -> dict[str, str]:
    """The child's environment: it finds the CUDA runtime, and a driver, real or not."""
    places = cuda_libraries()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        places.append(str(_stub(folder, linker)))
    path = [*places, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(path)}


def _stub(folder: Path, linker: str) -> Path:
    """A folder with a `libcuda.so.1` that has the driver's functions, none of which works."""
    place = folder / "driver"
    place.mkdir()
    source = place / "stub.c"
    functions = "".join(f"int {name}(void) {{ return 999; }}\n" for name in _DRIVER_FUNCTIONS)
    source.write_text(f'#ifdef __cplusplus\nextern "C" {{\n#endif\n{functions}#ifdef __cplusplus\n}}\n#endif\n')
    command = [linker, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(place / "libcuda.so.1"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise fail("E0504", f"`{linker}` cannot build a shared library", label=done.stderr.strip()[-2000:], exit_code=4)
    return place


def compile_source(code: str, arches: Sequence[str], compiler: CudaCompiler) -> tuple[bytes, list[dict[str, Any]]]:
    """Machine code of CUDA C for `arches`, and a record per kernel where the compiler gives one."""
    if compiler.kind == "nvcc":
        return compile_nvcc(code, arches, compiler.path)
    from archc.backends.tvm.nvrtc import compile_nvrtc

    return compile_nvrtc(code, arches), []


_NAN_AWARE = """
template <typename A, typename B> __device__ __forceinline__ auto archc_max(A a, B b) -> decltype(true ? A() : B()) {
  return a > b || a != a ? a : b;
}
template <typename A, typename B> __device__ __forceinline__ auto archc_min(A a, B b) -> decltype(true ? A() : B()) {
  return a < b || a != a ? a : b;
}
"""


def keep_nan(code: str) -> str:
    """CUDA C whose `max` and `min` give NaN where an operand is NaN, as PyTorch's do; CUDA's own drop it.

    This is done in the text since TVM's schedules for reductions know `max` by its name.

    >>> keep_nan('extern "C" __global__ void f(float* x) { x[0] = max(x[0], fmax(1, 2)); }').splitlines()[-1]
    'extern "C" __global__ void f(float* x) { x[0] = archc_max(x[0], fmax(1, 2)); }'
    """
    head, *kernels = re.split(r'(?=extern "C" __global__)', code)
    mended = [re.sub(r"(?<![\w.:>])(max|min)\(", r"archc_\1(", _from_infinity(k)) for k in kernels]
    return "".join([head, _NAN_AWARE if mended != kernels else "", *mended])


def _from_infinity(kernel: str) -> str:
    """A kernel whose reductions by `max` and `min` begin with infinity, where TVM's begin with the largest number."""
    for function, sign, bits in (("max", "-", "f"), ("min", "", "7")):
        values = {
            rf"{sign}0x1\.fffffep\+127f": f"__int_as_float(0x{bits}f800000)",
            rf"{sign}0x1\.fffffffffffffp\+1023": f"__longlong_as_double(0x{bits}ff0000000000000LL)",
        }
        for buffer in {b for _, b in re.findall(rf"((\w+)\[[^=]*\]) = {function}\(\1, ", kernel)}:
            for literal, infinity in values.items():
                kernel = re.sub(rf"(\b{buffer}\[[^=;]*\] = ){literal}(/\*[^*]*\*/)?;", rf"\g<1>{infinity};", kernel)
    return kernel


def compile_nvcc(code: str, arches: Sequence[str], nvcc: str) -> tuple[bytes, list[dict[str, Any]]]:
    """A fat binary of `code`: machine code per architecture, PTX of the highest; and what ptxas says of the kernels."""
    with tempfile.TemporaryDirectory(prefix="archc-nvcc-") as name:
        folder = Path(name)
        (folder / "kernels.cu").write_text(code)
        # no --use_fast_math: it flushes denormals and forgets NaN and infinity, which torch does not
        command = [nvcc, "--fatbin", "-O3", "--threads", "0", "-Xptxas", "-v", "-o", "kernels.fatbin", "kernels.cu"]
        for arch in arches:
            command += ["-gencode", f"arch={arch.replace('sm_', 'compute_')},code={arch}"]
        virtual = arches[-1].replace("sm_", "compute_")
        command += ["-gencode", f"arch={virtual},code={virtual}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nvcc rejects generated code:\n{(done.stderr + done.stdout)[-4000:]}")
        return (folder / "kernels.fatbin").read_bytes(), ptxas_report(done.stderr + done.stdout)


def ptxas_report(text: str) -> list[dict[str, Any]]:
    """What `ptxas -v` says, as one record per kernel and architecture.

    >>> ptxas_report('''ptxas info : Compiling entry function 'add_kernel' for 'sm_90'
    ... ptxas info : Function properties for add_kernel
    ...     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ... ptxas info : Used 12 registers, used 1 barriers, 256 bytes smem''')[0]["registers"]
    12
    """
    kernels: list[dict[str, Any]] = []
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '([^']+)' for '([^']+)'", line):
            kernels.append({"name": found[1], "arch": found[2], "registers": 0, "shared_bytes": 0, "stack_bytes": 0})
            kernels[-1] |= {"spill_store_bytes": 0, "spill_load_bytes": 0}
        elif not kernels:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            kernels[-1] |= {"stack_bytes": stack, "spill_store_bytes": stores, "spill_load_bytes": loads}
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1] |= {"registers": int(found[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return sorted(kernels, key=lambda k: (k["name"], k["arch"]))


def fatbin_images(data: bytes) -> list[str]:
    """What the first fat binary within `data` holds, such as `["sm_80", "sm_90", "ptx 90"]`; empty without one.

    The container is a header (magic u32, version u16, its length u16, length of the rest u64) and images, each with a
    header of its own (kind u16: 1 PTX, 2 machine code; …, its length u32 at 4, the image's u64 at 8, architecture u32
    at 28). NVIDIA does not document it; `cuobjdump` lists the same.
    """
    place = data.find(bytes.fromhex("50ed55ba"))
    if place < 0:
        return []
    header, rest = struct.unpack_from("<HQ", data, place + 6)
    place += header
    end, images = min(place + rest, len(data)), []
    while place + 64 <= end:
        kind, length, size, arch = (
            *struct.unpack_from("<H2xIQ", data, place),
            *struct.unpack_from("<I", data, place + 28),
        )
        images.append(f"sm_{arch}" if kind == 2 else f"ptx {arch}")
        place += length + size
    return sorted(images, key=lambda i: (i[:3] == "ptx", i))


def _child(folder: Path) -> dict[str, Any]:
    """What the child process does: generate, compile, link; its files are in `folder`."""
    from archc.backends.tvm.gpu import cuda_pipeline
    from archc.backends.tvm.load import tvm, tvm_ffi

    spec = TargetSpec.model_validate_json((folder / "spec.json").read_text())
    compiler, linker = find_cuda_compiler(), find_compiler()
    kernels: list[dict[str, Any]] = []
    passed_over: list[str] = []

    def callback(code: str, *_: Any) -> bytes:
        binary, report = compile_source(keep_nan(code), spec.arches, compiler)
        kernels.extend(report)
        return binary

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", callback, override=True)
    module = tvm.ir.load_json((folder / "module.json").read_text())
    target = spec.to_tvm()
    executable = tvm.compile(module, target, relax_pipeline=cuda_pipeline(target, passed_over.append))
    work = folder / "work"
    work.mkdir()
    executable.export_library(str(work / "library"), fcompile=Linker(linker), workspace_dir=str(work))
    (work / "library").rename(folder / "library")
    images = fatbin_images((folder / "library").read_bytes())
    assert images, "TVM embedded no machine code"
    report = {"kernels": kernels, "images": images, "rules_that_failed": passed_over}
    return {"toolchain": toolchain(linker), "report": report}


def _told(folder: Path) -> dict[str, Any]:
    """What the child process says: what `_child` found, or why there is nothing."""
    try:
        return _child(folder)
    except CompileError as e:
        fields = ("code", "message", "label", "help")
        return {"diagnostic": {name: getattr(e.diagnostics[0], name) for name in fields}}
    except Exception as e:  # TVM raises anything; the parent makes a diagnostic and a report of it
        traceback.print_exc()
        named = re.search(r"(?:global_symbol|function|kernel|[Ff]unc)\W{1,4}(\w+)|def (\w+)\(", str(e))
        return {"error": f"{type(e).__name__}: {e}", "kernel": (named[1] or named[2]) if named else ""}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "outcome.json").write_text(json.dumps(_told(place)))
