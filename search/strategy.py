"""Strategies: who proposes what comes next.

A strategy is a function of its seed, its options and what it has been told; it keeps nothing else. So a study that was
killed goes on by telling a new strategy what the log holds, and neither a crash nor the number of workers changes what
is proposed. Random numbers come from `random(seed, number, purpose)`: they depend on their address alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from archc.search import plugins
from archc.search.goals import Goals
from archc.search.records import Proposal, Result

if TYPE_CHECKING:
    from archc.search.space import SearchSpace

ENTRY_POINTS = "archc.strategies"


class Options(BaseModel):
    """The options of a strategy; a subclass has fields with descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Strategy(Protocol):
    """Ask, tell, replay.

    For each proposal the study calls, in this order: `ask`, `proposed` (once it stands in the log), later `tell`. On
    resume it calls `proposed` and `tell` in the order of the log, and never `ask`.
    """

    def ask(self, number: int) -> Proposal | None:
        """The next proposal, which gets this number; None while there is none until more is told, or ever."""

    def proposed(self, proposal: Proposal) -> None:
        """This was proposed, and is under way."""

    def tell(self, result: Result) -> None:
        """What came of a proposal: the whole result, or that it is infeasible."""


@dataclass(frozen=True)
class StrategyKind:
    """A strategy by name; the object behind an entry point in the group `archc.strategies`."""

    name: str
    doc: str
    options: type[Options]
    make: Callable[[SearchSpace, Goals, int, Any], Strategy]


_HOMES: dict[str, str] = {
    "random": "archc.search.strategies.random",
    "evolution": "archc.search.strategies.evolution",
    "nsga2": "archc.search.strategies.nsga2",
    "halving": "archc.search.strategies.halving",
    "local": "archc.search.strategies.local",
    "tpe": "archc.search.strategies.tpe",
    "surrogate": "archc.search.strategies.surrogate",
    "oneshot": "archc.search.strategies.oneshot",
}
"""Strategy -> the module whose `KIND` describes it."""


def strategies() -> list[str]:
    """The names of all strategies: those of archc, then those of installed packages."""
    return plugins.names(ENTRY_POINTS, _HOMES)


def strategy_kind(name: str) -> StrategyKind:
    """The strategy of that name.

    Raises: CompileError (E0711) for one that is unknown or cannot be loaded.
    """
    if name in _HOMES:
        found = import_module(_HOMES[name]).KIND
        assert isinstance(found, StrategyKind)
        return found
    found = plugins.load(ENTRY_POINTS, name, _HOMES, "E0711", "strategy", StrategyKind)
    assert isinstance(found, StrategyKind)
    return found


def replay(strategy: Strategy, log: Iterable[Proposal | Result]) -> Strategy:
    """Tell a new strategy all that happened, in the order of the log."""
    for record in log:
        if isinstance(record, Proposal):
            strategy.proposed(record)
        else:
            strategy.tell(record)
    return strategy


def random(seed: int, number: int, purpose: str) -> np.random.Generator:
    """Random numbers that depend on nothing but their address.

    >>> bool(random(0, 3, "parent").integers(1000) == random(0, 3, "parent").integers(1000))
    True
    """
    digest = blake2b(f"{seed}/{number}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
