"""Bootstrap intervals of paired comparisons: the same nets under two models, each trained from several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def table(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Accuracies [seeds, nets] as an array."""
    found = np.asarray(rows, np.float64)
    assert found.ndim == 2, "a row for each seed, a column for each net"
    return found


def mean_interval(rows: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The mean over seeds and nets, resampled over both.

    >>> str(mean_interval([[0.5, 0.5], [0.5, 0.5]]))
    '50.0 [50.0, 50.0]'
    """
    return _resampled(table(rows), seed)


def paired(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The mean of `ours - theirs`, [seeds, nets] each, with nets in the same order.

    Nets are resampled jointly for both models, and training seeds too: seed k of both saw the same nets and images in
    the same order. The models are compared on what both have: seeds beyond the shorter list are left out.

    >>> str(paired([[0.5, 0.75]], [[0.25, 0.5]]))
    '25.0 [25.0, 25.0]'
    """
    a, b = table(ours), table(theirs)
    seeds = min(len(a), len(b))
    assert a.shape[1] == b.shape[1], "the same nets"
    return _resampled(a[:seeds] - b[:seeds], seed)


def _resampled(values: NDArray[np.float64], seed: int) -> Interval:
    seeds, nets = values.shape
    rng = np.random.Generator(np.random.Philox(seed))
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds  # how often each is drawn
    columns = rng.multinomial(nets, np.full(nets, 1 / nets), RESAMPLES) / nets
    means = np.einsum("rs,sn,rn->r", rows, values, columns, optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
