"""Tiny networks over all families of ops, small enough that every permutation of their weights can be tried.

A network is a chain of two to four blocks on vectors, tokens or images, drawn by (seed, index); every axis of a weight
has at most 4 places (a GR-KAN layer's six coefficients apart). `index` fixes the first block, so that any run of
`len(BLOCKS)` indices meets every block.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Program:
    """A program in the making: `x` is the current value, of `c` channels, as vectors, tokens or images."""

    rng: random.Random
    kind: str
    c: int
    inputs: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    x: str = "x"
    count: int = 0

    def let(self, text: str, c: int | None = None, kind: str | None = None) -> str:
        """A statement that makes the next value out of `{x}`."""
        self.count += 1
        name = f"h{self.count}"
        self.lines.append(f"let {name} = {text.format(x=self.x)}")
        self.x, self.c, self.kind = name, self.c if c is None else c, kind or self.kind
        return name

    def side(self, text: str) -> str:
        """A value beside the current one."""
        self.count += 1
        name = f"h{self.count}"
        self.lines.append(f"let {name} = {text.format(x=self.x)}")
        return name

    @property
    def shape(self) -> str:
        return {"vectors": f"[N, {self.c}]", "tokens": f"[N, 3, {self.c}]", "images": f"[N, {self.c}, 3, 2]"}[self.kind]

    @property
    def axis(self) -> int:
        return {"vectors": 1, "tokens": 2, "images": 1}[self.kind]

    def width(self) -> int:
        return self.rng.choice([2, 3, 4])

    def even(self) -> None:
        if self.c % 2:
            self.mix(4)

    def mix(self, c: int, bias: bool = True) -> None:
        """A learned linear map of the channels."""
        self.let("{x} -> " + self.mixing(c, bias), c)

    def mixing(self, c: int, bias: bool = True) -> str:
        more = "" if bias else ", bias = false"
        return f"conv({c}, kernel = 1{more})" if self.kind == "images" else f"linear({c}{more})"

    def act(self) -> None:
        self.let("{x} -> " + self.rng.choice(ACTIVATIONS))

    def pool(self) -> None:
        """The current value as vectors."""
        pooled = {"tokens": ["mean(1)", "max(1)", "sum(1)"], "images": ["global_avg_pool", "mean([2, 3])"]}
        if self.kind in pooled:
            self.let("{x} -> " + self.rng.choice(pooled[self.kind]), kind="vectors")


ACTIVATIONS = [
    "relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu", "elu", "mish", "softplus", "hardswish", "sin", "erf",
    "square", "softmax", "clamp(min = -0.7, max = 0.9)", "abs", "relu6", "hardsigmoid", "cos", "expm1",
]  # fmt: skip

Block = Callable[[Program], None]
BLOCKS: dict[str, tuple[str, Block]] = {}
"""Blocks by name, with what they need: vectors, tokens, images or any."""


def block(kind: str) -> Callable[[Block], Block]:
    def enter(b: Block) -> Block:
        BLOCKS[b.__name__] = (kind, b)
        return b

    return enter


def simple(name: str, kind: str, *texts: str, even: bool = False) -> None:
    """A block that is one expression of `{x}`; `{c}` is the width."""

    def b(p: Program) -> None:
        if even:
            p.even()
        p.let(p.rng.choice(texts).replace("{c}", str(p.c)))

    BLOCKS[name] = (kind, b)


# -- any ----------------------------------------------------------------------------------------------------------


@block("any")
def linear(p: Program) -> None:
    p.act()
    p.mix(p.width(), p.rng.random() < 0.7)


@block("any")
def residual(p: Program) -> None:
    h = p.side("{x} -> " + p.mixing(p.c))
    p.let("{x} + (" + h + " -> relu -> " + p.mixing(p.c) + ")")


@block("any")
def gated(p: Program) -> None:
    c = p.width()
    gate = p.side("{x} -> " + p.mixing(c) + " -> sigmoid")
    p.let("({x} -> " + p.mixing(c) + f") * {gate}", c)


@block("any")
def swiglu(p: Program) -> None:
    c = p.width()
    gate = p.side("{x} -> " + p.mixing(c, False) + " -> silu")
    p.let("({x} -> " + p.mixing(c, False) + f") * {gate}", c)
    p.mix(p.width())


@block("any")
def quotient(p: Program) -> None:
    c = p.width()
    below = p.side("{x} -> " + p.mixing(c) + " -> exp")
    p.let("({x} -> " + p.mixing(c) + f" -> tanh) / ({below} + 1.0)", c)


@block("any")
def chosen(p: Program) -> None:
    c = p.width()
    a = p.side("{x} -> " + p.mixing(c))
    b = p.side("{x} -> " + p.mixing(c) + " -> tanh")
    p.let(f"where({a} > 0.0, {a}, {b})", c)


@block("any")
def concatenated(p: Program) -> None:
    a, b = p.rng.choice([(1, 2), (2, 2), (3, 1), (1, 3)])
    left, right = (p.side("{x} -> " + p.mixing(c) + act) for c, act in ((a, " -> tanh"), (b, " -> relu")))
    p.let(f"concat({left}, {right}, axis = {p.axis})", a + b)


@block("any")
def grouped_concat(p: Program) -> None:
    left, right = (p.side("{x} -> " + p.mixing(2) + act) for act in (" -> tanh", " -> relu"))
    p.let(f"concat({left}, {right}, axis = {p.axis})", 4)
    if p.kind == "images":
        p.let("{x} -> group_norm(2)")
    elif p.kind == "vectors":
        p.let("{x} -> reshape([N, 2, 2]) -> softmax -> reshape([N, 4])")


@block("any")
def cut(p: Program) -> None:
    p.mix(4)
    a = p.side(f"{{x}} -> slice({p.axis}, to = 1)")
    b = p.side(f"{{x}} -> slice({p.axis}, from = 1)")
    p.let(f"concat({b} -> tanh, {a} -> square, axis = {p.axis})", 4)


@block("any")
def halves(p: Program) -> None:
    p.mix(4)
    p.lines.append(f"let a{p.count}, b{p.count} = split({p.x}, 2, axis = {p.axis})")
    p.let(f"a{p.count} * (b{p.count} -> sigmoid)", 2)


@block("any")
def gains(p: Program) -> None:
    shape = f"[{p.c}, 1, 1]" if p.kind == "images" else f"[{p.c}]"
    p.let(f'{{x}} * parameter({shape}, init = "normal(0.5)") + parameter({shape}, init = "normal(0.5)") -> tanh')


@block("any")
def fixed(p: Program) -> None:
    """A constant with an order, and a buffer."""
    c = p.c
    values = ", ".join(f"{0.5 + i / 2}" for i in range(c))
    shape = f" -> reshape([{c}, 1, 1])" if p.kind == "images" else ""
    p.let(f"{{x}} * (constant([{values}]){shape})")
    p.mix(p.width())
    shape = f"[{p.c}, 1, 1]" if p.kind == "images" else f"[{p.c}]"
    p.let(f'({{x}} -> tanh) + buffer({shape}, init = "constant(0.5)")')


simple("prelu", "any", "{x} -> prelu", '{x} -> prelu(init = "normal(0.5)")')


@block("any")
def norms(p: Program) -> None:
    usual = {"vectors": ["batch_norm", "layer_norm", "rms_norm"], "tokens": ["layer_norm", "rms_norm"]}
    p.let("{x} -> " + p.rng.choice(usual.get(p.kind, ["batch_norm", "norm"])))
    p.act()


@block("any")
def branches(p: Program) -> None:
    """Alike branches, merged."""
    n, c = p.rng.choice([(2, 2), (3, 2), (2, 3)])
    merge = p.rng.choice(["add", "mul", "maximum", "minimum"])
    if merge in ("add", "mul"):
        p.let(f'{{x}} -> branch({n}, {p.mixing(c)} -> tanh, merge = "{merge}")', c)
    else:
        parts = [p.side("{x} -> " + p.mixing(c) + " -> tanh") for _ in range(2)]
        p.let(f"{merge}({parts[0]}, {parts[1]})", c)


@block("any")
def branches_apart(p: Program) -> None:
    n, c = p.rng.choice([(2, 2), (2, 1), (3, 1)])
    p.let(f'{{x}} -> branch({n}, {p.mixing(c)} -> tanh, merge = "concat", axis = {p.axis})', n * c)


@block("any")
def deep_branches(p: Program) -> None:
    hidden = p.width()
    p.let(f"{{x}} -> branch(2, {p.mixing(hidden)} -> relu -> {p.mixing(2, False)})", 2)


@block("any")
def twice(p: Program) -> None:
    p.mix(2)
    p.let(f"concat({{x}} -> tanh, {{x}} -> square, axis = {p.axis})", 4)


@block("any")
def cumulative(p: Program) -> None:
    p.let(f"{{x}} -> cumsum(axis = {p.axis}) -> tanh")


@block("any")
def spread_out(p: Program) -> None:
    p.let(f"{{x}} * ({{x}} -> mean({p.axis}) -> unsqueeze({p.axis}) -> sigmoid)")


# -- vectors --------------------------------------------------------------------------------------------------------

simple("normalised", "vectors", "{x} -> batch_norm -> relu", "{x} -> layer_norm", "{x} -> rms_norm -> tanh")
simple("cut_for_nothing", "vectors", "{x} -> reshape([N, 2, {c} // 2]) -> tanh -> reshape([N, {c}])", even=True)
simple(
    "groups_of_two", "vectors",
    "{x} -> reshape([N, 2, {c} // 2]) -> softmax -> reshape([N, {c}])",
    "{x} -> reshape([N, 2, {c} // 2]) -> softmax(1) -> reshape([N, {c}])",
    "{x} -> unflatten(1, [2, -1]) -> rms_norm -> flatten",
    "{x} -> unflatten(1, [2, -1]) -> layer_norm -> flatten",
    "{x} -> unflatten(1, [2, -1]) -> log_softmax -> flatten", even=True,
)  # fmt: skip


@block("vectors")
def summed_groups(p: Program) -> None:
    p.even()
    axis = p.rng.choice([1, 2])
    how = p.rng.choice(["mean", "sum", "max", "min"])
    p.let(f"{{x}} -> tanh -> reshape([N, 2, {p.c // 2}]) -> {how}({axis})", p.c // 2 if axis == 1 else 2)


@block("vectors")
def spread(p: Program) -> None:
    p.even()
    p.let(f"{{x}} -> tanh -> reshape([N, 2, {p.c // 2}]) -> var(2, unbiased = false)", 2)


@block("vectors")
def bilinear(p: Program) -> None:
    c = p.width()
    a, b = p.side(f"{{x}} -> linear({p.width()})"), p.side(f"{{x}} -> linear({p.width()}) -> tanh")
    p.let(f"bilinear({c})({a}, {b})", c)


@block("vectors")
def kan(p: Program) -> None:
    c = p.rng.choice([2, 3])
    p.mix(c)
    p.let(f"{{x}} -> kan({p.width()}, grid = 2, order = 2, range = [-4.0, 4.0])", None)
    p.c = int(p.lines[-1].split("kan(")[1][0])


@block("vectors")
def kan_fourier(p: Program) -> None:
    c = p.width()
    p.let(f'{{x}} -> kan({c}, basis = "fourier", grid = 2)', c)


@block("vectors")
def kan_chebyshev(p: Program) -> None:
    c = p.width()
    p.let(f'{{x}} -> kan({c}, basis = "chebyshev", order = 3)', c)


@block("vectors")
def kan_rational(p: Program) -> None:
    p.even()
    c = p.width()
    p.let(f'{{x}} -> kan({c}, basis = "grkan", groups = 2)', c)


@block("vectors")
def shared(p: Program) -> None:
    """One layer used twice."""
    p.lines.insert(0, f"share again{p.count} = linear({p.c})")
    name = f"again{p.count}"
    p.let(f"{{x}} -> {name} -> tanh -> {name}")


@block("vectors")
def looked_up(p: Program) -> None:
    p.inputs.append("input ids: i64[N]")
    p.let(f"({{x}} + (ids -> embedding(3, {p.c}))) -> tanh")


@block("vectors")
def tied(p: Program) -> None:
    """A table that is looked up, and then compared with."""
    p.inputs.append("input ids: i64[N]")
    name = f"table{p.count}"
    p.lines.append(f"share {name} = embedding(3, {p.c})")
    p.let(f"({{x}} + (ids -> {name})) -> tanh -> tied_linear({name})", 3)


@block("vectors")
def contracted(p: Program) -> None:
    c = p.width()
    p.let(f'einsum("nc,ce->ne")({{x}}, parameter([{p.c}, {c}], init = "normal(0.5)"))', c)


@block("vectors")
def own_matrix(p: Program) -> None:
    c = p.width()
    p.let(f'matmul({{x}}, parameter([{p.c}, {c}], init = "normal(0.5)")) -> tanh', c)


@block("vectors")
def heads_apart(p: Program) -> None:
    """A matrix of its own for each group."""
    p.even()
    apart, own = f"{{x}} -> reshape([N, 2, {p.c // 2}])", f'parameter([2, {p.c // 2}, 2], init = "normal(0.5)")'
    p.let(f'einsum("ngc,gce->nge")({apart}, {own}) -> tanh -> flatten', 4)


@block("vectors")
def stacked(p: Program) -> None:
    """Two values as one axis, joined again."""
    c = p.width()
    a, b = p.side(f"{{x}} -> linear({c}) -> tanh"), p.side(f"{{x}} -> linear({c}) -> square")
    p.let(f"stack({a}, {b}, axis = 1) -> softmax(1) -> mean(1)", c)


@block("vectors")
def stacked_alike(p: Program) -> None:
    a, b = (p.side("{x} -> linear(3) -> tanh") for _ in range(2))
    p.let(f"stack({a}, {b}, axis = 1) -> max(1)", 3)


@block("vectors")
def experts_by_sample(p: Program) -> None:
    c = p.width()
    p.let(f"{{x}} -> moe(router = linear(2), experts = copies(2, linear({c}) -> tanh), top_k = 2)", c)


@block("vectors")
def early(p: Program) -> None:
    hidden = p.width()
    p.let(f"{{x}} -> exit(head = linear(2), rest = linear({hidden}) -> relu -> linear(2), threshold = 0.6)", 2)


@block("vectors")
def largest(p: Program) -> None:
    p.mix(3)
    p.lines.append(f"let v{p.count}, i{p.count} = top_k({p.x}, 2)")
    p.let(f"v{p.count} -> tanh", 2)


@block("vectors")
def named(p: Program) -> None:
    """Places of an axis by their number."""
    p.mix(3)
    p.let('concat(({x} -> argmax(axis = 1) -> one_hot(3, dtype = "f32")) * {x}, {x}, axis = 1) -> slice(1, to = 4)', 4)


@block("images")
def upsampled(p: Program) -> None:
    c = p.width()
    p.let(f"{{x}} -> upsample(2) -> conv({c}, kernel = 3, padding = 1) -> relu", c)


@block("vectors")
def shuffled(p: Program) -> None:
    p.mix(4)
    p.let("{x} -> reshape([N, 4, 1, 1]) -> pixel_shuffle(2) -> max_pool(2, stride = 1) -> flatten", 1)
    p.mix(p.width())


# -- tokens ---------------------------------------------------------------------------------------------------------


def _attention(p: Program, heads: int, kv: int, d: int, more: str = "") -> None:
    p.let(f"{{x}} -> attention({heads}, kv_heads = {kv}, head_dim = {d}{more})")


@block("tokens")
def attention(p: Program) -> None:
    heads, kv, d = p.rng.choice([(2, 2, 2), (1, 1, 3), (4, 2, 1), (4, 4, 1), (2, 1, 2), (3, 3, 1)])
    _attention(p, heads, kv, d, p.rng.choice(["", ", causal = true", ", bias = false"]))


@block("tokens")
def attention_gated(p: Program) -> None:
    _attention(p, 2, p.rng.choice([1, 2]), 2, f', gate = "{p.rng.choice(["head", "element"])}"')


@block("tokens")
def attention_normed(p: Program) -> None:
    _attention(p, 2, p.rng.choice([1, 2]), 2, ", qk_norm = true")


@block("tokens")
def attention_rope(p: Program) -> None:
    _attention(p, 2, p.rng.choice([1, 2]), 2, ', positions = "rope"')


@block("tokens")
def attention_alibi(p: Program) -> None:
    _attention(p, 2, p.rng.choice([1, 2]), 2, ', positions = "alibi"')


@block("tokens")
def cross_attention(p: Program) -> None:
    keys = p.side("{x} -> linear(3) -> tanh")
    p.let(f"attention(2, head_dim = 2)({{x}}, {keys})")


@block("tokens")
def own_attention(p: Program) -> None:
    """Attention written out."""
    q, k, v = (p.side("{x} -> linear(4) -> reshape([N, 3, 2, 2]) -> permute([0, 2, 1, 3])") for _ in range(3))
    p.let(f"scaled_dot_product({q}, {k}, {v}) -> permute([0, 2, 1, 3]) -> reshape([N, 3, 4])", 4)


@block("tokens")
def scores(p: Program) -> None:
    q, k = (p.side("{x} -> linear(3)") for _ in range(2))
    p.let(f"matmul(matmul({q}, {k} -> transpose(1, 2)) -> softmax, {{x}})")


@block("tokens")
def positions(p: Program) -> None:
    p.let("{x} -> positions(length = 3) -> tanh")


@block("tokens")
def rotated(p: Program) -> None:
    p.mix(p.rng.choice([2, 4]))
    p.let("{x} -> " + p.rng.choice(["rope", 'positions(kind = "sinusoidal")']) + " -> tanh")


@block("tokens")
def mixer(p: Program) -> None:
    hidden = p.width()
    p.let(f"{{x}} + ({{x}} -> transpose(1, 2) -> linear({hidden}) -> tanh -> linear(3) -> transpose(1, 2))")


@block("tokens")
def experts(p: Program) -> None:
    n, c = p.rng.choice([(2, 3), (3, 2), (2, 2)])
    score = p.rng.choice(["", ', score = "sigmoid"', ", normalize = false", ", shared = linear(2)" if c == 2 else ""])
    each = f"copies({n}, linear(2) -> tanh -> linear({c}))"
    p.let(f"{{x}} -> moe(router = linear({n}), experts = {each}, top_k = {n}{score})", c)


@block("tokens")
def different_experts(p: Program) -> None:
    p.let("{x} -> moe(router = linear(3), experts = [linear(2), linear(2), linear(2) -> tanh], top_k = 3)", 2)


@block("tokens")
def skipped(p: Program) -> None:
    p.let(f'{{x}} -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = linear({p.c}) -> tanh, mode = "soft")')


@block("tokens")
def recurrent(p: Program) -> None:
    c = p.width()
    new = f"tanh((x -> linear({c})) + (h -> linear({c}, bias = false)))"
    p.lines.append(f"def cell{p.count} = fn(x, h) {{ let new = {new} return new, new }}")
    p.lines.append(f"let s{p.count}, e{p.count} = {p.x} -> scan(cell{p.count}, state = [[{c}]], axis = 1)")
    p.let(f"s{p.count}", c)


@block("tokens")
def gated_recurrence(p: Program) -> None:
    c = 2
    p.lines.append(
        f"def cell{p.count} = fn(x, h) {{ let z = sigmoid((x -> linear({c})) + (h -> linear({c}, bias = false))) "
        f"let new = z * h + (1.0 - z) * tanh(x -> linear({c})) return new, new }}"
    )
    scan = f"scan(cell{p.count}, state = [[{c}]], axis = 1, reverse = true)"
    p.lines.append(f"let s{p.count}, e{p.count} = {p.x} -> {scan}")
    p.let(f"s{p.count}", c)


@block("tokens")
def last_token(p: Program) -> None:
    p.let("{x} -> select(1, -1)", kind="vectors")


# -- images ---------------------------------------------------------------------------------------------------------


@block("images")
def conv(p: Program) -> None:
    c = p.width()
    p.let(f"{{x}} -> conv({c}, kernel = 3, padding = 1) -> relu", c)


@block("images")
def depthwise(p: Program) -> None:
    p.let(f"{{x}} -> conv({p.c}, kernel = 3, padding = 1, groups = {p.c}) -> tanh")


@block("images")
def grouped(p: Program) -> None:
    p.even()
    p.let("{x} -> conv(4, kernel = 1, groups = 2) -> tanh", 4)


@block("images")
def grouped_transposed(p: Program) -> None:
    p.even()
    p.let("{x} -> conv_transpose(2, kernel = 1, groups = 2) -> tanh", 2)


@block("images")
def group_norm(p: Program) -> None:
    p.mix(4)
    p.let("{x} -> group_norm(2) -> relu")


@block("images")
def instance_norm(p: Program) -> None:
    p.let("{x} -> square -> instance_norm(affine = true) -> relu")


@block("images")
def batch_norm(p: Program) -> None:
    p.let("{x} -> batch_norm -> relu")


@block("images")
def pools(p: Program) -> None:
    p.let("{x} -> " + p.rng.choice(["max_pool(3, stride = 1, padding = 1)", "avg_pool(3, stride = 1, padding = 1)"]))


@block("images")
def squeeze_excite(p: Program) -> None:
    weight = p.side(f"{{x}} -> global_avg_pool -> linear(2) -> relu -> linear({p.c}) -> sigmoid")
    p.let(f"{{x}} * ({weight} -> reshape([N, {p.c}, 1, 1]))")


@block("images")
def as_columns(p: Program) -> None:
    p.mix(2)
    p.let("{x} -> tanh -> im2col(kernel = 1) -> linear(3) -> mean(1)", 3, "vectors")


@block("images")
def flattened(p: Program) -> None:
    p.mix(2)
    p.let("{x} -> tanh -> adaptive_avg_pool([2, 1]) -> flatten", 4, "vectors")


@block("images")
def as_tokens(p: Program) -> None:
    p.let("{x} -> flatten(from = 2) -> transpose(1, 2) -> mean(1)", kind="vectors")


@block("images")
def layer_scaled(p: Program) -> None:
    scale = f'parameter([{p.c}, 1, 1], init = "normal(0.5)")'
    p.let(f"{{x}} + ({{x}} -> conv({p.c}, kernel = 3, padding = 1, groups = {p.c})) * {scale}")


@dataclass(frozen=True)
class TinyNet:
    """A program, and the names of its blocks."""

    index: int
    blocks: tuple[str, ...]
    text: str


def tiny_net(seed: int, index: int) -> TinyNet:
    """The network of a seed and an index.

    >>> tiny_net(0, 1) == tiny_net(0, 1)
    True
    """
    rng = random.Random(f"{seed} {index}")
    names = list(BLOCKS)
    first = names[index % len(names)]
    kind = BLOCKS[first][0]
    kind = rng.choice(["vectors", "tokens", "images"]) if kind == "any" else kind
    c = rng.choice([2, 3])
    p = Program(rng, kind, c)
    declared = f"input x: f32{p.shape}"
    p.mix(p.width())
    if rng.random() < 0.5:
        p.act()
    used = [first]
    BLOCKS[first][1](p)
    for _ in range(rng.choice([0, 1, 1])):
        fitting = [n for n in names if BLOCKS[n][0] in ("any", p.kind)]
        name = rng.choice(fitting)
        used.append(name)
        BLOCKS[name][1](p)
    p.pool()
    lines = [declared, *dict.fromkeys(p.inputs), "output y: f32[N, 2]", *p.lines, f"y = {p.x} -> linear(2)"]
    return TinyNet(index, tuple(used), "arch tiny()\n" + "\n".join(lines) + "\n")
