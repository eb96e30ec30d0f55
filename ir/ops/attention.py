"""Attention, its positions, and the products inside it.

Axes: queries have `kv.r` heads (r for each head of keys and values: grouped queries), each with its own `d` channels,
so a head may move as a whole and its channels among themselves. What knows an order pins: rotary positions their
channels and tokens, a causal mask its tokens, ALiBi its heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from archc.ir.dims import Dim, exact_div
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.init import Init, fan_in_uniform
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, Weight, register
from archc.ir.ops.activations import SIGMOID, SOFTMAX
from archc.ir.ops.constants import CONSTANT, scalar
from archc.ir.ops.elementwise import ABS, ADD, COS, GE, GT, LOGICAL_AND, MUL, SIN, SUB, WHERE
from archc.ir.ops.index import INDEX_SELECT
from archc.ir.ops.linear import LINEAR, MATMUL, parameter_value
from archc.ir.ops.norm import RMS_NORM
from archc.ir.ops.pieces import CONCAT, SLICE
from archc.ir.ops.reduce import CUMSUM
from archc.ir.ops.shape import CAST, EXPAND, PERMUTE, RESHAPE
from archc.ir.types import TensorType

LOWEST = {"f64": -1e300, "f32": -3e38, "bf16": -3e38, "f16": -6e4}
"""A number so low that its exponential vanishes beside any other's; unlike -inf it is never subtracted to NaN."""


def token_index(b: GraphBuilder, length: Dim, dtype: str) -> Value:
    """[length]: 0, 1, 2, …"""
    one = b(CONSTANT, value=1.0, dtype=dtype)
    index: Value = b(SUB, b(CUMSUM, b(EXPAND, one, shape=(length,)), axis=0), one)
    return index


# -- rotary positions ---------------------------------------------------------------------------------------------


class RopeParams(Params):
    """`interleaved` rotates neighbouring channels (as the paper does), else channel i with channel i + d/2."""

    base: PositiveFloat = 10000.0
    interleaved: bool = False


def _even(size: Dim, of: str, label: str, blame: str | None = None) -> int:
    """Rotary positions turn pairs of channels."""
    if not isinstance(size, int) or size % 2:
        message = f"{of} needs an even number of channels"
        raise BindError("E0311", message, label=label, blame=blame, operands=[0])
    return size


def _check_rope(call: Call[RopeParams], dims: Dims) -> None:
    _even(call.types[0].shape[-1], "`rope`", f"found {call.types[0]}")


