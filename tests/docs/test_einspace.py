"""einspace's seeds mean what their headers say: compared with networks written in plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archc.backends.torch.module import to_torch
from archc.grammar.format import format_source
from archc.grammar.load import check, load
from archc.ir.cost import cost

EXAMPLES = Path(__file__).parents[2] / "examples"
SEEDS = EXAMPLES / "einspace"


class Twin:
    """Takes the weights of an archc module one after the other, in the order in which the layers use them."""

    def __init__(self, module: nn.Module) -> None:
        self.state = list(module.state_dict().values())

    def take(self, *shape: int) -> Tensor:
        weight = self.state.pop(0)
        assert weight.numel() == torch.Size(shape).numel(), (weight.shape, shape)
        return weight.reshape(shape)

    def conv(self, x: Tensor, out: int, kernel: int, stride: int = 1) -> Tensor:
        weight, bias = self.take(out, x.shape[1], kernel, kernel), self.take(out)
        return F.conv2d(x, weight, bias, stride, padding=kernel // 2)

    def norm(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        weight, bias, mean, var = (self.take(c) for _ in range(4))
        return F.batch_norm(x, mean, var, weight, bias)

    def linear(self, x: Tensor, out: int) -> Tensor:
        weight, bias = self.take(out, x.shape[-1]), self.take(out)
        return F.linear(x, weight, bias)

    def layer_norm(self, x: Tensor) -> Tensor:
        weight, bias = self.take(x.shape[-1]), self.take(x.shape[-1])
        return F.layer_norm(x, x.shape[-1:], weight, bias)


def resnet(t: Twin, x: Tensor, stages: list[tuple[int, int]], pooled: bool) -> Tensor:
    x = F.leaky_relu(t.norm(t.conv(x, 64, 3)))
    x = F.max_pool2d(x, 3, 2, 1) if pooled else t.conv(x, 64, 3, 2)
    for i, (c, n) in enumerate(stages):
        for j in range(n):
            stride = 2 if i and not j else 1
            y = t.norm(t.conv(F.leaky_relu(t.norm(t.conv(x, c, 3, stride))), c, 3))
            x = F.leaky_relu(y + (t.norm(t.conv(x, c, 1, stride)) if stride == 2 else x))
    return t.linear(x.mean((2, 3)), 10)


def wrn(t: Twin, x: Tensor) -> Tensor:
    x = F.leaky_relu(t.norm(t.conv(x, 16, 3)))
    for c, stride in ((64, 1), (128, 2), (256, 2)):
        y = t.conv(F.leaky_relu(t.norm(t.conv(x, c, 3, stride))), c, 3)
        x = F.leaky_relu(t.norm(y + t.conv(x, c, 1, stride)))
        x = F.leaky_relu(t.norm(t.conv(F.leaky_relu(t.norm(t.conv(x, c, 3))), c, 3) + x))
    return t.linear(x.mean((2, 3)), 10)


def tokens(t: Twin, x: Tensor) -> Tensor:
    x = t.linear(F.unfold(x, 4, stride=4).transpose(1, 2), 512)
    return x + t.take(64, 512)


def transformer(t: Twin, x: Tensor) -> Tensor:
    x = tokens(t, x)
    for _ in range(4):
        heads = []
        for _ in range(4):
            q, k, v = (t.linear(x, 64) for _ in range(3))
            heads.append(F.scaled_dot_product_attention(q, k, v))
        x = t.layer_norm(x + t.linear(torch.cat(heads, 2), 512))
        x = t.layer_norm(x + t.linear(F.leaky_relu(t.linear(x, 512)), 512))
    return t.linear(x.mean(2), 10)


def mixer(t: Twin, x: Tensor) -> Tensor:
    x = tokens(t, x)
    for _ in range(8):
        y = t.layer_norm(x).transpose(1, 2)
        y = t.linear(F.leaky_relu(t.linear(y, 256)), 64).transpose(1, 2)
        x = x + t.linear(F.leaky_relu(t.linear(y, 256)), 512)
    return t.linear(x.mean(2), 10)


CASES = {
    "resnet10": (True, lambda t, x: resnet(t, x, [(64, 2), (128, 2)], True)),
    "resnet10 without pooling": (False, lambda t, x: resnet(t, x, [(64, 2), (128, 2)], False)),
    "resnet18": (True, lambda t, x: resnet(t, x, [(64, 2), (128, 2), (256, 2), (512, 2)], True)),
    "resnet34": (False, lambda t, x: resnet(t, x, [(64, 3), (128, 4), (256, 6), (512, 3)], False)),
    "wrn16_4": (None, wrn),
    "transformer": (None, transformer),
    "mlp_mixer": (None, mixer),
}


@pytest.mark.parametrize("name", CASES)
def test_a_seed_computes_what_plain_torch_does(name: str) -> None:
    pooled, reference = CASES[name]
    graph = load(SEEDS / f"{name.split()[0]}.arch", {} if pooled is None else {"pooled": pooled})
    module = to_torch(graph).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twin = Twin(module)
    with torch.no_grad():
        wanted = reference(twin, x)
        found = module(x)
        other = reference(Twin(to_torch(graph, seed=1).double()), x)
    assert not twin.state, "weights are left over"
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert (found - other).abs().max() > 1e-4  # with other weights it is another function


def test_without_pooling_there_is_one_more_convolution() -> None:
    sizes = [cost(load(SEEDS / "resnet10.arch", {"pooled": pooled})).params for pooled in (True, False)]
    assert sizes[1] - sizes[0] == 64 * 64 * 9 + 64


def test_the_library_of_parts_is_formatted_and_right() -> None:
    file = SEEDS / "parts/resnet.arch"
    assert format_source(file.read_text(), str(file)) == file.read_text()
    assert check(file) == ()


@pytest.mark.parametrize("name", ["digits_net", "einspace"])
def test_a_space_is_formatted_and_checked(name: str) -> None:
    file = EXAMPLES / f"spaces/{name}.arch"
    assert format_source(file.read_text(), str(file)) == file.read_text()
    found = check(file)
    # einspace's own probabilities make more modules than they end: with copies counted, 1.32 for each
    assert [(d.code, d.severity) for d in found] == ([("E0704", "warning")] if name == "einspace" else [])
