"""Classes and exchanges spelled out by hand: residual and plain convolutions, heads, experts, branches."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from archc.grammar.load import load, loads
from archc.ir.axes import Axes
from archc.metanet import symmetry
from archc.metanet.running import Runner, change

ROOT = Path(__file__).parents[2]
TOKENS = "arch a()\ninput x: f32[N, T, 4]\noutput y: f32[N, T, 2]\ny = x -> "


def classes_of(axes: Axes) -> set[frozenset[str]]:
    return {frozenset(f"{m.parameter}.{m.axis}" for m in c.members) for c in axes.classes}


def conv_bn(name: str) -> set[str]:
    """The axes of a convolution's outputs, with its batch norm's."""
    norm = {f"{name}.batch_norm.{role}.0" for role in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.conv.weight.0"} | norm


def resnet50() -> set[frozenset[str]]:
    """The stem, the stream of each stage, and two hidden layers in each of sixteen bottlenecks: 37."""
    spec: set[frozenset[str]] = set()
    stream = conv_bn("conv_bn")
    for s, depth in enumerate((3, 4, 6, 3)):
        stage = f"stage{s or ''}"
        for b in range(depth):
            block = f"{stage}.bottleneck{b or ''}"
            stream |= {f"{block}.conv_bn.conv.weight.1"}
            if b == 0:
                spec.add(frozenset(stream | {f"{block}.shortcut.conv_bn.conv.weight.1"}))
                stream = conv_bn(f"{block}.shortcut.conv_bn")
            stream |= conv_bn(f"{block}.conv_bn2")
            spec.add(frozenset(conv_bn(f"{block}.conv_bn") | {f"{block}.conv_bn1.conv.weight.1"}))
            spec.add(frozenset(conv_bn(f"{block}.conv_bn1") | {f"{block}.conv_bn2.conv.weight.1"}))
    return spec | {frozenset(stream | {"linear.weight.1"})}


def vgg16() -> set[frozenset[str]]:
    """Every hidden layer: thirteen convolutions and two linear maps."""
    convs = [f"stage{s or ''}.conv{c or ''}" for s, n in enumerate((2, 2, 3, 3, 3)) for c in range(n)]
    layers = [*convs, "linear", "linear1", "linear2"]
    return {frozenset({f"{a}.weight.0", f"{a}.bias.0", f"{b}.weight.1"}) for a, b in itertools.pairwise(layers)}


@pytest.mark.parametrize(
    ("file", "spec", "count"),
    [("examples/resnet50.arch", resnet50(), 37), ("benchmarks/nets/vgg16.arch", vgg16(), 15)],
    ids=["resnet50", "vgg16"],
)
def test_the_free_classes_are_those_of_a_hand_specification(file: str, spec: set[frozenset[str]], count: int) -> None:
    found = classes_of(symmetry.group(load(ROOT / file)))
    assert len(spec) == count
    assert found == spec


def test_heads_and_what_is_in_each() -> None:
    """Two heads of keys, two queries for each, three channels of q·k and of v in each: 2! · 2!² · 3!² · 3!²."""
    net = loads(TOKENS + "attention(4, kv_heads = 2, head_dim = 3) -> linear(2)")
    axes = symmetry.group(net)
    assert symmetry.order(axes) == {2: 3, 3: 4, 4: 1}
    assert symmetry.exact_order(axes) == 2 * 2**2 * 6**2 * 6**2 * math.factorial(4)
    assert symmetry.certify(net).inert == ("attention.k_bias",)


def test_experts_change_places_with_the_routers_outputs() -> None:
    net = loads(TOKENS + "moe(router = linear(3), experts = copies(3, linear(5) -> relu -> linear(2)), top_k = 2)")
    axes = symmetry.group(net)
    assert symmetry.order(axes) == {5: 3, 3: 1}
    (exchange,) = axes.exchanges
    assert (exchange.kind, exchange.size, exchange.places) == ("experts", 3, (0, 1, 2))
    weights, run = symmetry.random_weights(net, 0), Runner(net)
    moved = symmetry.apply(axes, symmetry.rotation(exchange), weights)
    assert change(run(weights), run(moved)) < 1e-12
    router = {name: weights[name] for name in weights if "router" in name}
    assert change(run(weights), run({**moved, **router})) > 1e-3, "the control: without the router"


def test_only_alike_experts_change_places() -> None:
    net = loads(TOKENS + "moe(router = linear(3), experts = [linear(2), linear(2), linear(2) -> relu], top_k = 2)")
    (exchange,) = symmetry.group(net).exchanges
    assert exchange.places == (0, 1)
    assert symmetry.certify(net).ok


@pytest.mark.parametrize(
    ("body", "replicas"),
    [
        ("branch(3, linear(4) -> relu -> linear(2))", [3]),
        ('branch(2, linear(4) -> relu, merge = "mul") -> linear(2)', [2]),
        ('branch(3, linear(2) -> relu, merge = "concat", axis = 2) -> layer_norm -> linear(2)', [3]),
        ("branch(2, branch(2, linear(3) -> relu) -> linear(2))", [2, 2, 2]),
        ('branch(2, linear(1) -> relu, merge = "concat", axis = 2)', []),  # the output knows their order
        ('branch(2, linear(2) -> relu, merge = "concat", axis = 2) -> cumsum(axis = 2) -> linear(2)', []),
    ],
)
def test_alike_branches_change_places(body: str, replicas: list[int]) -> None:
    net = loads(TOKENS + body)
    assert [e.size for e in symmetry.group(net).exchanges] == replicas
    assert symmetry.certify(net).ok


def test_branches_that_share_a_weight_or_a_value_stay() -> None:
    shared = TOKENS.replace("y = x -> ", "share s = linear(2)\nlet a = x -> s\ny = (a -> relu) + (x -> s -> tanh)")
    assert symmetry.group(loads(shared)).exchanges == ()
    used = TOKENS.replace("y = x -> ", "let a = x -> linear(2)\nlet b = x -> linear(2)\ny = (a + b) * (a -> tanh)")
    assert symmetry.group(loads(used)).exchanges == ()


def test_groups_cut_a_concatenation() -> None:
    """Six channels and six more in four groups of three: groups move within each side, channels within each group."""
    net = loads(
        "arch a()\ninput x: f32[N, 2, 3, 3]\noutput y: f32[N, 2]\n"
        "let a = x -> conv(6, kernel = 1)\nlet b = x -> conv(6, kernel = 1) -> tanh\n"
        "y = concat(a, b, axis = 1) -> group_norm(4) -> global_avg_pool -> linear(2)"
    )
    assert symmetry.order(symmetry.group(net)) == {3: 4, 2: 2}
    assert symmetry.certify(net).ok


def test_an_axis_cut_for_nothing_is_whole() -> None:
    program = (
        "arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\n"
        "y = x -> linear(12) -> reshape([N, 3, 4]) -> {} -> reshape([N, 12]) -> linear(2)"
    )
    assert symmetry.order(symmetry.group(loads(program.format("tanh")))) == {12: 1}
    assert symmetry.order(symmetry.group(loads(program.format("softmax")))) == {4: 3, 3: 1}, "the control"


def test_outputs_that_are_not_finite_fail() -> None:
    net = loads("arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = (x -> linear(8) -> linear(2)) / 0.0")
    certificate = symmetry.certify(net)
    assert not certificate.ok
    assert certificate.error == math.inf


def test_images_are_made_small_where_weights_allow() -> None:
    net = load(ROOT / "examples/resnet18.arch", {"classes": 4})
    from archc.metanet.running import with_small_images

    small = with_small_images(net)
    assert small.inputs[0].type.shape[1:] == (3, 64, 64)
    assert {n: p.shape for n, p in small.parameters().items()} == {n: p.shape for n, p in net.parameters().items()}
    mixer = load(ROOT / "examples/mlp_mixer.arch")  # has a weight for each patch
    assert with_small_images(mixer) is mixer
