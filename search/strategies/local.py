"""Local search: from the best of a few draws to better neighbours, until there is none; then again from elsewhere.

White et al. 2021, "Exploring the Loss Landscape in Neural Architecture Search", arXiv:2005.02960: on small spaces as
good as anything. The first better neighbour is moved to at once.
"""

from __future__ import annotations

from collections import Counter

from pydantic import Field

from archc.search.goals import Goals
from archc.search.records import Candidate, Proposal, Result
from archc.search.space import SearchSpace
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random


class LocalOptions(CommonOptions):
    starts: int = Field(5, ge=1, description="draws; a climb begins at the best of them")
    tries: int = Field(20, ge=1, description="open space: mutations that are tried before a place counts as the top")
    seeds: bool = Field(True, description="the user's own nets come first")


class Local(Base[LocalOptions]):
    """`centre` is where the climb stands; `begun` are the draws that ended since it began."""

    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: LocalOptions) -> None:
        super().__init__(space, goals, seed, options)
        self.centre: int | None = None
        self.begun: list[int] = []
        self.tried: Counter[int] = Counter()
        self._pending: Counter[int] = Counter()
        self._near: tuple[int | None, list[Candidate]] = (None, [])

    def proposed(self, proposal: Proposal) -> None:
        super().proposed(proposal)
        for parent in proposal.candidate.parents:
            self.tried[parent] += 1
            self._pending[parent] += 1

    def tell(self, result: Result) -> None:
        super().tell(result)
        number, parents = result.number, self.candidate(result.number).parents
        for parent in parents:
            self._pending[parent] -= 1
        if result.status != "infeasible":
            if not parents:
                self.begun.append(number)
            elif self.centre is not None and self.loss(number) < self.loss(self.centre):
                self.centre = number
        if len(self.begun) >= self.options.starts and (self.centre is None or self._is_top(self.centre)):
            self.centre, self.begun = min(self.begun, key=lambda n: (self.loss(n), n)), []

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        near = None if self.centre is None else self._neighbour(number, self.centre)
        if near is None:
            near = (self.seed_net() if self.options.seeds else None) or self.fresh(number)
        return Proposal(number=number, candidate=near)

    def _is_top(self, centre: int) -> bool:
        """Whether all that is near was tried, and is not better."""
        return self._pending[centre] == 0 and self._neighbour(0, centre) is None

    def _neighbour(self, number: int, centre: int) -> Candidate | None:
        """What is near and was not proposed."""
        if self.space.size() is None:
            return self.mutation(number, centre) if self.tried[centre] < self.options.tries else None
        if self._near[0] != centre:
            self._near = (centre, self.space.neighbours(self.candidate(centre)))
        near = [c for c in self._near[1] if c.hash not in self.hashes]
        if not near:
            return None
        chosen = near[int(random(self.seed, self.tried[centre], f"neighbour/{centre}").integers(len(near)))]
        return self.heir(chosen.model_copy(update={"parents": (centre,), "inherit": centre}))


KIND = StrategyKind("local", "from the best of a few draws to better neighbours, again and again", LocalOptions, Local)
