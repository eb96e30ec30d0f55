"""Recipes of the ops that carry networks: a region is grown by a builder of its own, by any recipe, then brought to the
type that it has to return."""

from __future__ import annotations

from typing import Any

from random_nets import Builder, Reject, is_float

from archc.ir.diagnostics import CompileError
from archc.ir.dims import Dim
from archc.ir.graph import Value
from archc.ir.types import TensorType

DEEPEST = 2


def chain(b: Builder, x: Value, steps: int | None = None) -> Value:
    """A few layers that keep the type of `x`; what else the region makes is folded into it."""
    for _ in range(b.rng.randint(0, 3) if steps is None else steps):
        x = _layer(b, x)
    if b.rng.random() < 0.4:
        x = _fold(b, x)
    if b.rng.random() < 0.35:
        x = _use_capture(b, x)
    return b.tame(x)


def _layer(b: Builder, x: Value) -> Value:
    kind, last = b.rng.randrange(5), x.type.shape[-1]
    if kind == 0:
        return b.apply(b.rng.choice(["relu", "tanh", "gelu", "silu", "sigmoid", "hardswish"]), x)
    if kind == 1 and x.type.rank in (3, 4, 5) and isinstance(x.type.shape[1], int) and b.rng.random() < 0.7:
        if x.type.rank == 4:
            return b.apply("conv", x, out=x.type.shape[1], kernel=3, growth=4.0)
        return b.apply("instance_norm", x, growth=4.0)
    if not isinstance(last, int):
        return b.apply("sin", x, growth=1.0)
    if kind == 2:
        hidden = b.apply("linear", x, out=b.rng.randint(1, 9), growth=4.0)
        return b.apply("linear", b.apply("relu", hidden), out=last, growth=4.0)
    if kind == 3:
        return b.apply(b.rng.choice(["layer_norm", "rms_norm"]), x, growth=4.0)
    return b.apply("add", x, b.apply("linear", x, out=last, bias=False, growth=4.0), growth=8.0)


def _fold(b: Builder, x: Value) -> Value:
    """One step of any recipe, its result averaged for each row and added."""
    from recipes import RECIPES

    recipe = RECIPES[b.rng.choice(sorted(RECIPES))]
    try:
        recipe(b)
    except (Reject, CompileError):
        return x
    made = b.pool[-1]
    if made.type.rank < 1 or made.type.shape[0] != x.type.shape[0] or made is x or made.type.dtype == "bool":
        return x
    if not is_float(made) or made.type.dtype != x.type.dtype:
        made = b.apply("cast", made, dtype=x.type.dtype)
    made = b.tame(made)
    for _ in range(made.type.rank - 1):
        made = b.apply("mean", made, axis=-1)
    if x.type.rank > 1:
        made = b.apply("unsqueeze", made, axis=tuple(range(1, x.type.rank)))
    return b.apply("add", x, made, growth=15.0)


def _use_capture(b: Builder, x: Value) -> Value:
    """Something from outside: a number for each element of the last axis, or a plain one."""
    assert b.outer is not None
    last = x.type.shape[-1]

    def vector(v: Value) -> bool:
        return v.type.dtype == x.type.dtype and (v.type.shape == (last,) or v.type.shape == ())

    if x.type.rank < 2:
        return x
    try:
        outer = b.outer.pick(vector, lambda: _vector(b.outer, x, last))
    except Reject:
        return x
    return b.apply("mul", b.tame(x), b.apply("tanh", b.capture(outer), growth=1.0))


def _vector(b: Builder | None, x: Value, last: Dim) -> Value:
    assert b is not None
    if not isinstance(last, int):
        raise Reject("symbolic")
    for source in b.pool[::-1]:
        alike = is_float(source) and source.type.dtype == x.type.dtype and source.type.rank > 1
        if alike and b.outer is None and source.type.shape[-1] == last:
            return b.apply("mean", source, axis=tuple(range(source.type.rank - 1)))
    return b.apply("parameter", shape=(last,), init="normal(1.0)", dtype=x.type.dtype, growth=2.0)


def _deep_enough(b: Builder) -> None:
    if b.depth >= DEEPEST:
        raise Reject("deep")


