"""Group elements must not move the function, and what is not in the group must: in float64, with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from archc.grammar.load import load, loads
from archc.ir import axes as axes_module
from archc.ir.axes import derive_axes
from archc.metanet import symmetry
from archc.metanet.running import Runner, change

EXAMPLES = Path(__file__).parents[2] / "examples"

SMALL = {
    "digits_resnet": {},
    "kan": {},
    "lstm": {"vocab": 50, "dim": 12},
    "skipnet": {"width": 4, "depth": 2},
    "llama_like": {"dim": 24, "depth": 2, "heads": 6, "kv_heads": 2, "hidden": 16, "vocab": 40},
    "mixtral_like": {"dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 8, "experts": 4, "vocab": 40},
    "gpt2_small": {"dim": 24, "depth": 2, "heads": 4, "vocab": 40, "context": 16},
    "unet": {"width": 2},
    "wrn16_4": {"width": 1},
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_examples_are_certified(name: str) -> None:
    certificate = symmetry.certify(load(EXAMPLES / f"{name}.arch", SMALL[name]), controls=4)
    assert certificate.error <= symmetry.TOLERANCE * certificate.conditioning
    assert certificate.controls.count > 0
    assert certificate.controls.least >= symmetry.CONTROL
    assert certificate.moved > 0.5
    assert certificate.ok


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.arch")), ids=lambda f: f.stem)
def test_examples_at_full_size_are_certified(file: Path) -> None:
    assert symmetry.certify(load(file), elements=1, controls=4).ok


def test_a_wrong_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing pinned, inputs and outputs are permuted too, and the certificate fails."""
    graph = loads("arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 3]\ny = x -> linear(8) -> relu -> linear(3)")
    assert symmetry.certify(graph).ok
    monkeypatch.setattr(axes_module, "_pin", lambda var, pin: None)
    assert not symmetry.certify(graph).ok


def test_indexing_by_an_axis_that_is_looked_across_is_caught() -> None:
    """If each head could permute its channels although a softmax mixes heads, the function would move."""
    graph = loads(
        "arch a()\ninput x: f32[N, 6]\noutput y: f32[N, 2]\n"
        "y = x -> linear(12) -> reshape([N, 3, 4]) -> softmax(1) -> reshape([N, 12]) -> linear(2)"
    )
    axes = derive_axes(graph)
    heads, channels = axes.classes
    weights, run = symmetry.random_weights(graph, 0), Runner(graph)
    before = run(weights)
    right = symmetry.apply(axes, symmetry.sample(axes, 1), weights)
    assert change(before, run(right)) < 1e-12
    axes.classes = (heads, replace(channels, indexed_by=(heads.leaf,)))
    wrong = symmetry.apply(axes, symmetry.sample(axes, 1), weights)
    assert change(before, run(wrong)) > 1e-3


def test_apply_permutes_and_nothing_else() -> None:
    import numpy as np

    graph = load(EXAMPLES / "llama_like.arch", SMALL["llama_like"])
    axes, weights = derive_axes(graph), symmetry.random_weights(graph, 3)
    moved = symmetry.apply(axes, symmetry.sample(axes, 5), weights)
    assert moved.keys() == weights.keys()
    for name, weight in weights.items():
        assert np.array_equal(np.sort(moved[name], axis=None), np.sort(weight, axis=None))
