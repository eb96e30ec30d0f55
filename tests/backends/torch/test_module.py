"""`to_torch`: names, weights, modes, structural ops in training and evaluation, torch.compile."""

from __future__ import annotations

import copy
import gc
import linecache
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from expressions import graph_of
from torch import Tensor, nn

from archc.backends.torch.module import ArchModule, to_torch
from archc.grammar.load import loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph

NET = """
arch net(width = 4)
input  image:  f32[N, 3, 8, 8]
output logits: f32[N, 5]
def train(c) = conv(c, kernel = 3) -> batch_norm -> relu
logits = image -> train(width) -> train(width) -> dropout(0.5) -> global_avg_pool -> linear(5, name = "head 0.a-b")
"""

LM = """
arch lm(dim = 16, vocab = 11)
input  tokens: i64[N, T]
output logits: f32[N, T, vocab]
share table = embedding(vocab, dim)
def ffn = moe(router = linear(4), experts = copies(4, linear(24) -> gelu -> linear(dim)), top_k = 2, balance = 0.5,
              z_loss = 0.25)
logits = tokens -> table -> positions(kind = "sinusoidal")
    -> residual(rms_norm -> attention(2, causal = true)) -> residual(rms_norm -> ffn) -> tied_linear(table)
"""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def image(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_state_dict_keys_are_the_parameters_names() -> None:
    """Also where a name would hide a method of `nn.Module`, as the `def` named train does here."""
    graph = loads(NET)
    module = to_torch(graph)
    assert set(module.state_dict()) == set(graph.parameters())
    assert "train.conv.weight" in module.state_dict()
    assert "head 0.a-b.weight" in module.state_dict()
    assert not module.eval().training  # `train` is still the method
    estimates = [f"{scope}.batch_norm.running_{what}" for scope in ("train_", "train1") for what in ("mean", "var")]
    assert [name for name, _ in module.named_buffers()] == estimates


def test_states_go_round() -> None:
    one, other = to_torch(loads(NET), seed=0).eval(), to_torch(loads(NET), seed=1).eval()
    x = image()
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    larger = nn.Sequential(nn.Identity(), one)
    assert "1.train.conv.weight" in larger.state_dict()
    larger.load_state_dict(larger.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*train_\.conv\.weight"):
        other.load_state_dict({k: v for k, v in one.state_dict().items() if k != "train.conv.weight"})


def test_weights_are_given_by_name() -> None:
    graph = loads(NET)
    state = to_torch(graph, seed=3).state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    x = image()
    expected = to_torch(graph, seed=3).eval()(x)
    for weights in (state, arrays):
        module = to_torch(graph, weights).eval()
        assert torch.equal(module(x), expected)
        module.state_dict()["train.conv.weight"].zero_()  # a copy: the caller's arrays stay as they are
        assert np.abs(arrays["train.conv.weight"]).max() > 0


@pytest.mark.parametrize(
    ("change", "code", "help"),
    [
        (lambda w: w.update({"train.conv.wieght": w.pop("train.conv.weight")}), "E0603", "train.conv.wieght"),
        (lambda w: w.update(extra=np.zeros(3, np.float32)), "E0604", ""),
        (lambda w: w.update({"train.conv.bias": np.zeros(5, np.float32)}), "E0605", ""),
        (lambda w: w.update({"train.conv.bias": torch.zeros(4, dtype=torch.float16)}), "E0606", ""),
    ],
)
def test_weights_that_do_not_fit_are_told(change: Any, code: str, help: str) -> None:
    graph = loads(NET)
    weights: dict[str, Any] = {name: value.numpy() for name, value in to_torch(graph).state_dict().items()}
    change(weights)
    with pytest.raises(CompileError) as raised:
        to_torch(graph, weights)
    first = raised.value.diagnostics[0]
    assert first.code == code
    assert help in (first.help or "")


def test_bfloat16_arrays_are_read() -> None:
    import ml_dtypes

    graph = graph_of(["x -> linear(2, bias = false)"], ["bf16[N, 3]"])
    (name,) = graph.parameters()
    module = to_torch(graph, {name: np.array([[1, 2, 3], [0.5, 0, -1]], ml_dtypes.bfloat16)})
    assert module(torch.ones(1, 3, dtype=torch.bfloat16)).tolist() == [[6.0, -0.5]]


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    one = to_torch(loads(NET)).state_dict()
    longer = to_torch(loads(NET.replace("-> dropout(0.5)", "-> conv(4, kernel = 1) -> dropout(0.5)"))).state_dict()
    assert set(longer) > set(one)
    for name, value in one.items():
        assert torch.equal(value, longer[name]), name
        same = torch.equal(value, to_torch(loads(NET), seed=1).state_dict()[name])
        assert same == ("batch_norm" in name), name


def test_doubling_takes_constants_along() -> None:
    """Everything computes in f64 after `.double()`: also the numbers and angles that the program writes as f32."""
    graph = graph_of(
        ['(constant([[0.1, 0.7]]) * linear(2)(x) + 1.0 / 3 -> cast("f32")) * constant(0.3) -> positions("sinusoidal")'],
        ["f32[3, 5, 4]"],
    )
    assert "f32 = self" in to_torch(graph).source
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    module = to_torch(graph, dtype="f64")
    found = module(x)
    (weight, bias) = module.parameters()
    value = (torch.tensor([[0.1, 0.7]], dtype=torch.float64) * F.linear(x, weight, bias) + 1 / 3) * 0.3
    steps = torch.arange(5, dtype=torch.float64)
    wanted = value + torch.stack([steps.sin(), steps.cos()], -1)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    assert to_torch(graph).double()(x).dtype == torch.float64
    assert to_torch(graph)(x.float()).dtype == torch.float32


def test_copies_are_independent() -> None:
    module = to_torch(loads(NET)).eval()
    twin = copy.deepcopy(module)
    x = image()
    assert torch.equal(module(x), twin(x))
    nn.init.zeros_(twin.get_parameter("head 0.a-b.weight"))
    assert not torch.equal(module(x), twin(x))
    assert list(twin.state_dict()) == list(module.state_dict())


def test_a_pickle_is_read_where_the_class_was_never_made(tmp_path: Path) -> None:
    """As workers of a data loader and `torch.save` need it; names that are not the attributes' included."""
    module = to_torch(loads(NET), seed=3).eval()
    module.get_parameter("train_.conv.weight").requires_grad_(False)
    x = image()
    (tmp_path / "m.pickle").write_bytes(pickle.dumps((module, x)))
    script = (
        "import pickle, sys; module, x = pickle.load(open(sys.argv[1], 'rb'))\n"
        "frozen = [name for name, p in module.named_parameters() if not p.requires_grad]\n"
        "print(type(module).__name__, module.training, frozen)\n"
        "print(*module.state_dict(), module(x).double().sum().item(), sep=chr(10))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m.pickle")]
    first, *names, total = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert first == "Net False ['train_.conv.weight']"
    assert names == list(module.state_dict())
    assert float(total) == pytest.approx(module(x).double().sum().item(), rel=1e-5)
    assert type(copy.deepcopy(module)) is type(module)


def test_modes() -> None:
    """Dropout and batch statistics in training only; running estimates are all that training changes."""
    module = to_torch(loads(NET)).eval()
    x = image()
    before = copy.deepcopy(module.state_dict())
    assert torch.equal(module(x), module(x))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    module.train()
    assert not torch.equal(module(x), module(x))
    changed = {k for k, v in module.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {k for k in before if "running" in k}


def test_generated_sources_are_let_go() -> None:
    file = to_torch(loads(NET)).forward.__code__.co_filename
    assert file.startswith("<archc Net")
    gc.collect()
    assert file not in linecache.cache


# -- mixtures of experts -----------------------------------------------------------------------------------------


def test_auxiliary_losses() -> None:
    """Balance as in arXiv:2101.03961, eq. 4, times its weight; z-loss the mean squared log-sum-exp of the logits."""
    module = to_torch(loads(LM)).train()
    tokens = torch.randint(11, (3, 5))
    outputs, aux = module.forward_with_aux(tokens)
    assert torch.equal(outputs, module(tokens))
    assert set(aux) == {"loss/ffn.moe.balance", "loss/ffn.moe.z"} or all(k.startswith(("loss/", "stat/")) for k in aux)
    graph = graph_of(
        ["x -> moe(router = linear(3), experts = copies(3, linear(2)), top_k = 1, z_loss = 1)"], ["f32[N, 4]"]
    )
    module, x = to_torch(graph, dtype="f64"), torch.randn(50, 4, dtype=torch.float64)
    weight, bias = (module.get_parameter(f"moe.router.linear.{role}") for role in ("weight", "bias"))
    logits = x @ weight.T + bias
    probabilities = logits.softmax(-1)
    share = torch.stack([(logits.argmax(-1) == e).double().mean() for e in range(3)])
    _, aux = module.forward_with_aux(x)
    torch.testing.assert_close(aux["loss/moe.balance"], 0.01 * 3 * (share * probabilities.mean(0)).sum())
    torch.testing.assert_close(aux["loss/moe.z"], (logits.exp().sum(-1).log() ** 2).mean())


def test_noise_is_for_training() -> None:
    graph = graph_of(
        ["x -> moe(router = linear(4), experts = copies(4, linear(2)), top_k = 1, noise = 3.0)"], ["f32[N, 4]"]
    )
    module, x = to_torch(graph), torch.randn(20, 4)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_capacity_drops_the_later_rows() -> None:
    """All 8 rows choose expert 0, which takes ceil(0.5 * 8 * 1 / 2) = 2 of them."""
    graph = graph_of(
        ["x -> moe(router = linear(2), experts = copies(2, linear(1)), top_k = 1, capacity = 0.5)"], ["f32[N, 3]"]
    )
    module = to_torch(graph).eval()
    for name, value in module.named_parameters():
        nn.init.zeros_(value)
        if name == "moe.router.linear.bias":
            value.data[0] = 5.0
        elif name == "moe.experts.0.linear.bias":
            value.data[0] = 1.0
    assert module(torch.randn(8, 3)).flatten().tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_an_expert_sees_its_rows_only() -> None:
    """Rows that an expert is not chosen for may hold NaN for it, and it runs on no others."""
    graph = graph_of(["x -> moe(router = linear(2), experts = copies(2, log -> linear(1)), top_k = 1)"], ["f32[N, 1]"])
    module = to_torch(graph).eval()
    state = module.state_dict()
    state["moe.router.linear.weight"].copy_(torch.tensor([[9.0], [-9.0]]))
    state["moe.router.linear.bias"].zero_()
    found = module(torch.tensor([[1.0], [2.0], [-1.0]]))
    assert found.isfinite().flatten().tolist() == [True, True, False]
    assert module(torch.zeros(0, 1)).shape == (0, 1)


# -- skips and exits -----------------------------------------------------------------------------------------------


def skip_net(options: str, gate: str = "mean(1) -> linear(1) -> sigmoid") -> Graph:
    return graph_of([f"x -> skip(gate = {gate}, body = linear(4), {options})"], ["f32[N, T, 4]"])


def by_hand(module: ArchModule, x: Tensor, per_token: bool) -> tuple[Tensor, Tensor]:
    """The gate and the body's result."""
    p = dict(module.named_parameters())
    pooled = x if per_token else x.mean(1)
    gate = torch.sigmoid(F.linear(pooled, p["skip.gate.linear.weight"], p["skip.gate.linear.bias"]))
    return gate.view(len(x), -1, 1), F.linear(x, p["skip.body.linear.weight"], p["skip.body.linear.bias"])


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_skips(per_token: bool, mode: str) -> None:
    gate = "linear(1) -> sigmoid" if per_token else "mean(1) -> linear(1) -> sigmoid"
    module = to_torch(skip_net(f'mode = "{mode}", threshold = 0.52', gate), dtype="f64")
    x = torch.randn(9, 5, 4, dtype=torch.float64)
    g, body = by_hand(module, x, per_token)
    is_open = (g > 0.52).double()
    assert 0 < is_open.mean() < 1
    soft, hard = g * body + (1 - g) * x, torch.where(g > 0.52, body, x)
    torch.testing.assert_close(module.eval()(x), soft if mode == "soft" else hard)
    # Training: a hard gate counts as 0 or 1, with the gradient of the soft one.
    found = module.train()(x)
    torch.testing.assert_close(found, soft if mode == "soft" else is_open * body + (1 - is_open) * x)
    name = module.get_parameter("skip.gate.linear.weight")
    (gradient,) = torch.autograd.grad(found.square().sum(), name)
    through = is_open + g - g.detach() if mode == "hard" else g
    (wanted,) = torch.autograd.grad((through * body + (1 - through) * x).square().sum(), name)
    torch.testing.assert_close(gradient, wanted)
    assert gradient.abs().max() > 0


def test_a_budget_keeps_the_tokens_with_the_largest_gates() -> None:
    module = to_torch(skip_net("budget = 0.4", "linear(1) -> sigmoid"), dtype="f64").eval()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    g, body = by_hand(module, x, per_token=True)
    kept = torch.zeros(3, 5, 1, dtype=torch.bool).scatter(1, g.topk(2, dim=1).indices, True)
    torch.testing.assert_close(module(x), torch.where(kept, body, x))
    module.train()
    torch.testing.assert_close(module(x), torch.where(kept, body, x))
    module(x).sum().backward()
    assert module.get_parameter("skip.gate.linear.weight").grad.abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_open_gates_cost(mode: str) -> None:
    """A loss of `cost * max(0, share - target)`, of the share of open gates, with the gradient of the mean gate."""
    module = to_torch(skip_net(f'mode = "{mode}", threshold = 0.52, cost = 3, target = 0.1'), dtype="f64")
    x = torch.randn(9, 5, 4, dtype=torch.float64)
    g, _ = by_hand(module, x, per_token=False)
    share = (g > 0.52).double().mean() if mode == "hard" else g.mean()
    _, aux = module.train().forward_with_aux(x)
    torch.testing.assert_close(aux["loss/skip.cost"], 3 * (share - 0.1))
    torch.testing.assert_close(aux["stat/skip.open"].double(), share, rtol=1e-6, atol=0)
    weight = module.get_parameter("skip.gate.linear.weight")
    found, wanted = (torch.autograd.grad(loss, weight)[0] for loss in (aux["loss/skip.cost"], 3 * g.mean()))
    torch.testing.assert_close(found, wanted)
    assert not any(value.requires_grad for name, value in aux.items() if name.startswith("stat/"))
    _, aux = module.eval().forward_with_aux(x)
    assert set(aux) == {"stat/skip.open", "stat/skip.open.rows"}


def test_budgets_are_exact() -> None:
    """0.29 * 100 is below 29 in floats."""
    source = to_torch(skip_net("budget = 0.29", "linear(1) -> sigmoid")).source
    assert "* 29 // 100" in source
    assert math.floor(0.29 * 100) == 28


EXIT = 'x -> exit(head = linear(3), rest = linear(8) -> relu -> linear(3), threshold = {t}, confidence = "{c}")'


@pytest.mark.parametrize(("confidence", "threshold"), [("max_softmax", 0.5), ("margin", 0.2), ("entropy", 0.1)])
def test_exits(confidence: str, threshold: float) -> None:
    graph = graph_of([EXIT.format(t=threshold, c=confidence)], ["f32[N, 6]"])
    module = to_torch(graph, dtype="f64").eval()
    x = torch.randn(30, 6, dtype=torch.float64) * 2
    p = dict(module.named_parameters())
    head = F.linear(x, p["exit.head.linear.weight"], p["exit.head.linear.bias"])
    rest = F.relu(F.linear(x, p["exit.rest.linear.weight"], p["exit.rest.linear.bias"]))
    rest = F.linear(rest, p["exit.rest.linear1.weight"], p["exit.rest.linear1.bias"])
    ranked = head.softmax(-1).sort(-1, descending=True).values
    entropy = 1 + (ranked * ranked.log()).sum(-1) / math.log(3)
    sure = {"max_softmax": ranked[:, 0], "margin": ranked[:, 0] - ranked[:, 1], "entropy": entropy}[confidence]
    leaves = sure >= threshold
    assert 0 < leaves.double().mean() < 1
    torch.testing.assert_close(module(x), torch.where(leaves[:, None], head, rest))
    stats = {"stat/exit.left": leaves.float().mean(), "stat/exit.left.rows": torch.tensor(30.0)}
    torch.testing.assert_close(module.forward_with_aux(x)[1], stats)
    outputs, aux = module.train().forward_with_aux(x)
    torch.testing.assert_close(outputs, rest)
    torch.testing.assert_close(aux, {"exit/exit": head, **stats})
    torch.testing.assert_close(module(x), rest)


# -- scans ---------------------------------------------------------------------------------------------------------

CELL = "def cell = fn(a, h) { let new = linear(4)(a) + 0.5 * h -> tanh return new * 2, new }"


@pytest.mark.parametrize("length", [0, 1, 6])
def test_scans_have_any_length(length: int) -> None:
    graph = graph_of(
        ["ys", "last"], ["f32[N, T, 3]"], [CELL, "let ys, last = x -> scan(cell, state = [[4]], axis = 1)"]
    )
    ys, last = to_torch(graph)(torch.randn(2, length, 3))
    assert (ys.shape, last.shape) == ((2, length, 4), (2, 4))
    if length:
        torch.testing.assert_close(ys[:, -1], 2 * last)


def test_a_reversed_scan_keeps_the_order() -> None:
    def net(extra: str) -> ArchModule:
        lets = [CELL, f"let ys, last = x -> scan(cell, state = [[4]], axis = 1{extra})"]
        return to_torch(graph_of(["ys", "last"], ["f32[N, T, 3]"], lets))

    x = torch.randn(2, 5, 3)
    forward, backward = net("")(x.flip(1)), net(", reverse = true")(x)
    torch.testing.assert_close(backward[0], forward[0].flip(1))
    torch.testing.assert_close(backward[1], forward[1])


# -- torch.compile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [NET, LM], ids=["net", "lm"])
def test_torch_compile_takes_the_whole_graph(program: str) -> None:
    """Traced, experts compute all rows behind masks: the same numbers."""
    module = to_torch(loads(program)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for size in (4, 6):
        x = image()[:size] if program is NET else torch.randint(11, (size, 5))
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "expression",
    [
        EXIT.format(t=0.5, c="max_softmax"),
        "x -> skip(gate = linear(1) -> sigmoid, body = linear(6))",
        "x -> unflatten(1, [3, 2]) -> skip(gate = linear(1) -> sigmoid, body = linear(2), budget = 0.5)",
    ],
)
def test_structural_ops_compile(expression: str) -> None:
    torch._dynamo.reset()
    module, x = to_torch(graph_of([expression], ["f32[N, 6]"])).eval(), torch.randn(8, 6)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))


@pytest.mark.slow
def test_inductor_agrees() -> None:
    module = to_torch(loads(NET)).eval()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(image()), module(image()), rtol=1e-4, atol=1e-5)
