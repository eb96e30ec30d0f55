"""Bindings in an order in which every size is known before it is used.

`FuseOps` puts a fused kernel where the first of its parts stood, and with that sometimes before the `match_cast` that
defines the number of its rows. `FuseTIR` needs the order restored: it ends with a `KeyError` where the function with
such a kernel is the step of a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import ir, relax

Binding = Any


@tvm.transform.module_pass(opt_level=0, name="SizesFirst")
class SizesFirst:
    """Sort the dataflow blocks of functions that match sizes; what is in order stays where it is."""

    def transform_module(self, module: ir.IRModule, _context: tvm.transform.PassContext) -> ir.IRModule:
        for name, function in module.functions_items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                module[name] = _sorted(function)
        return module


def _sorted(function: relax.Function) -> relax.Function:
    given = {size for p in function.params for size in relax.analysis.definable_tir_vars_in_type(p.ty)}
    blocks = []
    for block in function.body.blocks:
        matches = any(isinstance(b, relax.MatchCast) for b in block.bindings)
        in_order = _order(block.bindings, given) if matches and isinstance(block, relax.DataflowBlock) else None
        blocks.append(block if in_order is None else relax.DataflowBlock(in_order))
    body = relax.SeqExpr(blocks, function.body.body)
    made = relax.Function(function.params, body, function.ret_ty, function.is_pure)
    return made.with_attrs(function.attrs) if function.attrs else made


def _order(bindings: Sequence[Binding], given: set[Any]) -> list[Binding]:
    """A stable topological order over what bindings define: variables, and the sizes that a match names.

    `given` are the sizes that the function's parameters tell.
    """
    own: set[Any] = set()
    for binding in bindings:
        own.update(_defines(binding))
    own -= given
    known: set[Any] = set()
    ordered: list[Binding] = []
    pending = list(bindings)
    while pending:
        waiting = []
        for binding in pending:
            if _uses(binding) & own <= known:
                ordered.append(binding)
                known |= _defines(binding)
            else:
                waiting.append(binding)
        assert len(waiting) < len(pending), "sizes that wait for each other"
        pending = waiting
    return ordered


def _defines(binding: Binding) -> set[Any]:
    sizes = relax.analysis.definable_tir_vars_in_type(binding.ty) if isinstance(binding, relax.MatchCast) else ()
    return {binding.var, *sizes}


def _uses(binding: Binding) -> set[Any]:
    sizes = set(relax.analysis.tir_vars_in_type(binding.var.ty))
    return {*relax.analysis.free_vars(binding.value), *sizes} - _defines(binding)
