"""Recipes for what changes shapes and types."""

from __future__ import annotations

from collections.abc import Callable

from random_nets import Builder, Reject, is_float

from archc.ir.dims import Dim
from archc.ir.graph import Value

Recipe = Callable[[Builder], object]


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


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
