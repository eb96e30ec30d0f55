"""What the picture says of ops, shapes and sizes, in few characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from archc.ir.dims import Dim
from archc.ir.graph import Node
from archc.ir.types import TensorType

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "convolution": ("convolution",),
    "linear": ("linear", "kan"),
    "attention": ("attention",),
    "norm": ("norm",),
    "activation": ("activation",),
    "pool": ("pool",),
    "arithmetic": ("arithmetic", "comparison", "reduction"),
    "shape": ("shape", "index"),
    "constant": ("constant",),
}
"""Colours by family; each family is some categories of the op registry."""

FAMILY_OF = {category: family for family, categories in FAMILIES.items() for category in categories}

GLYPHS: Mapping[str, str] = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "matmul": "@", "concat": "concat"}
"""Ops that join values are small: a circle, or a pill for a word."""

_QUIET = {
    "init",
    "bias",
    "dtype",
    "eps",
    "momentum",
    "rope_base",
    "interleaved",
    "affine",
    "noise",
    "balance",
    "z_loss",
}
_BY_POSITION = {"out", "count", "dim", "factor", "r", "size", "sizes", "parts", "value", "k", "num_classes", "equation"}
_BY_POSITION |= {"kind", "shape"}


def family(node: Node) -> str:
    """The family whose colour a node has; an op of a category that nobody knows here counts as arithmetic."""
    return FAMILY_OF.get(node.op.category, "arithmetic")


def op_text(node: Node) -> str:
    """An op with what matters of its parameters.

    >>> from archc.grammar.load import loads
    >>> g = loads("arch a  input x: f32[N, 3, 8]  output y: f32[N, 4, 4]  y = x -> conv(4, kernel = 3, stride = 2)")
    >>> op_text(g.nodes[0])
    'conv 3, 4, /2'
    """
    p: Any = node.params  # the schema is the op's own
    if node.op.name == "moe":
        return f"moe, {chosen_text(node)}"
    if node.op.name == "cast":
        return f"cast {p.dtype}"
    values = {k: getattr(p, k) for k in type(p).model_fields}
    changed = {
        k: v for k, v in values.items() if type(p).model_fields[k].is_required() or v != type(p).model_fields[k].default
    }
    words = []
    rank = max(1, node.inputs[0].type.rank - 2) if node.inputs else 1
    if "kernel" in values and isinstance(values["kernel"], (int, tuple)):
        kernel = changed.pop("kernel")
        words.append("×".join(map(str, kernel if isinstance(kernel, tuple) else (kernel,) * rank)))
    if isinstance(changed.get("order"), tuple):
        words.append(" ".join(map(str, changed.pop("order"))))
    for name in list(changed):
        if name in _BY_POSITION:
            words.append(_plain(changed.pop(name)))
    stride, groups = changed.pop("stride", None), changed.pop("groups", None)
    if stride is not None:
        words.append("/" + _plain(stride))
    if groups is not None:
        depthwise = "out" in values and groups == values["out"]
        words.append("depthwise" if depthwise else f"{groups} groups")
    if "heads" in changed:
        words.append(f"{changed.pop('heads')} heads")
    if changed.get("kv_heads") is not None:
        words.append(f"{changed.pop('kv_heads')} kv")
    if isinstance(changed.get("positions"), str):
        words.append(changed.pop("positions"))
    for name, value in changed.items():
        if name in _QUIET or name == "padding" or value is None:
            continue
        label = name.rstrip("_").replace("_", " ")
        words.append(label if value is True else f"no {label}" if value is False else f"{label} {_plain(value)}")
    text = f"{node.op.name.replace('_', ' ')} {', '.join(words)}".rstrip()
    return shortened(text)


def shortened(text: str) -> str:
    """A text of at most 44 characters."""
    return text if len(text) <= 44 else text[:43] + "…"


def expert_count(node: Node) -> int:
    """How many experts a `moe` chooses from: its regions but the router and a shared expert."""
    p: Any = node.params
    return len(node.regions) - 1 - bool(p.shared)


def chosen_text(node: Node) -> str:
    """Which experts of a `moe` a row gets."""
    p: Any = node.params
    if p.routing == "expert":
        return f"{expert_count(node)} experts choose"
    return f"top {p.top_k} of {expert_count(node)}"


def parameters_text(node: Node) -> str:
    """Every parameter of an op: `kernel = 3, stride = 1, …`."""
    return ", ".join(f"{k.rstrip('_')} = {_plain(getattr(node.params, k))}" for k in type(node.params).model_fields)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "×".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def shape_text(types: Sequence[TensorType]) -> str:
    """A shape, or what the shapes of the copies range over; the dtype only when it is not f32.

    >>> shape_text([TensorType((1, 64, 56, 56)), TensorType((1, 224, 56, 56))])
    '1×64…224×56×56'
    """
    first = types[0]
    if any(t.rank != first.rank for t in types):
        return ""
    dims = [_range([t.shape[i] for t in types]) for i in range(first.rank)]
    text = "×".join(dims) if dims else "scalar"
    return text if first.dtype == "f32" else f"{text} {first.dtype}"


def _range(sizes: Sequence[Dim]) -> str:
    distinct = list(dict.fromkeys(sizes))
    numbers = [s for s in distinct if isinstance(s, int)]
    if len(distinct) == 1 or len(numbers) != len(distinct):
        text = str(distinct[0])
        return f"({text})" if " " in text else text
    return f"{min(numbers)}…{max(numbers)}"


def count_text(count: int) -> str:
    """
    >>> count_text(11_689_512), count_text(640)
    ('11.7 M', '640')
    """
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def ops_text(nodes: Iterable[Node], longest: int = 3) -> str:
    """The ops of a module, the most telling first: `conv ×3, batch norm ×3, relu ×3, …`."""
    counts: dict[str, int] = {}
    order = list(FAMILIES)
    ranked = sorted(nodes, key=lambda n: order.index(family(n)))
    for node in ranked:
        counts[node.op.name] = counts.get(node.op.name, 0) + 1
    words = [name.replace("_", " ") + (f" ×{n}" if n > 1 else "") for name, n in counts.items()]
    return ", ".join(words[:longest]) + (", …" if len(words) > longest else "")


# Widths of the printable ASCII characters in DejaVu Sans, in hundredths of the font's size. Helvetica, Arial and their
# kin are narrower, so that what fits here fits in any of them.
_WIDTHS = [
    32, 40, 46, 84, 64, 95, 78, 27, 39, 39, 50, 84, 32, 36, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 34, 34, 84,
    84, 84, 53, 100, 68, 69, 70, 77, 63, 58, 77, 75, 29, 29, 66, 56, 86, 75, 79, 60, 79, 69, 63, 61, 73, 68, 99, 69, 61,
    69, 39, 34, 39, 84, 50, 50, 61, 63, 55, 63, 62, 35, 63, 63, 28, 28, 58, 28, 97, 63, 61, 63, 63, 41, 52, 39, 63, 59,
    82, 59, 59, 52, 64, 34, 64, 84,
]  # fmt: skip


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in points.

    >>> round(text_width("conv", 10), 1)
    23.8
    """
    width = sum(_WIDTHS[ord(c) - 32] if 32 <= ord(c) < 127 else 84 for c in text)
    return width * size / 100 * (1.11 if bold else 1.0)
