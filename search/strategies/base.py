"""What strategies have in common: they remember what was proposed and told, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from pydantic import Field

from archc.ir.diagnostics import CompileError
from archc.search.goals import Goals
from archc.search.inherit import TRANSFORM
from archc.search.records import Candidate, Proposal, Result
from archc.search.space import SearchSpace
from archc.search.strategy import Options


class CommonOptions(Options):
    """What every strategy has."""

    distinct: bool = Field(True, description="try again where what comes up was proposed before")
    inherit: Literal["never", "transforms", "always"] = Field(
        "transforms",
        description="which children begin with their parent's weights, in place of afresh: then a result is not its "
        "architecture's alone; `transforms`: those that a pass has made",
    )


O = TypeVar("O", bound=CommonOptions)

TRIES = 50
"""Draws or mutations after one that was proposed before, until something new comes up."""
WALK = 8
"""Mutations on the way from a place near which all is known."""


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
        """Whether every architecture of a closed space has been proposed, and none shall be twice."""
        size = self.space.size()
        return self.options.distinct and size is not None and len(self.hashes) >= size

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

    def mutation(self, number: int, parent: int) -> Candidate:
        """A mutation of trial `parent`, or where all that is near was proposed, a mutation of a mutation, and so on.

        Those inherit nothing: what is between was never trained. A draw where there is none.
        """
        origin = self.candidate(parent)
        try:
            made = self.new(number, "mutate", lambda key: self.space.mutate(parent, origin, key))
            for step in range(WALK):
                if made.hash not in self.hashes or not self.options.distinct:
                    return self.heir(made)
                key = f"{self.seed}/{number}/mutate/walk/{step}"
                made = self.space.mutate(parent, made, key).model_copy(update={"inherit": None})
        except CompileError:
            pass
        return self.fresh(number)

    def child(self, number: int, parents: tuple[int, int]) -> Candidate:
        """A part of one trial in the other; a draw where they have nothing in common, and no mutations either."""
        pair = (self.candidate(parents[0]), self.candidate(parents[1]))
        try:
            return self.heir(self.new(number, "cross", lambda key: self.space.cross(parents, pair, key)))
        except CompileError:
            return self.fresh(number)

    def heir(self, child: Candidate) -> Candidate:
        """A child, with its parent's weights if the options say so."""
        inherit = self.options.inherit
        if inherit == "always" or (inherit == "transforms" and child.origin.startswith(TRANSFORM)):
            return child
        return child.model_copy(update={"inherit": None})

    def seed_net(self) -> Candidate | None:
        """The next net of the user's."""
        return next((seed for seed in self.space.seeds() if seed.hash not in self.hashes), None)

    def new(self, number: int, purpose: str, make: Callable[[str], Candidate], tries: int = TRIES) -> Candidate:
        """`make(key)`, with one key after another while it makes what was proposed before.

        In a small space, or near a well searched place, that may be all there is: then the last one, whose result the
        study shares at no cost.
        """
        for attempt in range(tries if self.options.distinct else 1):
            made = make(f"{self.seed}/{number}/{purpose}/{attempt}")
            if made.hash not in self.hashes:
                break
        return made
