"""Weights that children inherit: through transforms, whose contracts hold, and by laying networks over each other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import archc
from archc.facade.sameness import same_function
from archc.grammar.load import loads
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights
from archc.search.inherit import inherited, matching
from archc.search.space import open_space

SPACES = Path(archc.__file__).parents[1] / "examples" / "spaces"
HEAD = "arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"


def net(body: str) -> Graph:
    return loads(HEAD + body)


def names(parent: str, child: str) -> dict[str, str]:
    return {mine.name: theirs.name for mine, theirs in matching(net(parent), net(child)).items()}


def whole(graph: Graph, carried: dict[str, np.ndarray], seed: int = 7) -> dict[str, np.ndarray]:
    """Inherited weights, and fresh ones for the rest."""
    return random_weights(graph, seed) | carried


@pytest.mark.parametrize("spec", ["widen", "deepen", "glu", "skip", "kan(grkan)", "moe(experts = 4)"])
def test_exact_transforms_hand_on_the_function(spec: str, tmp_path: Path):
    path = tmp_path / "s.arch"
    path.write_text(
        "space s\ninput x: f32[N, 6, 8]\noutput y: f32[N, 6, 8]\nrule Act = relu | gelu\n"
        "y = x -> residual(layer_norm -> linear(16) -> Act -> linear(8)) -> residual(linear(16) -> Act -> linear(8))\n"
    )
    space = open_space(path, transforms=[spec], kinds={"transform": 1.0})
    parent = space.draw("a")
    child = space.mutate(0, parent, "k")
    assert child.origin.startswith(f"transform/{spec} at ")
    old, new = loads(parent.text), loads(child.text)
    weights = random_weights(old, 0)
    found = inherited(old, weights, new, child.origin)
    assert found.contract == "exact"
    assert set(found.weights) == set(new.parameters())
    assert {n: a.shape for n, a in found.weights.items()} == {n: p.shape for n, p in new.parameters().items()}
    assert 0 < found.share <= 1
    assert same_function(old, new, weights, found.weights, format="f32").ok
    spoiled = {n: a + 0.05 for n, a in found.weights.items()}
    assert not same_function(old, new, weights, spoiled, format="f32").ok  # the control


def test_a_transform_of_another_parent_is_laid_over():
    """The origin names a transform that does not lead from this parent to this child: then parameters are matched."""
    old, new = net("y = x -> linear(8) -> relu -> linear(4)"), net("y = x -> linear(8) -> tanh -> linear(4)")
    found = inherited(old, random_weights(old, 0), new, "transform/widen at linear")
    assert found.contract == "matched"
    assert found.share == 1


def test_what_is_alike_keeps_its_weights():
    parent = 'y = x -> linear(8) -> relu -> linear(8, name = "mid") -> relu -> linear(4)'
    assert names(parent, parent.replace("relu -> linear(4)", "tanh -> linear(4)")) == {
        f"{n}.{r}": f"{n}.{r}" for n in ("linear", "mid", "linear1") for r in ("weight", "bias")
    }
    wider = names(parent, parent.replace("linear(8, name", "linear(16, name"))
    assert wider == {"linear.weight": "linear.weight", "linear.bias": "linear.bias"}  # others have other shapes
    shorter = names(parent, "y = x -> linear(8) -> relu -> linear(4)")
    assert shorter["linear1.weight"] == "linear1.weight"  # what is named otherwise in a whole is found, too


def test_blocks_that_move_and_blocks_between():
    """Six equal blocks, one of them replaced: those before it and those behind it stay who they are."""
    block = "residual(linear(4) -> relu)"
    parent = f"y = x -> {' -> '.join([block] * 6)}"
    child = f"y = x -> {' -> '.join([block] * 2 + ['residual(linear(4) -> tanh -> linear(4))'] + [block] * 3)}"
    found = names(parent, child)
    numbers = ["", "1", "2", "3", "4", "5"]
    assert [found.get(f"linear{i}.weight") for i in ("", "1")] == [f"linear{n}.weight" for n in numbers[:2]]
    assert [found.get(f"linear{i}.weight") for i in ("4", "5", "6")] == [f"linear{n}.weight" for n in numbers[3:]]


def test_shared_weights_and_regions():
    shared = "share s = linear(4)\ny = x -> s -> relu -> s -> {}"
    assert names(shared.format("tanh"), shared.format("gelu")) == {"s.weight": "s.weight", "s.bias": "s.bias"}
    mixture = (
        "y = x -> moe(router = linear(2), experts = copies(2, linear(8) -> {} -> linear(4)), top_k = 1) -> linear(4)"
    )
    same = names(mixture.format("relu"), mixture.format("relu"))
    assert same == {n: n for n in net(mixture.format("relu")).parameters()}
    changed = names(mixture.format("relu"), mixture.format("tanh"))
    assert changed == same


def test_children_of_mutations_inherit_most():
    """On average more than half of the weights, all of their parameter's shape; equal networks inherit everything."""
    for name in ("cells", "transformer"):
        space = open_space(SPACES / f"{name}.arch")
        shares = []
        for i in range(6):
            parent = space.draw(str(i))
            child = space.mutate(0, parent, f"k{i}")
            old, new = loads(parent.text), loads(child.text)
            weights = random_weights(old, i)
            found = inherited(old, weights, new, child.origin)
            assert all(found.weights[n].shape == new.parameters()[n].shape for n in found.weights)
            shares.append(found.share)
            itself = inherited(old, weights, loads(parent.text), "mutation/resample")
            assert itself.share == 1
            assert all(np.array_equal(itself.weights[n], weights[n]) for n in weights)
        assert np.mean(shares) > 0.4
        strangers = [loads(space.draw(f"{i}/other").text) for i in range(4)]
        foreign = [inherited(a, random_weights(a, 0), b, "draw").share for a, b in pairwise(strangers)]
        assert np.mean(foreign) < np.mean(shares)
