"""The strategy `climb`: mutations of the best so far, and a fresh draw now and then.

`archc search space.arch --task spirals --objective accuracy --strategy climb --option draws=0.3 --study runs/one`.
"""

from __future__ import annotations

from pydantic import Field

from archc.search.records import Proposal
from archc.search.strategies.base import Base, CommonOptions
from archc.search.strategy import StrategyKind, random


class ClimbOptions(CommonOptions):
    draws: float = Field(0.2, gt=0, le=1, description="share of fresh draws")


class Climb(Base[ClimbOptions]):
    """What `ask` proposes follows from the seed, the number and what was told: `Base` remembers that, and no more."""

    def ask(self, number: int) -> Proposal | None:
        if self.exhausted:
            return None
        known = self.feasible
        if not known or random(self.seed, number, "draw").random() < self.options.draws:
            return Proposal(number=number, candidate=self.fresh(number))
        return Proposal(number=number, candidate=self.mutation(number, min(known, key=self.loss)))


CLIMB = StrategyKind("climb", "mutations of the best so far, and draws", ClimbOptions, Climb)
