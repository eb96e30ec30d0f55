"""The hypernetwork that comes with archc does what its card says."""

from __future__ import annotations

import numpy as np

import archc
from archc.backends.torch.training import load_task
from archc.grammar.load import loads
from archc.metanet.distribution import nets
from archc.metanet.ghn.kind import restore
from archc.metanet.ghn.model import Ghn
from archc.metanet.ghn.nets import Data, Net
from archc.metanet.ghn.training import accuracies
from archc.metanet.store import load


def test_unseen_nets_reach_what_the_card_says() -> None:
    stored = load("ghn-small", "ghn")
    model = restore(stored)
    data = Data(load_task("hard_digits"), model.tasks.index("hard_digits"))
    # The first nets of the very split that the card was measured on.
    unseen = [Net(name, graph, model.words) for name, graph in nets("test", 10, 0, "hard_digits")]
    found = float(np.mean(accuracies(model, unseen, data, "val", 300)))
    figures = stored.card.figures
    spread = figures["hard_digits/test/deviation"]
    assert abs(found - figures["hard_digits/test"]) < 1.5 * spread
    fresh = Ghn(model.config, model.tasks, model.words)
    assert found > float(np.mean(accuracies(fresh, unseen, data, "val", 300))) + 0.1


def test_routing_counts() -> None:
    """Weights of a net do worse in its twin, whose image arrives mirrored: the graph was used."""
    text = """
    arch net
    input image: f32[N, 1, 12, 12]
    output logits: f32[N, 10]
    let a = image -> {a} -> conv(4, kernel = 3) -> relu -> avg_pool(2) -> flatten -> linear(16) -> layer_norm -> relu
    let b = image -> {b} -> max_pool(2) -> flatten -> linear(16) -> relu -> linear(16)
    logits = concat(a, b, axis = 1) -> layer_norm -> relu -> linear(10)
    """
    model = restore(load("ghn-small", "ghn"))
    data = Data(load_task("hard_digits"), model.tasks.index("hard_digits"))
    one, twin = (
        Net(name, loads(text.format(a=a, b=b)), model.words)
        for name, a, b in (("one", "flip(2)", "identity"), ("twin", "permute([0, 1, 3, 2])", "flip(3)"))
    )
    from archc.metanet.ghn.nets import accuracy
    from archc.metanet.ghn.training import predict

    weights = predict(model, one, data.index)
    own = accuracy(one, weights, data, limit=600)
    transplanted = accuracy(
        twin, dict(zip(twin.trained, (weights[n] for n in one.trained), strict=True)), data, limit=600
    )
    assert own > transplanted + 0.1


def test_a_task_of_which_it_knows_nothing_comes_with_a_warning() -> None:
    for task, side, classes, codes in (("digits", 8, 10, []), ("tiles", 16, 4, ["E0827"])):
        name, graph = nets("test", 1, 0, task)[0]
        found = archc.predict(archc.Model(graph), task)
        assert graph.inputs[0].type.shape[-1] == side
        assert graph.outputs[0].type.shape[-1] == classes
        assert [w.code for w in found.warnings] == codes, name


def test_a_large_net_comes_with_a_warning() -> None:
    graph = loads(
        "arch big  input x: f32[N, 1, 12, 12]  output y: f32[N, 10]  y = x -> flatten -> linear(900) -> linear(10)"
    )
    found = archc.predict(archc.Model(graph), "hard_digits")
    assert [w.code for w in found.warnings] == ["E0826"]
    assert "trainable parameters" in found.warnings[0].label
