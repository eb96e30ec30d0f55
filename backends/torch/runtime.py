"""What generated code calls where one line will not do: plain functions that need torch alone.

Their source is copied into exported files (`archc export --format torch`), so each may use only torch, the names of
`HEADER` and other helpers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADER = """\
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
"""
"""The imports of every exported file."""

HELPERS: dict[str, Callable[..., Any]] = {}
"""Name -> function that generated code may call. A package with its own ops adds its helpers here (see `helper`)."""

C = TypeVar("C", bound=Callable[..., Any])


def helper(function: C) -> C:
    """Let generated code call `function` by its name.

    Raises: ValueError when the name is taken.
    """
    if function.__name__ in HELPERS:
        raise ValueError(f"a helper `{function.__name__}` exists already")
    HELPERS[function.__name__] = function
    return function


@helper
def attach(root: nn.Module, path: tuple[str, ...], tensor: Tensor, trainable: bool) -> None:
    """Hang a parameter or buffer into nested modules: ("stage", "conv", "weight") is `root.stage.conv.weight`."""
    for part in path[:-1]:
        if part not in root._modules:
            root._modules[part] = nn.Module()
        root = root._modules[part]  # type: ignore[assignment]
    if trainable:
        root._parameters[path[-1]] = nn.Parameter(tensor)
    else:
        root._buffers[path[-1]] = tensor


@helper
def check_input(name: str, x: Tensor, dtype: str, sizes: tuple[int | str, ...]) -> None:
    """Raise ValueError unless x has these known sizes and the dtype; any float will do for a float."""
    whole = {"i64": torch.int64, "i32": torch.int32, "i8": torch.int8, "bool": torch.bool}
    same = x.dtype == whole[dtype] if dtype in whole else x.is_floating_point()
    known = x.dim() == len(sizes) and all(isinstance(s, str) or x.shape[i] == s for i, s in enumerate(sizes))
    if not (same and known):
        needed = f"{dtype}[{', '.join(map(str, sizes))}]"
        raise ValueError(f"input `{name}` must be {needed}, found {x.dtype} of shape {list(x.shape)}")


@helper
def check_size(name: str, axis: int, size: int, needed: int, dim: str) -> None:
    """Raise ValueError unless an axis of an input has the size that the other inputs ask for."""
    if size != needed:
        raise ValueError(f"axis {axis} of input `{name}` must be {dim}: needed {needed}, found {size}")


@helper
def exact_quotient(name: str, axis: int, size: int, factor: int, dim: str) -> int:
    """`size / factor`; ValueError when that is not whole."""
    if size % factor:
        raise ValueError(f"axis {axis} of input `{name}` must be {dim}: found a size that no whole number gives")
    return size // factor


@helper
def one_hot(ids: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """[*b] -> [*b, num_classes]: 1 at the index, 0 elsewhere; an index out of range gives zeros."""
    return (ids.unsqueeze(-1) == torch.arange(num_classes, device=ids.device)).to(dtype)


@helper
def rope(x: Tensor, base: float, interleaved: bool) -> Tensor:
    """Turn pairs of channels of [..., T, D] by angles that grow with the token's index (arXiv:2104.09864)."""
    cos, sin = (f.to(x.dtype) for f in angles(x, base))  # [T, D / 2]
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


