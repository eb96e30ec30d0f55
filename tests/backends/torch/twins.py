"""Networks written twice: as `.arch` programs and by hand in PyTorch, from the literature and not from each other.

The hand-written modules register their parameters in the order in which the programs mention them, so that
`tensors_of` pairs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Twin:
    name: str
    program: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]


def tensors_of(module: nn.Module, gradients: bool = False) -> list[Tensor]:
    """Parameters (or their gradients) and buffers, in the order of registration, one for each tensor of the program.

    Packed projections of q, k and v come one by one; `nn.LSTM` keeps both weights before both biases.
    """
    found: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if name.endswith("num_batches_tracked"):
            continue
        if gradients and value.requires_grad:
            assert value.grad is not None, name
            value = value.grad
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            role = name.rpartition("_")[2]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{name.removesuffix(role)}{letter}_{role}"] = part
        else:
            found[name] = value.detach()
    order = list(found)
    for name in found:
        if name.endswith("in_proj_q_weight"):
            at, prefix = order.index(name), name.removesuffix("q_weight")
            order[at : at + 6] = [f"{prefix}{letter}_{role}" for letter in "qkv" for role in ("weight", "bias")]
        if name == "lstm.weight_hh_l0":
            at = order.index(name)
            order[at : at + 2] = order[at : at + 2][::-1]
    return [found[name] for name in order]


# -- ResNet-18: He et al. 2015, arXiv:1512.03385, with a quarter of its channels -------------------------------------

RESNET = """
arch resnet18(width = 16, classes = 7)
input  image:  f32[N, 3, 32, 32]
output logits: f32[N, classes]

def conv_bn(c, kernel = 3, stride = 1) = conv(c, kernel = kernel, stride = stride, bias = false) -> batch_norm
def block(c, stride = 1) =
    residual(
        conv_bn(c, stride = stride) -> relu -> conv_bn(c),
        shortcut = if stride == 1 then identity else conv_bn(c, kernel = 1, stride = stride))
    -> relu

logits = image
    -> conv_bn(width, kernel = 7, stride = 2) -> relu -> max_pool(3, stride = 2, padding = 1)
    -> block(width) -> block(width)
    -> block(2 * width, 2) -> block(2 * width)
    -> block(4 * width, 2) -> block(4 * width)
    -> block(8 * width, 2) -> block(8 * width)
    -> global_avg_pool -> linear(classes)
"""


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        w = 16
        self.stem = nn.Sequential(
            nn.Conv2d(3, w, 7, 2, 3, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, i = [], w
        for o, stride in ((w, 1), (2 * w, 2), (4 * w, 2), (8 * w, 2)):
            blocks += [BasicBlock(i, o, stride), BasicBlock(o, o, 1)]
            i = o
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(i, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


# -- ViT: Dosovitskiy et al. 2020, arXiv:2010.11929 ------------------------------------------------------------------

VIT = """
arch vit(dim = 24, heads = 3, depth = 2, classes = 5)
input  image:  f32[N, 3, 16, 16]
output logits: f32[N, classes]

def mlp = linear(4 * dim) -> gelu -> linear(dim)
def layer = residual(layer_norm(eps = 1e-6) -> attention(heads)) -> residual(layer_norm(eps = 1e-6) -> mlp)

let patches = image -> conv(dim, kernel = 4, stride = 4) -> flatten(2) -> transpose(1, 2)
let class_token = parameter([1, 1, dim]) -> expand([N, 1, dim])
logits = concat(class_token, patches, axis = 1) -> positions
    -> repeat(depth) { layer } -> layer_norm(eps = 1e-6) -> select(1, 0) -> linear(classes)
"""


class VitLayer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.ModuleList([nn.Conv2d(3, 24, 4, 4)])
        self.tokens = nn.ParameterList([torch.randn(1, 1, 24), torch.randn(17, 24)])
        self.layers = nn.Sequential(*(VitLayer(24, 3) for _ in range(2)))
        self.norm = nn.LayerNorm(24, eps=1e-6)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch[0](x).flatten(2).mT
        x = torch.cat([self.tokens[0].repeat(len(x), 1, 1), x], 1) + self.tokens[1]
        return self.head(self.norm(self.layers(x))[:, 0])


# -- GPT-2: Radford et al. 2019; tied embedding, dropout -------------------------------------------------------------

GPT = """
arch gpt(dim = 24, heads = 3, depth = 2, vocab = 40, context = 16)
input  tokens: i64[N, T]
output logits: f32[N, T, vocab]

share table = embedding(vocab, dim, init = "normal(0.02)")
def mlp = linear(4 * dim) -> gelu(approximate = "tanh") -> linear(dim) -> dropout(0.1)
def layer = residual(layer_norm -> attention(heads, causal = true) -> dropout(0.1)) -> residual(layer_norm -> mlp)

