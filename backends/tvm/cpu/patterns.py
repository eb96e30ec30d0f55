"""What may follow a special kernel in one fused function.

`AnnotateTIROpPattern` calls a function elementwise where it reads at the index that it writes. So does a border behind
the last element, and a slice from the first one; but their result is larger or smaller than what they read, and a
kernel that applies them as it stores would leave out elements, or put them in other places.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import ir, sym, tirx

from archc.backends.tvm.cpu.program import Stage, key, parse

_BROADCAST, _INJECTIVE = 1, 2  # TVM's kinds of functions: up to 1, element by element


@tvm.transform.module_pass(opt_level=0, name="UnequalExtents")
class UnequalExtents:
    """Functions that are elementwise but for their extents are injective."""

    def transform_module(self, module: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        for name, function in module.functions_items():
            if not isinstance(function, tirx.PrimFunc) or int(function.attrs.get("op_pattern", 8)) > _BROADCAST:
                continue
            program = parse(function)
            if program is not None and any(map(_changes_extents, program.stages)):
                module[name] = function.with_attr("op_pattern", _INJECTIVE)
        return module


def _changes_extents(stage: Stage) -> bool:
    extents = {key(axis.var): axis.extent for axis in stage.axes}
    found: list[bool] = []

    def look(load: ir.TensorLoad) -> None:
        for index, size in zip(load.indices, load.source.shape, strict=True):
            extent = extents.get(key(index)) if isinstance(index, ir.Var) else None
            if extent is not None and not tvm_ffi.structural_equal(extent, size):
                found.append(not sym.Analyzer().can_prove_equal(extent, size))

    tvm_ffi.structural_walk(stage.value, (ir.TensorLoad, look))
    return any(found)
