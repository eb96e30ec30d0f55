"""The predicted change commutes with the group, before and after training; a model that knows places does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archc.metanet.nowcast.equivariance import equivariance_error, random_history
from archc.metanet.nowcast.incidence import incidence
from archc.metanet.nowcast.kind import model_of
from archc.metanet.nowcast.model import Config, Nowcaster, Wiring, linear
from archc.metanet.nowcast.nets import NETS
from archc.metanet.store import load

TOLERANCE = 1e-5


class Placed(Nowcaster):
    """Broken on purpose: it adds to each change what depends on the weight's place in its tensor."""

    def forward(self, history: Tensor, wiring: Wiring, ahead: list[float]) -> Tensor:
        places = torch.linspace(-1, 1, history.shape[-1])
        return super().forward(history, wiring, ahead) * (1 + 0.1 * places)


def with_random_head(kind: type[Nowcaster], rounds: int) -> Nowcaster:
    torch.manual_seed(0)
    model = kind(Config(rounds=rounds, hidden=16))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("name", ["normed", "flat_conv", "residual", "depthwise", "deep_vit", "mixer", "kan", "gru"])
def test_the_predicted_change_is_equivariant(name: str) -> None:
    graph = NETS[name].graph()
    for rounds in (0, 2):
        assert equivariance_error(with_random_head(Nowcaster, rounds), graph) <= TOLERANCE
    assert equivariance_error(with_random_head(Placed, 2), graph) > 100 * TOLERANCE


def test_the_shipped_model_is_equivariant() -> None:
    model = model_of(load("nowcast-small", "nowcast"))
    for name in ("deep_vit", "pre_norm", "gru"):
        assert equivariance_error(model, NETS[name].graph(), seed=1) <= TOLERANCE


def test_the_graph_is_used() -> None:
    """With message passing the change of one weight depends on its neighbours' past; without, on its tensor's unit."""
    found = incidence(NETS["mlp"].graph())
    wiring, history = Wiring(found), random_history(found, 5, seed=0)
    other = history.clone()
    neuron = torch.from_numpy(found.slots[0] == found.slots[0][0])
    other[:, 0, neuron & (torch.arange(found.weights) >= 64)] += 0.01  # bias of the first neuron: another tensor
    for rounds, reaches in ((0, False), (1, True)):
        model = with_random_head(Nowcaster, rounds)
        with torch.no_grad():
            moved = (model(other, wiring, [4.0]) - model(history, wiring, [4.0]))[0, 0, :64]
        assert bool((moved != 0).any()) is reaches


def test_units_of_weights_do_not_matter_and_what_rests_stays() -> None:
    found = incidence(NETS["mlp"].graph())
    wiring, history, model = Wiring(found), random_history(found, 5, seed=0), with_random_head(Nowcaster, 2)
    with torch.no_grad():
        change = model(history, wiring, [4.0])
        torch.testing.assert_close(model(history * 8, wiring, [4.0]), change * 8, rtol=1e-4, atol=1e-5)
        still = history[:, -1:].expand(-1, 5, -1)
        assert not model(still, wiring, [4.0]).any()


def test_linear_extrapolation_is_exact_on_a_line() -> None:
    line = torch.arange(5.0)[None, :, None] * torch.tensor([1.0, -2.0])
    torch.testing.assert_close(linear(line, 3.0), torch.tensor([[3.0, -6.0]]))
