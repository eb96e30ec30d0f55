"""How to apply each op of the registry to what a builder has made so far: `RECIPES[op](builder)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from random_nets import Builder, Reject, is_float
from regions import exit_, moe, scan, skip

from archc.ir.dims import Dim, known, product
from archc.ir.graph import Value
from archc.ir.types import FLOATS, TensorType

Recipe = Callable[[Builder], object]


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# -- elementwise --------------------------------------------------------------------------------------------------


def unary(
    op: str, growth: float | None = None, *, tame: bool = False, positive: bool = False, **choices: Any
) -> Recipe:
    """`choices` maps fields to functions of the builder's rng."""

    def recipe(b: Builder) -> Value:
        x = b.any_float()
        x = b.positive(x) if positive else b.tame(x) if tame else x
        return b.apply(op, x, growth=growth, **{name: choice(b.rng) for name, choice in choices.items()})

    return recipe


def partner(b: Builder, a: Value) -> Value:
    """Another operand for an elementwise op on `a`: of its type, or one that broadcasts."""
    shape, kind = a.type.shape, b.rng.randrange(5)
    fixed = next((i for i in range(len(shape)) if known(shape[i:]) is not None), len(shape))
    if kind == 0:
        return b.scalar(b.rng.choice([2.0, -0.5, 0.25, 1.0, 3.0]), a.type.dtype)
    if kind == 1 and fixed < len(shape):
        start = b.rng.randint(fixed, len(shape) - 1)
        small = tuple(1 if b.rng.random() < 0.3 else s for s in shape[start:])
        op = b.rng.choice(["parameter", "buffer", "constant"] if is_float(a) else ["buffer", "constant"])
        if op == "constant":
            return numbers(b, small, a.type.dtype)
        return b.apply(op, shape=small, init="normal(0.5)", dtype=a.type.dtype, growth=1.5)
    if kind == 2 and a.type.rank > 1 and is_float(a):
        return b.apply("mean", a, axis=b.axis(a), keepdim=True)
    if kind == 3 and is_float(a):
        return b.apply("sin", a, growth=1.0)
    return b.pick(lambda v: v.type == a.type)


def numbers(b: Builder, shape: tuple[Any, ...], dtype: str) -> Value:
    """A constant with quarters between -2 and 2 (or whole numbers) in it."""
    if int(str(product(shape))) > 64:
        raise Reject("a long constant")

    def nest(sizes: tuple[Any, ...]) -> Any:
        if not sizes:
            number = b.rng.randint(-8, 8) / 4
            return number if dtype in FLOATS else bool(number > 0) if dtype == "bool" else int(number)
        return tuple(nest(sizes[1:]) for _ in range(sizes[0]))

    return b.apply("constant", value=nest(shape), dtype=dtype, growth=2.0)


def binary(op: str) -> Recipe:
    def recipe(b: Builder) -> Value:
        a = b.any_float()
        c = partner(b, a)
        if op in ("mul", "div", "pow"):
            a, c = b.tame(a), b.tame(c)
        if op == "div":
            c = b.positive(c)
        if op == "pow":
            a, c = b.apply("clamp", b.positive(a), max=3.0, growth=3.0), b.apply("tanh", c, growth=1.0)
        sizes = b.magnitude.get(a, 3.0), b.magnitude.get(c, 3.0)
        growth = sum(sizes) if op in ("add", "sub") else sizes[0] * sizes[1] if op == "mul" else sizes[0] * 4
        return b.apply(op, *((c, a) if b.rng.random() < 0.3 else (a, c)), growth=max(1.0, growth))

    return recipe


def comparison(op: str) -> Recipe:
    def recipe(b: Builder) -> Value:
        a = b.pick(lambda v: v.type.dtype != "bool" and v.type.rank > 0, b.tokens)
        return b.apply(op, a, partner(b, a), growth=1.0)

    return recipe


def a_bool(b: Builder) -> Value:
    def make() -> Value:
        if b.rng.random() < 0.2:
            return b.add_input(TensorType((b.batch(), b.channels()), "bool"))
        return comparison(b.rng.choice(["lt", "ge", "gt", "le"]))(b)  # type: ignore[return-value]

    return b.pick(lambda v: v.type.dtype == "bool", make)


