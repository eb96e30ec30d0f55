"""Small networks of mixed families whose training is recorded, and others that are held out.

Each is a program over square images (`size`, `classes` and `channels` are its parameters), with 2,000 to 20,000
parameters, and without ops that keep running estimates, so that many seeds train at once under `torch.func.vmap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archc.grammar.load import loads
from archc.ir.graph import Graph

Split = Literal["train", "val", "test"]

_HEAD = """arch {name}(size: int = 8, classes: int = 10, channels: int = 1)

input image: f32[N, channels, size, size]
output logits: f32[N, classes]

"""


@dataclass(frozen=True)
class Net:
    """A family member: `split` says whether the nowcaster learns from it (train), is tuned on it (val) or neither."""

    name: str
    split: Split
    body: str

    @property
    def text(self) -> str:
        return _HEAD.format(name=self.name) + self.body + "\n"

    def graph(self, size: int = 8, classes: int = 10, channels: int = 1) -> Graph:
        """
        >>> NETS["mlp"].graph(12).inputs[0].type.shape[1:]
        (1, 12, 12)
        """
        return loads(self.text, {"size": size, "classes": classes, "channels": channels}, file=f"{self.name}.arch")


_TOKENS = "image -> conv({dim}, kernel = {patch}, stride = {patch}) -> flatten(2) -> transpose(1, 2)"

_ALL = (
    Net("mlp", "train", "logits = image -> flatten -> linear(32) -> relu -> linear(32) -> relu -> linear(classes)"),
    Net("tanh", "train", "logits = image -> flatten -> linear(24) -> tanh -> linear(24) -> tanh -> linear(24) -> tanh"
        " -> linear(classes)"),
    Net("normed", "train", "logits = image -> flatten -> linear(40) -> repeat(2) { residual(layer_norm -> linear(40)"
        " -> gelu -> linear(40)) } -> layer_norm -> linear(classes)"),
    Net("glu", "train", "def glu = fn(x) { return silu(x -> linear(40)) * (x -> linear(40)) -> linear(32) }\n"
        "logits = image -> flatten -> linear(32) -> residual(layer_norm -> glu) -> linear(classes)"),
    Net("conv", "train", "logits = image -> conv(8, kernel = 3) -> relu -> conv(16, kernel = 3, stride = 2) -> relu"
        " -> conv(24, kernel = 3) -> relu -> global_avg_pool -> linear(classes)"),
    Net("flat_conv", "train", "logits = image -> conv(6, kernel = 3, stride = 2) -> gelu -> flatten -> linear(32)"
        " -> gelu -> linear(classes)"),
    Net("residual", "train", "def block(c) = residual(conv(c, kernel = 3) -> group_norm(2) -> relu"
        " -> conv(c, kernel = 3)) -> relu\n"
        "logits = image -> conv(12, kernel = 3, stride = 2) -> relu -> repeat(2) { block(12) } -> global_avg_pool"
        " -> linear(classes)"),
    Net("depthwise", "train", "def separable(cin, c) = conv(cin, kernel = 3, groups = cin) -> conv(c, kernel = 1)"
        " -> group_norm(4) -> relu\n"
        "logits = image -> conv(16, kernel = 3, stride = 2) -> relu -> separable(16, 24) -> separable(24, 32)"
        " -> global_avg_pool -> linear(classes)"),
    Net("vit", "train", f"logits = {_TOKENS.format(dim=24, patch=4)} -> residual(layer_norm -> attention(3))"
        " -> residual(layer_norm -> linear(48) -> gelu -> linear(24)) -> layer_norm -> mean(1) -> linear(classes)"),
    Net("mixer", "train", "def mlp(hidden, out) = linear(hidden) -> gelu -> linear(out)\n"
        "let tokens = (size // 2) * (size // 2)\n"
        f"logits = {_TOKENS.format(dim=24, patch=2)}"
        " -> residual(layer_norm -> transpose(1, 2) -> mlp(16, tokens) -> transpose(1, 2))"
        " -> residual(layer_norm -> mlp(32, 24)) -> layer_norm -> mean(1) -> linear(classes)"),
    Net("val_mixed", "val", "logits = image -> conv(8, kernel = 3, stride = 2) -> gelu -> flatten -> linear(24)"
        " -> residual(layer_norm -> linear(24) -> gelu) -> linear(classes)"),
    Net("deep_mlp", "test", "logits = image -> flatten -> linear(48) -> relu -> linear(40) -> relu -> linear(32)"
        " -> relu -> linear(24) -> relu -> linear(classes)"),
    Net("pre_norm", "test", "def block(c) = residual(group_norm(4) -> relu -> conv(c, kernel = 3))\n"
        "logits = image -> conv(16, kernel = 3, stride = 2) -> block(16) -> block(16) -> relu"
        " -> global_avg_pool -> linear(classes)"),
    Net("deep_vit", "test", "def glu = fn(x) { return silu(x -> linear(40)) * (x -> linear(40)) -> linear(24) }\n"
        f"logits = {_TOKENS.format(dim=24, patch=4)}"
        " -> repeat(2) { residual(rms_norm -> attention(2)) -> residual(rms_norm -> glu) }"
        " -> rms_norm -> mean(1) -> linear(classes)"),
    Net("kan", "test", "logits = image -> flatten -> kan(8, grid = 4, order = 3)"
        " -> kan(classes, grid = 4, order = 3)"),
    Net("gru", "test", "def gru(d) = fn(x, h) {\n    let both = concat(x, h, axis = 1)\n"
        "    let z = both -> linear(d) -> sigmoid\n    let r = both -> linear(d) -> sigmoid\n"
        "    let c = concat(x, r * h, axis = 1) -> linear(d) -> tanh\n    let new = (1 - z) * h + z * c\n"
        "    return new, new\n}\n"
        "let states, last = image -> flatten(1, 2) -> scan(gru(32), state = [[32]], axis = 1)\n"
        "logits = last -> linear(classes)"),
)  # fmt: skip

NETS: dict[str, Net] = {net.name: net for net in _ALL}
"""By name. Two families of the test nets (`kan`, the recurrent `gru`) have no relative among the training nets."""


def of_split(split: Split) -> list[Net]:
    """
    >>> [net.name for net in of_split("test")]
    ['deep_mlp', 'pre_norm', 'deep_vit', 'kan', 'gru']
    """
    return [net for net in _ALL if net.split == split]
