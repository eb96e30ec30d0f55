"""Small random networks made of what architectures are made of: feed-forward and residual blocks, attention, norms.

Random networks over the registry (`tests/differential/random_nets.py`) hardly ever hold a block that a transform looks
for; these do, in many spellings. And the examples, made small.

>>> block_net(3) == block_net(3), "input" in block_net(3)
(True, True)
"""

from __future__ import annotations

import random
import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ACTIVATIONS = (
    "relu", "relu", "gelu", "gelu", "silu", "silu", "sigmoid", "sigmoid", "square", "tanh", "relu6",
    "leaky_relu(0.1)", 'gelu(approximate = "tanh")', "elu", "mish", "hardswish", "softplus",
)  # fmt: skip
"""Those that a gated linear unit is named after are the commoner ones."""

DEEP = {"depth": 2, "growth": 4, "vocab": 40, "context": 16, "heads": 4, "kv_heads": 2, "experts": 3, "classes": 5}
"""Parameters of examples that decide their size."""


def example_names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.arch"))


def small_example(name: str) -> str:
    """An example with every width an eighth of what it is, pictures of 32 pixels, and two layers where it has many."""
    text = (EXAMPLES / f"{name}.arch").read_text(encoding="utf-8")
    text = re.sub(r"\b(224|256), \1\b", "32, 32", text).replace("196", "4")
    text = re.sub(r"(?<![\w.])\d+(?![\w.])", _eighth, text)
    for parameter, value in DEEP.items():
        text = re.sub(rf"\b{parameter}( *: *int)? = \d+", rf"{parameter}\g<1> = {value}", text)
    return text