def logical(op: str) -> Recipe:
    def recipe(b: Builder) -> Value:
        a = a_bool(b)
        c = b.pick(lambda v: v.type == a.type)
        return b.apply(op, a, c, growth=1.0)

    return recipe


def where(b: Builder) -> Value:
    condition = a_bool(b)
    a = b.pick(lambda v: is_float(v) and v.type.shape == condition.type.shape)
    return b.apply("where", condition, a, partner(b, a))


def clamp(b: Builder) -> Value:
    low = b.rng.choice([None, -1.0, -0.5, 0.0])
    return b.apply("clamp", b.any_float(), min=low, max=1.5 if low is None else b.rng.choice([None, 0.75, 1.0]))


def prelu(b: Builder) -> Value:
    x = b.any_float(2)
    channels = x.type.shape[1]
    many = isinstance(channels, int) and b.rng.random() < 0.6
    return b.apply("prelu", x, num_parameters=channels if many else 1)


def over_axis(op: str, growth: float | None = None) -> Recipe:
    return lambda b: (x := b.any_float()) and b.apply(op, b.tame(x), axis=b.axis(x), growth=growth)


# -- reductions and look-ups --------------------------------------------------------------------------------------


def reduction(op: str) -> Recipe:
    def recipe(b: Builder) -> Value:
        bools = op in ("any", "all")
        x = a_bool(b) if bools else b.tame(b.any_float())
        axes: Any = None
        if b.outer is not None or b.rng.random() < 0.85:
            first = b.axis(x)
            axes = first
            if b.rng.random() < 0.3:
                second = b.axis(x)
                if (second - first) % x.type.rank:
                    axes = (first, second)
        fields: dict[str, Any] = {"axis": axes, "keepdim": b.rng.random() < 0.4}
        if op == "var":
            fields["unbiased"] = b.rng.random() < 0.5
            over = range(x.type.rank) if axes is None else (axes,) if isinstance(axes, int) else axes
            if any(x.type.shape[a] == 1 or b.sizes.get(str(x.type.shape[a])) == 1 for a in over):
                fields["unbiased"] = False
        return b.apply(op, x, growth=60.0 if op in ("sum", "var") else None, **fields)

    return recipe


def arg(op: str) -> Recipe:
    return lambda b: (x := b.any_float()) and b.apply(op, x, axis=b.axis(x), keepdim=b.rng.random() < 0.4, growth=9.0)


def top_k(b: Builder) -> Value:
    x = b.any_float()
    axis = b.axis(x, lambda d: isinstance(d, int))
    size = x.type.shape[axis]
    assert isinstance(size, int)
    return b.apply("top_k", x, k=b.rng.randint(1, min(size, 4)), axis=axis, largest=b.rng.random() < 0.7)


def gather(b: Builder) -> Value:
    """Indices are places of largest elements, so they are in range."""
    x = b.any_float(2)
    axis = b.axis(x, lambda d: isinstance(d, int))
    size = x.type.shape[axis]
    assert isinstance(size, int)
    b.apply("top_k", b.apply("cos", x, growth=1.0), k=b.rng.randint(1, min(size, 3)), axis=axis)
    return b.apply("gather", x, b.graph.nodes[-1].outputs[1], axis=axis)


def index_select(b: Builder) -> Value:
    x = b.any_float()
    axis = b.axis(x, lambda d: isinstance(d, int))
    size = x.type.shape[axis]
    assert isinstance(size, int)
    places = tuple(b.rng.randrange(size) for _ in range(b.rng.randint(1, 5)))
    index = b.apply("constant", value=places, dtype=b.rng.choice(["i64", "i32"]), growth=9.0)
    return b.apply("index_select", x, index, axis=axis)


