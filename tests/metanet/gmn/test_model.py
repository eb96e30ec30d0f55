"""The graph metanetwork commutes with the symmetries of the networks it reads, and a broken one does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from archc.grammar.load import loads
from archc.metanet.gmn.batch import Collator, from_data
from archc.metanet.gmn.equivariance import deviation
from archc.metanet.gmn.families import FAMILIES, architectures
from archc.metanet.gmn.model import Gmn, GmnConfig, parameters_of, vocabulary_sizes
from archc.metanet.neuron_graph import neuron_graph
from archc.metanet.symmetry import random_weights

TOLERANCE = 1e-5  # of what is predicted, in float32


@pytest.fixture(scope="module")
def collator() -> Collator:
    return Collator()


def _model(collator: Collator, **options: int | bool) -> Gmn:
    """A model whose heads are random: one that starts at zero would commute with anything."""
    torch.manual_seed(0)
    return Gmn(GmnConfig.model_validate({"changes": True, **options}), *vocabulary_sizes(collator.words))


@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_weights_get_permuted_changes(family: str, collator: Collator) -> None:
    graph = architectures(family, 1)[0].graph
    weights = random_weights(graph, 0)
    found = deviation(_model(collator), collator, graph, weights, seed=1)
    assert found.moved > 0.5
    assert 0 < found.change < TOLERANCE
    assert found.said < TOLERANCE


@pytest.mark.parametrize("family", ["mlp", "attention"])
def test_a_model_that_numbers_hidden_units_fails(family: str, collator: Collator) -> None:
    graph = architectures(family, 1)[0].graph
    found = deviation(_model(collator, broken=64), collator, graph, random_weights(graph, 0), seed=1)
    assert found.change > 100 * TOLERANCE
    assert found.said > TOLERANCE


def test_a_change_follows_the_weight_that_it_is_of(collator: Collator) -> None:
    """`places` gives each parameter its own shape, and a change depends on the very weight."""
    graph = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(3) -> relu -> linear(2)")
    weights = random_weights(graph, 0)
    model = _model(collator, rounds=0)
    before = collator.places([graph], model(collator([(graph, weights)]))[1])[0]
    assert {n: tuple(v.shape) for n, v in before.items()} == {n: p.shape for n, p in graph.parameters().items()}
    weights["linear.weight"] = weights["linear.weight"].copy()
    weights["linear.weight"][1, 2] += 1
    after = collator.places([graph], model(collator([(graph, weights)]))[1])[0]
    assert np.argwhere((before["linear.weight"] != after["linear.weight"]).numpy()).tolist() == [[1, 2]]
    assert all(torch.equal(before[n], after[n]) for n in before if n != "linear.weight")


def test_a_batch_of_mixed_networks_says_what_each_alone_does(collator: Collator) -> None:
    nets = [(a.graph, random_weights(a.graph, 0)) for f in ("mlp", "cnn", "attention") for a in architectures(f, 1)]
    model = _model(collator).eval()
    with torch.no_grad():
        said, change = model(collator(nets))
        alone = [model(collator([net])) for net in nets]
    torch.testing.assert_close(said, torch.cat([a[0] for a in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(change, torch.cat([a[1] for a in alone]), rtol=1e-4, atol=1e-5)


def test_the_loaders_of_torch_geometric_make_the_same_batch(collator: Collator) -> None:
    from torch_geometric.loader import DataLoader

    nets = [(a.graph, random_weights(a.graph, 0)) for f in ("mlp", "kan") for a in architectures(f, 1)]
    model = _model(collator).eval()
    data = next(iter(DataLoader([neuron_graph(*net) for net in nets], batch_size=2)))
    with torch.no_grad():
        (said, change), (expected, expected_change) = model(from_data(data)), model(collator(nets))
    torch.testing.assert_close(said, expected)
    torch.testing.assert_close(change, expected_change)


def test_gradients_of_sparse_sums_are_those_of_plain_ones(collator: Collator) -> None:
    """Every parameter's gradient, against finite differences along a random direction."""
    graph = architectures("cnn", 1)[0].graph
    batch = collator([(graph, random_weights(graph, 0))])
    model = _model(collator)
    model(batch)[0].sum().backward()
    gradients = [(p, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    torch.manual_seed(1)
    directions = [torch.randn_like(p) for p, _ in gradients]
    slope = sum(float((g * d).sum()) for (_, g), d in zip(gradients, directions, strict=True))
    sums = []
    for sign in (1, -1):
        with torch.no_grad():
            for (p, _), d in zip(gradients, directions, strict=True):
                p += sign * 1e-3 * d
            sums.append(float(model(batch)[0].double().sum()))
            for (p, _), d in zip(gradients, directions, strict=True):
                p -= sign * 1e-3 * d
    assert (sums[0] - sums[1]) / 2e-3 == pytest.approx(slope, rel=0.05)


def test_the_model_is_small(collator: Collator) -> None:
    assert parameters_of(_model(collator)) < 200_000
