"""Trials written by hand, for what is told of them."""

from __future__ import annotations

from typing import Any

from archc.search.history import Ended
from archc.search.records import Candidate, Point, Proposal, Result

WHOLE = 100


def trial(number: int, origin: str = "draw", parents: tuple[int, ...] = (), **result: Any) -> Ended:
    """A trial with the values `accuracy` and `cost`, where these are given; a whole training unless it is said else."""
    values = {key: result.pop(key) for key in ("accuracy", "cost") if key in result}
    fidelity = result.pop("fidelity", 1.0)
    curve = (Point(samples=50, score=0.1), Point(samples=100, score=0.2))
    told = {"status": "finished", "samples": WHOLE, "curve": curve}
    candidate = Candidate(text=f"arch net{number}()", hash=f"{number:064x}", origin=origin, parents=parents)
    return Ended(
        Proposal(number=number, candidate=candidate, fidelity=fidelity),
        Result.model_validate({"number": number, "values": values} | told | result),
    )
