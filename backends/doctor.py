"""What works on this machine, found by trying it: each probe does the thing in a process of its own, with a time limit.

A probe that crashes, hangs or is missing is a line in the table, never the end of `archc doctor`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from archc.backends.cache import cache_root
from archc.backends.tvm.link import find_compiler
from archc.backends.tvm.targets import parse_target
from archc.ir.diagnostics import CompileError

TIMEOUT = 120.0  # seconds for one probe


@dataclass(frozen=True)
class Check:
    """One thing that was tried. `remedy` is empty when it worked; `needed_for` says what is lost without it."""

    name: str
    ok: bool
    detail: str
    remedy: str
    needed_for: str


def diagnose(timeout: float = TIMEOUT) -> list[Check]:
    """Try everything, side by side; about four seconds.

    >>> [c.name for c in diagnose()]                                # doctest: +SKIP
    ['cpu', 'cache', 'torch', 'tvm', …]
    """
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda probe: probe(timeout), _PROBES))


def _cpu(_: float) -> Check:
    spec = parse_target("cpu")
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{spec.mcpu} ({spec.isa}), {count} cores"
    slow = spec.isa == "sse"
    return Check("cpu", not slow, detail, "the kernels want AVX2 or better" if slow else "", "speed")


def _cache(_: float) -> Check:
    try:
        return Check("cache", True, str(cache_root()), "", "compiling twice at the cost of once")
    except CompileError as error:
        d = error.diagnostics[0]
        return Check("cache", False, f"{d.message}: {d.label}", d.help or "", "compiling twice at the cost of once")


def _linker(_: float) -> Check:
    needed_for = "compile"
    try:
        compiler = find_compiler()
    except CompileError as error:
        return Check("c++ compiler", False, error.diagnostics[0].message, error.diagnostics[0].help or "", needed_for)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cc"
        source.write_text('#include <vector>\nextern "C" int probe() { return (int)std::vector<int>(3).size(); }\n')
        command = [compiler, "-shared", "-fPIC", "-o", f"{folder}/probe.so", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    if done.returncode:
        return Check(
            "c++ compiler", False, _last_line(done.stderr), "reinstall it, or name another in $CXX", needed_for
        )
    return Check("c++ compiler", True, compiler, "", needed_for)


def _python(name: str, code: str, remedy: str, needed_for: str) -> Callable[[float], Check]:
    """A probe that runs `code`, whose last line of output is the detail."""

    def probe(timeout: float) -> Check:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return Check(name, False, f"no answer within {timeout:.0f} s", remedy, needed_for)
        if done.returncode:
            why = _last_line(done.stderr) or f"ended with status {done.returncode}"
            return Check(name, False, why, remedy, needed_for)
        return Check(name, True, _last_line(done.stdout), "", needed_for)

    return probe


def _package(name: str, package: str, remedy: str, needed_for: str) -> Callable[[float], Check]:
    """A probe that only looks whether a package is installed."""

    def probe(_: float) -> Check:
        if util.find_spec(package) is None:
            return Check(name, False, "not installed", remedy, needed_for)
        return Check(name, True, metadata.version(package), "", needed_for)

    return probe


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


_TORCH = """
import torch
assert float((torch.ones(8, 8) @ torch.ones(8, 8)).sum()) == 512
print(torch.__version__, "with CUDA" if torch.cuda.is_available() else "on the CPU")
"""

_TVM = """
import numpy as np
from archc.backends.tvm.load import tvm, tvm_ffi
from archc.backends.tvm.targets import parse_target
relax = tvm.relax
builder = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((4,), "float32"))
with builder.function("main", [x]):
    builder.emit_func_output(builder.emit(relax.op.add(x, x)))
module = tvm.ir.load_json(tvm.ir.save_json(builder.get()))
machine = relax.VirtualMachine(tvm.compile(module, parse_target("cpu").to_tvm()), tvm.cpu())
assert machine["main"](tvm.runtime.tensor(np.ones(4, np.float32))).numpy().sum() == 8
llvm = tvm_ffi.get_global_func("target.llvm_version_major")()
print(f"{tvm.__version__}, tvm-ffi {tvm_ffi.__version__}, LLVM {llvm}")
"""

_CUDA_COMPILE = """
import sys
from archc.backends.tvm.cuda import compile_source, find_cuda_compiler
from archc.backends.tvm.targets import DEFAULT_ARCHES
from archc.ir.diagnostics import CompileError
try:
    compiler = find_cuda_compiler()
    code = 'extern "C" __global__ void probe(float* x) { x[threadIdx.x] += 1.0f; }'
    compile_source(code, DEFAULT_ARCHES, compiler)
except CompileError as error:
    sys.exit(f"{error.diagnostics[0].message} {error.diagnostics[0].label}")
print(compiler.kind, compiler.version, "for", ", ".join(DEFAULT_ARCHES))
"""

_CUDA_RUN = """
import sys
from archc.backends import native
if problem := native.cuda_problem():
    sys.exit(problem)
ask, device = native.global_function("runtime.GetDeviceAttr"), native.runtime().device("cuda", 0)
print(ask(device, 5), "compute capability", ask(device, 4))
"""

_DRAWING = """
import pygraphviz
graph = pygraphviz.AGraph(directed=True)
graph.add_edge("a", "b")
assert b"<svg" in graph.draw(format="svg", prog="dot")
print("pygraphviz", pygraphviz.__version__)
"""

_RAY = """
import os, ray
named = [name for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN") if os.environ.get(name)]
print(f"{ray.__version__},", f"token from {named[0]}" if named else "no token is named in the environment")
"""

_PROBES: list[Callable[[float], Check]] = [
    _cpu,
    _cache,
    _python("torch", _TORCH, "pip install torch", "train, verify, metanet"),
    _python("tvm", _TVM, "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1", "compile, run"),
    _linker,
    _python(
        "cuda compile",
        _CUDA_COMPILE,
        "install the CUDA toolkit, or `pip install 'cuda-bindings' nvidia-cuda-nvrtc nvidia-cuda-runtime`",
        "compile --target cuda",
    ),
    _python("cuda run", _CUDA_RUN, "needs an NVIDIA GPU and its driver, and libcudart.so.13", "running on a GPU"),
    _python("drawing", _DRAWING, "pip install pygraphviz", "show"),
    _package("onnx", "onnx", "pip install 'archc[export]'", "import and export of ONNX"),
    _package("onnxruntime", "onnxruntime", "pip install 'archc[bench]'", "bench --against onnxruntime"),
    _python("ray", _RAY, "pip install 'archc[ray]'", "searching on several machines"),
]
