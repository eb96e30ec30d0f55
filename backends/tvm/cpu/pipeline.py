"""The CPU pipeline: from Relax operators to TIR kernels."""

from __future__ import annotations

from tvm import ir, relax, tirx
import tvm

from archc.backends.tvm.cpu.elementwise import pointwise_kernel
from archc.backends.tvm.cpu.isa import isa_of
from archc.backends.tvm.cpu.loops import Machine
from archc.backends.tvm.cpu.program import parse
from archc.backends.tvm.cpu.rows import reduction_kernel


def optimise(module: tvm.IRModule, target: tvm.target.Target, *, threads: int) -> tvm.IRModule:
    machine = Machine(isa_of(target), threads)
    passes = [
        relax.transform.LegalizeOps(enable_warning=False),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        write_kernels(machine),
    ]
    with target:
        return tvm.transform.Sequential(passes)(module)


def kernel(function: tirx.PrimFunc, machine: Machine) -> tirx.PrimFunc:
    program = parse(function)
    if program is None:
        return function
    if any(s.combiner for s in program.stages):
        return reduction_kernel(program, machine)
    return pointwise_kernel(program, machine)


def write_kernels(machine: Machine) -> tvm.transform.Pass:
    @tvm.transform.module_pass(opt_level=0, name="WriteKernels")
    class WriteKernels:
        def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
            for name, function in module.functions_items():
                if isinstance(function, tirx.PrimFunc):
                    module[name] = kernel(function, machine)
            return module

    return WriteKernels()
