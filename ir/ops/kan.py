"""Kolmogorov–Arnold layers: a learned function on every edge instead of a weight, `y_o = Σ_i φ_oi(x_i)`.

A function is a sum over a fixed basis B, so a layer is a contraction with coefficients `[out, in, K]`, K the size of
the basis, beside an ordinary linear map of a base function: `φ(x) = w_base · base(x) + Σ_k c_k B_k(x)`. GR-KAN shares
rational functions among groups of channels and puts them before a linear map: `y = W R(x)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

from pydantic import PositiveInt, model_validator

from archc.ir.dims import Dim
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.init import ZEROS, Init, fan_in_uniform
from archc.ir.op import REGISTRY, Bound, Call, Dims, OpDef, Params, Weight, register
from archc.ir.ops.activations import TANH
from archc.ir.ops.constants import CONSTANT, scalar
from archc.ir.ops.elementwise import ABS, ADD, COS, DIV, GE, LOGICAL_AND, LT, MUL, SUB
from archc.ir.ops.linear import EINSUM, LINEAR, parameter_value
from archc.ir.ops.pieces import CONCAT, SLICE
from archc.ir.ops.shape import CAST, RESHAPE

RATIONAL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # numerator a₀ … a₅ and denominator b₁ … b₄ of Σ aᵢxⁱ / (1 + |Σ bᵢxⁱ|), fitted on [-5, 5]; largest error 6e-5, 4e-3
    "silu": (
        (1.894e-05, 0.50000001, 0.24992502, 0.05265207, 0.00553901, 0.00024336),
        (-1.4e-06, -0.10530345, -1.2e-07, -0.00048672),
    ),
    "gelu": (
        (-0.00263687, 0.49994917, 0.41026041, 0.11360484, 0.01134486, 0.00019746),
        (0.00968168, -0.23501278, 0.00207472, -0.00057609),
    ),
    "identity": ((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
}
"""The rational functions that a GR-KAN layer starts from."""

DEGREES = (5, 4)


Base = Literal[
    "silu", "gelu", "relu", "tanh", "identity", "none", "relu6", "leaky_relu", "elu", "sigmoid", "hardsigmoid",
    "hardswish", "softplus", "mish",
]  # fmt: skip
"""Functions of the linear part: activations with their usual parameters."""
BASES: tuple[str, ...] = get_args(Base)


class KanParams(Params):
    """How the functions are made.

    basis   "bspline": grid + order splines of degree `order` on `grid` intervals of `range`, zero outside;
            "fourier": cos(kx) and sin(kx), k = 1 … grid; "chebyshev": T_0 … T_order of tanh(x);
            "grkan": a rational function of degrees 5 and 4 for each of `groups` groups of channels
    base    the function of the linear part, or "none"; for "grkan" what the rational functions start as; by default
            "silu" for splines and "grkan", none for the other two
    noise   how far initial spline coefficients lie from 0: U(-noise/2, noise/2) / grid; 0 means zeros for every basis
    bias    by default of "fourier" and "grkan" alone: the other bases contain the constant, splines within `range`
    """

    out: PositiveInt
    basis: Literal["bspline", "fourier", "chebyshev", "grkan"] = "bspline"
    grid: PositiveInt = 5
    order: PositiveInt = 3
    base: Base | None = None
    range: tuple[float, float] = (-1.0, 1.0)
    groups: PositiveInt = 1
    noise: float = 0.1
    bias: bool | None = None
    init: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range = {self.range} should be (low, high)")
        if self.basis == "grkan" and self.base_function not in RATIONAL:
            raise ValueError(f'base of "grkan" is one of {", ".join(RATIONAL)}')
        if self.basis != "grkan" and self.groups != 1:
            raise ValueError('groups means something for basis = "grkan" only')
        return self

    @property
    def base_function(self) -> str:
        """The base with the default filled in; "none" for none."""
        return self.base or ("silu" if self.basis in ("bspline", "grkan") else "none")

    @property
    def has_base(self) -> bool:
        return self.base_function != "none"

    @property
    def has_bias(self) -> bool:
        return self.basis in ("fourier", "grkan") if self.bias is None else self.bias

    @property
    def functions(self) -> int:
        """How many basis functions an edge has."""
        return {"bspline": self.grid + self.order, "fourier": 2 * self.grid, "chebyshev": self.order + 1}[self.basis]


def knots(p: KanParams) -> list[float]:
    """The `grid + 2 * order + 1` knots of the splines, equally far apart.

    >>> knots(KanParams(out=1, grid=2, order=1))
    [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    low, high = p.range
    step = (high - low) / p.grid
    return [low + step * (i - p.order) for i in range(p.grid + 2 * p.order + 1)]


def _line(call: Call[KanParams]) -> str:
    if call.params.basis == "grkan":
        weights = "weight[out, groups.i] bias[out] numerator[groups, a!] denominator[groups, c!]"
        return f"x:float[*b, groups.i]; {weights} -> [*b, out]"
    return "x:float[*b, i]; base_weight[out, i] coefficients[out, i, k!] bias[out] -> [*b, out]"


def _sizes(call: Call[KanParams], dims: Dims) -> Dims:
    if call.params.basis == "grkan":
        return {"a": DEGREES[0] + 1, "c": DEGREES[1]}
    return {"k": call.params.functions}


def _inputs(p: KanParams, dims: Dims) -> int:
    i = dims["i"]
    assert isinstance(i, int)
    return i * p.groups


def _linear_init(p: KanParams, shape: tuple[int, ...], dims: Dims) -> Init:
    return fan_in_uniform(_inputs(p, dims))


def _coefficients_init(p: KanParams, shape: tuple[int, ...], dims: Dims) -> Init:
    i = _inputs(p, dims)
    if p.noise == 0:
        return ZEROS
    if p.basis == "bspline":
        return Init("uniform", p.noise / 2 / p.grid)
    if p.basis == "fourier":
        return Init("normal", 1 / math.sqrt(i * p.grid))
    return Init("normal", 1 / (i * (p.order + 1)))


def _rational_init(part: int) -> Any:
    def rule(p: KanParams, shape: tuple[int, ...], dims: Dims) -> Init:
        return Init("values", values=RATIONAL[p.base_function][part] * p.groups)

    return rule


def _flops(call: Call[KanParams], bound: Bound) -> Dim:
    """The contractions, and what the basis of an element costs (10 for a sine, as elsewhere)."""
    p, x = call.params, call.types[0]
    i = x.shape[-1]
    if p.basis == "grkan":
        return x.size * (2 * sum(DEGREES) + 3) + 2 * bound.results[0].size * i
    cells = p.grid + 2 * p.order
    basis = {
        "bspline": 3 * cells + 7 * sum(cells - m for m in range(1, p.order + 1)),
        "fourier": 21 * p.grid,
        "chebyshev": 10 + 3 * max(0, p.order - 1),
    }[p.basis]
    contraction = 2 * bound.results[0].size * i * (p.functions + p.has_base)
    base = REGISTRY[p.base_function].flops if p.has_base else 0
    assert isinstance(base, int)
    return contraction + x.size * (basis + base)


def _bspline(b: GraphBuilder, x: Value, p: KanParams) -> Value:
    """[…, i, 1] → […, i, grid + order], by the recursion of Cox and de Boor on equally spaced knots."""
    t, dtype, last = knots(p), x.type.dtype, x.type.rank - 1
    step = (p.range[1] - p.range[0]) / p.grid

    def row(values: Sequence[float]) -> Value:
        constant: Value = b(CONSTANT, value=tuple(values), dtype=dtype)
        return constant

    inside = b(LOGICAL_AND, b(GE, x, row(t[:-1])), b(LT, x, row(t[1:])))
    basis: Value = b(CAST, inside, dtype=dtype)
    for m in range(1, p.order + 1):
        count = len(t) - 1 - m
        scale = scalar(b, 1 / (m * step), x)
        rising = b(MUL, b(SUB, x, row(t[:count])), scale)
        falling = b(MUL, b(SUB, row(t[m + 1 : m + 1 + count]), x), scale)
        left = b(SLICE, basis, axis=last, from_=0, to=count)
        right = b(SLICE, basis, axis=last, from_=1, to=count + 1)
        basis = b(ADD, b(MUL, rising, left), b(MUL, falling, right))
    return basis


def _fourier(b: GraphBuilder, x: Value, p: KanParams) -> Value:
    """cos(kx), then sin(kx) = cos(kx - π/2): in one go, for a compiler that would compute both of a pair everywhere."""
    turns, quarter = tuple(float(k) for k in range(1, p.grid + 1)), (math.pi / 2,) * p.grid
    angles = b(MUL, x, b(CONSTANT, value=turns + turns, dtype=x.type.dtype))
    phases = b(CONSTANT, value=(0.0,) * p.grid + quarter, dtype=x.type.dtype)
    basis: Value = b(COS, b(SUB, angles, phases))
    return basis


def _chebyshev(b: GraphBuilder, x: Value, p: KanParams) -> Value:
    """T_0 = 1, T_1 = z, T_2k = 2 T_k² - 1, T_2k+1 = 2 T_k T_k+1 - z, at z = tanh(x): each is few steps from z, so
    that a compiler which computes it in place repeats little."""
    z = b(TANH, x)
    one, two = scalar(b, 1.0, x), scalar(b, 2.0, x)
    terms = [b(ADD, b(MUL, z, scalar(b, 0.0, x)), one), z]
    for k in range(2, p.order + 1):
        half, rest = terms[k // 2], terms[k - k // 2]
        terms.append(b(SUB, b(MUL, b(MUL, two, half), rest), z if k % 2 else one))
    basis: Value = b(CONCAT, *terms, axis=x.type.rank - 1)
    return basis


def _rational(b: GraphBuilder, node: Node) -> Value:
    """Σ aᵢxⁱ / (1 + |Σ bᵢxⁱ|) by Horner's rule, with the coefficients of the channel's group."""
    (x,), groups = node.operands, node.call.params.groups
    *batch, channels = x.type.shape
    assert isinstance(channels, int)
    grouped = b(RESHAPE, x, shape=(*batch, groups, channels // groups))

    def coefficients(role: str) -> list[Value]:
        table, count = parameter_value(b, node, role), node.weights[role].shape[1]
        return [b(SLICE, table, axis=1, from_=j, to=j + 1) for j in range(count)]

    def polynomial(terms: Sequence[Value]) -> Value:
        result = terms[-1]
        for term in reversed(terms[:-1]):
            result = b(ADD, b(MUL, result, grouped), term)
        return result

    above = polynomial(coefficients("numerator"))
    below = b(MUL, polynomial(coefficients("denominator")), grouped)
    ratio = b(DIV, above, b(ADD, b(ABS, below), scalar(b, 1.0, x)))
    result: Value = b(RESHAPE, ratio, shape=x.type.shape)
    return result


def _decompose(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,), p, weights = node.operands, node.call.params, node.weights
    if p.basis == "grkan":
        linear = {role: weight for role, weight in weights.items() if role in ("weight", "bias")}
        return [b(LINEAR, _rational(b, node), out=p.out, bias=p.has_bias, weights=linear)]
    basis = {"bspline": _bspline, "fourier": _fourier, "chebyshev": _chebyshev}[p.basis]
    terms = basis(b, b(RESHAPE, x, shape=(*x.type.shape, 1)), p)
    result: Value = b(EINSUM, terms, parameter_value(b, node, "coefficients"), equation="...ik,oik->...o")
    if p.has_base:
        activated = x if p.base_function == "identity" else b(REGISTRY[p.base_function], x)
        base = b(LINEAR, activated, out=p.out, bias=False, weights={"weight": weights["base_weight"]})
        result = b(ADD, base, result)
    if p.has_bias:
        result = b(ADD, result, parameter_value(b, node, "bias"))
    return [result]


def _spelled(call: Call[KanParams], bound: Bound) -> Mapping[str, Any]:
    """Whether there is a bias; where there is one beside a basis with the constant, that is told apart."""
    p = call.params
    usual = p.basis in ("fourier", "grkan")
    return {"bias": p.has_bias if usual else "beside" if p.has_bias else True}


KAN = register(
    OpDef(
        name="kan",
        doc="A Kolmogorov–Arnold layer on the last axis: `y_o = Σ_i φ_oi(x_i)` with learned functions φ.",
        line=_line,
        params=KanParams,
        operands=("x",),
        sizes=_sizes,
        spelled=_spelled,
        weights={
            "weight": Weight(_linear_init, main=True),
            "base_weight": Weight(_linear_init, when="has_base", main=True),
            "coefficients": Weight(_coefficients_init),
            "bias": Weight(_linear_init, when="has_bias"),
            "numerator": Weight(_rational_init(0)),
            "denominator": Weight(_rational_init(1)),
        },
        flops=_flops,
        decompose=_decompose,
        example="kan(4, grid = 3, order = 2)",
        category="kan",
        paper="Liu et al. 2024, KAN, arXiv:2404.19756; Chebyshev: Sidharth et al. 2024, arXiv:2405.07200; GR-KAN: Yang "
        "and Wang 2024, Kolmogorov–Arnold Transformer, arXiv:2409.10594",
    )
)
