"""Elementary functions as straight-line float32 arithmetic, so that they vectorise.

LLVM turns `expf` over a vector into sixteen library calls; a polynomial stays in registers. All coefficients are
our own fits (weighted least squares on Chebyshev nodes, reweighted towards the minimax error). NaN goes in and comes
out, infinities and overflow behave as in IEEE 754. Other float types use the C library.

Every function takes `bind`, which names a value so that a use repeated many times is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import ir, tirx

Expr = Any
Bind = Callable[[Expr], Expr]

# e^r = 1 + r + r^2 p(r) for |r| <= ln(2)/2; relative error 4e-9
_EXP = (0.5, 0.16666506230831146, 0.041666168719530106, 0.008370321244001389, 0.0013952972367405891)
# tanh(x) = x + x^3 p(x^2) for |x| <= 0.625; relative error 5e-9
_TANH = (-0.3333328068256378, 0.13331441581249237, -0.05373971536755562, 0.02063908614218235, -0.005704986397176981)
# log(1 + f) = f - f^2/2 + f^3 p(f) for sqrt(1/2) <= 1 + f <= sqrt(2); relative error 1e-9
_LOG = (
    0.3333331346511841,
    -0.25000008940696716,
    0.2000211924314499,
    -0.1666799634695053,
    0.14219552278518677,
    -0.1240558922290802,
    0.11888162791728973,
    -0.11675651371479034,
    0.0674663856625557,
)
# erf(x) = x P(x^2) / Q(x^2) for |x| <= 4, where erf is 1 to float32; relative error 3e-8 before rounding
_ERF_P = (1.1283791065216064, 0.193547323346138, 0.05310201272368431, 0.003883433062583208, 0.0002845666604116559,
          1.9867484297719784e-06)  # fmt: skip
_ERF_Q = (1.0, 0.5048593878746033, 0.11535090208053589, 0.01520742941647768, 0.001185590517707169,
          3.741986438399181e-05)  # fmt: skip


def f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def _i32(value: int) -> Expr:
    return tirx.const(value, "int32")


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    value = f32(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + f32(c)
    return value


def _select(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    return tirx.Select(condition, then, otherwise)


def maximum(a: Expr, b: Expr, bind: Bind) -> Expr:
    """The larger, NaN where either is (TVM's own `max` drops a NaN)."""
    return _extremum(tirx.GT, a, b, bind)


def minimum(a: Expr, b: Expr, bind: Bind) -> Expr:
    """The smaller, NaN where either is."""
    return _extremum(tirx.LT, a, b, bind)


def _extremum(beats: Any, a: Expr, b: Expr, bind: Bind) -> Expr:
    if isinstance(a, tirx.FloatImm):
        a, b = b, a
    a = bind(a)
    if isinstance(b, tirx.FloatImm) and not math.isnan(b.value):
        return _select(beats(b, a), b, a)  # one instruction on x86: a NaN in `a` fails the comparison
    b = bind(b)
    return _unless_nan(a, _select(beats(a, b), a, b))


def _unless_nan(x: Expr, value: Expr) -> Expr:
    """`value`, or `x` where that is NaN (TVM simplifies the usual `x != x` away, as if it were an integer)."""
    return _select(x >= tirx.const(-math.inf, str(x.ty.dtype)), value, x)


def exp(x: Expr, bind: Bind) -> Expr:
    """e^x = 2^n e^r with n the nearest integer to x / ln 2; 2^n in two factors, so that n may pass 127 and -126."""
    x = bind(x)
    inside = bind(_select(x < f32(89.0), _select(x > f32(-104.0), x, f32(-104.0)), f32(89.0)))
    n = bind(tirx.floor(inside * f32(1.4426950408889634) + f32(0.5)))
    r = bind(inside - n * f32(0.693359375) - n * f32(-2.12194440e-4))
    y = bind((_horner(_EXP, r) * r) * r + r + f32(1.0))
    k = bind(tirx.Cast("int32", n))
    half = bind(tirx.shift_right(k, _i32(1)))
    result = y * _power_of_two(half) * _power_of_two(k - half)
    return _unless_nan(x, result)


def _power_of_two(n: Expr) -> Expr:
    return tirx.reinterpret("float32", tirx.shift_left(n + _i32(127), _i32(23)))


def log(x: Expr, bind: Bind) -> Expr:
    """log(m 2^e) = e ln 2 + log(m) with sqrt(1/2) <= m < sqrt(2)."""
    x = bind(x)
    tiny = x < f32(1.1754943508222875e-38)
    scaled = bind(_select(tiny, x * f32(8388608.0), x))  # a denormal becomes normal: 2^23
    bits = bind(tirx.reinterpret("int32", scaled))
    shifted = bind(bits - _i32(0x3F3504F3))  # the bits of sqrt(1/2)
    exponent = bind(tirx.shift_right(shifted, _i32(23)))
    m = tirx.reinterpret("float32", bits - tirx.shift_left(exponent, _i32(23)))
    f = bind(m - f32(1.0))
    e = bind(tirx.Cast("float32", exponent) - _select(tiny, f32(23.0), f32(0.0)))
    p = _horner(_LOG, f) * f * f * f
    result = bind(f - f32(0.5) * f * f + p + e * f32(-2.12194440e-4) + e * f32(0.693359375))
    zero_or_less = _select(tirx.EQ(x, f32(0.0)), f32(-math.inf), f32(math.nan))
    return _select(x > f32(0.0), _select(x < f32(math.inf), result, x), zero_or_less)


def sigmoid(x: Expr, bind: Bind) -> Expr:
    return f32(1.0) / (f32(1.0) + exp(f32(0.0) - x, bind))


def tanh(x: Expr, bind: Bind) -> Expr:
    """A polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel."""
    x = bind(x)
    square = bind(x * x)
    near = x * (f32(1.0) + square * _horner(_TANH, square))  # -0 for -0, which `x + x * …` would lose
    far = f32(1.0) - f32(2.0) / (exp(x * f32(2.0), bind) + f32(1.0))
    return _select(square < f32(0.625 * 0.625), near, far)


def erf(x: Expr, bind: Bind) -> Expr:
    x = bind(x)
    inside = bind(_select(x > f32(4.0), f32(4.0), _select(x < f32(-4.0), f32(-4.0), x)))
    square = bind(inside * inside)
    ratio = inside * _horner(_ERF_P, square) / _horner(_ERF_Q, square)
    # exactly 1 outside, lest gelu(-inf) be -inf * 1e-8
    return _select(x >= f32(4.0), f32(1.0), _select(x <= f32(-4.0), f32(-1.0), ratio))


_FLOAT32: dict[str, Callable[[Expr, Bind], Expr]] = {
    "tirx.exp": exp,
    "tirx.log": log,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": tanh,
    "tirx.erf": erf,
}
_OWN = ("tirx.rsqrt", "tirx.reinterpret", "tirx.shift_left", "tirx.shift_right")  # vectors, whatever TVM says of them
_C_LIBRARY = {"tirx.tanh": "tanh", "tirx.erf": "erf"}  # TVM's own expansions of these lose digits or do not exist


def by_lane(function: Any, dtype: str) -> bool:
    """Whether TVM, in a vector loop, calls `function` for one lane after another: its arguments and its result must
    then be in buffers, since a loop over lanes does not see names that are bound to vectors."""
    name = function.name if isinstance(function, ir.Op) else ""
    if dtype == "float64" and name in _C_LIBRARY:
        return True
    inlined = name in _OWN or (dtype != "float64" and name in _FLOAT32)
    return not (inlined or (isinstance(function, ir.Op) and function.get_attr("TVectorizable")))


def expand(name: str, dtype: str, arguments: Sequence[Expr], bind: Bind) -> Expr | None:
    """The call of intrinsic `name` as arithmetic; None where LLVM's own lowering will do."""
    if dtype in ("float16", "bfloat16") and name in _FLOAT32:
        return tirx.Cast(dtype, _FLOAT32[name](tirx.Cast("float32", arguments[0]), bind))
    if dtype == "float32" and name in _FLOAT32:
        return _FLOAT32[name](arguments[0], bind)
    if dtype == "float64" and name in _C_LIBRARY:
        return tirx.call_pure_extern("float64", _C_LIBRARY[name], arguments[0])
    if dtype == "float64" and name == "tirx.sigmoid":
        one = tirx.const(1.0, "float64")
        return one / (one + tirx.exp(-arguments[0]))
    if name == "tirx.rsqrt":  # which TVM would compute lane by lane
        return tirx.const(1.0, dtype) / tirx.sqrt(arguments[0])
    return None


__all__ = ["expand", "f32", "maximum", "minimum"]
