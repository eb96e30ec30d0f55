"""What a hypernetwork is compared with: each view sees what it says, with the same parameters, all of them in use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from archc.grammar.load import loads
from archc.metanet.ghn.model import GhnConfig, parameter_count
from archc.metanet.ghn.nearest import likeness, nearest, similarity, transplant
from archc.metanet.ghn.nets import Net
from archc.metanet.ghn.starts import architecture_aware, kaiming
from archc.metanet.ghn.tables import VIEWS, View, build, viewed
from archc.metanet.ghn.training import predict
from archc.metanet.tensor_graph import POSITION_COLUMNS
from archc.metanet.vocabulary import vocabulary

TINY = GhnConfig(hidden=16, rank=8, width=16, mix=8, grid=6, rounds=3, turns=8)
WORDS = vocabulary()
HEAD = "input x: f32[N, 1, 6, 6]\noutput y: f32[N, 4]\n"


def net(body: str, name: str = "n") -> Net:
    return Net(name, loads(f"arch {name}\n{HEAD}{body}"), WORDS)


PLAIN = net("y = x -> flip(2) -> relu -> avg_pool(2) -> flatten -> linear(8) -> tanh -> linear(4)")
TURNED = net("y = x -> flip(3) -> relu -> avg_pool(2) -> flatten -> linear(8) -> tanh -> linear(4)")
"""As PLAIN, but for an op four steps before the first layer."""


def awake(view: View, seed: int = 0) -> torch.nn.Module:
    """An untrained model in which no weight is 0, so that whatever it hears can be seen."""
    model = build(view, TINY, ["digits"], WORDS, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def moved(view: View, one: Net, other: Net, name: str = "linear.weight") -> float:
    """How far the weight of the first layer moves between two nets."""
    model = awake(view)
    a, b = (predict(model, viewed(n, view), 0)[name] for n in (one, other))  # type: ignore[arg-type]
    return float((a - b).norm() / a.norm())


def test_all_views_have_the_same_parameters_and_first_weights() -> None:
    states = [build(view, TINY, ["digits"], WORDS).state_dict() for view in VIEWS]
    assert len({parameter_count(build(view, TINY, ["digits"], WORDS)) for view in VIEWS}) == 1
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[k], states[0][k]) for k in state)


@pytest.mark.parametrize("view", ["graph", "shuffled", "bag"])
def test_an_op_far_away_is_heard_of(view: View) -> None:
    assert moved(view, PLAIN, TURNED) > 1e-4


@pytest.mark.parametrize("view", ["table", "context"])
def test_tables_know_nothing_of_what_is_far_away(view: View) -> None:
    assert moved(view, PLAIN, TURNED) == 0.0


def test_the_context_table_knows_neighbours_and_the_plain_table_does_not() -> None:
    other = net("y = x -> flip(2) -> relu -> avg_pool(2) -> flatten -> linear(8) -> relu -> linear(4)")
    assert moved("context", PLAIN, other) > 1e-4
    assert moved("table", PLAIN, other) == 0.0


def test_a_list_hears_what_stands_near_in_it() -> None:
    assert moved("ordered", PLAIN, TURNED) > 1e-4


@pytest.mark.parametrize("view", VIEWS)
def test_every_shared_layer_learns_in_every_view(view: View) -> None:
    """Nothing is dead weight: layers between states get gradients whatever is seen."""
    model = awake(view)
    weights = model([viewed(PLAIN, view).subject, viewed(TURNED, view).subject], [0, 0])
    sum(value.square().sum() for value in weights[0].values() if value.requires_grad).backward()
    for layer in ("senders", "update.0", "update.2", "first.0", "last.0", "turn"):
        gradient = model.encoder.get_parameter(f"{layer}.weight").grad  # type: ignore[union-attr,operator]
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0, layer
    if view != "bag":  # all four ways are spoken on: in a loop too
        ways = model.encoder.senders.weight.grad.view(4, TINY.hidden, -1).abs().sum((1, 2))  # type: ignore[union-attr]
        assert int((ways > 0).sum()) >= (4 if view == "table" else 2)


def test_shuffled_edges_join_other_ops_and_keep_their_number_and_kinds() -> None:
    seen, shuffled = PLAIN.subject, viewed(PLAIN, "shuffled").subject
    assert shuffled.feeds.shape == seen.feeds.shape
    assert torch.equal(shuffled.flows, seen.flows)
    assert not torch.equal(shuffled.feeds, seen.feeds)
    degrees = [np.sort(np.bincount(s.feeds.flatten().numpy())).tolist() for s in (seen, shuffled)]
    assert degrees[0] == degrees[1]
    # Place features are those of the new places: the same rows, elsewhere; what is an op's own has stayed.
    place = [POSITION_COLUMNS.index(c) for c in ("relative", "forward", "backward", "fan_in", "fan_out", "walk")]
    rows = [np.sort(s.position[:, place].numpy().round(5), axis=0).tolist() for s in (seen, shuffled)]
    assert rows[0] == rows[1]
    assert not torch.equal(shuffled.position[:, place], seen.position[:, place])
    own = POSITION_COLUMNS.index("weights")
    assert torch.equal(shuffled.position[:, own], seen.position[:, own])
    assert torch.equal(shuffled.use_op, seen.use_op)
    # Depth is still that of the edges: every one leads deeper.
    forward = shuffled.position[:, POSITION_COLUMNS.index("forward")]
    assert bool((forward[shuffled.feeds[0]] < forward[shuffled.feeds[1]]).all())
    assert torch.equal(viewed(PLAIN, "shuffled").subject.feeds, shuffled.feeds)  # the same at every look


def test_the_bag_does_not_know_places() -> None:
    subject = viewed(PLAIN, "bag").subject
    assert subject.feeds.shape[1] == 0
    assert float(subject.position[:, POSITION_COLUMNS.index("forward")].abs().max()) == 0.0


def test_the_nearest_net_is_the_one_with_the_same_neighbourhoods() -> None:
    far = net("y = x -> flatten -> linear(20) -> gelu -> linear(4)").graph
    kinds = [likeness(n) for n in (far, TURNED.graph, PLAIN.graph)]
    assert nearest(PLAIN.graph, kinds) == 2
    assert nearest(PLAIN.graph, kinds[:2]) == 1
    assert similarity(kinds[1], kinds[2]) < 1.0


def test_transplanted_weights_are_those_of_the_slot_cut_to_shape() -> None:
    narrow = net("y = x -> flatten -> linear(6) -> relu -> linear(4)").graph
    weights = kaiming(PLAIN.graph, 1).weights
    found = transplant(PLAIN.graph, weights, narrow)
    first, second = weights["linear.weight"], weights["linear1.weight"]
    assert np.array_equal(found["linear.weight"][:, :9], first[:6, :9])  # 9 inputs there, 36 here
    assert np.array_equal(found["linear1.weight"], second[:, :6])
    assert not np.array_equal(found["linear.weight"], kaiming(narrow, 0).weights["linear.weight"])
    own = transplant(PLAIN.graph, weights, PLAIN.graph)
    assert all(np.array_equal(own[name], weights[name]) for name in weights)


def test_aware_weights_of_a_sum_are_smaller_and_long_paths_slow_training_down() -> None:
    chain = net("y = x -> flatten -> linear(64) -> relu -> linear(64) -> relu -> linear(4)").graph
    longer = net("y = x -> flatten -> linear(64) -> linear(64) -> linear(64) -> linear(4)").graph
    assert architecture_aware(chain, 0).rate == 1.0
    assert architecture_aware(longer, 0).rate == pytest.approx((27 / 64) ** 0.5)
    wide = net("let h = x -> flatten -> linear(64)\ny = h -> residual(linear(64)) -> relu -> linear(4)").graph
    aware, plain = architecture_aware(wide, 0).weights, kaiming(wide, 0).weights
    assert aware["linear1.weight"].std() == pytest.approx(plain["linear1.weight"].std() / 2**0.5, rel=1e-6)
    assert np.array_equal(aware["h.linear.weight"], plain["h.linear.weight"])
    # Two paths, of two layers and of three: 8 + 27.
    assert architecture_aware(wide, 0).rate == pytest.approx((27 / 35) ** 0.5)