def ids(b: Builder) -> Value:
    """Whole numbers below 5."""
    shape: tuple[Dim, ...] = (b.batch(), b.length()) if b.rng.random() < 0.7 else (b.batch(),)
    if b.outer is None and b.rng.random() < 0.6:
        try:
            return b.add_input(TensorType(shape, b.rng.choice(["i64", "i64", "i32"])))
        except Reject:
            pass
    x = b.any_float(2)
    axis = b.axis(x, lambda d: isinstance(d, int) and d <= 5)
    return b.apply("argmax", x, axis=axis, growth=5.0)


def one_hot(b: Builder) -> Value:
    dtype = b.rng.choice(["i64", "i32", "bool", b.dtype])
    return b.apply("one_hot", ids(b), num_classes=b.rng.choice([5, 6, 7]), dtype=dtype, growth=1.0)


def embedding(b: Builder) -> Value:
    dim = b.channels()
    return b.apply("embedding", ids(b), count=b.rng.choice([5, 6, 11]), dim=dim, dtype=b.dtype, growth=3.0)


# -- linear maps --------------------------------------------------------------------------------------------------


def last_fixed(b: Builder, rank: int = 2) -> Value:
    """A float value whose last axis is known, and not rows."""
    return b.pick(lambda v: is_float(v) and v.type.rank >= rank and isinstance(v.type.shape[-1], int), b.tokens)


def linear(b: Builder) -> Value:
    fields: dict[str, Any] = {"init": "xavier_normal"} if b.rng.random() < 0.15 else {}
    return b.apply("linear", last_fixed(b), out=b.channels(), bias=b.rng.random() < 0.7, growth=4.0, **fields)


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


# -- shapes -------------------------------------------------------------------------------------------------------


def concat(b: Builder) -> Value:
    x = b.any_float()
    axis = b.axis(x)
    place = axis % x.type.rank

    def joins(v: Value) -> bool:
        if v.type.dtype != x.type.dtype or v.type.rank != x.type.rank:
            return False
        return all(i == place or s == r for i, (s, r) in enumerate(zip(v.type.shape, x.type.shape, strict=True)))

    others = [b.pick(joins) for _ in range(b.rng.randint(1, 2))]
    return b.apply("concat", x, *others, axis=axis)


def stack(b: Builder) -> Value:
    x = b.any_float()
    if x.type.rank > 3:
        raise Reject("rank")
    others = [b.pick(lambda v: v.type == x.type) for _ in range(b.rng.randint(0, 2))]
    return b.apply("stack", x, *others, axis=b.rng.randint(1 if b.outer else 0, x.type.rank))


def split(b: Builder) -> Value:
    x = b.any_float()
    axis = b.axis(x, lambda d: isinstance(d, int) and d > 1)
    size = x.type.shape[axis]
    assert isinstance(size, int)
    if b.rng.random() < 0.5:
        return b.apply("split", x, parts=b.rng.choice(divisors(size)[1:]), axis=axis)
    cut = b.rng.randint(1, size - 1)
    return b.apply("split", x, parts=(cut, size - cut), axis=axis)


def slice_(b: Builder) -> Value:
    x = b.any_float()
    axis = b.axis(x)
    size = x.type.shape[axis]
    length = size if isinstance(size, int) else 4
    start = b.rng.choice([0, 0, b.rng.randrange(length), -b.rng.randint(1, length)])
    stop = b.rng.choice([None, None, length - 1, -1])
    if not isinstance(size, int) and (start < 0 or (stop or 0) > 0):
        start, stop = abs(start) % 3, b.rng.choice([None, -1])
    return b.apply("slice", x, axis=axis, from_=start, to=stop, step=b.rng.choice([1, 1, 2, 3]))


def select(b: Builder) -> Value:
    x = b.any_float(2)
    axis = b.axis(x)
    size = x.type.shape[axis]
    index = b.rng.choice([0, -1, b.rng.randrange(size) if isinstance(size, int) else 0])
    return b.apply("select", x, axis=axis, index=index)