@helper
def angles(x: Tensor, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `t * base^(-2i / D)` for [..., T, D], each [T, D / 2], in f32 or better."""
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    length, channels = x.shape[-2:]
    exponents = torch.arange(0, channels, 2, dtype=torch.float64, device=x.device) * (-1 / channels)
    steps = torch.arange(length, device=x.device).to(dtype).unsqueeze(-1)
    turns = steps * (base**exponents).to(dtype)
    return turns.cos(), turns.sin()


@helper
def sinusoids(x: Tensor, base: float) -> Tensor:
    """[T, D] for [..., T, D]: sines of the token's index in even channels, cosines in odd ones (arXiv:1706.03762)."""
    cos, sin = angles(x, base)
    return torch.stack((sin, cos), dim=-1).flatten(-2).to(x.dtype)


@helper
def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(q kT * scale + mask) v on [N, heads, T, D]; fewer heads of k and v serve groups of query heads.

    A bool mask tells what to attend to, a float mask is added. A query that may see nothing gets zeros.
    """
    if causal and mask is not None:
        past = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        mask = mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, float("-inf"))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
    )


@helper
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    heads: int,
    kv_heads: int,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    out_weight: Tensor,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    gate_weight: Tensor | None = None,
    gate_bias: Tensor | None = None,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    causal: bool = False,
    rope_base: float | None = None,
    slopes: tuple[float, ...] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention of [N, T, C] to [N, U, ...]. `slopes` are ALiBi's, one for each head."""

    def apart(x: Tensor, count: int, norm: Tensor | None = None, turn: bool = True) -> Tensor:  # [N, heads, T, D]
        x = x.unflatten(-1, (count, -1))
        x = x if norm is None else F.rms_norm(x, norm.shape, norm, norm_eps)
        x = x.transpose(1, 2)
        return rope(x, rope_base, False) if turn and rope_base is not None else x

    queries = apart(F.linear(q, q_weight, q_bias), heads, q_norm_weight)
    keys = apart(F.linear(k, k_weight, k_bias), kv_heads, k_norm_weight)
    values = apart(F.linear(v, v_weight, v_bias), kv_heads, turn=False)
    if slopes is not None:
        distance = torch.arange(q.shape[1], device=q.device).unsqueeze(-1) - torch.arange(k.shape[1], device=q.device)
        bias = -distance.abs() * torch.tensor(slopes, dtype=q.dtype, device=q.device).view(-1, 1, 1)
        allowed = mask is not None and mask.dtype == torch.bool
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf")) if allowed else mask + bias
    found = attend(queries, keys, values, mask, causal, scale).transpose(1, 2)  # [N, T, heads, D]
    if gate_weight is not None:
        gate = torch.sigmoid(F.linear(q, gate_weight, gate_bias))
        found = found * gate.unflatten(-1, (heads, -1))  # one number a head, or one a channel
    return F.linear(found.flatten(-2), out_weight, out_bias)


@helper
def bspline_basis(x: Tensor, low: float, high: float, grid: int, order: int) -> Tensor:
    """[*b] -> [*b, grid + order]: splines of degree `order` on equally spaced knots, by Cox and de Boor's recursion."""
    step = (high - low) / grid
    index = torch.arange(-order, grid + order + 1, dtype=torch.float64, device=x.device)
    knots = (low + step * index).to(x.dtype)
    x = x.unsqueeze(-1)
    basis = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
    for m in range(1, order + 1):
        rising, falling = (x - knots[: -m - 1]) / (m * step), (knots[m + 1 :] - x) / (m * step)
        basis = rising * basis[..., :-1] + falling * basis[..., 1:]
    return basis


@helper
def fourier_basis(x: Tensor, grid: int) -> Tensor:
    """[*b] -> [*b, 2 * grid]: cos(kx), then sin(kx), for k = 1 ... grid."""
    turns = x.unsqueeze(-1) * torch.arange(1, grid + 1, device=x.device).to(x.dtype)
    return torch.cat((turns.cos(), turns.sin()), dim=-1)


@helper
def chebyshev_basis(x: Tensor, order: int) -> Tensor:
    """[*b] -> [*b, order + 1]: the Chebyshev polynomials T_0 ... T_order of tanh(x)."""
    z = torch.tanh(x)
    terms = [torch.ones_like(z), z]
    for _ in range(2, order + 1):
        terms.append(2 * z * terms[-1] - terms[-2])
    return torch.stack(terms[: order + 1], dim=-1)


@helper
def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """P(x) / (1 + |Q(x)|) on [..., C], with coefficients [groups, degree] for each group of channels."""
    groups = x.unflatten(-1, (numerator.shape[0], -1))

    def polynomial(coefficients: Tensor) -> Tensor:  # Horner's rule
        *low, result = coefficients.unsqueeze(-2).unbind(-1)
        for coefficient in reversed(low):
            result = result * groups + coefficient
        return result

    return (polynomial(numerator) / (1 + (polynomial(denominator) * groups).abs())).flatten(-2)
