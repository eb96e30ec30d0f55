"""Kernels for a GPU: how they are scheduled, and what their text says of NaN.

TVM has rules that schedule a kernel as a matrix product, a reduction, …, the last of which takes everything. A rule
that fails on a kernel is passed over, where TVM's own list would end the compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from archc.backends.tvm.canonical import pipeline
from archc.backends.tvm.exact import legalizations
from archc.backends.tvm.load import tvm

relax, tirx = tvm.relax, tvm.tirx


def cuda_pipeline(target: Any, passed_over: Callable[[str], None] = lambda _: None) -> Any:
    """Relax to scheduled kernels and calls of them: TVM's pipeline for CUDA with our choice of rules.

    `passed_over` is told of each rule that failed on a kernel.
    """
    from tvm.relax.backend.cuda import pipeline as parts
    from tvm.s_tir.dlight import gpu

    rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]

    @tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")  # type: ignore[untyped-decorator]
    def schedule(module: Any, _context: Any) -> Any:
        kernels = [
            (gv, f)
            for gv, f in module.functions.items()
            if isinstance(f, tirx.PrimFunc) and not f.attrs.get("tirx.is_scheduled")
        ]
        for gv, kernel in kernels:
            scheduled = _scheduled(kernel, str(gv.name_hint), rules, target, passed_over)
            if scheduled is not None:
                module[gv] = scheduled
        return module

    *legalise, _ = parts.legalize_passes(target)  # the last one is TVM's choice of rules
    passes = [
        *parts.library_dispatch_passes(target),
        relax.transform.LegalizeOps(legalizations()),
        *legalise,
        schedule,
        *parts.dataflow_lower_passes(target),
        *parts.finalize_passes(target),
    ]

    @tvm.transform.module_pass(opt_level=0, name="ForCuda")  # type: ignore[untyped-decorator]
    def for_cuda(module: Any, _context: Any) -> Any:
        with target:
            return tvm.transform.Sequential(passes)(module)

    return pipeline(for_cuda)


def _scheduled(kernel: Any, name: str, rules: Iterable[Any], target: Any, passed_over: Callable[[str], None]) -> Any:
    """The kernel by the first rule that takes it; None where none does."""
    for rule in rules:
        try:
            found = rule.apply(kernel, target, False)
        except Exception as e:  # the rules assert what they hope for, and so raise anything
            passed_over(f"{type(rule).__name__} on {name}: {type(e).__name__} {str(e).strip()[-200:]}")
            continue
        if found is not None:
            schedule = found[0] if isinstance(found, list) else found
            return schedule.mod["main"].with_attr("tirx.is_scheduled", True)
    return None
