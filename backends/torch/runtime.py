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
        x = torch.unflatten(x, -1, (count, -1))
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
        found = found * torch.unflatten(gate, -1, (heads, -1))  # one number a head, or one a channel
    return F.linear(found.flatten(-2), out_weight, out_bias)


@helper
def dequantised(codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, shape: tuple[int, ...]) -> Tensor:
    """scale * (codes - zero) as floats of `shape` [out, …]. Scale and zero are [out], or [out, n] for n runs of a row;
    codes of 4 bits lie two in a byte, the first in its low half."""
    rows = codes.flatten(1)
    if bits == 4:
        rows = torch.stack((rows << 4 >> 4, rows >> 4), -1).flatten(1)[:, : math.prod(shape[1:])]
    runs = torch.unflatten(rows.to(scale.dtype), 1, (scale[0].numel(), -1))
    if zero is not None:
        runs = runs - zero.view(*runs.shape[:2], 1)
    return (runs * scale.view(*runs.shape[:2], 1)).reshape(shape)


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
    groups = torch.unflatten(x, -1, (numerator.shape[0], -1))

    def polynomial(coefficients: Tensor) -> Tensor:  # Horner's rule
        *low, result = coefficients.unsqueeze(-2).unbind(-1)
        for coefficient in reversed(low):
            result = result * groups + coefficient
        return result

    return (polynomial(numerator) / (1 + (polynomial(denominator) * groups).abs())).flatten(-2)


@helper
def add_loss(aux: dict[str, Tensor], key: str, value: Tensor) -> None:
    """Add to a named loss: what runs several times, as the cell of a scan does, counts several times."""
    aux[key] = aux[key] + value if key in aux else value


@helper
def ranked(x: Tensor, dim: int) -> Tensor:
    """The indices that sort x, largest first; the first among equals comes first."""
    if torch.compiler.is_exporting():  # ONNX has no stable sort, but its TopK prefers the first among equals
        return x.sort(dim=dim, descending=True).indices
    return x.argsort(dim=dim, descending=True, stable=True)


