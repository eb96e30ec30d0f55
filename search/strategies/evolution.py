"""Regularised evolution: the best of a random few has a child, and the oldest dies.

Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search", arXiv:1802.01548. As einspace
(Ericsson et al. 2024, arXiv:2405.20838) has it, the first population is drawn, made of the user's nets, or mixed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from archc.search.records import Candidate, Proposal
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random


class EvolutionOptions(CommonOptions):
    population: int = Field(20, ge=2, description="how many are alive")
    tournament: int = Field(5, ge=1, description="how many of them compete to be the parent")
    start: Literal["random", "seeds", "mixed"] = Field(
        "mixed",
        description="the first population: draws; the user's nets and mutations of them; the user's nets and draws",
    )
    crossover: float = Field(0.0, ge=0, le=1, description="share of children that have two parents")


class Evolution(Base[EvolutionOptions]):
    """Steady state, so that any number of trials may be under way: the population are the feasible trials told last."""

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        feasible = self.feasible
        if not feasible or len(feasible) + self.pending < self.options.population:
            candidate = self._first(number, feasible)
        else:
            candidate = self._next(number, feasible[-self.options.population :])
        return Proposal(number=number, candidate=candidate)

    def _first(self, number: int, feasible: list[int]) -> Candidate:
        """A member of the first population."""
        seed = self.seed_net() if self.options.start != "random" else None
        if seed is not None:
            return seed
        told = [n for n in feasible if self.candidate(n).origin == "seed"]
        if self.options.start == "seeds" and told:
            return self.mutation(number, told[int(random(self.seed, number, "seed").integers(len(told)))])
        return self.fresh(number)

    def _next(self, number: int, alive: list[int]) -> Candidate:
        dice = random(self.seed, number, "parents")
        first, second = self._winner(alive, dice), self._winner(alive, dice)
        if first != second and dice.random() < self.options.crossover:
            return self.child(number, (first, second))
        return self.mutation(number, first)

    def _winner(self, alive: list[int], dice: np.random.Generator) -> int:
        """The best of a random few of those alive."""
        rivals = dice.choice(alive, min(self.options.tournament, len(alive)), replace=False).tolist()
        return int(min(rivals, key=lambda n: (self.loss(n), n)))


KIND = StrategyKind("evolution", "mutations of the best of a few; the oldest dies", EvolutionOptions, Evolution)
