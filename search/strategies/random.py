"""Random search: independent draws, the baseline that every other strategy has to beat."""

from __future__ import annotations

from pydantic import Field

from archc.search.records import Proposal
from archc.search.strategies.base import Base
from archc.search.strategy import Options, StrategyKind


class RandomOptions(Options):
    seeds: bool = Field(False, description="the user's own nets come first")
    distinct: bool = Field(True, description="draw again what was proposed before")


class Random(Base[RandomOptions]):
    def ask(self, number: int) -> Proposal | None:
        if self.options.seeds:
            for seed in self.space.seeds():
                if seed.hash not in self.hashes:
                    return Proposal(number=number, candidate=seed)
        if not self.options.distinct:
            return Proposal(number=number, candidate=self.space.draw(f"{self.seed}/{number}/draw/0"))
        if self.exhausted:
            return None
        return Proposal(number=number, candidate=self.fresh(number))


KIND = StrategyKind("random", "independent draws from the space", RandomOptions, Random)