def moe(b: Builder) -> Value:
    _deep_enough(b)
    x = b.tame(
        b.pick(
            lambda v: (
                (is_float(v) and v.type.rank in (2, 3, 4) and all(isinstance(s, int) for s in v.type.shape[1:]))
                or (is_float(v) and v.type.rank == 3 and isinstance(v.type.shape[-1], int))
            ),
            b.tokens,
        )
    )
    experts = b.rng.randint(1, 4)
    by_token = x.type.rank < 4 or b.rng.random() < 0.3
    router = b.region("router", x.type)
    inner = router.graph.inputs[0]
    if not by_token:
        inner = router.apply("mean", inner, axis=(2, 3))
    router.graph.outputs = [router.apply("linear", chain(router, inner), out=experts, bias=b.rng.random() < 0.5)]
    row = TensorType((b.rows("Rows"), *(x.type.shape[-1:] if by_token else x.type.shape[1:])), x.type.dtype)
    out = b.rng.choice([row.shape[-1], b.channels()])
    shared = b.rng.random() < 0.3
    regions = [router]
    alike, state = b.rng.random() < 0.5, b.rng.getstate()
    for i in range(experts + shared):
        if alike:  # the same choices again
            b.rng.setstate(state)
        expert = b.region(f"experts.{i}" if i < experts else "shared", row)
        made = chain(expert, expert.graph.inputs[0])
        if out != row.shape[-1]:
            made = expert.apply("linear", made, out=out, growth=4.0)
        expert.graph.outputs = [made]
        regions.append(expert)
    fields: dict[str, Any] = {"top_k": b.rng.randint(1, experts), "shared": shared}
    if b.rng.random() < 0.3:
        fields["normalize"] = False
    if b.rng.random() < 0.25:
        fields["capacity"] = b.rng.choice([0.5, 0.75, 1.0, 1.5])
        fields["routing"] = b.rng.choice(["token", "expert"])
    if b.rng.random() < 0.25:
        fields["score"] = "sigmoid"
    if b.rng.random() < 0.2:
        fields["temperature"] = b.rng.choice([0.5, 2.0])
    return b.apply("moe", x, regions=regions, growth=9.0, **fields)


def skip(b: Builder) -> Value:
    _deep_enough(b)
    x = b.tame(
        b.pick(lambda v: is_float(v) and v.type.rank in (2, 3, 4) and isinstance(v.type.shape[-1], int), b.tokens)
    )
    by_token = x.type.rank == 3 and x.type.shape[1] != 1 and b.rng.random() < 0.6
    gate = b.region("gate", x.type)
    inner = chain(gate, gate.graph.inputs[0], b.rng.randint(0, 1))
    if not by_token and x.type.rank > 2:
        inner = gate.apply("mean", inner, axis=tuple(range(1, x.type.rank - 1)))
    gate.graph.outputs = [gate.apply("sigmoid", gate.apply("linear", inner, out=1), growth=1.0)]
    fields: dict[str, Any] = {
        "mode": b.rng.choice(["hard", "hard", "soft"]),
        "threshold": b.rng.choice([0.5, 0.4, 0.6]),
    }
    shape = x.type.shape
    if by_token and b.rng.random() < 0.5:
        fields["budget"] = b.rng.choice([0.25, 0.5, 0.75, 1.0])
        shape = (shape[0], b.rows("Kept"), *shape[2:])
    elif not by_token:
        shape = (b.rows("Rows"), *shape[1:])
    body = b.region("body", TensorType(shape, x.type.dtype))
    body.graph.outputs = [chain(body, body.graph.inputs[0], b.rng.randint(1, 3))]
    return b.apply("skip", x, regions=[gate, body], growth=9.0, **fields)


def exit_(b: Builder) -> Value:
    _deep_enough(b)
    x = b.tame(
        b.pick(lambda v: is_float(v) and v.type.rank in (2, 3, 4) and isinstance(v.type.shape[-1], int), b.tokens)
    )
    classes = b.rng.randint(2, 5)
    regions = []
    for name in ("head", "rest"):
        type_ = x.type if name == "head" else TensorType((b.rows("Rows"), *x.type.shape[1:]), x.type.dtype)
        region = b.region(name, type_)
        made = chain(region, region.graph.inputs[0])
        if x.type.rank > 2:
            made = region.apply("mean", made, axis=tuple(range(1, x.type.rank - 1)))
        region.graph.outputs = [region.apply("linear", made, out=classes, growth=4.0)]
        regions.append(region)
    kind = b.rng.choice(["max_softmax", "entropy", "margin"])
    threshold = {"max_softmax": 0.5, "entropy": 0.3, "margin": 0.2}[kind] + b.rng.choice([-0.1, 0.0, 0.2])
    return b.apply("exit", x, regions=regions, growth=4.0, threshold=threshold, confidence=kind)


def scan(b: Builder) -> Value:
    _deep_enough(b)
    x = b.tame(b.pick(lambda v: is_float(v) and v.type.rank in (3, 4) and isinstance(v.type.shape[-1], int), b.tokens))
    axis = b.rng.choice([1, 1, 1, 0, x.type.rank - 2]) if b.outer is None else 1
    step = TensorType((*x.type.shape[:axis], *x.type.shape[axis + 1 :]), x.type.dtype)
    width = b.rng.randint(1, 6)
    states = []
    for _ in range(b.rng.randint(1, 2)):
        start = b.apply("select", x, axis=axis, index=0)
        states.append(b.apply("linear", start, out=width, growth=3.0))
    cell = b.region("cell", step, *[s.type for s in states])
    current, *hidden = cell.graph.inputs
    mixed = cell.apply("linear", chain(cell, current, b.rng.randint(0, 1)), out=width, growth=4.0)
    new = []
    for h in hidden:
        mixed = cell.apply("tanh", cell.apply("add", mixed, cell.apply("linear", h, out=width, growth=4.0)), growth=1.0)
        new.append(mixed)
    result = mixed if b.rng.random() < 0.5 else cell.apply("linear", mixed, out=b.channels(), growth=4.0)
    cell.graph.outputs = [result, *new]
    return b.apply("scan", x, *states, regions=[cell], growth=4.0, axis=axis, reverse=b.rng.random() < 0.3)
