"""Arithmetic of floats as IEEE 754 has it, where TVM's simplifier would take floats for numbers.

TVM simplifies kernels in many places (as it builds an expression, in passes over statements, while it vectorises), and
some of its rules hold for no float that is NaN, infinite, rounded or -0:

    x - x → 0       (x + y) - y → x     x - (x + y) → -y      x + 0 → x         x - (-0) → x
    x * 0 → 0       0 / x → 0           x / 0 is refused
    x == x → true   x != x → false
    not (x < y) → y <= x                x < y or y <= x → true
    where(x < y, a, where(y <= x, b, c)) → where(x < y, a, b)

What keeps an operand from being recognised is a *veil*: the float taken for an integer of as many bits and back. TVM
does not look through it, it vectorises, and LLVM and nvcc, which know what a float is, remove it. It stands on one
operand of each difference and comparison. `<` and `>` have another veil than `<=` and `>=`, so that none is taken for
the contrary of another. Zeros are read from memory. (`backends/tvm/lowerings/elementwise.py` negates by way of a
number.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import ir, relax, te, tirx, topi

Expr = Any
Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}


def veil(value: Expr, kind: str = "int") -> Expr:
    """`value`, a float, out of sight of TVM's simplifier. Two kinds, "int" and "uint", do not equal each other."""
    dtype = str(value.ty.dtype)
    return tirx.reinterpret(dtype, tirx.reinterpret(f"{kind}{_BITS[dtype]}", value))


def _veiled(node: Any, kind: str = "int") -> Callable[[Expr, Expr], Expr]:
    """The operation with a veil on its second operand; on the first where the second is a literal."""

    def apply(a: Expr, b: Expr) -> Expr:
        return node(veil(a, kind), b) if isinstance(b, tirx.FloatImm) else node(a, veil(b, kind))

    return apply


_VEILED: dict[str, Callable[[Expr, Expr], Expr]] = {
    "subtract": _veiled(tirx.Sub),
    "equal": _veiled(tirx.EQ),
    "less": _veiled(tirx.LT),
    "greater": _veiled(tirx.GT),
    "less_equal": _veiled(tirx.LE, "uint"),
    "greater_equal": _veiled(tirx.GE, "uint"),
}
_WITH_ZEROS = {"add": topi.add, "multiply": topi.multiply, "divide": topi.divide}


def _legalize_veiled(name: str, bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    if str(call.args[0].ty.dtype) not in _BITS:
        return _as_usual(bb, call)
    a, b = call.args[0], _literal(call.args[1])
    if isinstance(b, tirx.FloatImm):
        b = call.args[1] if b.value == 0 and name == "subtract" else b
    else:
        a = _literal(a)
    shape = list(call.ty.shape)

    def apply(a: Any, b: Any) -> te.Tensor:
        return te.compute(shape, lambda *at: _VEILED[name](_at(a, at, shape), _at(b, at, shape)), name=f"T_{name}")

    return bb.call_te(apply, a, b, primfunc_name_hint=name)


def _legalize_with_zeros(name: str, bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A zero stays in memory, out of sight."""
    if any(isinstance(x, tirx.FloatImm) and x.value == 0 for x in map(_literal, call.args)):
        return bb.call_te(_WITH_ZEROS[name], *call.args, primfunc_name_hint=name)
    return _as_usual(bb, call)


def _legalize_max_pool(rank: int, bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The border of a maximum is -inf, where TVM's is the least number that is finite."""
    (x,), attrs = call.args, call.attrs
    padding = [int(p) for p in attrs.padding]
    layout = str(attrs.layout)
    if not any(padding) or str(x.ty.dtype) not in _BITS or layout[:2] != "NC" or len(layout) != 2 + rank:
        return _as_usual(bb, call)
    function = {1: topi.nn.pool1d, 2: topi.nn.pool2d, 3: topi.nn.pool3d}[rank]
    size, stride, dilation = ([int(v) for v in field] for field in (attrs.pool_size, attrs.strides, attrs.dilation))

    def pool(x: te.Tensor) -> te.Tensor:
        lowest = tirx.const(float("-inf"), x.dtype)
        padded = topi.nn.pad(x, [0, 0, *padding[:rank]], [0, 0, *padding[rank:]], lowest)
        none = [0] * (2 * rank)
        return function(padded, size, stride, dilation, none, "max", bool(attrs.ceil_mode), layout)

    return bb.call_te(pool, x, primfunc_name_hint="max_pool")


def _as_usual(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call.op.get_attr("FLegalize")(bb, call)


def _literal(value: relax.Expr) -> Any:
    """A constant of rank 0 as a number to write into the kernel."""
    if isinstance(value, ir.GenericConst) and value.ty.ndim == 0:
        number = value.value.numpy().item()
        return tirx.const(number, str(value.ty.dtype)) if isinstance(number, float) else value
    return value


def _at(operand: Any, at: tuple[Expr, ...], shape: list[Expr]) -> Expr:
    """The element of an operand that belongs to an element of the broadcast result."""
    if not isinstance(operand, te.Tensor):
        return operand
    lead = len(shape) - len(operand.shape)
    own = zip(operand.shape, at[lead:], shape[lead:], strict=True)
    zero = tirx.IntImm("int64", 0)
    return operand(*(zero if _is_one(size) and not _is_one(wide) else i for size, i, wide in own))


def _is_one(size: Expr) -> bool:
    return isinstance(size, tirx.IntImm) and size.value == 1


def legalizations() -> dict[str, Legalize]:
    """What to give `relax.transform.LegalizeOps`."""
    found = {f"relax.{name}": partial(_legalize_veiled, name) for name in _VEILED}
    found |= {f"relax.{name}": partial(_legalize_with_zeros, name) for name in _WITH_ZEROS}
    return found | {f"relax.nn.max_pool{rank}d": partial(_legalize_max_pool, rank) for rank in (1, 2, 3)}


__all__ = ["legalizations", "veil"]
