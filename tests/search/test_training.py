"""The lean loop learns what the large one learns, and goes on as if it had never stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.backends.torch.training import Recipe, load_task, train
from archc.grammar.load import loads
from archc.search.training import Batches, Diverged, Training

NETS = {
    "conv": """arch conv
    input x: f32[N, 1, 8, 8]
    output y: f32[N, 10]
    y = x -> conv(6, kernel = 3) -> group_norm(2) -> relu -> dropout(0.1) -> flatten -> linear(10)
    """,
    "moe": """arch moe_net
    input x: f32[N, 1, 8, 8]
    output y: f32[N, 10]
    y = x -> flatten -> moe(router = linear(3, bias = false), experts = copies(3, linear(12)), top_k = 2) -> relu
          -> linear(10)
    """,
}
BATCHES = Batches(load_task("digits"))
STEPS = 24


def start(net: str, **recipe: Any) -> Training:
    how = Recipe(steps=STEPS, device="cpu", keep="last", batch_size=32, **recipe)
    torch.manual_seed(0)
    return Training(to_torch(loads(NETS[net])), BATCHES, how, STEPS)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("recipe", [{}, {"optimiser": "sgd", "lr": 0.05, "clip": None}, {"shift": 1, "flip": True}])
def test_it_learns_what_the_large_loop_learns(net: str, recipe: dict[str, Any]) -> None:
    recipe = recipe | {"seed": 3}
    text = NETS[net].replace("dropout(0.1)", "identity")
    how = Recipe(steps=STEPS, device="cpu", keep="last", batch_size=32, **recipe)
    module, other = to_torch(loads(text)), to_torch(loads(text))
    result = train(module, BATCHES.task, how)
    lean = Training(other, BATCHES, how, STEPS)
    lean.run(STEPS)
    assert lean.judge("val")["loss"] == pytest.approx(result.val.metrics["loss"], rel=1e-4)
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(other.state_dict()[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-5)
    # The control: another recipe learns something else.
    changed = Training(to_torch(loads(text)), BATCHES, how.model_copy(update={"lr": how.lr / 2}), STEPS)
    changed.run(STEPS)
    assert changed.judge("val")["loss"] != pytest.approx(result.val.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("recipe", [{}, {"optimiser": "sgd", "lr": 0.05}])
def test_a_training_goes_on_as_if_it_had_not_stopped(recipe: dict[str, Any]) -> None:
    whole = start("conv", **recipe)
    whole.run(STEPS)
    first = start("conv", **recipe)
    first.run(7)
    state, weights = first.state(), first.weights()
    first.run(9)  # what the state holds is a copy
    second = start("conv", **recipe)
    torch.rand(5)  # random numbers stand elsewhere now: the dropout's come with the state
    second.restore(state, weights, "test")
    assert (second.step, second.samples) == (7, 7 * 32)
    second.run(STEPS)
    for name, array in whole.weights().items():
        np.testing.assert_array_equal(second.weights()[name], array)
    # The control: from the weights alone, other weights come.
    third = start("conv", **recipe)
    third.restore({"rng": state["rng"], "step": state["step"]}, weights, "test")
    third.run(STEPS)
    assert any((third.weights()[name] != array).any() for name, array in whole.weights().items())


def test_divergence_is_told() -> None:
    training = start("conv", lr=1e30, clip=None, warmup=0.0)
    with pytest.raises(Diverged, match="not finite"):
        training.run(STEPS)


def test_a_part_of_a_split_is_always_the_same_part() -> None:
    whole = torch.cat([y for _, y in BATCHES.slices("val")])
    part = torch.cat([y for _, y in BATCHES.slices("val", 50)])
    assert (len(whole), len(part)) == (300, 50)
    assert torch.equal(part, torch.cat([y for _, y in BATCHES.slices("val", 50)]))
    assert not torch.equal(part, whole[:50])
