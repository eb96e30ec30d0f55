"""What strategies have in common: they remember what was proposed and told, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from archc.search.goals import Goals
from archc.search.records import Candidate, Proposal, Result
from archc.search.space import SearchSpace
from archc.search.strategy import Options

O = TypeVar("O", bound=Options)

TRIES = 50
"""Draws or mutations after one that was proposed before, until something new comes up."""


class Base(Generic[O]):
    """The memory of a strategy, and candidates that are new to it. A subclass has `ask`, which changes nothing."""

    def __init__(self, space: SearchSpace, goals: Goals, seed: int, options: O) -> None:
        self.space, self.goals, self.seed, self.options = space, goals, seed, options
        self.proposals: dict[int, Proposal] = {}
        self.results: dict[int, Result] = {}
        """In the order in which they were told."""
        self.hashes: set[str] = set()

    def proposed(self, proposal: Proposal) -> None:
        self.proposals[proposal.number] = proposal
        self.hashes.add(proposal.candidate.hash)

    def tell(self, result: Result) -> None:
        assert result.number in self.proposals, f"trial {result.number} was told before it was proposed"
        self.results[result.number] = result

    @property
    def pending(self) -> int:
        """How many trials are under way."""
        return len(self.proposals) - len(self.results)

    @property
    def exhausted(self) -> bool:
        """Whether every architecture of a closed space has been proposed."""
        size = self.space.size()
        return size is not None and len(self.hashes) >= size

    @property
    def feasible(self) -> list[int]:
        """The trials that came to something, in the order in which they were told."""
        return [number for number, result in self.results.items() if result.status != "infeasible"]

    def loss(self, number: int) -> float:
        """The first objective of a trial, less is better; infinite for what is infeasible."""
        return self.goals.losses(self.results[number])[0]

    def candidate(self, number: int) -> Candidate:
        return self.proposals[number].candidate

    def fresh(self, number: int) -> Candidate:
        """A draw for trial `number`, other than all before."""
        return self.new(number, "draw", self.space.draw)

    def new(self, number: int, purpose: str, make: Callable[[str], Candidate]) -> Candidate:
        """`make(key)`, with one key after another while it makes what was proposed before.

        In a small space, or near a well searched place, that may be all there is: then the last one, whose result the
        study shares at no cost.
        """
        for attempt in range(TRIES):
            made = make(f"{self.seed}/{number}/{purpose}/{attempt}")
            if made.hash not in self.hashes:
                break
        return made
