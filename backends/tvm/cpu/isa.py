"""What the kernels need to know of a processor: how wide its vectors are, and how many sums fit in its registers."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
import tvm_ffi


@dataclass(frozen=True)
class Isa:
    """Vector width in float32 lanes, and the number of vector registers a tile may use for its sums.

    The rest of the register file (6 of 32, 4 of 16) holds the weights and the broadcast input of one step.
    """

    name: str
    lanes: int
    sums: int


AVX512 = Isa("avx512", 16, 26)
AVX2 = Isa("avx2", 8, 12)
SSE = Isa("sse", 4, 12)
NEON = Isa("neon", 4, 24)
SCALAR = Isa("generic", 4, 8)


def isa_of(target: tvm.target.Target) -> Isa:
    """The instruction set that `target` compiles to.

    >>> isa_of(tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"})).name
    'avx2'
    """
    triple = str(target.attrs.get("mtriple", "")) or tvm_ffi.get_global_func("target.llvm_get_system_triple")()
    has = tvm_ffi.get_global_func("target.llvm_cpu_has_feature")
    if triple.startswith(("aarch64", "arm64")):
        return NEON
    if not triple.startswith(("x86_64", "i686", "i386")):
        return SCALAR
    for feature, isa in (("avx512f", AVX512), ("avx2", AVX2)):
        if has(feature, target):
            return isa
    return SSE
