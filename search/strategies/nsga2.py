"""NSGA-II: evolution towards a front of several objectives.

Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", with its constrained domination; in the
steady-state form (Durillo et al. 2009, "On the Effect of the Steady-State Selection Scheme in Multi-Objective Genetic
Algorithms"), where each trial joins the population as it ends, and no worker waits for a generation.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from archc.search.goals import Goals
from archc.search.pareto import crowding, ranks, violation
from archc.search.records import Proposal, Result
from archc.search.space import SearchSpace
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random

SLACK = 50
"""Trials beyond the population that gather before the worst of all are forgotten."""


class Nsga2Options(CommonOptions):
    population: int = Field(20, ge=2, description="how many of the best are kept")
    crossover: float = Field(0.5, ge=0, le=1, description="share of children that have two parents")
    seeds: bool = Field(True, description="the user's own nets come first")


class Nsga2(Base[Nsga2Options]):
    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: Nsga2Options) -> None:
        super().__init__(space, goals, seed, options)
        self._pool: list[int] = []

    def tell(self, result: Result) -> None:
        super().tell(result)
        self._pool.append(result.number)
        if len(self._pool) > self.options.population + SLACK:
            self._pool = self._best()

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        best = self._best()
        if not best or len(self.results) + self.pending < self.options.population:
            seed = self.seed_net() if self.options.seeds else None
            return Proposal(number=number, candidate=seed or self.fresh(number))
        dice = random(self.seed, number, "parents")
        first, second = (best[int(dice.integers(len(best), size=2).min())] for _ in range(2))  # two tournaments of two
        crossed = first != second and dice.random() < self.options.crossover
        candidate = self.child(number, (first, second)) if crossed else self.mutation(number, first)
        return Proposal(number=number, candidate=candidate)

    def _best(self) -> list[int]:
        """The population, best first: by front, then by how lonely they are in it."""
        if not self._pool:
            return []
        told = [self.results[n] for n in self._pool]
        losses = np.array([self.goals.losses(r) for r in told])
        rank = ranks(losses, [violation(self.goals, r) for r in told])
        lonely = np.zeros(len(told))
        for front in range(int(rank.max()) + 1):
            lonely[rank == front] = crowding(losses[rank == front])
        order = np.lexsort((-lonely, rank))
        return [self._pool[i] for i in order[: self.options.population]]


KIND = StrategyKind(
    "nsga2", "several objectives: children of what is on the front, and lonely there", Nsga2Options, Nsga2
)
