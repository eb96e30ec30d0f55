"""Blocks become mixtures of experts: equal at birth where the contract says so, and refused where they cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformed import Applied, applied, compiled_difference

import archc
from archc.backends.torch.module import to_torch
from archc.facade.model import Model
from archc.facade.sameness import same_function
from archc.facade.transform import transform
from archc.facade.weights import resolve
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.ir.equal import structurally_equal
from archc.metanet.symmetry import random_weights
from archc.passes.manager import run_passes
from archc.passes.spec import parse_pass, parse_transform

TOKENS = "arch net()\ninput x: f32[N, 5, 6]\noutput y: f32[N, 5, 6]\n"
VECTOR = "arch net()\ninput x: f32[N, 6]\noutput y: f32[N, 6]\n"
IMAGE = "arch net()\ninput x: f32[N, 4, 6, 6]\noutput y: f32[N, 4, 6, 6]\n"
SIGNAL = "arch net()\ninput x: f32[N, 4, 9]\noutput y: f32[N, 4, 9]\n"

FFN = TOKENS + "def ffn = residual(layer_norm -> linear(8) -> gelu -> dropout(0.3) -> linear(6))\ny = x -> ffn -> ffn\n"
GATED = (
    TOKENS + "def dense(c) = linear(c, bias = false)\n"
    "y = x -> residual(rms_norm -> fn(v) { return silu(v -> dense(8)) * (v -> dense(8)) -> dense(6) })\n"
)
MLP = VECTOR + "y = x -> linear(8) -> relu -> linear(6)\n"
BASIC = (
    IMAGE + "def half(c) = conv(c, kernel = 3, bias = false) -> batch_norm\n"
    "y = x -> residual(half(4) -> relu -> half(4)) -> relu\n"
)
INVERTED = (
    IMAGE + "def half(c, k, g) = conv(c, kernel = k, groups = g, bias = false) -> batch_norm\n"
    "y = x -> residual(half(8, 1, 1) -> relu6 -> half(8, 3, 8) -> relu6 -> half(4, 1, 1))\n"
)
GROUPS = IMAGE + "y = x -> residual(conv(8, kernel = 3) -> group_norm(2) -> silu -> conv(4, kernel = 3))\n"
PLAIN = (
    IMAGE + "y = x -> conv(8, kernel = 3) -> relu -> conv(8, kernel = 3, stride = 1) -> relu -> conv(4, kernel = 1)\n"
)
WAVE = SIGNAL + "y = x -> residual(conv(8, kernel = 3) -> tanh -> conv(4, kernel = 3))\n"
INSIDE = (
    TOKENS + "def ffn = linear(8) -> gelu -> linear(6)\n"
    "y = x -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = ffn, threshold = 0.4)\n"
    "    -> scan(fn(v, h) { let n = (v + h) -> ffn return n, n }, state = [[6]], axis = 1)\n"
    "    -> fn(ys, last) { return ys }\n"
)
MIXED = TOKENS + "y = x -> moe(router = linear(2), experts = copies(2, linear(8) -> gelu -> linear(6)), top_k = 1)\n"


def spoilt(net: Applied) -> bool:
    """Negative control: is it seen when the last layers of all experts are changed?"""
    weights = {n: w + 0.1 * (".experts." in n and n.endswith("weight")) for n, w in net.after.items()}
    return not net.same(weights=weights).ok


EXACT = [
    ("moe(experts = 3)", FFN),
    ("moe(experts = 3, top_k = 1)", GATED),
    ("moe(experts = 3)", MLP),
    ("moe(experts = 3)", GROUPS),
    ("moe(experts = 3)", PLAIN),
    ("moe(experts = 3)", WAVE),
    ("moe(experts = 3)", INSIDE),
    ("moe(experts = 3, nested = true)", MIXED),
    ("moe(experts = 3, of = layers)", GATED),
    ("moe(experts = 3, of = layers)", BASIC),
    ("moe(experts = 3, router = sigmoid)", FFN),
    ("moe(experts = 3, router = noisy, noise = 2.0)", FFN),
    ("moe(experts = 3, router = dense_to_sparse)", FFN),
    ("moe(experts = 3, router = dense_to_sparse, normalize = false)", BASIC),
    ("moe(experts = 3, router = grkan)", GATED),
    ("moe(experts = 3, router = grkan)", GROUPS),
    ("moe(experts = 3, router = expert_choice, capacity = 1.5)", FFN),  # each expert takes all rows
    ("moe(experts = 3, capacity = 1.5)", FFN),
    ("moe(experts = 4, method = split, top_k = 4)", FFN),
    ("moe(experts = 4, method = split, top_k = 4)", GATED),
    ("moe(experts = 4, method = split, top_k = 4)", BASIC),
    ("moe(experts = 4, method = split, top_k = 4)", INVERTED),
    ("moe(experts = 4, method = split, top_k = 4)", INSIDE),
    ("moe(experts = 4, method = split, top_k = 4, router = sigmoid, normalize = false)", FFN),
    ("moe(experts = 4, method = split, router = dense_to_sparse)", PLAIN),
    ("moe(experts = 2, method = split, top_k = 2, router = grkan, shared = 0.4)", FFN),
]
SILENT = [
    ("moe(experts = 3, shared = true)", FFN),
    ("moe(experts = 3, shared = true, router = switch, noise = 1.0)", GATED),
    ("moe(experts = 3, shared = true, capacity = 0.5, jitter = 0.2)", FFN),
    ("moe(experts = 3, shared = true, router = expert_choice)", BASIC),
    ("moe(experts = 3, shared = true, router = sigmoid, normalize = false)", INVERTED),
    ("moe(experts = 3, shared = true)", INSIDE),
]


@pytest.mark.parametrize(("spec", "source"), [*EXACT, *SILENT])
def test_born_equal(spec: str, source: str) -> None:
    of, options = parse_transform(spec)
    assert (of.contract(options).eval, of.contract(options).train) == ("exact", "exact")
    net = applied(source, spec)
    for mode in ("eval", "train"):
        found = net.same(mode)
        assert found.ok, f"{mode}: {found.relative}"
    assert spoilt(net)


@pytest.mark.parametrize(
    ("spec", "source", "kept", "why"),
    [
        ("moe(experts = 3, router = switch)", FFN, "", "gates of a row do not sum to 1"),
        ("moe(experts = 3, router = sigmoid, normalize = false)", FFN, "", "do not sum to 1"),
        ("moe(experts = 3, capacity = 0.5)", FFN, "", "experts are full"),
        ("moe(experts = 4, router = expert_choice, top_k = 1, capacity = 0.5)", FFN, "", "no expert chooses"),
        ("moe(experts = 3, jitter = 0.1)", FFN, "", "jitter"),
        ("moe(experts = 3, batch_norm = true, top_k = 1)", BASIC, "eval", "batch norm"),
        ("moe(experts = 4, method = split)", FFN, "", "only some of the parts"),
        ("moe(experts = 4, method = split, shared = 0.5)", GATED, "", "only some of the parts"),
        ("moe(experts = 4, method = split, top_k = 4, noise = 1.0)", FFN, "eval", "noise"),
        ("moe(experts = 4, method = split, top_k = 4, router_init = 0.5)", FFN, "", "starts at zero"),
    ],
)
def test_what_is_not_exact_says_so(spec: str, source: str, kept: str, why: str) -> None:
    """And rightly: the difference is there, though smaller than that of a block that is left out."""
    of, options = parse_transform(spec)
    promised = of.contract(options)
    net = applied(source, spec)
    assert why in promised.why
    for mode in ("eval", "train"):
        assert (getattr(promised, mode) == "exact") == (mode == kept) == net.same(mode).ok
        assert net.same(mode).relative < 1


def test_a_program_before_and_after() -> None:
    net = applied(TOKENS + "y = x -> linear(4) -> relu -> linear(6)\n", "moe(experts = 2, top_k = 1)")
    assert (
        Model(net.new).text().partition("f32[N, 5, 6]\n\n")[2]
        == """\
