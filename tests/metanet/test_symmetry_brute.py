"""The derived group is the whole group: its order is the number of permutations that computing alone finds."""

from __future__ import annotations

import pytest
import verdicts
from tiny_nets import BLOCKS, tiny_net

from archc.grammar.load import loads
from archc.ir.axes import Axes, derive_axes

VECTORS = "arch a()\ninput x: f32[N, 3]\noutput y: f32[N, 2]\n"


@pytest.mark.parametrize("index", [3, 6, 11, 20, 33, 41, 47, 57])
def test_the_derived_order_is_the_counted_one(index: int) -> None:
    net = tiny_net(0, index)
    verdict = verdicts.judge_text(net.text, 0)
    assert verdict.decided
    assert verdict.level, f"{net.text}\n{verdict}"


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_the_derived_order_is_the_counted_one_everywhere(index: int) -> None:
    net = tiny_net(1, index)
    verdict = verdicts.judge_text(net.text, 1)
    assert verdict.level or not verdict.decided, f"{net.text}\n{verdict}"


def test_pinning_everything_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a derivation that finds too little does not agree with the count."""
    text = VECTORS + "y = x -> linear(4) -> relu -> linear(2)\n"
    assert verdicts.judge_text(text, 0).level == "entries"
    monkeypatch.setattr(verdicts, "group", lambda graph: Axes())
    assert verdicts.judge_text(text, 0).level == ""


def test_finding_too_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a class that is not there."""

    def doubled(graph: object) -> Axes:
        axes = derive_axes(loads(text))
        axes.classes = (*axes.classes, *axes.classes)
        return axes

    text = VECTORS + "y = x -> linear(3) -> tanh -> linear(2)\n"
    monkeypatch.setattr(verdicts, "group", doubled)
    assert verdicts.judge_text(text, 0).level == ""


@pytest.mark.parametrize(
    ("body", "derived", "counted"),
    [
        ("let h = x -> linear(4) -> tanh\ny = h * (h -> select(1, 0) -> unsqueeze(1)) -> linear(2)", 1, 6),
        ("let h = x -> linear(4) -> tanh\ny = (h + (h -> flip(1) -> square)) -> linear(2)", 1, 8),
        ("y = x -> linear(4) -> tanh -> reshape([N, 2, 2]) -> permute([0, 2, 1]) -> flatten -> linear(2)", 8, 24),
        ("y = x -> linear(3) -> reshape([N, 1, 3]) -> conv1(1, kernel = 3, padding = 1) -> flatten -> linear(2)", 1, 2),
    ],
    ids=["select", "flip", "joined in another order", "reversed with its kernel"],
)
def test_what_is_not_derived(body: str, derived: int, counted: int) -> None:
    """The gaps that docs/symmetry.md lists: a subgroup is found, and this large is what is missing."""
    verdict = verdicts.judge_text(VECTORS + body.replace("conv1(", "conv(") + "\n", 0)
    assert (verdict.classes, verdict.entries) == (derived, counted)
