"""Successive halving: many begin, and the better part of each rung is trained on.

Jamieson & Talwalkar 2016, arXiv:1502.07943. Asynchronous by default (ASHA, Li et al. 2020, arXiv:1810.05934): a trial
is promoted as soon as it is among the best of those that reached its rung so far, and no worker ever waits.
"""

from __future__ import annotations

from pydantic import Field

from archc.search.records import Candidate, Proposal
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


class Halving(Base[HalvingOptions]):
    def ask(self, number: int) -> Proposal | None:
        options, rungs = self.options, self._rungs()
        if not options.asynchronous:
            width = options.width or options.eta ** (options.rungs - 1)
            bracket = rungs[0][(len(rungs[0]) - 1) // width * width :]
            if len(bracket) < width and not self.exhausted:
                return self._beginner(number, rungs)
            rungs = self._rungs(set(bracket))
        promoted = {p.continues for p in self.proposals.values()}
        for rung in reversed(rungs[:-1]) if options.asynchronous else rungs[:-1]:
            if not options.asynchronous and any(n not in self.results for n in rung):
                return None  # until all of the rung are told
            for best in self._better(rung):
                if best not in promoted:
                    return self._promotion(number, best, rungs.index(rung) + 1)
        return None if self.exhausted else self._beginner(number, rungs)

    def _rungs(self, beginners: set[int] | None = None) -> list[list[int]]:
        """The trials of each rung; of those alone that go back to `beginners`."""
        found: list[list[int]] = [[] for _ in range(self.options.rungs)]
        places: dict[int, int] = {}
        for number, proposal in self.proposals.items():
            if proposal.continues is not None and proposal.continues not in places:
                continue
            if proposal.continues is None and beginners is not None and number not in beginners:
                continue
            places[number] = 0 if proposal.continues is None else places[proposal.continues] + 1
            found[places[number]].append(number)
        return found

    def _better(self, rung: list[int]) -> list[int]:
        """One of `eta` of those that were told, best first; at least one of a whole bracket."""
        count = sum(n in self.results for n in rung) // self.options.eta
        if not self.options.asynchronous:
            count = max(count, 1)
        return sorted(self._finished(rung), key=lambda n: (self.loss(n), n))[:count]

    def _finished(self, rung: list[int]) -> list[int]:
        return [n for n in rung if n in self.results and self.results[n].status == "finished"]

    def _promotion(self, number: int, before: int, rung: int) -> Proposal:
        return Proposal(
            number=number, candidate=self.candidate(before), fidelity=self._fidelity(rung), continues=before
        )

    def _beginner(self, number: int, rungs: list[list[int]]) -> Proposal:
        return Proposal(number=number, candidate=self._begin(number, rungs), fidelity=self._fidelity(0))

    def _begin(self, number: int, rungs: list[list[int]]) -> Candidate:
        seed = self.seed_net() if self.options.seeds else None
        if seed is not None:
            return seed
        far = next((fit for rung in reversed(rungs) if (fit := self._finished(rung))), [])
        dice = random(self.seed, number, "begin")
        if far and dice.random() < self.options.mutate:
            rivals = dice.choice(far, min(RIVALS, len(far)), replace=False).tolist()
            return self.mutation(number, min(rivals, key=lambda n: (self.loss(n), n)))
        return self.fresh(number)

    def _fidelity(self, rung: int) -> float:
        return float(self.options.eta) ** (rung + 1 - self.options.rungs)


KIND = StrategyKind(
    "halving", "many begin, the better ones are trained on: successive halving and ASHA", HalvingOptions, Halving
)
