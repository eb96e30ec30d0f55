"""TVM's passes from kernels to machine code, without those for other devices.

The default list takes minutes for a chain of elementary functions: a pass that permutes shared memory on GPUs looks
through every name in an expression, and names nest.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import ir, s_tir, tirx

PIPELINE = "archc_cpu"
"""The name under which `tvm.compile(…, tir_pipeline=PIPELINE)` finds it."""


@tvm.transform.module_pass(opt_level=0, name="LowerKernels")
def lower_kernels(module: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
    """What `tvm.compile(…, tir_pipeline=lower_kernels)` runs for a processor."""
    return tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
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
    )(module)


def _pipeline() -> tuple[Any, Any, Any]:
    _, host, device = tvm.tirx.get_tir_pipeline("s_tir")
    return lower_kernels, host, device


tirx.compilation_pipeline.PIPELINE_MAP[PIPELINE] = _pipeline