@helper
def choose_experts(
    logits: Tensor, top_k: int, normalize: bool, *, score: str, routing: str, capacity: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which experts get which rows: scores [R, E], gates [R, E] and whether an expert is chosen (bool).

    Rows choose the top_k experts, or experts choose rows (arXiv:2202.09368), with the scores softmax or sigmoid. Gates
    that sum to 1 over the chosen are the softmax of logarithms of scores, in which nothing underflows.
    """
    logs = F.logsigmoid(logits) if score == "sigmoid" else torch.log_softmax(logits, dim=-1)
    if routing == "token":
        index = ranked(logits, -1)[:, :top_k]
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, True)
    else:
        assert capacity is not None
        place = ranked(logits if score == "sigmoid" else logs, 0).argsort(dim=0)  # of each row, for each expert
        chosen = place < capacity * logits.shape[0] * top_k / logits.shape[1]
    scores = logs.exp()
    gates = scores
    if normalize:  # not infinite: of a row that no expert chose, gradients would be NaN
        gates = torch.softmax(torch.where(chosen, logs, torch.finfo(logs.dtype).min), dim=-1)
    return scores, torch.where(chosen, gates, 0), chosen


@helper
def add_share(aux: dict[str, Tensor] | None, key: str, which: Tensor | float, rows: int) -> None:
    """Note a share, the mean of `which`, and how many rows it is a share of; no part of any loss."""
    if aux is not None and rows:
        share = which.detach().float().mean() if isinstance(which, Tensor) else torch.tensor(which)
        aux[f"stat/{key}"], aux[f"stat/{key}.rows"] = share, torch.tensor(float(rows))


@helper
def moe(
    x: Tensor,
    captures: tuple[Tensor, ...],
    router: Callable[..., Tensor],
    experts: tuple[Callable[..., Tensor], ...],
    shared: Callable[..., Tensor] | None = None,
    *,
    top_k: int,
    normalize: bool,
    training: bool,
    capacity: float | None = None,
    noise: float = 0.0,
    balance: float = 0.0,
    z_loss: float = 0.0,
    score: str = "softmax",
    routing: str = "token",
    temperature: float = 1.0,
    aux: dict[str, Tensor] | None = None,
    key: str = "",
) -> Tensor:
    """A mixture of experts (arXiv:1701.06538): what the chosen experts make of each row, weighted by their gates.

    A row is a token (x without its last axis) or a sample, as the router's logits have it. With a capacity each expert
    takes the first rows that chose it and drops the others. Run eagerly, an expert computes its own rows only; traced
    (compiled or exported), where shapes must not depend on values, every expert computes all rows and a mask selects.
    The numbers are the same unless an expert mixes rows, as a batch norm in training does.

    `aux` gets losses, and of the routing `stat/KEY.load` [E], the share of rows that each expert computes, and
    `stat/KEY.entropy`, that of a row's scores: 1 when they are equal, 0 when one expert has them all.
    """
    logits = router(x, *captures)
    batch = logits.shape[:-1]
    rows, logits = x.flatten(0, len(batch) - 1), logits.flatten(0, len(batch) - 1)
    if training and noise:
        logits = logits + noise * torch.randn_like(logits)
    scores, weights, chosen = choose_experts(
        logits / temperature, top_k, normalize, score=score, routing=routing, capacity=capacity
    )
    shares = scores / scores.sum(dim=-1, keepdim=True) if score == "sigmoid" else scores
    if aux is not None and balance and routing == "token":
        load = chosen.to(logits.dtype).mean(dim=0) / top_k
        # E * sum_e f_e P_e, which is 1 when all is balanced (arXiv:2101.03961, eq. 4)
        add_loss(aux, f"loss/{key}.balance", balance * len(experts) * (load * shares.mean(dim=0)).sum())
    if aux is not None and z_loss:
        add_loss(aux, f"loss/{key}.z", z_loss * torch.logsumexp(logits, dim=-1).square().mean())
    if capacity is not None and routing == "token":  # the p-th row of an expert stays when p <= ceil(limit)
        limit = capacity * rows.shape[0] * top_k / len(experts)
        chosen = chosen & (chosen.cumsum(dim=0) < limit + 1)
    if aux is not None and rows.shape[0]:
        sure = shares.detach().clamp_min(torch.finfo(shares.dtype).tiny)
        aux[f"stat/{key}.load"] = chosen.float().mean(dim=0)
        aux[f"stat/{key}.entropy"] = -(sure * sure.log()).sum(dim=-1).float().mean() / math.log(max(2, len(experts)))
        aux[f"stat/{key}.load.rows"] = aux[f"stat/{key}.entropy.rows"] = torch.tensor(float(rows.shape[0]))
    total = None if shared is None else shared(rows, *captures)
    dense = torch.compiler.is_compiling() or rows.shape[0] == 0
    for e, expert in enumerate(experts):
        mine = None if dense else chosen[:, e].nonzero().squeeze(1)
        if mine is not None and mine.shape[0] == 0:
            continue
        found = expert(rows if mine is None else rows.index_select(0, mine), *captures)
        wide = (-1, *[1] * (found.dim() - 1))
        found = found * (weights[:, e] if mine is None else weights[:, e].index_select(0, mine)).view(wide)
        if total is None:
            total = found.new_zeros(rows.shape[0], *found.shape[1:])
        if mine is not None:
            total = total.index_add(0, mine, found)
        else:  # not a product with 0, which would let the NaN of a row that was not chosen through
            total = total + torch.where(chosen[:, e].view(wide), found, 0)
    assert total is not None  # rows choose an expert, or experts choose a row
    return torch.unflatten(total, 0, batch)


@helper
def skip(
    x: Tensor,
    captures: tuple[Tensor, ...],
    gate: Callable[..., Tensor],
    body: Callable[..., Tensor],
    *,
    hard: bool,
    by_token: bool,
    threshold: float,
    training: bool,
    kept: int | None = None,
    cost: float = 0.0,
    target: float = 0.0,
    aux: dict[str, Tensor] | None = None,
    key: str = "",
) -> Tensor:
    """body(x) where the gate is open, else x; of each sample, or of each token of [N, T, C].

    Training mixes `g * body(x) + (1 - g) * x`; a hard gate is 0 or 1 there and has the gradient of g (straight
    through). `kept` tokens, those with the largest gates, reach the body in their order when there is a budget.
    `cost` times the mean of what the body is weighed with, as far as it exceeds `target`, is a loss.
    """
    g = gate(x, *captures)
    g = g.reshape(*x.shape[: 1 + by_token], *[1] * (x.dim() - 1 - by_token))
    is_open = g > threshold
    mixed = training or not hard
    weight = is_open.to(g.dtype) + (g - g.detach()) if hard and training else g
    if aux is not None and training and cost:
        add_loss(aux, f"loss/{key}.cost", cost * torch.relu(weight.mean() - target))
    if kept is not None:
        best = ranked(g.squeeze(-1), 1)[:, :kept].sort(dim=1).values
        index = best.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        chosen = x.gather(1, index)
        add_share(aux, f"{key}.open", best.shape[1] / max(1, x.shape[1]), x.shape[0])
        found = body(chosen, *captures)
        if mixed:
            g = g.gather(1, best.unsqueeze(-1))
            g = 1 + (g - g.detach()) if hard else g
            found = g * found + (1 - g) * chosen
        return x.scatter(1, index, found)
    add_share(aux, f"{key}.open", is_open if hard else g, x.shape[0])
    if mixed:
        return weight * body(x, *captures) + (1 - weight) * x
    if by_token or torch.compiler.is_compiling():
        return torch.where(is_open, body(x, *captures), x)
    rows = is_open.flatten().nonzero().squeeze(1)
    return x.index_copy(0, rows, body(x.index_select(0, rows), *captures)) if rows.shape[0] else x


@helper
def early_exit(
    x: Tensor,
    captures: tuple[Tensor, ...],
    head: Callable[..., Tensor],
    rest: Callable[..., Tensor],
    *,
    confidence: str,
    threshold: float,
    training: bool,
    aux: dict[str, Tensor] | None = None,
    key: str = "",
) -> Tensor:
    """The head's logits for samples that it is sure of, those of the rest for the others (arXiv:1709.01686).

    Training returns the rest's for all, and puts the head's into `aux`.
    """
    if training and aux is None:
        return rest(x, *captures)
    logits = head(x, *captures)
    probabilities = torch.softmax(logits, dim=-1)
    if confidence == "max_softmax":
        sure = probabilities.amax(dim=-1)
    elif confidence == "margin":
        first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
        sure = first - second
    else:
        entropy = -(probabilities * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
        sure = 1 - entropy / math.log(logits.shape[-1])
    leaves = sure >= threshold
    add_share(aux, f"{key}.left", leaves, x.shape[0])
    if training:
        if aux is not None:
            aux[f"exit/{key}"] = logits
        return rest(x, *captures)
    if torch.compiler.is_compiling():
        return torch.where(leaves.unsqueeze(-1), logits, rest(x, *captures))
    rows = (~leaves).nonzero().squeeze(1)
    return logits.index_copy(0, rows, rest(x.index_select(0, rows), *captures)) if rows.shape[0] else logits


@helper
def scan(
    x: Tensor,
    states: tuple[Tensor, ...],
    captures: tuple[Tensor, ...],
    cell: Callable[..., Tensor | tuple[Tensor, ...]],
    axis: int,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """`y, *states = cell(x_t, *states)` along an axis of x; all y stacked along it, then the final states.

    A loop, which torch.compile unrolls; an exported program keeps it as a loop, so that the length stays open.
    """

    def step(x_t: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = cell(x_t, *states, *captures)
        return found if isinstance(found, tuple) else (found,)

    def traced(states: list[Tensor], x_t: Tensor) -> tuple[list[Tensor], Tensor]:
        y, *after = step(x_t, tuple(states[1:]))  # the first state is none: there must be one
        return [s.clone(memory_format=torch.contiguous_format) for s in (states[0], *after)], y.clone()  # no aliases

    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan as loop

        final, ys = loop(traced, [x.new_zeros(()), *(s.contiguous() for s in states)], x, dim=axis, reverse=reverse)
        return ys, *final[1:]
    if x.shape[axis] == 0:  # no step tells the shape of y: one over zeros does
        y, *_ = step(x.sum(dim=axis), states)
        return y.unsqueeze(axis).narrow(axis, 0, 0), *states
    results = []
    steps = x.unbind(axis)
    for x_t in reversed(steps) if reverse else steps:
        y, *after = step(x_t, states)
        states = tuple(after)
        results.append(y)
    return torch.stack(results[::-1] if reverse else results, dim=axis), *states


@helper
def draw(shape: tuple[int, ...], dtype: torch.dtype, kind: str, size: Any) -> Tensor:
    """An initial value: U(-size, size), N(0, size^2), the same cut at two deviations, one number, or given numbers."""
    if kind == "values":
        return torch.tensor(size, dtype=dtype).reshape(shape)
    value = torch.empty(shape)
    if kind == "uniform":
        value.uniform_(-size, size)
    elif kind == "normal":
        value.normal_(0, size)
    elif kind == "trunc_normal":
        nn.init.trunc_normal_(value, 0, size, -2 * size, 2 * size)
    else:
        value.fill_(size)
    return value.to(dtype)
