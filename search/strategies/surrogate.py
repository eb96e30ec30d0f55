"""Surrogate-assisted search: of many candidates, try what promises most by what is known so far.

A model of each objective (`archc.search.learners`) is fitted to all that was told. Of a pool, half fresh draws and half
mutations of the best, the candidate with the largest expected improvement is proposed (Jones et al. 1998, "Efficient
Global Optimization"). Several objectives become one by a random weighing for each proposal: the augmented Chebyshev
sum of ParEGO (Knowles 2006), over samples of each objective's own model as in qParEGO (Daulton et al. 2020,
arXiv:2006.05078). Trials under way count as told with what is expected of them (the "kriging believer" of Ginsbourger
et al. 2010), so that many workers do not all get the same idea.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from archc.ir.diagnostics import CompileError
from archc.metanet.surrogate.model import LOWEST
from archc.search.goals import Goals
from archc.search.learners import Learner, Model, learner
from archc.search.pareto import crowding, ranks
from archc.search.predictor import Sieve
from archc.search.records import Candidate, Proposal
from archc.search.space import SearchSpace
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]

SAMPLES = 256
"""Samples that an expected improvement is a mean of, where there are several objectives."""
SUM = 0.05
"""The share of the plain sum in the augmented Chebyshev sum (Knowles 2006)."""


class SurrogateOptions(CommonOptions):
    model: Model = Field("gp", description="gp: a Gaussian process over graphs; forest: a random forest")
    initial: int = Field(16, ge=LOWEST, description="draws before the model is asked")
    pool: int = Field(64, ge=1, description="candidates that the model chooses from")
    parents: int = Field(8, ge=1, description="how many of the best are mutated for the pool")
    explore: float = Field(0.1, ge=0, le=1, description="share of proposals that are plain draws")
    batch: int = Field(1, ge=1, description="batch size of latencies, as the study measures them")


class SurrogateSearch(Base[SurrogateOptions]):
    """Models are fitted when a candidate is asked for, from all that was told by then."""

    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: SurrogateOptions) -> None:
        super().__init__(space, goals, seed, options)
        self._learners: list[Learner] = [learner(o, options.model, options.batch) for o in goals.objectives]
        self._sieve = Sieve(goals, options.batch)

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        return Proposal(number=number, candidate=self._candidate(number))

    def _candidate(self, number: int) -> Candidate:
        if (seed := self.seed_net()) is not None:
            return seed
        trials = self._distinct()
        known = np.isfinite(self._losses(trials)).all(1).sum()
        if known < LOWEST or len(trials) + self.pending < self.options.initial:
            return self.fresh(number)
        if random(self.seed, number, "explore").random() < self.options.explore:
            return self.fresh(number)
        pool = self._pool(number, trials)
        return pool[int(np.argmax(self._improvement(number, trials, pool)))]

    def _distinct(self) -> list[int]:
        """The trials that have a result, of those with equal candidates the first."""
        by_hash: dict[str, int] = {}
        for number in self.results:
            by_hash.setdefault(self.candidate(number).hash, number)
        return list(by_hash.values())

    def _losses(self, trials: Sequence[int]) -> Doubles:
        """[trials, objectives]"""
        found = [self.goals.losses(self.results[n]) for n in trials]
        return np.array(found).reshape(len(trials), len(self.goals.objectives))

    def _pool(self, number: int, trials: list[int]) -> list[Candidate]:
        """Candidates that were not proposed before; those that are surely infeasible only where there are no others."""
        losses = self._losses(trials)
        by_front = ranks(losses)
        apart = crowding(losses) if losses.shape[1] > 1 else np.zeros(len(trials))
        best = sorted(range(len(trials)), key=lambda i: (by_front[i], -apart[i], losses[i, 0], i))
        parents = [trials[i] for i in best[: self.options.parents] if np.isfinite(losses[i]).all()]
        found: dict[str, Candidate] = {}
        for k in range(self.options.pool):
            key = f"{self.seed}/{number}/pool/{k}"
            made = self._near(parents[(k // 2) % len(parents)], key) if k % 2 and parents else None
            made = made or self.space.draw(key)
            if made.hash not in self.hashes:
                found.setdefault(made.hash, made)
        if not found:
            return [self.fresh(number)]
        for trial in trials:
            self._sieve.learn(self.candidate(trial), self.results[trial])
        pool = list(found.values())
        return self._sieve.possible(pool) or pool

    def _near(self, parent: int, key: str) -> Candidate | None:
        """A mutation; None where there is none."""
        try:
            return self.heir(self.space.mutate(parent, self.candidate(parent), key))
        except CompileError:
            return None

    def _improvement(self, number: int, trials: list[int], pool: list[Candidate]) -> Doubles:
        """What each candidate is expected to gain on the best so far."""
        texts = [self.candidate(n).text for n in trials]
        losses = self._losses(trials)
        waiting = [p.candidate.text for n, p in self.proposals.items() if n not in self.results]
        scores, means, spreads = [], [], []
        for learned, column in zip(self._learners, losses.T, strict=True):
            scores.append(learned.learn(texts, column))
            learned.believe(waiting)
            mean, spread = learned.predict([c.text for c in pool])
            means.append(mean)
            spreads.append(spread)
        known = np.stack(scores, 1)[np.isfinite(losses).all(1)]
        if len(means) == 1:
            return expected_improvement(means[0], spreads[0], float(known.min()))
        dice = random(self.seed, number, "improvement")
        weights = dice.dirichlet(np.ones(len(means)))
        low, width = known.min(0), np.maximum(np.ptp(known, 0), 1e-9)
        samples = np.stack(means, 1) + np.stack(spreads, 1) * dice.normal(size=(SAMPLES, 1, len(means)))
        best = chebyshev((known - low) / width, weights).min()
        gains: Doubles = np.maximum(best - chebyshev((samples - low) / width, weights), 0).mean(0)
        return gains


def chebyshev(scaled: Doubles, weights: Doubles) -> Doubles:
    """The augmented Chebyshev sum over the last axis.

    >>> chebyshev(np.array([[0.5, 0.2]]), np.array([0.5, 0.5])).round(4).tolist()
    [0.2675]
    """
    weighed = scaled * weights
    found: Doubles = weighed.max(-1) + SUM * weighed.sum(-1)
    return found


def expected_improvement(mean: Doubles, spread: Doubles, best: float) -> Doubles:
    """By how much normally distributed scores fall below `best` on average.

    >>> expected_improvement(np.array([1.0, 2.0]), np.array([1.0, 1.0]), 1.0).round(4).tolist()
    [0.3989, 0.0833]
    """
    from scipy.special import ndtr

    z = (best - mean) / spread
    found: Doubles = spread * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
    return found


KIND = StrategyKind(
    "surrogate", "tries what a model of all results so far promises most of", SurrogateOptions, SurrogateSearch
)