y = x
    -> moe(
        router = linear(2, bias = false),
        experts = copies(2, linear(4) -> relu -> linear(6)),
        top_k = 1,
        name = "moe")
"""
    )
    for i in range(2):
        for role in ("linear.weight", "linear.bias", "linear1.weight", "linear1.bias"):
            assert np.array_equal(net.after[f"moe.experts.{i}.{role}"], net.before[role])


def test_routers() -> None:
    """What each router makes of the operator's parameters."""

    def params(spec: str) -> Any:
        (node,) = (n for n in applied(MLP, spec).new.nodes if n.op.name == "moe")
        return node.params

    assert params("moe(experts = 4, router = sigmoid)").score == "sigmoid"
    assert params("moe(experts = 4, router = noisy)").noise == 0.25
    assert (params("moe(experts = 4, router = switch)").top_k, params("moe(router = switch)").normalize) == (1, False)
    assert (params("moe(router = expert_choice)").routing, params("moe(router = expert_choice)").capacity) == (
        "expert",
        1,
    )
    dense = params("moe(experts = 4, router = dense_to_sparse)")
    assert (dense.top_k, dense.temperature) == (4, 2.0)
    assert params("moe(experts = 4, balance = 0.0, z_loss = 0.001)").z_loss == 0.001
    net = applied(MLP, "moe(experts = 4, router = grkan)")
    assert net.after["moe.router.kan.weight"].shape == (4, 6)
    assert np.abs(applied(MLP, "moe(experts = 4, router_init = 0.001)").after["moe.router.linear.weight"]).max() < 0.01


