"""Kolmogorov–Arnold layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.polynomial.chebyshev import cheb2poly
from torch import Tensor

from torch_reference.layers import affine
from torch_reference.table import REFERENCE, Params, Weights, reference


def _spline(x: Tensor, knots: list[float], j: int, degree: int) -> Tensor:
    """The B-spline of `degree` that starts at knot j, by the recursion of Cox and de Boor."""
    if degree == 0:
        return ((x >= knots[j]) & (x < knots[j + 1])).to(x.dtype)
    rising = (x - knots[j]) / (knots[j + degree] - knots[j])
    falling = (knots[j + degree + 1] - x) / (knots[j + degree + 1] - knots[j + 1])
    return rising * _spline(x, knots, j, degree - 1) + falling * _spline(x, knots, j + 1, degree - 1)


def _polynomial(x: Tensor, coefficients: Tensor | list[float]) -> Tensor:
    y = torch.zeros_like(x)
    for i, c in enumerate(coefficients):
        y = y + c * x**i
    return y


def _basis(p: Params) -> list[Callable[[Tensor], Tensor]]:
    """The functions that every edge mixes."""
    grid, order = p["grid"], p["order"]
    if p["basis"] == "fourier":
        waves = [lambda x, k=k: torch.cos(k * x) for k in range(1, grid + 1)]
        return waves + [lambda x, k=k: torch.sin(k * x) for k in range(1, grid + 1)]
    if p["basis"] == "chebyshev":
        terms = [cheb2poly([0.0] * k + [1.0]).tolist() for k in range(order + 1)]
        return [lambda x, c=c: _polynomial(torch.tanh(x), c) for c in terms]
    low, high = p["range"]
    knots = [low + (high - low) / grid * i for i in range(-order, grid + order + 1)]
    return [lambda x, j=j: _spline(x, knots, j, order) for j in range(grid + order)]


@reference("kan")
def _kan(p: Params, xs: list[Tensor], w: Weights) -> Tensor:
    (x,) = xs
    if p["basis"] == "grkan":
        made = []
        for part, above, below in zip(x.chunk(p["groups"], -1), w["numerator"], w["denominator"], strict=True):
            zero = torch.zeros(1, dtype=x.dtype)
            made.append(_polynomial(part, above) / (1 + _polynomial(part, torch.cat([zero, below])).abs()))
        return affine(torch.cat(made, -1), w["weight"], w.get("bias"))
    terms = torch.stack([f(x) for f in _basis(p)], -1)  # (…, i, k)
    y = (terms.unsqueeze(-3) * w["coefficients"]).sum((-1, -2))
    if "base_weight" in w:
        base = p["base"] or "silu"
        usual = {"approximate": "none", "negative_slope": 0.01, "alpha": 1.0, "beta": 1.0, "threshold": 20.0}
        y = y + affine(x if base == "identity" else REFERENCE[base](usual, [x], {}), w["base_weight"], None)
    return y + w["bias"] if "bias" in w else y
