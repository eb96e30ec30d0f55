"""The native side of TVM, loaded without torch and, for running, without tvm.

`import tvm_ffi` imports torch wherever torch is installed: 2.8 s and half a gigabyte for nothing. Running an artifact
needs only `libtvm_ffi` and `libtvm_runtime`: 60 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from archc.ir.diagnostics import fail


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Within it, this thread's `import torch` fails unless torch is loaded already; other threads notice nothing."""
    guard = _TorchGuard(threading.get_ident())
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        if guard in sys.meta_path:
            sys.meta_path.remove(guard)


class _TorchGuard:
    def __init__(self, thread: int) -> None:
        self.thread = thread

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("torch is not needed here", name="torch")


def calm_threads() -> None:
    """Keep TVM's worker threads from being pinned to cores and from spinning.

    Pinned, spinning workers collapse as soon as cores are shared (16 ms against 1.2). The library reads these variables
    when it first starts its workers; what the user has set stays.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")


@cache
def library_folder() -> Path:
    """Where the installed tvm keeps its shared libraries; raises E0514 when there is none."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise fail("E0514", "running an artifact needs apache-tvm", help="pip install apache-tvm", exit_code=4)
    return Path(spec.origin).parent / "lib"


def tvm_version() -> str:
    """The installed release of TVM, empty when there is none."""
    try:
        return metadata.version("apache-tvm")
    except metadata.PackageNotFoundError:
        return ""


@cache
def runtime() -> Any:
    """The module `tvm_ffi`, with TVM's runtime library loaded."""
    calm_threads()
    folder = library_folder()
    try:
        with without_torch():
            import tvm_ffi
        _runtime_library()
        if (extra := folder / "libtvm_runtime_extra.so").exists():  # sorting, random numbers
            ctypes.CDLL(str(extra))
    except (ImportError, OSError) as error:
        raise fail(
            "E0514", f"TVM's runtime cannot be loaded: {error}", help="reinstall apache-tvm", exit_code=4
        ) from error
    return tvm_ffi


@cache
def _runtime_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_folder() / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)


_workers = threading.local()


def use_threads(count: int) -> None:
    """Let what this thread runs from now on use `count` threads, itself included.

    Every calling thread has a pool of workers, whose size TVM fixes when it is first needed (by default at half the
    processors it sees). So the pool is made as large as the machine, once more than one thread is asked for, and used
    in part: `count` is at most the larger of its first value above 1 and the number of processors.

    Raises E0523 in a process that was forked from one in which this thread had workers: they are not here.
    """
    if count > 1 and getattr(_workers, "process", os.getpid()) != os.getpid():
        raise fail(
            "E0523",
            "this process was forked from one that was running compiled code on several threads, which are not here",
            help="load and run with `threads=1`, or start processes with `multiprocessing.get_context('spawn')`",
        )
    if getattr(_workers, "used", None) == count:
        return
    if count == 1:  # without touching the pool: it may not exist, and may stay so
        _runtime_library()._ZN3tvm7runtime9threading17SetMaxConcurrencyEi(1)
    else:
        configure = global_function("runtime.config_threadpool")
        if not hasattr(_workers, "process"):
            size = max(count, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
            configure(1, size, ["0"] * size)  # (big cores, workers, and as many CPUs, which calm_threads has it ignore)
            _workers.process = os.getpid()
        configure(1, count, ["0"] * count)
    _workers.used = count


def cuda_libraries() -> list[str]:
    """Folders that may hold the CUDA runtime: the toolkit's, and those of NVIDIA's packages from PyPI."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + ["/usr/local/cuda"]
    folders = [Path(home) / sub for home in homes for sub in ("lib64", "lib")]
    with contextlib.suppress(ImportError):
        spec = importlib.util.find_spec("nvidia")
        for root in spec.submodule_search_locations or () if spec else ():
            folders += sorted(Path(root).glob("*/lib"))
    return [str(f) for f in folders if any(f.glob("libcudart.so.*"))]


@cache
def cuda_problem() -> str | None:
    """Why programs cannot be run on a GPU here, or None when they can."""
    library = library_folder() / "libtvm_runtime_cuda.so"
    if not library.exists():
        return "this build of apache-tvm has no CUDA runtime"
    ffi = runtime()
    for place in [f for folder in cuda_libraries() for f in sorted(Path(folder).glob("libcudart.so.*"))]:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(place), ctypes.RTLD_GLOBAL)  # the loader finds it by its name from now on
    try:
        ctypes.CDLL(str(library))
    except OSError as error:  # names the library that is missing: libcuda.so.1 is the driver, libcudart the toolkit
        return str(error)
    exists = ffi.get_global_func("runtime.GetDeviceAttr")(ffi.device("cuda", 0), 0)
    return None if exists else "there is no CUDA device"


def global_function(name: str) -> Any:
    """A function that TVM's runtime registers."""
    return runtime().get_global_func(name)