def test_parts_share_out_the_hidden_channels() -> None:
    """Each channel is in one part; with the biases they are all the block had."""
    net = applied(MLP, "moe(experts = 2, top_k = 1, method = split, shared = 0.4)")
    old, new = net.before["linear.weight"], net.after
    parts = [new[f"moe.{name}.linear.weight"] for name in ("experts.0", "experts.1", "shared")]
    assert [len(p) for p in parts] == [2, 2, 4]  # at least 0.4 of 8
    assert {tuple(row) for part in parts for row in part} == {tuple(row) for row in old}
    assert "moe.experts.0.linear1.bias" not in new
    assert np.array_equal(new["moe.shared.linear1.bias"], net.before["linear1.bias"])


def test_parts_are_found_in_data() -> None:
    """A network of four parts, each of which answers to one kind of input, is taken apart again: one part suffices."""
    rng = np.random.default_rng(0)
    kind, dims, hidden = rng.integers(0, 4, 600), 8, 32
    x = np.eye(4)[kind] * 3 + rng.normal(0, 0.05, (600, 4))
    x = np.concatenate([x, rng.normal(0, 1, (600, 4))], axis=1)
    owner = rng.permutation(np.repeat(np.arange(4), hidden // 4))  # in no order
    up = np.zeros((hidden, dims))
    up[np.arange(hidden), owner] = 4.0
    up[:, 4:] = rng.normal(0, 0.5, (hidden, 4))
    weights = {"linear.weight": up, "linear.bias": np.full(hidden, -8.0), "linear1.bias": rng.normal(size=dims)}
    source = f"arch net()\ninput x: f32[N, {dims}]\noutput y: f32[N, {dims}]\n"
    source += f"y = x -> linear({hidden}) -> relu -> linear({dims})\n"
    spec = "moe(experts = 4, top_k = 1, method = split)"
    found = applied(source, spec, data={"x": x}, weights=weights)
    (measured,) = found.context.measured
    error = same_function(found.old, found.new, found.before, found.after, inputs={"x": x}).relative
    assert measured.value < 0.01
    assert error < 0.05
    groups = [found.after[f"moe.experts.{e}.linear.weight"][:, :4].argmax(axis=1) for e in range(4)]
    assert sorted(int(g[0]) for g in groups) == [0, 1, 2, 3]
    assert all((g == g[0]).all() for g in groups)
    mixed = dict(weights) | {"linear.weight": rng.permutation(up.T).T[rng.permutation(hidden)]}
    dense = mixed | {"linear.weight": rng.normal(0, 1, (hidden, dims)), "linear.bias": np.zeros(hidden)}
    (control,) = applied(source, spec, data={"x": x}, weights=dense).context.measured
    assert control.value > 0.2, "a network that is not made of parts cannot be taken apart"


def test_initial_values_are_born_equal_beside_the_block() -> None:
    """Of a network whose weights are not known yet: the block keeps its names, so it is drawn as before."""
    for source in (FFN, BASIC):
        old = loads(source)
        new = clone(old)
        run_passes(new, [parse_pass("moe(experts = 3, shared = true)")])
        before, after = (dict(resolve(g, None, 7).arrays) for g in (old, new))
        assert same_function(old, new, before, after).ok
    copies = clone(old)
    run_passes(copies, [parse_pass("moe(experts = 3, batch_norm = true)")])
    assert not same_function(old, copies, before, dict(resolve(copies, None, 7).arrays)).ok


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("moe(experts = 4)", MLP),
        ("moe(experts = 4, router = expert_choice, capacity = 0.75)", GATED),
        ("moe(experts = 4, router = switch, batch_norm = true)", BASIC),
        ("moe(experts = 4, method = split, shared = 0.3)", MLP),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("moe(experts = 4, router = sigmoid, shared = true)", GATED),
                ("moe(experts = 4, router = grkan, capacity = 0.75)", FFN),
                ("moe(experts = 4, method = split, router = dense_to_sparse)", INVERTED),
                ("moe(experts = 4, method = split, top_k = 4)", INSIDE),
                ("moe(experts = 4, of = layers)", WAVE),
            )
        ),
    ],
)
def test_compiled(spec: str, source: str) -> None:
    net = applied(source, spec)
    assert compiled_difference(net.new, net.stored()) < 1e-5