def _eighth(found: re.Match[str]) -> str:
    number = int(found[0])
    return str(number // 8) if number >= 48 and number % 8 == 0 else found[0]


def block_net(seed: int) -> str:
    """A network of a few random blocks, as text."""
    rng = random.Random(f"blocks/{seed}")
    return rng.choice([_tokens, _tokens, _rows, _images, _images])(rng)


def _layer(rng: random.Random, out: int) -> str:
    return f"linear({out}{rng.choice(['', '', ', bias = false'])})"


def _tokens(rng: random.Random) -> str:
    dim, length = rng.choice([4, 8, 12]), rng.choice(["T", "T", "5"])
    lines = [f"input x: f32[N, {length}, {dim}]"]
    blocks = [_token_block(rng, dim, i, length) for i in range(rng.randint(1, 4))]
    lines += [definition for definition, _ in blocks if definition]
    chain = " -> ".join(use for _, use in blocks)
    if rng.random() < 0.3:
        name = rng.choice(["repeat(2)", "repeat(3)"])
        chain = f"{name} {{ {chain} }}"
    end, shape = rng.choice([("", f"N, {length}, {dim}"), (" -> layer_norm -> mean(1) -> linear(5)", "N, 5")])
    lines.insert(1, f"output y: f32[{shape}]")
    return "\n".join(["arch tokens", *lines, f"y = x -> {chain}{end}", ""])


def _token_block(rng: random.Random, dim: int, i: int, length: str) -> tuple[str, str]:
    """(a definition, its use)"""
    act, hidden = rng.choice(ACTIVATIONS), rng.choice([8, 12, 16, 24])
    norm = rng.choice(["layer_norm", "rms_norm", "layer_norm"])
    kind = rng.randrange(12)
    if kind <= 2:
        between = rng.choice(["", "", " -> dropout(0.1)"])
        body = f"{_layer(rng, hidden)} -> {act}{between} -> {_layer(rng, dim)}"
    elif kind <= 4:
        gate = f"(x -> {_layer(rng, hidden)} -> {act})"
        name = f"gated{i}"
        whole = f"def {name} = fn(x) {{ return {gate} * (x -> {_layer(rng, hidden)}) -> {_layer(rng, dim)} }}"
        return whole, f"residual({norm} -> {name})"
    elif kind <= 7:
        fields = rng.choice(["", "", "", ", causal = true", ', positions = "rope"', ", bias = false"])
        body = f"attention(2{fields})"
    elif kind == 8:
        body = f"{_layer(rng, dim)} -> {act}"
    elif kind == 9:
        experts = f"copies(4, {_layer(rng, hidden)} -> {act} -> {_layer(rng, dim)})"
        body = f"moe(router = linear(4), experts = {experts}, top_k = 2)"
    elif kind == 10:
        body = f"kan({dim}, grid = {rng.choice([3, 4])})"
    elif length != "T":
        body = f"transpose(1, 2) -> {_layer(rng, int(length))} -> transpose(1, 2)"
    else:
        body = f"{_layer(rng, dim)} -> rms_norm -> {act}"
    style = rng.randrange(4)
    if style == 0:
        return "", body
    name = f"block{i}"
    inner = f"residual({norm} -> {body})" if style < 3 else f"residual({body}) -> {norm}"
    return f"def {name} = {inner}", name


def _rows(rng: random.Random) -> str:
    inputs, classes = rng.choice([4, 7, 12]), rng.choice([3, 10])
    parts: list[str] = []
    for _ in range(rng.randint(1, 4)):
        hidden = rng.choice([8, 12, 16])
        norm = rng.choice(["", "", " -> batch_norm", " -> layer_norm"])
        parts.append(f"{_layer(rng, hidden)}{norm} -> {rng.choice(ACTIVATIONS)}{rng.choice(['', ' -> dropout(0.2)'])}")
        if rng.random() < 0.4:
            parts.append(f"residual({_layer(rng, hidden)} -> {rng.choice(ACTIVATIONS)} -> {_layer(rng, hidden)})")
    chain = "\n    -> ".join(parts)
    last = rng.choice(["linear", "kan"])
    end = f"linear({classes})" if last == "linear" else f"kan({classes}, grid = {rng.choice([3, 5])})"
    return f"arch rows\ninput x: f32[N, {inputs}]\noutput y: f32[N, {classes}]\ny = x\n    -> {chain}\n    -> {end}\n"


def _images(rng: random.Random) -> str:
    channels, size = rng.choice([1, 3]), rng.choice([6, 8, 9])
    lines = [f"input x: f32[N, {channels}, {size}, {size}]", "output y: f32[N, 7]"]
    lines.append("def conv_bn(c, kernel = 3, stride = 1) =")
    lines.append(f"    conv(c, kernel = kernel, stride = stride{rng.choice(['', ', bias = false'])}) -> batch_norm")
    width = rng.choice([4, 6, 8])
    chain = [f"conv_bn({width}) -> relu"]
    for _ in range(rng.randint(1, 3)):
        part, width = _image_block(rng, width)
        chain.append(part)
    pool = rng.choice(["global_avg_pool", "global_max_pool", "mean([2, 3])"])
    head = rng.choice(["linear(7)", f"linear(16) -> {rng.choice(ACTIVATIONS)} -> linear(7)"])
    return "\n".join(["arch images", *lines, "y = x\n    -> " + "\n    -> ".join([*chain, pool, head]), ""])


def _image_block(rng: random.Random, width: int) -> tuple[str, int]:
    act, wide = rng.choice(["relu", "relu", *ACTIVATIONS]), rng.choice([8, 12])
    kind = rng.randrange(7)
    if kind == 0:
        return f"residual(conv_bn({width}) -> {act} -> conv_bn({width})) -> {act}", width
    if kind == 1:
        shortcut = f"conv_bn({wide}, kernel = 1, stride = 2)"
        body = f"conv_bn({wide}, stride = 2) -> {act} -> conv_bn({wide})"
        return f"residual({body}, shortcut = {shortcut}) -> {act}", wide
    if kind == 2:
        body = f"conv_bn(4, kernel = 1) -> {act} -> conv_bn(4) -> {act} -> conv_bn({width}, kernel = 1)"
        return f"residual({body}) -> {act}", width
    if kind == 3:
        body = f"conv({2 * width}, kernel = 1) -> {act} -> conv({width}, kernel = 1)"
        return f"residual(batch_norm -> {body})", width
    if kind == 4:
        return f"conv({width}, kernel = 3, groups = {width}) -> batch_norm -> {act} -> conv({wide}, kernel = 1)", wide
    if kind == 5:
        return f"conv({wide}, kernel = 3) -> {act}", wide
    return f"max_pool(3, stride = 2, padding = 1) -> conv_bn({wide}) -> {act}", wide
