"""CUDA machine code from PyPI alone: NVIDIA's runtime compiler, and its library that packs several architectures.

Where there is no nvcc: `pip install cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl
nvidia-cuda-crt nvidia-nvfatbin`, all of one version. It gives no figures on registers, as ptxas does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path


def find_nvrtc() -> str | None:
    """The version of a usable nvrtc, or None where the library, the packer or CUDA's headers are missing."""
    with contextlib.suppress(ImportError):
        from cuda.bindings import nvfatbin, nvrtc  # type: ignore[import-not-found,unused-ignore]

        try:
            _, major, minor = nvrtc.nvrtcVersion()
            nvfatbin.version()
        except RuntimeError:  # the bindings are here, a library is not
            return None
        if _toolkit() is not None:
            return f"{major}.{minor}"
    return None


def known_arches() -> list[str]:
    """The architectures that this nvrtc compiles for."""
    from cuda.bindings import nvrtc

    _, count = nvrtc.nvrtcGetNumSupportedArchs()
    _, arches = nvrtc.nvrtcGetSupportedArchs()
    return [f"sm_{arch}" for arch in list(arches)[:count]]


def compile_nvrtc(code: str, arches: Sequence[str]) -> bytes:
    """A fat binary of `code`, as `compile_nvcc` makes it: machine code per architecture, and PTX of the highest.

    For a process that compiles and ends: it sets environment variables that TVM's own use of nvrtc reads.
    """
    from cuda.bindings import nvfatbin

    from archc.backends.tvm.load import tvm

    toolkit = _toolkit()
    assert toolkit is not None, "find_nvrtc was asked first"
    os.environ["CUDA_PATH"] = str(toolkit)
    os.environ["TVM_CUDA_NVCC_NO_FAST_MATH"] = "1"  # it forgets NaN and infinity
    options = [f"--include-path={toolkit}/include/cccl"]

    handle = nvfatbin.create(["-64"], 1)
    try:
        for arch in arches:
            cubin = bytes(tvm.support.nvcc.compile_cuda(code, "cubin", arch, options, compiler="nvrtc"))
            nvfatbin.add_cubin(handle, cubin, len(cubin), arch.removeprefix("sm_"), "kernels")
        virtual = arches[-1].replace("sm_", "compute_")
        ptx = bytes(tvm.support.nvcc.compile_cuda(code, "ptx", virtual, options, compiler="nvrtc"))
        nvfatbin.add_ptx(handle, ptx, len(ptx), arches[-1].removeprefix("sm_"), "kernels", "")
        binary = bytearray(nvfatbin.size(handle))
        nvfatbin.get(handle, binary)
        return bytes(binary)
    finally:
        nvfatbin.destroy(handle)


def _toolkit() -> Path | None:
    """A folder whose `include` has CUDA's headers: that of the packages (nvrtc's own version), or a toolkit's."""
    folders: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        folders += sorted(Path(root).glob("cu*"))
    folders += [Path(home) for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    return next((f for f in [*folders, Path("/usr/local/cuda")] if (f / "include" / "cuda_runtime.h").is_file()), None)