SINGLE = (
    "arch net()\ninput x: f32[N, 4, 1, 1]\noutput y: f32[N, 4, 1, 1]\n"
    "y = x -> residual(conv(4, kernel = 1) -> batch_norm -> relu -> conv(4, kernel = 1))\n"
)
REFUSED = [
    ("moe", TOKENS + "share f = linear(8) -> gelu -> linear(6)\ny = x -> f -> f\n", "E0403", "weights of their own"),
    ("moe", BASIC, "E0403", "batch statistics"),
    ("moe", MIXED, "E0403", "no expert yet"),
    ("moe(shared = true)", SINGLE, "E0403", "a single value"),
    ("moe(shared = true)", IMAGE + "y = x -> residual(conv(4, kernel = 3) -> relu)\n", "E0403", "last operator"),
    ("moe(method = split)", GROUPS, "E0403", "must not meet"),
    ("moe(method = split, experts = 3)", MLP, "E0410", "divisible by 3"),
    ("moe(method = split, experts = 8, shared = 0.5)", MLP, "E0403", "each of 8 experts"),
    ("moe", TOKENS + "y = x -> linear(6)\n", "E0402", "nothing to change"),
    ("moe(method = split)", TOKENS + "y = x -> kan(6)\n", "E0402", "nothing to change"),
]


