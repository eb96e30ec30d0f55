"""Routers of `moe`: who chooses whom, with what gates, what is noted of it, and what older programs keep."""

from __future__ import annotations

import pytest
import torch
from expressions import graph_of

from archc.backends.torch.module import ArchModule, to_torch
from archc.grammar.load import loads
from archc.ir.axes import derive_axes
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError


def mixture(arguments: str, x: str = "f32[N, 4]") -> ArchModule:
    expression = f"x -> moe(router = linear(3), experts = copies(3, linear(2)), {arguments})"
    return to_torch(graph_of([expression], [x]), dtype="f64")


def routed(module: ArchModule, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [R, 3] and what each expert makes of each row [R, 3, 2]."""

    def linear(name: str) -> torch.Tensor:
        weight, bias = (module.get_parameter(f"moe.{name}.linear.{role}") for role in ("weight", "bias"))
        return x @ weight.T + bias

    return linear("router"), torch.stack([linear(f"experts.{e}") for e in range(3)], dim=1)


@pytest.mark.parametrize("training", [False, True])
def test_sigmoid_scores(training: bool) -> None:
    """DeepSeek-V3, eq. 13-15: sigmoids, of which the largest are scaled to sum to 1."""
    module = mixture('top_k = 2, score = "sigmoid", temperature = 0.5').train(training)
    x = torch.randn(9, 4, dtype=torch.float64)
    logits, made = routed(module, x)
    scores = (2 * logits).sigmoid()
    best = scores.topk(2).indices
    gates = torch.zeros_like(scores).scatter(1, best, scores.gather(1, best))
    gates = gates / gates.sum(-1, keepdim=True)
    torch.testing.assert_close(module(x), (gates[..., None] * made).sum(1))
    assert not torch.allclose(module(x), (logits.softmax(-1)[..., None] * made).sum(1))


def test_gates_do_not_underflow() -> None:
    """Sigmoids of -1000 are 0, and so would be their sum."""
    module = mixture('top_k = 2, score = "sigmoid"')
    with torch.no_grad():
        module.get_parameter("moe.router.linear.bias").fill_(-1000)
    assert torch.isfinite(module(torch.randn(5, 4, dtype=torch.float64))).all()


@pytest.mark.parametrize("normalize", ["true", "false"])
def test_experts_choose(normalize: str) -> None:
    """Zhou et al. 2022: each expert takes the ceil(capacity R / E) rows with the largest scores."""
    module = mixture(f'top_k = 1, routing = "expert", capacity = 0.5, normalize = {normalize}').train()
    x = torch.randn(9, 4, dtype=torch.float64)
    logits, made = routed(module, x)
    scores = logits.softmax(-1)
    chosen = torch.zeros_like(scores).scatter(0, scores.topk(2, dim=0).indices, 1.0)  # ceil(0.5 * 9 / 3)
    gates = chosen * scores
    if normalize == "true":
        gates = gates / gates.sum(-1, keepdim=True).clamp_min(1e-300)
    assert (chosen.sum(-1) == 0).any(), "the case has a row that no expert takes"
    outputs, aux = module.forward_with_aux(x)
    torch.testing.assert_close(outputs, (gates[..., None] * made).sum(1))
    torch.testing.assert_close(aux["stat/moe.load"], torch.full((3,), 2 / 9))
    assert not any(name.startswith("loss/") for name in aux), "what experts choose is balanced by itself"
    outputs.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_statistics_are_no_loss() -> None:
    module, x = mixture("top_k = 1, capacity = 0.6"), torch.randn(50, 4, dtype=torch.float64)
    logits, _ = routed(module, x)
    chosen = torch.stack([(logits.argmax(-1) == e).float().mean() for e in range(3)])
    probabilities = logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean() / torch.tensor(3.0).log()
    for training in (False, True):
        _, aux = module.train(training).forward_with_aux(x)
        torch.testing.assert_close(aux["stat/moe.load"], chosen.clamp(max=0.2))  # ceil(0.6 * 50 / 3) of 50
        torch.testing.assert_close(aux["stat/moe.entropy"], entropy.detach().float(), rtol=1e-5, atol=1e-6)
        assert float(aux["stat/moe.load.rows"]) == 50
        assert not any(value.requires_grad for name, value in aux.items() if name.startswith("stat/"))
    assert {name for name in aux if not name.startswith("stat/")} == {"loss/moe.balance"}


def test_experts_that_choose_need_a_capacity() -> None:
    with pytest.raises(CompileError) as raised:
        loads(OLD.format(', routing = "expert"'))
    (diagnostic,) = raised.value.diagnostics
    assert (diagnostic.code, diagnostic.label) == ("E0311", "found no capacity")


OLD = """
arch a
input x: f32[N, 6]
output y: f32[N, 6]
y = x -> moe(router = linear(4), experts = copies(4, linear(6)), top_k = 2{})
"""


def test_programs_from_before_keep_their_hash() -> None:
    hash = "496a646ce8923404bd1683596e7b4476c1113be10920a162c16f72da5177306e"
    assert canonical(loads(OLD.format(""))).hash == hash
    assert canonical(loads(OLD.format(', score = "softmax", temperature = 1.0'))).hash == hash
    assert canonical(loads(OLD.format(", temperature = 2.0"))).hash != hash


@pytest.mark.parametrize(("arguments", "free"), [("", True), (", capacity = 1.0", False)])
def test_the_order_of_rows_counts_where_the_first_are_served_first(arguments: str, free: bool) -> None:
    graph = loads(
        f"""
        arch a
        input x: f32[N, 5, 6]
        output y: f32[N, 5, 6]
        let tokens = x -> transpose(1, 2) -> linear(5) -> transpose(1, 2)
        let mixed = tokens -> moe(router = linear(3), experts = copies(3, linear(6)), top_k = 1{arguments})
        y = mixed -> transpose(1, 2) -> linear(5) -> transpose(1, 2)
        """
    )
    members = [{(m.parameter, m.axis) for m in c.members} for c in derive_axes(graph).classes]
    assert members == ([{("tokens.linear.weight", 0), ("tokens.linear.bias", 0), ("linear.weight", 1)}] if free else [])