logits = tokens -> table -> positions(length = context) -> dropout(0.1)
    -> repeat(depth) { layer } -> layer_norm -> tied_linear(table)
"""


class GptLayer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm2 = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.mT / (c // self.heads) ** 0.5
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
        y = self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))
        x = x + F.dropout(y, 0.1, self.training)
        y = self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + F.dropout(y, 0.1, self.training)


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(40, 24), nn.Embedding(16, 24)
        self.layers = nn.Sequential(*(GptLayer(24, 3) for _ in range(2)))
        self.norm = nn.LayerNorm(24)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.place(torch.arange(ids.shape[1]))
        return self.norm(self.layers(F.dropout(x, 0.1, self.training))) @ self.table.weight.T


# -- MLP-Mixer: Tolstikhin et al. 2021, arXiv:2105.01601 -------------------------------------------------------------

MIXER = """
arch mixer(dim = 20, tokens_hidden = 12, channels_hidden = 48, depth = 2, classes = 6)
input  image:  f32[N, 3, 16, 16]
output logits: f32[N, classes]

def mlp(hidden, out) = linear(hidden) -> gelu -> linear(out)
def layer = residual(layer_norm -> transpose(1, 2) -> mlp(tokens_hidden, 16) -> transpose(1, 2))
         -> residual(layer_norm -> mlp(channels_hidden, dim))

logits = image -> conv(dim, kernel = 4, stride = 4) -> flatten(2) -> transpose(1, 2)
    -> repeat(depth) { layer } -> layer_norm -> mean(1) -> linear(classes)
"""


class MixerLayer(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mix_tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.norm2 = nn.LayerNorm(dim)
        self.mix_channels = nn.Sequential(nn.Linear(dim, 48), nn.GELU(), nn.Linear(48, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_tokens(self.norm1(x).mT).mT
        return x + self.mix_channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 20, 4, 4)
        self.layers = nn.Sequential(MixerLayer(16, 20), MixerLayer(16, 20))
        self.norm, self.head = nn.LayerNorm(20), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch(x).flatten(2).mT)).mean(1))


# -- U-Net: Ronneberger et al. 2015, arXiv:1505.04597, with transposed convolutions ----------------------------------

UNET = """
arch unet(width = 4)
input  image: f32[N, 2, 16, 16]
output mask:  f32[N, 3, 16, 16]

def double(c) = conv(c, kernel = 3) -> batch_norm -> relu -> conv(c, kernel = 3) -> batch_norm -> relu
def up(c) = fn(low, skip) {
    return concat(skip, low -> conv_transpose(c, kernel = 2, stride = 2), axis = 1) -> double(c)
}
let a = image -> double(width)
let b = a -> max_pool(2) -> double(2 * width)
let c = b -> max_pool(2) -> double(4 * width)
mask = up(width)(up(2 * width)(c, b), a) -> conv(3, kernel = 1)
"""


class Double(nn.Sequential):
    def __init__(self, i: int, o: int) -> None:
        layers = [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Double(2, 4), Double(4, 8), Double(8, 16)
        self.up_b, self.double_b = nn.ConvTranspose2d(16, 8, 2, 2), Double(16, 8)
        self.up_a, self.double_a = nn.ConvTranspose2d(8, 4, 2, 2), Double(8, 4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        b = self.double_b(torch.cat([b, self.up_b(c)], 1))
        return self.head(self.double_a(torch.cat([a, self.up_a(b)], 1)))


# -- LSTM: Hochreiter and Schmidhuber 1997, with PyTorch's order of gates --------------------------------------------

LSTM = """
arch tagger(dim = 10, tags = 4)
input  speech: f32[N, T, 6]
output labels: f32[N, T, tags]

def lstm = fn(x, h, c) {
    let i, f, g, o = split(linear(4 * dim)(x) + linear(4 * dim)(h), 4, axis = 1)
    let cell = sigmoid(f) * c + sigmoid(i) * tanh(g)
    let hidden = sigmoid(o) * tanh(cell)
    return hidden, hidden, cell
}
let hidden, last, cell = speech -> scan(lstm, state = [[dim], [dim]], axis = 1)
labels = hidden -> linear(tags)
"""


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 10, batch_first=True), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


TWINS = (
    Twin("resnet18", RESNET, ResNet, lambda: torch.randn(4, 3, 32, 32)),
    Twin("vit", VIT, ViT, lambda: torch.randn(3, 3, 16, 16)),
    Twin("gpt", GPT, Gpt, lambda: torch.randint(40, (3, 11))),
    Twin("mixer", MIXER, Mixer, lambda: torch.randn(3, 3, 16, 16)),
    Twin("unet", UNET, UNet, lambda: torch.randn(3, 2, 16, 16)),
    Twin("lstm", LSTM, Lstm, lambda: torch.randn(3, 7, 6)),
)
