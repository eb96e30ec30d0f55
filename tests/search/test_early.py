"""Learning-curve early stopping: who is stopped, and who is not."""

from __future__ import annotations

import numpy as np
import pytest

from archc.search.early import Rule, hopeless, score_at
from archc.search.records import Point

SAMPLES = (10, 30, 60, 90)


def curve(*scores: float) -> tuple[Point, ...]:
    return tuple(Point(samples=s, score=v) for s, v in zip(SAMPLES, scores, strict=False))


def population(noise: float, seed: int = 0) -> list[tuple[Point, ...]]:
    """Curves that end at 0.5 to 0.9; early scores tell the end as well as the noise lets them."""
    rng = np.random.default_rng(seed)
    found = []
    for end in np.linspace(0.5, 0.9, 40):
        early = 0.4 * end + noise * rng.standard_normal(3)
        found.append(curve(*early, end))
    return found


@pytest.mark.parametrize("kind", ["median", "extrapolate"])
def test_the_bad_are_stopped_and_the_good_are_not(kind: str) -> None:
    rule = Rule.model_validate({"kind": kind, "warmup": 10})
    earlier = population(noise=0.002)
    assert hopeless(curve(0.2, 0.2), earlier, rule)
    assert not hopeless(curve(0.36, 0.36), earlier, rule)


def test_nothing_is_stopped_without_reason_to() -> None:
    rule = Rule(warmup=10, grace=0.2)
    earlier = population(noise=0.002)
    assert hopeless(curve(0.2, 0.2), earlier, rule)  # the control for all that follow
    assert not hopeless((), earlier, rule)
    assert not hopeless(curve(0.2), earlier, rule), "before the grace is over"
    assert not hopeless(curve(0.2, 0.2), earlier[:9], rule), "too few to judge by"
    assert not hopeless(curve(0.2, 0.2, 0.2, 0.5), earlier, rule), "it is over anyway"
    assert not hopeless(curve(0.2, 0.2), [c[:2] for c in earlier[10:]] + earlier[:9], rule), "too few whole ones"


def test_where_early_scores_tell_nothing_the_line_doubts() -> None:
    rng = np.random.default_rng(0)
    blind = [curve(*rng.random(3), end) for end in np.linspace(0.5, 0.9, 40)]
    sure = Rule(warmup=10)
    stopped = [hopeless(curve(score, score), blind, sure) for score in np.linspace(0, 1, 11)]
    assert not any(stopped)
    assert any(hopeless(curve(s, s), population(0.002), sure) for s in np.linspace(0, 1, 11))


def test_scores_between_points() -> None:
    assert score_at(curve(0.0, 0.4, 0.4, 1.0), 20) == pytest.approx(0.2)
    assert score_at(curve(0.1, 0.4), 500) == pytest.approx(0.4)
