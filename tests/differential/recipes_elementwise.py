"""Recipes for what goes element by element, reductions, comparisons and look-ups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from random_nets import Builder, Reject, is_float

from archc.ir.dims import Dim, known, product
from archc.ir.graph import Value
from archc.ir.types import FLOATS, TensorType

Recipe = Callable[[Builder], object]


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


def bare(op: str) -> Recipe:
    """A tensor from nowhere; it meets others as a partner."""
    return lambda b: b.apply(
        op, shape=(b.rng.randint(1, 3), b.channels()), dtype=b.dtype, init="normal(1.0)", growth=3.0
    )
