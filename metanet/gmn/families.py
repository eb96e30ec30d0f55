"""Small architectures for 8×8 digits, drawn family by family as `.arch` texts.

Seven families, each with its own way of computing: `mlp`, `residual` (rows of residual blocks), `glu` (gated
products), `kan`, `cnn`, `rescnn` (convolutions with skips) and `attention` (over the image's rows). All have at most
`MAX_PARAMETERS` trained numbers. The same (family, seed, index) draws the same text everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from archc.grammar.load import loads
from archc.ir.cost import count_params
from archc.ir.graph import Graph

if TYPE_CHECKING:
    import numpy as np

Rng = Any  # a numpy generator; numpy is imported where it is needed

MAX_PARAMETERS = 3000
_GAIN = 'init = "kaiming_normal"'  # without it, a few hundred steps do not train them
ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "leaky_relu")


@dataclass(frozen=True)
class Architecture:
    """A drawn architecture: its family, its text and its graph (input `image` f32[N, 1, 8, 8], 10 logits)."""

    name: str
    family: str
    text: str
    graph: Graph = field(repr=False, compare=False)

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return count_params(self.graph.parameters().values())


def _pick(rng: Rng, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _activation(rng: Rng) -> str:
    return str(_pick(rng, *ACTIVATIONS))


def _flat(rng: Rng) -> str:
    """The image as a row, at full resolution or half."""
    return str(_pick(rng, "flatten", "avg_pool(2) -> flatten"))


def _mlp(rng: Rng) -> str:
    norm, act = _pick(rng, "", "", " -> layer_norm", " -> rms_norm"), _activation(rng)
    drop = _pick(rng, "", "", " -> dropout(0.2)")
    layers = [f"linear({_pick(rng, 12, 16, 20, 24, 28, 32)}){norm} -> {act}{drop}" for _ in range(_pick(rng, 1, 2, 3))]
    return " -> ".join([_flat(rng), *layers, "linear(10)"])


def _residual(rng: Rng) -> str:
    width, inner, act = _pick(rng, 10, 12, 16, 20), _pick(rng, 8, 12, 16, 24), _activation(rng)
    norm = _pick(rng, "", "layer_norm -> ", "rms_norm -> ")
    block = f"residual({norm}linear({inner}) -> {act} -> linear({width}))"
    return " -> ".join([_flat(rng), f"linear({width})", *[block] * _pick(rng, 1, 2, 3), "linear(10)"])


def _glu(rng: Rng) -> str:
    width, inner, gate = _pick(rng, 10, 12, 16), _pick(rng, 10, 12, 16), _pick(rng, "sigmoid", "silu", "gelu", "tanh")
    norm = _pick(rng, "", "layer_norm -> ", "rms_norm -> ")
    unit = f"fn(x) {{ return (x -> linear({inner}) -> {gate}) * (x -> linear({inner})) -> linear({width}) }}"
    block = f"residual({norm}{unit})" if rng.random() < 0.6 else f"{norm}{unit}"
    return " -> ".join([_flat(rng), f"linear({width})", *[block] * _pick(rng, 1, 2), "linear(10)"])


def _cnn(rng: Rng) -> str:
    widths = [_pick(rng, 4, 6, 8), *(_pick(rng, 6, 8, 10, 12) for _ in range(_pick(rng, 1, 1, 2)))]
    norm, act = _pick(rng, "", "", " -> group_norm(2)", " -> group_norm(1)"), _activation(rng)
    strides, kernels = [2, _pick(rng, 1, 2), 1], [_pick(rng, 2, 3, 3, 5), 3, 3]
    layers = [
        f"conv({w}, kernel = {k}, stride = {s}, {_GAIN}){norm} -> {act}"
        for w, k, s in zip(widths, kernels, strides, strict=False)
    ]
    last = "flatten" if strides[1] == 2 else _pick(rng, "global_avg_pool", "global_max_pool", "max_pool(2) -> flatten")
    return " -> ".join([*layers, last, "linear(10)"])


def _rescnn(rng: Rng) -> str:
    width, inner, act = _pick(rng, 6, 8, 10), _pick(rng, 6, 8, 10), _activation(rng)
    norm = _pick(rng, "", "group_norm(2) -> ", "group_norm(1) -> ")
    second = _pick(rng, 1, 3)
    block = f"residual({norm}conv({inner}, kernel = 3, {_GAIN}) -> {act} -> conv({width}, kernel = {second}))"
    stem = f"conv({width}, kernel = {_pick(rng, 2, 3)}, stride = 2, {_GAIN})"
    last = _pick(rng, "global_avg_pool", "global_max_pool", "max_pool(2) -> flatten")
    return " -> ".join([stem, *[block] * _pick(rng, 1, 1, 2), act, last, "linear(10)"])


def _attention(rng: Rng) -> str:
    heads = _pick(rng, 1, 2, 4)
    width, inner, act = _pick(rng, 8, 12, 16), _pick(rng, 8, 12, 16), _activation(rng)
    norm = _pick(rng, "", "layer_norm -> ", "rms_norm -> ")
    mixing = f"residual({norm}attention({heads}))"
    inside = _pick(rng, "", f" -> residual({norm}linear({inner}) -> {act} -> linear({width}))")
    pooled = _pick(rng, "mean(1)", "mean(1)", "max(1)")
    depth = _pick(rng, 1, 1, 2)
    block = mixing + inside
    return " -> ".join(["reshape([N, 8, 8])", f"linear({width})", "positions", *[block] * depth, pooled, "linear(10)"])


def _kan(rng: Rng) -> str:
    basis = _pick(
        rng,
        'basis = "bspline", grid = 3, order = 2, range = [-2.0, 2.0]',
        'basis = "chebyshev", order = 3',
        'basis = "fourier", grid = 2',
    )
    norm = _pick(rng, "", "", " -> layer_norm")
    hidden = [f"kan({_pick(rng, 6, 8, 10, 12)}, {basis}){norm}" for _ in range(_pick(rng, 1, 1, 2))]
    return " -> ".join(["avg_pool(2) -> flatten", *hidden, _pick(rng, f"kan(10, {basis})", "linear(10)")])


FAMILIES: dict[str, Callable[[Rng], str]] = {
    "mlp": _mlp,
    "residual": _residual,
    "glu": _glu,
    "kan": _kan,
    "cnn": _cnn,
    "rescnn": _rescnn,
    "attention": _attention,
}
"""Family -> what draws its chain of modules."""

_TRIES = 1000


def architectures(family: str, number: int, seed: int = 0) -> list[Architecture]:
    """`number` different architectures of a family.

    >>> [a.name for a in architectures("mlp", 2)], architectures("kan", 1)[0].parameters <= MAX_PARAMETERS
    (['mlp0', 'mlp1'], True)
    """
    rng = _rng(seed, family)
    found: dict[str, Architecture] = {}
    for _ in range(_TRIES):
        if len(found) == number:
            return list(found.values())
        chain = FAMILIES[family](rng)
        name = f"{family}{len(found)}"
        text = f"arch {name}\n\ninput  image: f32[N, 1, 8, 8]\noutput logits: f32[N, 10]\n\nlogits = image -> {chain}\n"
        graph = loads(text)
        if chain not in found and count_params(graph.parameters().values()) <= MAX_PARAMETERS:
            found[chain] = Architecture(name, family, text, graph)
    raise AssertionError(f"the family {family} has fewer than {number} small architectures")


def _rng(seed: int, family: str) -> np.random.Generator:
    import numpy as np

    return np.random.Generator(np.random.Philox(key=int.from_bytes(sha256(f"{seed}:{family}".encode()).digest()[:16])))
