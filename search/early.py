"""Learning-curve early stopping: whether a training is worth going on with, told by the curves of earlier ones.

A rule is plain data, and what it says follows from the curves alone: a replay comes to the same.

    median       its best score so far is below the median of what earlier trainings had after as many samples
    extrapolate  a line leads from earlier trainings' scores after as many samples to their last ones; where it leads
                 this one, with `doubt` deviations of the residuals in its favour, is not among the `keep` best so far

Only whole trainings count as earlier ones; nothing is stopped before there are `warmup` of them, or before `grace` of a
training. Scores are larger when better. It is the score alone that is judged: where a search has other objectives, too,
a small network that learns less is stopped like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from archc.search.records import Point, Record

Curve = Sequence[Point]
Scores = NDArray[np.float64]


class Rule(Record):
    """When to stop."""

    kind: Literal["median", "extrapolate"] = "extrapolate"
    warmup: int = Field(16, ge=3, description="whole trainings before anything is stopped")
    grace: float = Field(0.1, ge=0, le=1, description="share of a training before which it is not stopped")
    doubt: float = Field(1.6, ge=0, description="deviations of the residuals in the training's favour")
    keep: float = Field(0.2, gt=0, le=1, description="share of the earlier trainings, the best, that it may end among")


RULE = Rule()
"""The rule of `--early-stop`."""


def hopeless(curve: Curve, earlier: Sequence[Curve], rule: Rule = RULE) -> bool:
    """Whether a training is to be stopped where its curve ends.

    >>> flat = [[Point(samples=s, score=0.1 * k) for s in (10, 20, 30)] for k in range(8)]
    >>> rule = Rule(kind="median", warmup=8)
    >>> [hopeless([Point(samples=10, score=score)], flat, rule) for score in (0.2, 0.5)]
    [True, False]
    """
    if not curve:
        return False
    whole = max((c[-1].samples for c in earlier if c), default=0)
    done = [c for c in earlier if c and c[-1].samples == whole]
    now = curve[-1].samples
    if len(done) < rule.warmup or now < rule.grace * whole or now >= whole:
        return False
    then = np.array([score_at(c, now) for c in done])
    last = np.array([c[-1].score for c in done])
    return falls_short(curve[-1].score, max(p.score for p in curve), then, last, rule)


def falls_short(now: float, best: float, then: Scores, last: Scores, rule: Rule) -> bool:
    """The rule itself: of a training with the score `now`, and the `best` one so far, against the scores that earlier
    ones had `then`, after as many samples, and the `last` ones that they came to."""
    if rule.kind == "median":
        return bool(best < np.median(then))
    slope, offset, deviation = _line(then, last)
    return bool(offset + slope * now + rule.doubt * deviation < np.quantile(last, 1 - rule.keep))


def score_at(curve: Curve, samples: int) -> float:
    """The score after so many samples: between two points, on the line from one to the other.

    >>> score_at([Point(samples=0, score=0.0), Point(samples=10, score=1.0)], 4)
    0.4
    """
    return float(np.interp(samples, [p.samples for p in curve], [p.score for p in curve]))


def _line(x: Scores, y: Scores) -> tuple[float, float, float]:
    """Slope (never negative: to be better now is no bad sign), offset and deviation of the residuals of y on x."""
    spread = float(((x - x.mean()) ** 2).sum())
    slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).sum()) / spread) if spread > 0 else 0.0
    offset = float(y.mean() - slope * x.mean())
    residuals = y - offset - slope * x
    return slope, offset, float(np.sqrt((residuals**2).sum() / max(1, len(x) - 2)))
