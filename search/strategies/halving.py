"""Successive halving: many begin, and the better part of each rung is trained on.

Jamieson & Talwalkar 2016, arXiv:1502.07943. Asynchronous by default (ASHA, Li et al. 2020, arXiv:1810.05934): a trial
is promoted as soon as it is among the best of those that reached its rung so far, and no worker ever waits.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from pydantic import Field

from archc.search.goals import Goals
from archc.search.records import Candidate, Proposal, Result
from archc.search.space import SearchSpace
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random

RIVALS = 5
"""How many of those that came far compete to be the parent of a mutation."""


class HalvingOptions(CommonOptions):
    eta: int = Field(3, ge=2, description="one of so many is promoted, to so many times the training")
    rungs: int = Field(3, ge=1, le=8, description="the last is the whole training, the first eta^-(rungs-1) of it")
    asynchronous: bool = Field(True, description="promote at once (ASHA), in place of rung by rung")
    width: int = Field(0, ge=0, description="synchronous: how many begin together; 0: eta^(rungs-1)")
    mutate: float = Field(
        0.0, ge=0, le=1, description="share of those that begin that are mutations of one that came far"
    )
    seeds: bool = Field(True, description="the user's own nets come first")


@dataclass
class _Rung:
    """How many of a bracket were proposed at a fidelity and told, and those that were trained so far, best first."""

    proposed: int = 0
    told: int = 0
    finished: list[tuple[float, int]] = field(default_factory=list)


class Halving(Base[HalvingOptions]):
    """Trials that begin together are a bracket; when asynchronous, all are in one."""

    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: HalvingOptions) -> None:
        super().__init__(space, goals, seed, options)
        self._width = options.width or options.eta ** (options.rungs - 1)
        self._brackets: list[list[_Rung]] = []
        self._places: dict[int, tuple[int, int]] = {}
        """Trial -> its bracket and its rung."""
        self._promoted: set[int] = set()

    def proposed(self, proposal: Proposal) -> None:
        super().proposed(proposal)
        if proposal.continues is not None:
            bracket, rung = self._places[proposal.continues]
            self._promoted.add(proposal.continues)
            place = bracket, rung + 1
        else:
            if not self._brackets or (not self.options.asynchronous and self._brackets[-1][0].proposed == self._width):
                self._brackets.append([_Rung() for _ in range(self.options.rungs)])
            place = len(self._brackets) - 1, 0
        self._places[proposal.number] = place
        self._rung(place).proposed += 1

    def tell(self, result: Result) -> None:
        super().tell(result)
        rung = self._rung(self._places[result.number])
        rung.told += 1
        if result.status == "finished":
            insort(rung.finished, (self.loss(result.number), result.number))

    def ask(self, number: int) -> Proposal | None:
        rungs = self._brackets[-1] if self._brackets else []
        if rungs and not self.options.asynchronous and rungs[0].proposed < self._width and not self.exhausted:
            return self._beginner(number)
        steps = list(enumerate(rungs[:-1], start=1))
        for step, rung in reversed(steps) if self.options.asynchronous else steps:
            count = rung.told // self.options.eta
            if not self.options.asynchronous:
                if rung.told < rung.proposed:
                    return None  # until all of the rung are told
                count = max(count, 1)
            for _, best in rung.finished[:count]:
                if best not in self._promoted:
                    return Proposal(
                        number=number, candidate=self.candidate(best), fidelity=self._fidelity(step), continues=best
                    )
        return None if self.exhausted else self._beginner(number)

    def _beginner(self, number: int) -> Proposal:
        candidate = (self.seed_net() if self.options.seeds else None) or self._begin(number)
        return Proposal(number=number, candidate=candidate, fidelity=self._fidelity(0))

    def _begin(self, number: int) -> Candidate:
        far = [r.finished for bracket in self._brackets for r in bracket[1:] if r.finished]
        dice = random(self.seed, number, "begin")
        if far and dice.random() < self.options.mutate:
            rivals = dice.choice(len(far[-1]), min(RIVALS, len(far[-1])), replace=False)
            return self.mutation(number, far[-1][rivals.min()][1])
        return self.fresh(number)

    def _rung(self, place: tuple[int, int]) -> _Rung:
        return self._brackets[place[0]][place[1]]

    def _fidelity(self, rung: int) -> float:
        return float(self.options.eta) ** (rung + 1 - self.options.rungs)


KIND = StrategyKind(
    "halving", "many begin, the better ones are trained on: successive halving and ASHA", HalvingOptions, Halving
)
