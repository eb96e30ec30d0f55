"""Regularised evolution: the best of a random few has a child, and the oldest dies.

Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search", arXiv:1802.01548. As einspace
(Ericsson et al. 2024, arXiv:2405.20838) has it, the first population is drawn, made of the user's nets, or mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from archc.search.records import Candidate, Proposal
from archc.search.strategies.base import Base
from archc.search.strategy import Options, StrategyKind, random


class EvolutionOptions(Options):
    population: int = Field(20, ge=2, description="how many are alive")
    tournament: int = Field(5, ge=1, description="how many of them compete to be the parent")
    start: Literal["random", "seeds", "mixed"] = Field(
        "mixed",
        description="the first population: draws; the user's nets and mutations of them; the user's nets and draws",
    )
    crossover: float = Field(0.0, ge=0, le=1, description="share of children that have two parents")
    inherit: bool = Field(True, description="a child starts from its parent's weights where its mutation can map them")
    distinct: bool = Field(True, description="mutate again where a child was proposed before")


class Evolution(Base[EvolutionOptions]):
    """Steady state, so that any number of trials may be under way: the population are the feasible trials told last."""

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted and self.options.distinct:
            return None
        feasible = self.feasible
        if not feasible or len(feasible) + self.pending < self.options.population:
            candidate = self._first(number)
        else:
            candidate = self._child(number, feasible[-self.options.population :])
        if not self.options.inherit:
            candidate = candidate.model_copy(update={"inherit": None})
        return Proposal(number=number, candidate=candidate)

    def _first(self, number: int) -> Candidate:
        """A member of the first population."""
        seeds = self.space.seeds() if self.options.start != "random" else ()
        for seed in seeds:
            if seed.hash not in self.hashes:
                return seed
        told = [n for n in self.feasible if self.candidate(n).origin == "seed"]
        if self.options.start == "seeds" and told:
            return self._mutation(number, told[int(random(self.seed, number, "seed").integers(len(told)))])
        return self._made(number, "draw", self.space.draw)

    def _child(self, number: int, alive: list[int]) -> Candidate:
        dice = random(self.seed, number, "parents")
        first, second = self._winner(alive, dice), self._winner(alive, dice)
        if first != second and dice.random() < self.options.crossover:
            parents = (self.candidate(first), self.candidate(second))
            return self._made(number, "cross", lambda key: self.space.cross((first, second), parents, key))
        return self._mutation(number, first)

    def _winner(self, alive: list[int], dice: np.random.Generator) -> int:
        """The best of a random few of those alive."""
        rivals = dice.choice(alive, min(self.options.tournament, len(alive)), replace=False).tolist()
        return int(min(rivals, key=lambda n: (self.loss(n), n)))

    def _mutation(self, number: int, parent: int) -> Candidate:
        return self._made(number, "mutate", lambda key: self.space.mutate(parent, self.candidate(parent), key))

    def _made(self, number: int, purpose: str, make: Callable[[str], Candidate]) -> Candidate:
        return self.new(number, purpose, make) if self.options.distinct else make(f"{self.seed}/{number}/{purpose}/0")


KIND = StrategyKind("evolution", "mutations of the best of a few; the oldest dies", EvolutionOptions, Evolution)
