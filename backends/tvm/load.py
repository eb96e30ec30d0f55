"""`import tvm` as this project wants it: without torch behind it (0.8 s in place of 3.6) and with calm threads."""

from __future__ import annotations

from archc.backends.native import calm_threads, without_torch

calm_threads()
with without_torch():
    import tvm
    import tvm.relax
    import tvm_ffi

__all__ = ["tvm", "tvm_ffi"]