@pytest.mark.parametrize(("spec", "source", "code", "words"), REFUSED)
def test_refusals(spec: str, source: str, code: str, words: str) -> None:
    graph = loads(source)
    before = print_graph(graph)
    with pytest.raises(CompileError) as raised:
        run_passes(graph, [parse_pass(spec)])
    assert {d.code for d in raised.value.diagnostics} == {code}
    assert words in raised.value.diagnostics[0].message
    assert print_graph(graph) == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("moe(experts = 4, top_k = 5)", "top_k = 5 is more than there are experts, 4"),
        ("moe(experts = 1)", "experts"),
        ("moe(top_k = 0)", "top_k"),
        ("moe(capacity = 0.0)", "capacity"),
        ("moe(router = switch, top_k = 2)", "a switch runs one expert"),
        ("moe(shared = 0.5)", 'for method = "split"'),
        ("moe(method = split, shared = true)", "share of channels"),
        ("moe(method = split, shared = 1.5)", "share of channels"),
        ("moe(method = split, of = layers)", "no hidden channels"),
        ("moe(method = split, jitter = 0.1)", "parts differ"),
        ("moe(method = split, router = grkan)", "cannot be fitted"),
        ("moe(router = softmin)", "router"),
    ],
)
def test_options_that_cannot_be(spec: str, words: str) -> None:
    with pytest.raises(CompileError) as raised:
        parse_pass(spec)
    (diagnostic,) = raised.value.diagnostics
    assert diagnostic.code in ("E0205", "E0206")
    assert words in f"{diagnostic.message} {diagnostic.label}"
    assert diagnostic.span is not None


SMALL: dict[str, dict[str, Any]] = {
    "gpt2_small": {"dim": 16, "depth": 2, "heads": 2, "vocab": 30, "context": 16},
    "llama_like": {"dim": 16, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 24, "vocab": 30},
    "vit_s16": {"dim": 16, "depth": 1, "heads": 2, "classes": 5},
    "mlp_mixer": {"dim": 8, "depth": 1, "tokens_dim": 8, "channels_dim": 16, "classes": 5},
    "resnet20": {"width": 4},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("spec", ["moe(experts = 4, shared = true)", "moe(experts = 4, method = split, top_k = 4)"])
def test_examples(name: str, spec: str) -> None:
    """Through `archc.transform`, which checks the contract in float64 and float32 itself."""
    model = archc.load(f"examples/{name}.arch", **SMALL[name])
    weights = {n: w.astype(np.float32) for n, w in random_weights(model.graph, 0).items()}
    changed = transform(model, spec, weights=weights)
    assert all(check.ok for check in changed.checks)
    assert structurally_equal(changed.model.graph, loads(changed.model.text())) is None
    assert changed.weights is not None
    assert changed.weights.keys() == changed.model.graph.parameters().keys()


def test_where_it_acts() -> None:
    """Selection by name, and mixtures beside each other that do not get into each other's way."""
    net = applied(FFN, "moe(experts = 2)", at=["ffn1"])
    assert [n.name for n in net.new.nodes if n.op.name == "moe"] == ["ffn1.moe"]
    both = [n.name for n in applied(FFN, "moe(experts = 2)").new.nodes if n.op.name == "moe"]
    assert both == ["ffn.moe", "ffn1.moe"]


@pytest.mark.parametrize(
    "spec",
    [
        "moe(experts = 3)",
        "moe(experts = 3, router = expert_choice)",
        "moe(experts = 3, router = switch, shared = true)",
        "moe(experts = 4, method = split, top_k = 4)",
        "moe(experts = 4, method = split, top_k = 4, router = grkan)",
    ],
)
def test_experts_learn_to_differ(spec: str) -> None:
    """Born alike, silent or with equal gates, experts and routers move when they are trained."""
    net = applied(MLP, spec)
    module = to_torch(net.new, net.stored(), dtype="f64").train()
    generator = torch.Generator().manual_seed(0)
    x, wanted = (torch.randn(64, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    first = {name: p.detach().clone() for name, p in module.named_parameters()}
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        outputs, aux = module.forward_with_aux(x)
        loss = (outputs - wanted).square().mean() + sum(v for k, v in aux.items() if k.startswith("loss/"))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not [name for name, p in module.named_parameters() if torch.equal(p, first[name])]
    ends = [p for name, p in module.named_parameters() if ".experts." in name and name.endswith("linear1.weight")]
    assert not any(torch.equal(ends[0], other) for other in ends[1:])