def pad(b: Builder) -> Value:
    x = b.any_float(2)
    count = b.rng.randint(1, x.type.rank - 1)
    mode = b.rng.choice(["constant", "constant", "reflect", "replicate", "circular"])
    if mode != "constant":
        count = min(count, 2, x.type.rank - 2)
        if count < 1:
            raise Reject("rank")
    least = min([s if isinstance(s, int) else 3 for s in x.type.shape[-count:]])
    widths = tuple(b.rng.randint(0, 2 if mode == "constant" else min(2, least - 1)) for _ in range(2 * count))
    return b.apply(
        "pad", x, widths=widths, mode=mode, **({"value": -1.5} if b.rng.random() < 0.3 and mode == "constant" else {})
    )


def reshape(b: Builder) -> Value:
    x = b.any_float(2)
    shape: list[Dim] = list(x.type.shape)
    first = 1 if b.outer is not None else 0
    for _ in range(b.rng.randint(1, 2)):
        at = b.rng.randint(first, len(shape) - 1)
        size = shape[at]
        if b.rng.random() < 0.5 and at + 1 < len(shape):
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif isinstance(size, int):
            factor = b.rng.choice(divisors(size))
            shape[at : at + 1] = [factor, size // factor]
        if len(shape) == first:
            raise Reject("rank")
    if b.rng.random() < 0.3:
        shape[b.rng.randint(first, len(shape) - 1)] = -1
    return b.apply("reshape", x, shape=tuple(shape))


def flatten(b: Builder) -> Value:
    x = b.any_float(2)
    start = b.rng.randint(1 if b.outer else 0, x.type.rank - 1)
    return b.apply("flatten", x, from_=start, to=b.rng.choice([-1, b.rng.randint(start, x.type.rank - 1)]))


def unflatten(b: Builder) -> Value:
    x = b.any_float()
    axis = b.axis(x, lambda d: isinstance(d, int))
    size = x.type.shape[axis]
    assert isinstance(size, int)
    factor = b.rng.choice(divisors(size))
    return b.apply("unflatten", x, axis=axis, sizes=b.rng.choice([(factor, size // factor), (factor, -1)]))


def permute(b: Builder) -> Value:
    x = b.any_float(2)
    order = list(range(x.type.rank))
    kept = 1 if b.outer is not None else 0
    tail = order[kept:]
    b.rng.shuffle(tail)
    return b.apply("permute", x, order=tuple(order[:kept] + tail))


def transpose(b: Builder) -> Value:
    x = b.any_float(2)
    return b.apply("transpose", x, a=b.axis(x), b=b.axis(x))


def squeeze(b: Builder) -> Value:
    x = b.pick(lambda v: any(s == 1 for s in v.type.shape), lambda: unsqueeze(b))
    return b.apply("squeeze", x, axis=b.axis(x, lambda d: d == 1))


def unsqueeze(b: Builder) -> Value:
    x = b.any_float()
    if x.type.rank > 3:
        raise Reject("rank")
    return b.apply("unsqueeze", x, axis=b.rng.randint(1 if b.outer else 0, x.type.rank))


def expand(b: Builder) -> Value:
    x = b.pick(lambda v: any(s == 1 for s in v.type.shape), lambda: unsqueeze(b))
    axis = b.axis(x, lambda d: d == 1) % x.type.rank
    shape: list[Dim] = [-1] * x.type.rank
    told = [s for v in b.graph.inputs for s in v.type.shape if not isinstance(s, int)]  # sizes that an input tells
    shape[axis] = b.rng.choice([2, 3, *told]) if b.outer is None else 2
    if b.outer is None and b.rng.random() < 0.3:
        shape.insert(0, 2)
    return b.apply("expand", x, shape=tuple(shape))


def cast(b: Builder) -> Value:
    if b.rng.random() < 0.3:
        x = b.pick(lambda v: not is_float(v) and v.type.rank > 0)
        return b.apply("cast", x, dtype=b.rng.choice([b.dtype, "i64", "i32"]))
    return b.apply("cast", b.any_float(), dtype=b.rng.choice(["f64", "f32", "i64", "i32", "bool"]))


# -- norms, attention, kan ----------------------------------------------------------------------------------------


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


# -- convolutions and pools ---------------------------------------------------------------------------------------


def per_axis(b: Builder, rank: int, low: int, high: int) -> Any:
    """One number, or one for each spatial axis."""
    if b.rng.random() < 0.7:
        return b.rng.randint(low, high)
    return tuple(b.rng.randint(low, high) for _ in range(rank))


def conv(b: Builder) -> Value:
    x = channel_first(b, (3, 4, 4, 5))
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
    return b.apply("conv", x, bias=b.rng.random() < 0.7, growth=4.0, **fields)


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
        smallest = kernel if isinstance(fields["kernel"], int) else min(fields["kernel"])
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


def bare(op: str) -> Recipe:
    """A tensor from nowhere; it meets others as a partner."""
    return lambda b: b.apply(
        op, shape=(b.rng.randint(1, 3), b.channels()), dtype=b.dtype, init="normal(1.0)", growth=3.0
    )


RECIPES: dict[str, Recipe] = {
    **{
        op: unary(op)
        for op in ("neg", "abs", "relu", "identity", "dropout", "elu", "gelu", "silu", "hardswish", "mish")
    },
    **{op: unary(op, 1.5) for op in ("sin", "cos", "erf", "sign", "sigmoid", "hardsigmoid", "tanh")},
    **{op: unary(op) for op in ("floor", "ceil", "softplus", "leaky_relu", "relu6")},
    **{op: unary(op, 4.0, positive=True) for op in ("log", "sqrt", "rsqrt", "log1p")},
    **{op: binary(op) for op in ("add", "sub", "mul", "div", "pow", "minimum", "maximum")},
    **{op: comparison(op) for op in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{op: logical(op) for op in ("logical_and", "logical_or")},
    **{op: reduction(op) for op in ("sum", "mean", "max", "min", "var", "any", "all")},
    **{op: arg(op) for op in ("argmax", "argmin")},
    **{op: pool(op) for op in ("max_pool", "avg_pool")},
    **{op: global_pool(op) for op in ("global_avg_pool", "global_max_pool")},
    **{op: bare(op) for op in ("parameter", "buffer")},
    **{op: normalised(op, (2, 3, 4, 5)) for op in ("batch_norm", "group_norm")},
    **{op: normalised(op, ()) for op in ("layer_norm", "rms_norm")},
    "instance_norm": normalised("instance_norm", (3, 4, 5)),
    "norm": normalised("norm", (3, 4)),
    "reciprocal": unary("reciprocal", 9.0, positive=True),
    "square": unary("square", 99.0, tame=True),
    "exp": lambda b: b.apply("exp", b.apply("clamp", b.any_float(), min=-6.0, max=3.0, growth=3.0), growth=20.0),
    "expm1": lambda b: b.apply("expm1", b.apply("clamp", b.any_float(), min=-6.0, max=3.0, growth=3.0), growth=20.0),
    "logical_not": lambda b: b.apply("logical_not", a_bool(b), growth=1.0),
    "constant": lambda b: numbers(b, (b.rng.randint(1, 4),), b.dtype),
    "softmax": over_axis("softmax", 1.0),
    "log_softmax": over_axis("log_softmax", 20.0),
    "cumsum": over_axis("cumsum", 60.0),
    "where": where,
    "clamp": clamp,
    "prelu": prelu,
    "top_k": top_k,
    "gather": gather,
    "index_select": index_select,
    "one_hot": one_hot,
    "embedding": embedding,
    "linear": linear,
    "tied_linear": tied_linear,
    "bilinear": bilinear,
    "matmul": matmul,
    "einsum": einsum,
    "concat": concat,
    "stack": stack,
    "split": split,
    "slice": slice_,
    "select": select,
    "pad": pad,
    "reshape": reshape,
    "flatten": flatten,
    "unflatten": unflatten,
    "permute": permute,
    "transpose": transpose,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "cast": cast,
    "rope": rope,
    "positions": positions,
    "scaled_dot_product": scaled_dot_product,
    "attention": attention,
    "kan": kan,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "adaptive_avg_pool": adaptive_avg_pool,
    "im2col": im2col,
    "col2im": col2im,
    "pixel_shuffle": pixel_shuffle,
    "upsample": upsample,
    "moe": moe,
    "skip": skip,
    "exit": exit_,
    "scan": scan,
}
