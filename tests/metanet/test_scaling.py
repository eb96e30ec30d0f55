"""Factors that one layer gains and the next one loses: derived, counted otherwise, and certified."""

from __future__ import annotations

from pathlib import Path

import brute
import pytest

from archc.grammar.load import load, loads
from archc.metanet import scaling

EXAMPLES = Path(__file__).parents[2] / "examples"
VECTORS = "arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 3]\n"
TOKENS = "arch a()\ninput x: f32[N, T, 4]\noutput y: f32[N, T, 4]\n"
IMAGES = "arch a()\ninput x: f32[N, 3, 4, 4]\noutput y: f32[N, 3]\n"

DIMENSIONS = {  # body: (positive factors, signs)
    VECTORS + "y = x -> linear(8) -> relu -> linear(5) -> tanh -> linear(3)": (8, 5),
    VECTORS + "y = x -> linear(8) -> gelu -> linear(3)": (0, 0),
    VECTORS + "y = x -> linear(5) -> square -> linear(3)": (5, 5),
    VECTORS + "y = (x -> linear(3)) * (x -> linear(3)) -> linear(3)": (6, 6),
    VECTORS + "y = (x -> linear(5)) * (x -> linear(5) -> sigmoid) -> linear(3)": (5, 5),
    VECTORS + "y = concat(x -> linear(2) -> relu, x -> linear(3), axis = 1) -> linear(3)": (5, 3),
    VECTORS + "let h = x -> linear(5)\ny = (h + (h -> relu -> linear(5))) -> linear(3)": (5, 0),
    TOKENS + "y = x + (x -> attention(2, head_dim = 3))": (12, 12),
    TOKENS + 'y = x -> attention(2, head_dim = 4, kv_heads = 1, positions = "rope")': (2 + 4, 2 + 4),
    TOKENS + "y = x -> attention(2, head_dim = 4, qk_norm = true)": (4 + 8, 4 + 8),
    TOKENS + "y = x -> moe(router = linear(2), experts = copies(2, linear(5) -> relu -> linear(4)), top_k = 2)": (
        10,
        0,
    ),
    IMAGES + "y = x -> conv(8, kernel = 3) -> batch_norm -> relu -> flatten -> linear(3)": (16, 8),
    IMAGES + "y = x -> conv(4, kernel = 1) -> conv(4, kernel = 3, groups = 2) -> relu -> flatten -> linear(3)": (8, 4),
    IMAGES + "y = x -> conv(4, kernel = 1) -> group_norm(2) -> relu -> global_avg_pool -> linear(3)": (4, 0),
}


@pytest.mark.parametrize("program", DIMENSIONS, ids=lambda p: p.splitlines()[-1][:60])
def test_dimensions_are_derived_and_certified(program: str) -> None:
    graph = loads(program)
    for kind, dimensions in zip(("positive", "sign"), DIMENSIONS[program], strict=True):
        found = scaling.scalings(graph, kind)
        assert found.dimensions == dimensions
        certificate = scaling.certify(graph, kind, found=found, controls=2)
        assert certificate.ok
        assert certificate.controls.count > 0 or not dimensions


@pytest.mark.parametrize("program", list(DIMENSIONS)[:7], ids=lambda p: p.splitlines()[-1][:60])
def test_dimensions_are_counted_otherwise(program: str) -> None:
    """The factors that keep the function are those whose exponents its derivatives do not see, at any weights."""
    graph = loads(program)
    function = brute.Function(graph, 0)
    counted = brute.scaling_dimensions(function, brute.active(function, 0), 0)
    assert counted == scaling.scalings(graph).dimensions


@pytest.mark.parametrize(("op", "kind"), [("gelu", "positive"), ("relu", "sign"), ("softplus", "positive")])
def test_a_wrong_rule_is_caught(op: str, kind: scaling.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an op that does not pass factors on, declared as one that does."""
    graph = loads(VECTORS + f"y = x -> linear(6) -> {op} -> linear(3)")
    assert scaling.certify(graph, kind).ok
    rules = {**scaling.RULES, kind: {**scaling.RULES[kind], op: scaling.Fraction(1)}}
    monkeypatch.setattr(scaling, "RULES", rules)
    assert scaling.scalings(graph, kind).dimensions == 6
    assert not scaling.certify(graph, kind).ok


def test_a_shared_weight_takes_no_factors() -> None:
    """A layer that is used twice would have to take the factors of both uses."""
    graph = loads(
        VECTORS + "share again = linear(4)\ny = x -> linear(4) -> relu -> again -> relu -> again -> linear(3)"
    )
    assert scaling.scalings(graph).dimensions == 0


def test_an_axis_that_is_turned_round_takes_one_factor() -> None:
    """All of its places take the same one, or none."""
    graph = loads(VECTORS + "let h = x -> linear(4)\ny = (h + (h -> flip(1))) -> linear(3)")
    assert scaling.scalings(graph).dimensions == 1
    assert scaling.certify(graph, "positive").ok


@pytest.mark.parametrize("name", ["digits_resnet", "kan", "unet"])
def test_examples_are_certified(name: str) -> None:
    graph = load(EXAMPLES / f"{name}.arch", {"width": 2} if name == "unet" else {})
    for kind in ("positive", "sign"):
        assert scaling.certify(graph, kind, controls=2).ok
