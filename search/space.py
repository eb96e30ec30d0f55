"""The space of a search: where candidates come from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from archc.search.records import Candidate


class SearchSpace(Protocol):
    """What strategies ask of a space. `key` addresses the random numbers: equal keys, equal candidates."""

    def draw(self, key: str) -> Candidate:
        """A fresh draw."""

    def mutate(self, number: int, parent: Candidate, key: str) -> Candidate:
        """Another architecture near trial `number`: never the same one (its hash differs)."""

    def cross(self, numbers: tuple[int, int], parents: tuple[Candidate, Candidate], key: str) -> Candidate:
        """A part of one in the place of a part of equal type of the other."""

    def seeds(self) -> tuple[Candidate, ...]:
        """Nets of the user's to begin with."""

    def neighbours(self, parent: Candidate) -> list[Candidate]:
        """In a closed space: all that differ in one choice, in a fixed order."""

    def size(self) -> int | None:
        """How many architectures there are, where that can be counted; None for an open space."""


def open_space(path: Path, **options: object) -> SearchSpace:
    raise NotImplementedError