def _frequencies(channels: int, base: float) -> tuple[float, ...]:
    return tuple(base ** (-2 * i / channels) for i in range(channels // 2))


def _angles(b: GraphBuilder, length: Dim, channels: int, base: float, dtype: str) -> Value:
    """[T, d/2]: the angle of each pair of channels at each token, in f32 or better."""
    exact = dtype if dtype in ("f64", "f32") else "f32"
    index = b(RESHAPE, token_index(b, length, exact), shape=(length, 1))
    angles: Value = b(MUL, index, b(CONSTANT, value=_frequencies(channels, base), dtype=exact))
    return angles


def _cast(b: GraphBuilder, x: Value, dtype: str) -> Value:
    result: Value = x if x.type.dtype == dtype else b(CAST, x, dtype=dtype)
    return result


def _decompose_rope(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,), p = node.operands, node.call.params
    *batch, length, channels = x.type.shape
    half = _even(channels, "`rope`", f"found {channels}") // 2
    angles = _angles(b, length, 2 * half, p.base, x.type.dtype)
    cos, sin = (_cast(b, b(op, angles), x.type.dtype) for op in (COS, SIN))
    if p.interleaved:
        axis = x.type.rank
        pairs = b(RESHAPE, x, shape=(*batch, length, half, 2))
        first, second = (b(SLICE, pairs, axis=axis, from_=i, to=i + 1) for i in range(2))
        cos, sin = (b(RESHAPE, v, shape=(length, half, 1)) for v in (cos, sin))
    else:
        axis = x.type.rank - 1
        first, second = (b(SLICE, x, axis=axis, from_=i * half, to=(i + 1) * half) for i in range(2))
    left = b(SUB, b(MUL, first, cos), b(MUL, second, sin))
    right = b(ADD, b(MUL, second, cos), b(MUL, first, sin))
    return [b(RESHAPE, b(CONCAT, left, right, axis=axis), shape=x.type.shape)]


ROPE = register(
    OpDef(
        name="rope",
        doc="Rotary positions: pairs of channels of `[…, T, D]` turned by angles that grow with the token's index.",
        line="x:float[*b, t!, d!~] -> [*b, t, d]",
        params=RopeParams,
        check=_check_rope,
        flops=3,
        decompose=_decompose_rope,
        example="rope",
        category="attention",
        paper="Su et al. 2021, arXiv:2104.09864",
    )
)


# -- absolute positions -------------------------------------------------------------------------------------------


class PositionsParams(Params):
    """`length` is the longest input of a learned table; without it the input's own, which must be fixed."""

    kind: Literal["learned", "sinusoidal"] = "learned"
    length: PositiveInt | None = None
    base: PositiveFloat = 10000.0
    init: str | None = None


def _positions_line(call: Call[PositionsParams]) -> str:
    if call.params.kind == "sinusoidal":
        return "x:float[*b, t!, c!] -> [*b, t, c]"
    if call.rank == 4:
        return "x:float[n, c, h, w]; weight[c, h, w] -> [n, c, h, w]"
    if call.params.length is not None:
        return "x:float[*b, t!, c]; weight[length!, c] -> [*b, t, c]"
    if call.rank > 1 and not isinstance(call.types[0].shape[-2], int):
        raise BindError(
            "E0307",
            "learned `positions` of any number of tokens need a largest one",
            label=f"found {call.types[0]}",
            operands=[0],
            help="say `positions(length = …)`",
        )
    return "x:float[*b, t, c]; weight[t, c] -> [*b, t, c]"


def _check_positions(call: Call[PositionsParams], dims: Dims) -> None:
    p, (x,) = call.params, call.types
    if p.kind == "sinusoidal":
        _even(x.shape[-1], '`positions(kind = "sinusoidal")`', f"found {x}", "kind")
    elif p.length is not None:
        length = x.shape[-2]
        if call.rank == 4 or (isinstance(length, int) and length > p.length):
            raise BindError(
                "E0311",
                "`positions(length = …)` needs tokens `[N, T, C]`, at most `length` of them",
                label=f"found {x} with length = {p.length}",
                blame="length",
                operands=[0],
            )


def _decompose_positions(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,), p = node.operands, node.call.params
    if p.kind == "learned":
        table = parameter_value(b, node, "weight")
        length = x.type.shape[-2]
        if x.type.rank != 4 and length != p.length and p.length is not None:
            if isinstance(length, int):
                table = b(SLICE, table, axis=0, from_=0, to=length)
            else:
                index = b(CAST, token_index(b, length, "f32"), dtype="i64")
                table = b(INDEX_SELECT, table, index, axis=0)
        return [b(ADD, x, table)]
    length, channels = x.type.shape[-2:]
    half = _even(channels, "`positions`", f"found {channels}") // 2
    angles = _angles(b, length, 2 * half, p.base, x.type.dtype)
    parts = [b(RESHAPE, b(op, angles), shape=(length, half, 1)) for op in (SIN, COS)]
    table = b(RESHAPE, b(CONCAT, *parts, axis=2), shape=(length, channels))
    return [b(ADD, x, _cast(b, table, x.type.dtype))]


POSITIONS = register(
    OpDef(
        name="positions",
        doc="Adds a vector for each place: learned (for tokens, or for each channel and pixel of an image), or sines "
        "and cosines of the token's index in neighbouring channels.",
        line=_positions_line,
        params=PositionsParams,
        operands=("x",),
        weights={"weight": Weight(Init("normal", 0.02), main=True)},
        check=_check_positions,
        flops=1,
        decompose=_decompose_positions,
        example='positions(kind = "sinusoidal")',
        category="attention",
        paper="Vaswani et al. 2017, arXiv:1706.03762",
    )
)


# -- the product --------------------------------------------------------------------------------------------------


class ScaledDotProductParams(Params):
    """`scale` defaults to 1/sqrt(D). `causal`: query t sees keys 0 … t."""

    causal: bool = False
    scale: float | None = None


def _mask_axes(mask: TensorType, axes: Sequence[str]) -> str:
    """The mask's axes, aligned at the end with [n, heads, t, u]; a size of literally 1 broadcasts."""
    if mask.rank > len(axes):
        raise BindError("E0302", "an attention mask is at most [N, heads, T, U]", label=f"found {mask}", operands=[3])
    own = axes[len(axes) - mask.rank :]
    return ", ".join("1" if size == 1 else a for size, a in zip(mask.shape, own, strict=True))


def _check_mask(call: Call[Any], dims: Dims) -> None:
    if len(call.types) == 4 and call.types[3].dtype not in ("bool", call.types[0].dtype):
        raise BindError(
            "E0304",
            f"an attention mask is bool (true: attend) or {call.types[0].dtype} (added to the scores)",
            label=f"found {call.types[3]}",
            operands=[3],
        )


def _mask(call: Call[Any], heads: str, t: str, u: str) -> str:
    return f" mask:any[{_mask_axes(call.types[3], ['n', heads, t, u])}]" if len(call.types) == 4 else ""


def _sdpa_line(call: Call[ScaledDotProductParams]) -> str:
    t, u = ("t!", "u!") if call.params.causal else ("t", "u")
    return f"q:float[n, kv.r, {t}, d] k[n, kv, {u}, d] v[n, kv, {u}, e]{_mask(call, 'kv.r', t, u)} -> [n, kv.r, {t}, e]"


def sdpa_flops(n: Dim, heads: Dim, t: Dim, u: Dim, d: Dim, e: Dim) -> Dim:
    """Scores and weighted sum, as PyTorch counts them: a mask saves nothing, softmax is not counted."""
    return 2 * n * heads * t * u * (d + e)


def _sdpa_flops(call: Call[ScaledDotProductParams], bound: Bound) -> Dim:
    (n, heads, t, d), e = call.types[0].shape, call.types[2].shape[-1]
    return sdpa_flops(n, heads, t, call.types[1].shape[2], d, e)


def _decompose_sdpa(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (q, k, v, *masks), p = node.operands, node.call.params
    n, heads, t, d = q.type.shape
    kv, u, e = *k.type.shape[1:3], v.type.shape[3]
    if p.scale is not None:
        scale = p.scale
    elif isinstance(d, int):
        scale = d**-0.5
    else:
        return ()
    r = exact_div(heads, kv)
    assert r is not None
    q = b(MUL, q, scalar(b, scale, q))
    keys = b(PERMUTE, k, order=(0, 1, 3, 2))
    if r == 1:
        scores = b(MATMUL, q, keys)
    else:
        keys, values = b(RESHAPE, keys, shape=(n, kv, 1, d, u)), b(RESHAPE, v, shape=(n, kv, 1, u, e))
        grouped = b(MATMUL, b(RESHAPE, q, shape=(n, kv, r, t, d)), keys)
        scores = b(RESHAPE, grouped, shape=(n, heads, t, u))
    allowed: Value | None = None
    if masks and masks[0].type.dtype == "bool":
        allowed = masks[0]
    elif masks:
        scores = b(ADD, scores, masks[0])
        allowed = b(GT, masks[0], scalar(b, LOWEST[q.type.dtype], q))
    if p.causal:
        rows = b(RESHAPE, token_index(b, t, "f32"), shape=(t, 1))
        past = b(GE, rows, b(RESHAPE, token_index(b, u, "f32"), shape=(1, u)))
        allowed = past if allowed is None else b(LOGICAL_AND, allowed, past)
    if allowed is not None:
        scores = b(WHERE, allowed, scores, scalar(b, LOWEST[q.type.dtype], q))
    weights = b(SOFTMAX, scores, axis=-1)
    if masks and allowed is not None:  # a query that may see nothing gets zeros, as in PyTorch
        weights = b(WHERE, allowed, weights, scalar(b, 0.0, q))
    if r == 1:
        return [b(MATMUL, weights, v)]
    result = b(MATMUL, b(RESHAPE, weights, shape=(n, kv, r, t, u)), values)
    return [b(RESHAPE, result, shape=node.output.type.shape)]


SCALED_DOT_PRODUCT = register(
    OpDef(
        name="scaled_dot_product",
        doc="`softmax(q kᵀ · scale + mask) v` on `[N, heads, T, D]`; fewer heads of keys and values are shared by "
        "groups of query heads. A bool mask tells what to attend to, a float mask is added; a query that may see "
        "nothing gets zeros. With `causal` as well as a mask both hold.",
        line=_sdpa_line,
        params=ScaledDotProductParams,
        operands=("q", "k=q", "v=k", "mask?"),
        check=_check_mask,
        flops=_sdpa_flops,
        decompose=_decompose_sdpa,
        example="fn(q, k) { return scaled_dot_product(q, k, k, causal = true) }",
        example_inputs=("f32[N, 4, 6, 8]", "f32[N, 2, 6, 8]"),
        category="attention",
        paper="Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245",
    )
)


# -- multi-head attention -----------------------------------------------------------------------------------------


class AttentionParams(Params):
    """Four linear maps around `scaled_dot_product`.

    kv_heads   heads of keys and values (default: heads); each serves heads / kv_heads query heads
    head_dim   channels of a head (default: the input's / heads)
    out        channels of the result (default: the query's)
    positions  "rope" turns queries and keys; "alibi" lowers scores with the distance
    gate       a sigmoid of the query's input on what each head found: one number a head, or one a channel ("element")
    qk_norm    RMS norm of queries and keys, its gain shared by the heads
    """

    heads: PositiveInt
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    out: PositiveInt | None = None
    causal: bool = False
    positions: Literal["rope", "alibi"] | None = None
    rope_base: PositiveFloat = 10000.0
    scale: float | None = None
    bias: bool = True
    gate: Literal["head", "element"] | None = None
    qk_norm: bool = False
    init: str | None = None

    @property
    def gated(self) -> bool:
        return self.gate is not None

    @property
    def gate_bias(self) -> bool:
        return self.gated and self.bias


def _attention_line(call: Call[AttentionParams]) -> str:
    p = call.params
    ordered = p.causal or p.positions is not None
    t, u = ("t!", "u!") if ordered else ("t", "u")
    d = "d!" if p.positions == "rope" else "d"
    kv, r = ("kv!", "r!") if p.positions == "alibi" else ("kv", "r")
    heads = f"{kv}.{r}"
    weights = [
        f"q_weight[{heads}.{d}, i] q_bias[{heads}.{d}] k_weight[{kv}.{d}, j] k_bias[{kv}.{d}]",
        f"v_weight[{kv}.e, l] v_bias[{kv}.e] out_weight[o, {heads}.e] out_bias[o]",
    ]
    if p.gated:
        gates = heads if p.gate == "head" else f"{heads}.e"
        weights.append(f"gate_weight[{gates}, i] gate_bias[{gates}]")
    if p.qk_norm:
        weights.append(f"q_norm_weight[{d}~] k_norm_weight[{d}]")
    operands = f"q:float[n, {t}, i] k[n, {u}, j] v[n, {u}, l]{_mask(call, heads, t, u)}"
    return f"{operands}; {' '.join(weights)} -> [n, {t}, o]"


def _attention_sizes(call: Call[AttentionParams], dims: Dims) -> Dims:
    p, channels = call.params, call.types[0].shape[2]
    kv = p.kv_heads or p.heads
    if p.heads % kv:
        raise BindError(
            "E0305",
            f"`attention` needs heads divisible by kv_heads = {kv}",
            label=f"found heads = {p.heads}",
            blame="kv_heads",
        )
    width = p.head_dim or exact_div(channels, p.heads)
    if width is None:
        raise BindError(
            "E0305",
            f"`attention` needs channels divisible by heads = {p.heads}",
            label=f"found {channels} in {call.types[0]}",
            blame="heads",
            operands=[0],
            help="choose other heads, or give `head_dim`",
        )
    if p.positions == "rope":
        blame = "head_dim" if p.head_dim else "heads"
        _even(width, '`attention(positions = "rope")`', f"each of {p.heads} heads has {width}", blame)
    return {"kv": kv, "r": p.heads // kv, "d": width, "e": width, "o": p.out or channels}


def _reads(letter: str) -> Any:
    """PyTorch's default for a linear map that reads the axis `letter`."""

    def rule(p: AttentionParams, shape: tuple[int, ...], dims: Dims) -> Init:
        size = dims[letter] if letter else p.heads * dims["e"]
        assert isinstance(size, int)
        return fan_in_uniform(size)

    return rule


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slope of each head: a geometric sequence from 2^(-8/n), n the power of two at or below `heads`.

    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    """
    power = 2 ** int(math.log2(heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return (*first, *between)


def _attention_flops(call: Call[AttentionParams], bound: Bound) -> Dim:
    (n, t, _), u = call.types[0].shape, call.types[1].shape[1]
    width = bound.dims["d"]
    assert not isinstance(width, tuple)
    rows = {"q": t, "k": u, "v": u, "out": t, "gate": t}
    flops = sdpa_flops(n, call.params.heads, t, u, width, width)
    for name, length in rows.items():
        spec = bound.weights.get(f"{name}_weight")
        if spec is not None:
            flops = flops + 2 * n * length * spec.type.size
    return flops


def _alibi(b: GraphBuilder, heads: int, t: Dim, u: Dim, dtype: str) -> Value:
    """[heads, T, U]: minus slope times distance."""
    rows = b(RESHAPE, token_index(b, t, "f32"), shape=(t, 1))
    columns = b(RESHAPE, token_index(b, u, "f32"), shape=(1, u))
    slopes = b(CONSTANT, value=tuple(((-s,),) for s in alibi_slopes(heads)), dtype="f32")
    return _cast(b, b(MUL, b(ABS, b(SUB, rows, columns)), slopes), dtype)


def _decompose_attention(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (q, k, v, *masks), p = node.operands, node.call.params
    dims, weights = node.bound.dims, node.weights
    kv, d = dims["kv"], dims["d"]
    n, t, _ = q.type.shape
    u = k.type.shape[1]

    def project(x: Value, role: str) -> Value:
        own = {name: weights[f"{role}_{name}"] for name in ("weight", "bias") if f"{role}_{name}" in weights}
        result: Value = b(LINEAR, x, out=own["weight"].shape[0], bias="bias" in own, weights=own)
        return result

    def heads(x: Value, role: str, count: Any, length: Dim) -> Value:
        apart: Value = b(RESHAPE, project(x, role), shape=(n, length, count, d))
        if f"{role}_norm_weight" in weights:
            apart = b(RMS_NORM, apart, weights={"weight": weights[f"{role}_norm_weight"]})
        apart = b(PERMUTE, apart, order=(0, 2, 1, 3))
        if p.positions == "rope" and role != "v":
            apart = b(ROPE, apart, base=p.rope_base)
        return apart

    parts = heads(q, "q", p.heads, t), heads(k, "k", kv, u), heads(v, "v", kv, u)
    if p.positions == "alibi":
        bias = _alibi(b, p.heads, t, u, q.type.dtype)
        if masks and masks[0].type.dtype == "bool":
            masks = [b(WHERE, masks[0], bias, scalar(b, float("-inf"), bias))]
        else:
            masks = [b(ADD, masks[0], bias) if masks else bias]
    found = b(SCALED_DOT_PRODUCT, *parts, *masks, causal=p.causal, scale=p.scale)
    found = b(PERMUTE, found, order=(0, 2, 1, 3))  # [n, t, heads, d]
    if p.gated:
        gate = b(SIGMOID, project(q, "gate"))
        gate = b(RESHAPE, gate, shape=(n, t, p.heads, 1 if p.gate == "head" else d))
        found = b(MUL, found, gate)
    return [project(b(RESHAPE, found, shape=(n, t, p.heads * d)), "out")]


def _spelled(call: Call[AttentionParams], bound: Bound) -> Mapping[str, Any]:
    dims = bound.dims
    return {"kv_heads": dims["kv"], "head_dim": dims["d"], "out": dims["o"]}


ATTENTION = register(
    OpDef(
        name="attention",
        doc="Multi-head attention of queries `[N, T, C]` to keys and values `[N, U, …]` (the queries unless given).",
        line=_attention_line,
        params=AttentionParams,
        spelled=_spelled,
        operands=("q", "k=q", "v=k", "mask?"),
        sizes=_attention_sizes,
        weights={
            "q_weight": Weight(_reads("i"), main=True),
            "q_bias": Weight(_reads("i"), when="bias"),
            "k_weight": Weight(_reads("j"), main=True),
            "k_bias": Weight(_reads("j"), when="bias"),
            "v_weight": Weight(_reads("l"), main=True),
            "v_bias": Weight(_reads("l"), when="bias"),
            "out_weight": Weight(_reads(""), main=True),
            "out_bias": Weight(_reads(""), when="bias"),
            "gate_weight": Weight(_reads("i"), when="gated"),
            "gate_bias": Weight(_reads("i"), when="gate_bias"),
            "q_norm_weight": Weight(Init("constant", 1.0)),
            "k_norm_weight": Weight(Init("constant", 1.0)),
        },
        check=_check_mask,
        flops=_attention_flops,
        decompose=_decompose_attention,
        example='attention(4, kv_heads = 2, causal = true, positions = "rope", gate = "head", qk_norm = true)',
        example_inputs=("f32[N, 6, 16]",),
        category="attention",
        paper="Vaswani et al. 2017, arXiv:1706.03762; ALiBi: Press et al. 2021, arXiv:2108.12409; head gates: Qiu et "
        "al. 2025, arXiv:2505.06708",
    )
)
