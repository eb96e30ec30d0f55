"""Recipes for linear maps, norms, attention, KAN layers, convolutions and pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from random_nets import Builder, Reject, is_float
from recipes_elementwise import ids, numbers
from recipes_shapes import divisors

from archc.ir.dims import Dim
from archc.ir.graph import Value

Recipe = Callable[[Builder], object]


def last_fixed(b: Builder, rank: int = 2) -> Value:
    """A float value whose last axis is known, and not rows."""
    return b.pick(lambda v: is_float(v) and v.type.rank >= rank and isinstance(v.type.shape[-1], int), b.tokens)


def linear(b: Builder) -> Value:
    fields: dict[str, Any] = {"init": "xavier_normal"} if b.rng.random() < 0.15 else {}
    return b.apply("linear", last_fixed(b), out=b.channels(), bias=b.rng.random() < 0.7, growth=4.0, **fields)


def quantized_linear(b: Builder) -> Value:
    x = b.tame(last_fixed(b))
    inputs = x.type.shape[-1]
    assert isinstance(inputs, int)
    fields: dict[str, Any] = {"bits": b.rng.choice([8, 4]), "symmetric": b.rng.random() < 0.6}
    if b.rng.random() < 0.4:
        fields["group"] = b.rng.choice(divisors(inputs))
    # scales of up to 0.4 and codes of up to 127
    return b.apply("quantized_linear", x, out=b.channels(), bias=b.rng.random() < 0.7, growth=500.0, **fields)


def tied_linear(b: Builder) -> Value:
    """Tied to a weight there is: of an embedding, or of a linear layer."""
    x = last_fixed(b)
    fitting = [p for p in b.root.parameters if len(p.shape) == 2 and p.shape[1] == x.type.shape[-1]]
    fitting = [p for p in fitting if p.type.dtype == x.type.dtype and p.trainable]
    if not fitting:
        b.apply("embedding", ids(b), count=6, dim=x.type.shape[-1], dtype=x.type.dtype, growth=3.0)
        fitting = [b.root.parameters[-1]]
    table = b.rng.choice(fitting)
    if table.shape[1:] != x.type.shape[-1:]:
        raise Reject("shared otherwise")
    return b.apply("tied_linear", b.tame(x), weights={"weight": table}, out=table.shape[0], growth=9.0)


def bilinear(b: Builder) -> Value:
    x = b.tame(last_fixed(b))
    z = b.pick(lambda v: is_float(v) and v.type.shape[:-1] == x.type.shape[:-1] and isinstance(v.type.shape[-1], int))
    return b.apply("bilinear", x, b.tame(z), out=b.rng.randint(1, 5), bias=b.rng.random() < 0.5, growth=15.0)


def matmul(b: Builder) -> Value:
    x = b.tame(last_fixed(b))
    scaled, kind = b.rng.random() < 0.3, b.rng.randrange(3)
    inner = x.type.shape[-1]
    if kind == 0:
        weight = b.apply("parameter", shape=(inner, b.channels()), init="normal(0.4)", dtype=x.type.dtype, growth=1.0)
        return b.apply("matmul", x, weight, scaled=scaled, growth=9.0)
    if x.type.rank < 3:
        raise Reject("a batch of vectors")
    other = b.apply("transpose", x, a=-1, b=x.type.rank - 2)
    growth = 40.0 if scaled else 99.0
    return b.apply("matmul", *((x, other) if kind == 1 else (other, x)), scaled=scaled, growth=growth)


def einsum(b: Builder) -> Value:
    x = b.tame(b.any_float(2))
    letters = "nabcd"[: x.type.rank]
    if b.outer is not None and x.type.rank < 2:
        raise Reject("rows")
    rest = list(letters[1:])
    b.rng.shuffle(rest)
    kept = rest[: b.rng.randint(0, len(rest))]
    kind = b.rng.randrange(4)
    if kind == 0:
        return b.apply("einsum", x, equation=f"{letters}->n{''.join(kept)}", growth=30.0)
    if kind == 1:
        return b.apply("einsum", x, x, equation=f"{letters},{letters}->n{''.join(kept)}", growth=99.0)
    if kind == 2:
        other = letters[:-1] + "z"
        return b.apply("einsum", x, x, equation=f"{letters},{other}->{letters}z", growth=30.0)
    if not isinstance(x.type.shape[-1], int):
        raise Reject("symbolic")
    weight = b.apply("parameter", shape=(b.rng.randint(1, 6), x.type.shape[-1]), init="normal(0.4)", dtype=x.type.dtype)
    return b.apply("einsum", x, weight, equation="...i,oi->...o", growth=9.0)


def channel_first(b: Builder, ranks: tuple[int, ...]) -> Value:
    """A float value `[N, C, …]` of one of these ranks with a known C."""
    fits = lambda v: is_float(v) and v.type.rank in ranks and isinstance(v.type.shape[1], int)
    return b.pick(fits, lambda: b.images(b.rng.choice([r - 2 for r in ranks if r > 2])))


def normalised(op: str, ranks: tuple[int, ...]) -> Recipe:
    def recipe(b: Builder) -> Value:
        x = last_fixed(b) if op in ("layer_norm", "rms_norm") else channel_first(b, ranks)
        fields: dict[str, Any] = {}
        if b.rng.random() < 0.4:
            fields["affine"] = b.rng.random() < 0.5
        if op != "rms_norm" and b.rng.random() < 0.3:
            fields["bias"] = False
        if b.rng.random() < 0.3:
            fields["eps"] = b.rng.choice([1e-3, 0.1])
        if op == "group_norm":
            channels = x.type.shape[1]
            assert isinstance(channels, int)
            fields["groups"] = b.rng.choice(divisors(channels))
        if op == "norm" and x.type.rank == 3 and not isinstance(x.type.shape[-1], int):
            raise Reject("symbolic")
        return b.apply(op, x, growth=5.0, **fields)

    return recipe


def rope(b: Builder) -> Value:
    x = b.pick(lambda v: is_float(v) and v.type.rank in (3, 4) and even(v.type.shape[-1]))
    return b.apply("rope", x, interleaved=b.rng.random() < 0.5, base=b.rng.choice([10000.0, 100.0]))


def even(size: Dim) -> bool:
    return isinstance(size, int) and size % 2 == 0


def positions(b: Builder) -> Value:
    if b.rng.random() < 0.5:
        x = b.pick(lambda v: is_float(v) and v.type.rank in (3, 4) and even(v.type.shape[-1]))
        return b.apply("positions", x, kind="sinusoidal")
    x = last_fixed(b, 3)
    length = x.type.shape[-2]
    fields = {"length": 99 if not isinstance(length, int) else length + b.rng.randint(0, 3)}
    return b.apply("positions", x, **(fields if x.type.rank == 3 and b.rng.random() < 0.9 else {}))


def mask(b: Builder, rows: Dim, columns: Dim, dtype: str) -> list[Value]:
    """Perhaps a mask [rows, columns] of bools or numbers."""
    if b.rng.random() < 0.7 or not (isinstance(rows, int) and isinstance(columns, int)) or rows * columns > 64:
        return []
    if b.rng.random() < 0.5:
        return [numbers(b, (rows, columns), "bool")]
    return [numbers(b, (rows, columns), dtype)]


def scaled_dot_product(b: Builder) -> Value:
    x = last_fixed(b, 3)
    channels = x.type.shape[-1]
    assert isinstance(channels, int)
    if x.type.rank == 3:
        heads = b.rng.choice(divisors(channels))
        x = b.apply("unflatten", x, axis=2, sizes=(heads, channels // heads))
        x = b.apply("permute", x, order=(0, 2, 1, 3))
    fields: dict[str, Any] = {"causal": b.rng.random() < 0.4}
    if b.rng.random() < 0.2:
        fields["scale"] = 0.3
    heads, keys = x.type.shape[1], x
    if isinstance(heads, int) and heads > 1 and b.rng.random() < 0.4:
        keys = b.apply("slice", x, axis=1, from_=0, to=b.rng.choice(divisors(heads)[:-1]))
    values = b.apply("tanh", keys, growth=1.0)
    return b.apply(
        "scaled_dot_product", b.tame(x), b.tame(keys), values, *mask(b, x.type.shape[2], x.type.shape[2], x.type.dtype),
        **fields,
    )  # fmt: skip


def attention(b: Builder) -> Value:
    x = b.pick(lambda v: is_float(v) and v.type.rank == 3 and isinstance(v.type.shape[-1], int), b.tokens)
    channels = x.type.shape[-1]
    assert isinstance(channels, int)
    heads = b.rng.choice([h for h in divisors(channels) if h <= 6])
    fields: dict[str, Any] = {"heads": heads, "causal": b.rng.random() < 0.4, "bias": b.rng.random() < 0.7}
    if b.rng.random() < 0.3:
        fields["kv_heads"] = b.rng.choice(divisors(heads))
    if b.rng.random() < 0.3:
        fields["head_dim"] = b.rng.choice([2, 4, 3])
    if b.rng.random() < 0.3:
        fields["out"] = b.channels()
    if b.rng.random() < 0.5:
        fields["positions"] = b.rng.choice(["rope", "alibi"])
    if b.rng.random() < 0.4:
        fields["gate"] = b.rng.choice(["head", "element"])
    if b.rng.random() < 0.3:
        fields["qk_norm"] = True
    x = b.tame(x)
    operands = [x]
    if b.rng.random() < 0.3:
        batch = x.type.shape[0]
        other = b.pick(
            lambda v: (
                is_float(v) and v.type.rank == 3 and v.type.shape[0] == batch and isinstance(v.type.shape[-1], int)
            )
        )
        operands.append(b.tame(other))
    length = operands[-1].type.shape[1]
    masked = mask(b, x.type.shape[1], length, x.type.dtype)
    if masked:
        operands = [x, operands[-1], operands[-1]]
    return b.apply("attention", *operands, *masked, growth=4.0, **fields)


def kan(b: Builder) -> Value:
    x = b.pick(
        lambda v: is_float(v) and v.type.rank >= 2 and isinstance(v.type.shape[-1], int) and v.type.shape[-1] <= 8
    )
    basis = b.rng.choice(["bspline", "fourier", "chebyshev", "grkan"])
    fields: dict[str, Any] = {"out": b.rng.randint(1, 5), "basis": basis, "bias": b.rng.random() < 0.7}
    if basis in ("bspline", "fourier"):
        fields["grid"] = b.rng.randint(1, 5)
    if basis in ("bspline", "chebyshev"):
        fields["order"] = b.rng.randint(1, 3)
    if basis == "bspline" and b.rng.random() < 0.3:
        fields["range"] = (-2.0, 3.0)
    if basis == "grkan":
        channels = x.type.shape[-1]
        assert isinstance(channels, int)
        fields["groups"] = b.rng.choice(divisors(channels))
    elif b.rng.random() < 0.5:
        fields["base"] = b.rng.choice(["silu", "gelu", "relu", "tanh", "identity", "none"])
    return b.apply("kan", b.apply("tanh", x, growth=1.0), growth=9.0, **fields)


def per_axis(b: Builder, rank: int, low: int, high: int) -> Any:
    """One number, or one for each spatial axis."""
    if b.rng.random() < 0.7:
        return b.rng.randint(low, high)
    return tuple(b.rng.randint(low, high) for _ in range(rank))


def conv(b: Builder) -> Value:
    x = channel_first(b, (3, 4, 4, 5))
    return b.apply("conv", x, growth=4.0, **windows(b, x))


def quantized_conv(b: Builder) -> Value:
    x = b.tame(channel_first(b, (3, 4, 4, 5)))
    return b.apply("quantized_conv", x, growth=900.0, bits=b.rng.choice([8, 4]), **windows(b, x))


def windows(b: Builder, x: Value) -> dict[str, Any]:
    """Parameters of a convolution of x."""
    channels, space = x.type.shape[1], x.type.rank - 2
    assert isinstance(channels, int)
    groups = b.rng.choice([1, 1, *divisors(channels)])
    fields: dict[str, Any] = {"out": groups * b.rng.randint(1, 5 if groups == 1 else 2), "groups": groups}
    fields["kernel"] = per_axis(b, space, 1, 4)
    if b.rng.random() < 0.4:
        fields["stride"] = per_axis(b, space, 1, 3)
    if b.rng.random() < 0.4:
        fields["padding"] = per_axis(b, space, 0, 2)
    if b.rng.random() < 0.3:
        fields["dilation"] = per_axis(b, space, 1, 2)
    if space == 1 and b.rng.random() < 0.3:
        fields = {k: v for k, v in fields.items() if k != "padding"} | {"causal": True}
    return fields | {"bias": b.rng.random() < 0.7}


def conv_transpose(b: Builder) -> Value:
    x = channel_first(b, (3, 4, 5))
    channels, space = x.type.shape[1], x.type.rank - 2
    assert isinstance(channels, int)
    groups = b.rng.choice([1, 1, *divisors(channels)])
    stride = b.rng.randint(1, 3)
    fields: dict[str, Any] = {"out": groups * b.rng.randint(1, 3), "groups": groups, "stride": stride}
    fields["kernel"] = per_axis(b, space, 1, 4)
    if b.rng.random() < 0.4:
        fields["padding"] = b.rng.randint(0, 1)
    dilation = 2 if b.rng.random() < 0.3 else 1
    if max(stride, dilation) > 1 and b.rng.random() < 0.4:
        fields["output_padding"] = 1
    return b.apply("conv_transpose", x, bias=b.rng.random() < 0.7, dilation=dilation, growth=6.0, **fields)


def pool(op: str) -> Recipe:
    def recipe(b: Builder) -> Value:
        x = channel_first(b, (3, 4, 4, 5))
        space, kernel = x.type.rank - 2, b.rng.randint(1, 3)
        fields: dict[str, Any] = {
            "kernel": kernel if b.rng.random() < 0.7 else tuple(b.rng.randint(1, 3) for _ in range(space))
        }
        kernels = [kernel] * space if isinstance(fields["kernel"], int) else [*fields["kernel"]]
        if space == 3 and any(isinstance(s, int) and s < k for s, k in zip(x.type.shape[2:], kernels, strict=True)):
            raise Reject("torch refuses the window, padded or not")
        smallest = min(kernels)
        if b.rng.random() < 0.6:
            fields["stride"] = per_axis(b, space, 1, 3)
        if b.rng.random() < 0.4 and smallest > 1:
            fields["padding"] = 1
        if b.rng.random() < 0.3:
            fields["ceil_mode"] = True
        if op == "max_pool" and b.rng.random() < 0.2:
            fields["dilation"] = 2
        if op == "avg_pool" and b.rng.random() < 0.4:
            fields["count_include_pad"] = False
        return b.apply(op, x, **fields)

    return recipe


def adaptive_avg_pool(b: Builder) -> Value:
    x = channel_first(b, (3, 4, 5))
    return b.apply("adaptive_avg_pool", x, size=per_axis(b, x.type.rank - 2, 1, 4))


def global_pool(op: str) -> Recipe:
    return lambda b: b.apply(op, channel_first(b, (3, 4, 4, 5)), keepdim=b.rng.random() < 0.4)


def im2col(b: Builder) -> Value:
    fields: dict[str, Any] = {"padding": b.rng.randint(0, 1)} if b.rng.random() < 0.5 else {}
    x = channel_first(b, (4,))
    return b.apply("im2col", x, kernel=per_axis(b, 2, 1, 3), stride=per_axis(b, 2, 1, 2), **fields)


def col2im(b: Builder) -> Value:
    x = b.pick(lambda v: is_float(v) and v.type.rank == 3 and isinstance(v.type.shape[1], int))
    size = x.type.shape[1]
    assert isinstance(size, int)
    if round(size**0.5) ** 2 == size and b.rng.random() < 0.5:
        return b.apply("col2im", x)
    return b.apply("col2im", x, **{b.rng.choice("hw"): b.rng.choice(divisors(size))})


def pixel_shuffle(b: Builder) -> Value:
    x = channel_first(b, (4,))
    if x.type.shape[1] % 4:  # type: ignore[operator]
        x = b.apply("conv", x, out=4 * b.rng.randint(1, 3), kernel=1, growth=4.0)
    return b.apply("pixel_shuffle", x, r=2)


def upsample(b: Builder) -> Value:
    x = channel_first(b, (3, 4, 5))
    fields: dict[str, Any] = {}
    if x.type.rank < 5 and b.rng.random() < 0.5:
        fields = {"mode": "bilinear", "align_corners": b.rng.random() < 0.4}
    return b.apply("upsample", x, factor=per_axis(b, x.type.rank - 2, 1, 3), **fields)
