"""Arithmetic, comparisons, activations, constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_reference.table import DTYPES, Params, Weights, first_nan, reference


def _elementwise(name: str, function: Callable[..., Tensor]) -> None:
    reference(name)(lambda p, xs, w: function(*xs))


for _name, _function in {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "minimum": lambda a, b: first_nan(a, b, torch.where(a < b, a, b)),
    "maximum": lambda a, b: first_nan(a, b, torch.where(a > b, a, b)),
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "logical_and": lambda a, b: a & b,
    "logical_or": lambda a, b: a | b,
    "logical_not": lambda x: ~x,
    "where": lambda c, a, b: torch.where(c, a, b),
    "neg": lambda x: -x,
    "abs": lambda x: torch.where(x < 0, -x, x),
    "sign": lambda x: (x > 0).to(x.dtype) - (x < 0).to(x.dtype),
    "square": lambda x: x * x,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": lambda x: 1 / torch.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
}.items():
    _elementwise(_name, _function)


def _limit(x: Tensor, low: float | None, high: float | None) -> Tensor:
    if low is not None:
        x = torch.where(x < low, torch.full_like(x, low), x)  # NaN is not below
    if high is not None:
        x = torch.where(x > high, torch.full_like(x, high), x)
    return x


@reference("clamp")
def _clamp(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _limit(xs[0], p["min"], p["max"])


for _name, _function in {
    "relu": lambda x: _limit(x, 0, None),
    "relu6": lambda x: _limit(x, 0, 6),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": lambda x: x * (1 / (1 + torch.exp(-x))),
    "hardsigmoid": lambda x: _limit(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * _limit(x + 3, 0, 6) / 6,
    "tanh": torch.tanh,
    "mish": lambda x: x * torch.tanh(_softplus(x, 1.0, 20.0)),
}.items():
    _elementwise(_name, _function)


def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * x > threshold, x, torch.log1p(torch.exp(beta * x)) / beta)


@reference("softplus")
def _softplus_op(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return _softplus(xs[0], p["beta"], p["threshold"])


@reference("leaky_relu")
def _leaky_relu(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.where(xs[0] > 0, xs[0], xs[0] * p["negative_slope"])


@reference("prelu")
def _prelu(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,), slope = xs, w["weight"]
    if len(slope) > 1:
        slope = slope.reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, x * slope)


@reference("elu")
def _elu(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.where(xs[0] > 0, xs[0], p["alpha"] * torch.expm1(xs[0]))


@reference("gelu")
def _gelu(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    if p["approximate"] == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def softmax(x: Tensor, axis: int) -> Tensor:
    e = torch.exp(x - x.amax(axis, keepdim=True))
    return e / e.sum(axis, keepdim=True)


@reference("softmax")
def _softmax_op(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return softmax(xs[0], p["axis"])


@reference("log_softmax")
def _log_softmax(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    shifted = xs[0] - xs[0].amax(p["axis"], keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(p["axis"], keepdim=True))


@reference("identity", "dropout")
def _identity(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return xs[0]


@reference("constant")
def _constant(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return torch.tensor(p["value"], dtype=DTYPES[p["dtype"]])


@reference("parameter", "buffer")
def _parameter(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    return w["weight"]
