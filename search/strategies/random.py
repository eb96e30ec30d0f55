"""Random search: independent draws, the baseline that every other strategy has to beat."""

from __future__ import annotations

from pydantic import Field

from archc.search.records import Proposal
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind


class RandomOptions(CommonOptions):
    seeds: bool = Field(False, description="the user's own nets come first")


class Random(Base[RandomOptions]):
    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        seed = self.seed_net() if self.options.seeds else None
        return Proposal(number=number, candidate=seed or self.fresh(number))


KIND = StrategyKind("random", "independent draws from the space", RandomOptions, Random)
