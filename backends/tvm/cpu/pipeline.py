"""The CPU pipeline: from Relax operators to TIR kernels."""

from __future__ import annotations

import tvm
from tvm import ir, relax, tirx

from archc.backends.tvm.cpu.conv import conv_kernel
from archc.backends.tvm.cpu.elementwise import pointwise_kernel
from archc.backends.tvm.cpu.gemm import gemm_kernel, matmul_kernel
from archc.backends.tvm.cpu.grouped import grouped_kernel
from archc.backends.tvm.cpu.isa import isa_of
from archc.backends.tvm.cpu.loops import Machine
from archc.backends.tvm.cpu.order import SizesFirst
from archc.backends.tvm.cpu.patterns import UnequalExtents
from archc.backends.tvm.cpu.program import parse
from archc.backends.tvm.cpu.quantised import codes_kernel
from archc.backends.tvm.cpu.rows import reduction_kernel
from archc.backends.tvm.cpu.select import SelectKernels
from archc.backends.tvm.exact import legalizations

_GENERIC = "archc.generic"
_KERNELS = {
    "gemm": gemm_kernel,
    "codes": codes_kernel,
    "grouped": grouped_kernel,
    "matmul": matmul_kernel,
    "conv": conv_kernel,
    "depthwise": conv_kernel,
}


def optimise(module: ir.IRModule, target: tvm.target.Target, *, threads: int) -> ir.IRModule:
    """Choose kernels, fuse, and write the loops; afterwards `tvm.compile(module, target)` yields the executable."""
    machine = Machine(isa_of(target), threads)
    with target:
        return tvm.transform.Sequential(passes(machine))(module)


def passes(machine: Machine) -> list[tvm.transform.Pass]:
    """The pipeline, in order."""
    return [
        select_kernels(machine),
        relax.transform.DeadCodeElimination(),
        relax.transform.LegalizeOps(legalizations(), enable_warning=False),
        relax.transform.AnnotateTIROpPattern(),
        UnequalExtents(),
        relax.transform.FuseOps(),
        SizesFirst(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        write_kernels(machine),
    ]


def select_kernels(machine: Machine) -> tvm.transform.Pass:
    """Relax operators to tensor equations, channels last."""

    @tvm.transform.module_pass(opt_level=0, name="SelectKernels")
    class Pass:
        def transform_module(self, module: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
            return SelectKernels(module, machine).run(module)

    return Pass()


def write_kernels(machine: Machine) -> tvm.transform.Pass:
    """Each fused function to the loops that compute it."""

    @tvm.transform.module_pass(opt_level=0, name="WriteKernels")
    class Pass:
        def transform_module(self, module: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
            for name, function in module.functions_items():
                if isinstance(function, tirx.PrimFunc):
                    module[name] = kernel(function, machine)
            return module

    return Pass()


def generic_kernels(module: ir.IRModule) -> list[str]:
    """Names of the functions of an optimised module that run as TVM wrote them: serial loops, correct but not tuned.

    Sorts and scans do not appear: they are operators still, and `tvm.compile` brings its own kernels for them.
    """
    functions = [(name.name_hint, f) for name, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    return sorted(name for name, function in functions if function.attrs.get(_GENERIC))


def kernel(function: tirx.PrimFunc, machine: Machine) -> tirx.PrimFunc:
    """The loops of one function; one that is no chain of equations (a sort, a scan) stays as TVM wrote it."""
    program = parse(function)
    if program is None:
        return function.with_attr(_GENERIC, True)
    anchor = program.anchor
    if anchor is not None:
        return _KERNELS[anchor.attributes["archc.kernel"]](program, anchor, machine)
    if any(s.combiner for s in program.stages):
        return reduction_kernel(program, machine)
    return pointwise_kernel(program, machine)
