"""Large constants out of a module, into one argument that is passed in at every call.

Code that embeds its weights is slow to link and heavy to load (400 MB: 8 s, five times that in memory, and again when
loaded). So the entry function takes one more parameter: an opaque tuple of tensors, mapped from the artifact. Being
opaque, it costs one lookup per weight and call (0.25 µs) and none of the shape checks of an ordinary parameter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from archc.backends.tvm.load import tvm
from archc.backends.weights import Array

relax = tvm.relax

SMALL = 16 << 10  # bytes; smaller constants stay in the code, where they cost nothing per call


def lift_constants(module: Any, *, entry: str = "main", smallest: int = SMALL) -> tuple[Any, list[Array]]:
    """The module with constants of `smallest` bytes or more as elements of a last parameter, and their values.

    Every Relax function that needs the tuple, itself or through a function that it calls, has the parameter; the entry
    function always has it when there is anything to lift. Constants that are the same object are lifted once.

    Before::                                        After::

        def main(x):                                    def main(x, weights):
            return matmul(x, const)                         w0 = weights[0]
                                                            return matmul(x, w0)
    """
    functions = {gv: f for gv, f in module.functions.items() if isinstance(f, relax.Function)}
    own = {gv: _large_constants(f, smallest) for gv, f in functions.items()}
    order: dict[Any, int] = {}
    for constants in own.values():
        for constant in constants:
            order.setdefault(constant, len(order))
    if not order:
        return module, []

    calls = {gv: _callees(f, functions) for gv, f in functions.items()}
    needs = {gv for gv, constants in own.items() if constants} | {gv for gv in functions if gv.name_hint == entry}
    while grown := {gv for gv in functions if calls[gv] & needs} - needs:
        needs |= grown
    fresh = {gv: _declared(gv, functions[gv]) for gv in needs}
    changed = {gv: f for gv, f in module.functions.items() if gv not in needs}
    for gv in sorted(needs, key=lambda g: str(g.name_hint)):
        changed[fresh[gv]] = _Lift(own[gv], order, fresh).function(functions[gv])
    lifted = relax.transform.Normalize()(tvm.IRModule(changed, attrs=module.attrs))
    return lifted, [_values(c) for c in order]


@relax.expr_functor.mutator
class _Lift(relax.expr_functor.PyExprMutator):  # type: ignore[misc,name-defined]
    """Rewrites one function: constants become elements of the parameter, calls hand it on."""

    def __init__(self, constants: list[Any], order: dict[Any, int], fresh: dict[Any, Any]) -> None:
        super().__init__()
        self.weights = relax.Var("weights", relax.AnyType())
        self.elements = {c: relax.Var(f"w{order[c]}", c.ty) for c in constants}
        self.order, self.fresh = order, fresh

    def function(self, old: Any) -> Any:
        body = self.visit_expr(old.body)
        lookups = [
            relax.VarBinding(
                element,
                relax.op.call_pure_packed(
                    "vm.builtin.tuple_getitem", self.weights, relax.prim_value(self.order[c]), ty_args=c.ty
                ),
            )
            for c, element in self.elements.items()
        ]
        if lookups:
            body = relax.SeqExpr([relax.BindingBlock(lookups), *body.blocks], body.body)
        return relax.Function([*old.params, self.weights], body, old.ret_ty, old.is_pure, old.attrs)

    def visit_generic_const_(self, constant: Any) -> Any:
        return self.elements.get(constant, constant)

    def visit_call_(self, call: Any) -> Any:
        arguments = [self.visit_expr(a) for a in call.args]
        if call.op in self.fresh:
            return relax.Call(self.fresh[call.op], [*arguments, self.weights], call.attrs, call.ty_args, call.span)
        return relax.Call(call.op, arguments, call.attrs, call.ty_args, call.span)


def _values(constant: Any) -> Array:
    """The constant's values, shared with it where numpy has the dtype."""
    if str(constant.value.dtype) == "bfloat16":
        return np.asarray(constant.value.numpy())
    return np.from_dlpack(constant.value)


def _declared(gv: Any, function: Any) -> Any:
    """A global variable of the same name for the function with its new parameter."""
    fresh = tvm.ir.GlobalVar(gv.name_hint)
    types = [*(p.ty for p in function.params), relax.AnyType()]
    relax.expr._update_type(fresh, relax.FuncType(types, function.ret_ty, bool(function.is_pure)))
    return fresh


def _bytes(constant: Any) -> int:
    array = constant.value
    return math.prod(int(n) for n in array.shape) * ((int(array.dtype.bits) + 7) // 8)


def _large_constants(function: Any, smallest: int) -> list[Any]:
    found: dict[Any, None] = {}

    def visit(expr: Any) -> None:
        if isinstance(expr, tvm.ir.GenericConst) and hasattr(expr.value, "shape") and _bytes(expr) >= smallest:
            found.setdefault(expr)

    relax.analysis.post_order_visit(function, visit)
    return list(found)


def _callees(function: Any, functions: dict[Any, Any]) -> set[Any]:
    found = set()

    def visit(expr: Any) -> None:
        if isinstance(expr, tvm.ir.Call) and expr.op in functions:
            found.add(expr.op)

    relax.analysis.post_order_visit(function, visit)
    return found
