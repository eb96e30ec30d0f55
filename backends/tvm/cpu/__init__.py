"""From an ordinary Relax module to fast kernels for the processor."""

from __future__ import annotations

from archc.backends.tvm.cpu.pipeline import generic_kernels, optimise

__all__ = ["generic_kernels", "optimise"]
