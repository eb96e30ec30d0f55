"""What a report tells, as plain data: everything is counted here, the page only draws it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from archc.search.compare import reference
from archc.search.goals import Goals
from archc.search.history import Ended, is_whole
from archc.search.pareto import hypervolume

Losses = tuple[float, ...]


def progress(trials: Sequence[Ended], front: Sequence[int], goals: Goals, whole: int) -> list[list[float | None]]:
    """What was spent, the best of the first objective so far, and the hypervolume so far as a share of the last one:
    a row whenever one of them got better.

    Hypervolume is counted from the corner of the last front (its worst in each objective, and a bit): what a few very
    bad architectures have no part in.
    """
    found = {t.proposal.number: goals.losses(t.result) for t in trials if is_whole(t, goals)}
    corner = reference([found[n] for n in front]) if front else ()
    several = len(goals.objectives) > 1 and bool(front)
    last = hypervolume([found[n] for n in front], corner) if several else 0.0
    rows: list[list[float | None]] = []
    spent, best, share, reached = 0.0, float("inf"), 0.0, []
    for trial in trials:
        spent += trial.result.samples / whole
        losses = found.get(trial.proposal.number)
        if losses is None:
            continue
        better = losses[0] < best
        best = min(best, losses[0])
        if several and all(a < b for a, b in zip(losses, corner, strict=True)):
            reached.append(losses)
            now = hypervolume(reached, corner) / last
            better, share = better or now > share, now
        if better:
            value = -best if goals.objectives[0].larger_is_better else best
            rows.append([round(spent, 4), value, round(share, 5) if several else None])
    return rows


def origins(trials: Sequence[Ended], front: Sequence[int], goals: Goals) -> list[dict[str, Any]]:
    """For each way to make an architecture: how many, how many of them were better than the best of their parents in
    the first objective, and what the front would have lost without them and all that descend from them."""
    found = {t.proposal.number: goals.losses(t.result) for t in trials if is_whole(t, goals)}
    grouped: defaultdict[str, list[Ended]] = defaultdict(list)
    for trial in trials:
        grouped[trial.proposal.candidate.origin].append(trial)
    rows = []
    for origin, members in grouped.items():
        compared = better = 0
        for trial in members:
            number, parents = trial.proposal.number, trial.proposal.candidate.parents
            if trial.result.shares is None and number in found and parents and all(p in found for p in parents):
                compared += 1
                better += found[number][0] < min(found[p][0] for p in parents)
        numbers = {t.proposal.number for t in members}
        rows.append(
            {
                "origin": origin,
                "trials": len(members),
                "infeasible": sum(t.result.status == "infeasible" for t in members),
                "compared": compared,
                "better": better,
                "front": len(numbers & set(front)),
                "loss": _loss(numbers, trials, front, found),
            }
        )
    return sorted(rows, key=lambda row: -row["trials"])


def _loss(
    without: set[int], trials: Sequence[Ended], front: Sequence[int], found: Mapping[int, Losses]
) -> float | None:
    """Which share of the hypervolume is owed to some trials and their descendants."""
    if not front or len(found[front[0]]) < 2:
        return None
    gone = set(without)
    for trial in sorted(trials, key=lambda t: t.proposal.number):  # parents first
        if gone & set(trial.proposal.candidate.parents):
            gone.add(trial.proposal.number)
    corner = reference([found[n] for n in front])
    inside = [v for n, v in found.items() if n not in gone and all(a < b for a, b in zip(v, corner, strict=True))]
    whole = hypervolume([found[n] for n in front], corner)
    return round(1 - hypervolume(inside, corner) / whole, 5) if inside else 1.0


def reasons(trials: Iterable[Ended]) -> list[dict[str, Any]]:
    """Why trials were infeasible, the most frequent reason first, with an example each."""
    bad = [t for t in trials if t.result.status == "infeasible"]
    first = {t.result.reason: t for t in reversed(bad)}
    return [
        {
            "reason": reason,
            "count": count,
            "example": first[reason].proposal.number,
            "message": first[reason].result.message,
        }
        for reason, count in Counter(t.result.reason for t in bad).most_common()
    ]


def savings(trials: Sequence[Ended], whole: int) -> str:
    """What was not computed, in words."""
    shared = [t for t in trials if t.result.shares is not None]
    stopped = [t for t in trials if t.result.status == "stopped"]
    told = []
    if shared:
        what = "1 trial was an architecture" if len(shared) == 1 else f"{len(shared)} trials were architectures"
        told.append(f"{what} that had been evaluated before: nothing was computed")
    if stopped:
        saved = sum(max(0.0, t.proposal.fidelity - t.result.samples / whole) for t in stopped)
        told.append(f"{len(stopped)} were stopped early, which saved {saved:.1f} trainings")
    inherited = sum(t.proposal.candidate.inherit is not None for t in trials)
    if inherited:
        told.append(f"{inherited} began with inherited weights")
    return "; ".join(told) + "." if told else ""


def rows(trials: Sequence[Ended], front: Sequence[int], goals: Goals, whole: int) -> list[dict[str, Any]]:
    """A row for each trial, in the order in which they ended."""
    found, spent = [], 0.0
    for trial in trials:
        proposal, result, candidate = trial.proposal, trial.result, trial.proposal.candidate
        spent += result.samples / whole
        found.append(
            {
                "number": proposal.number,
                "origin": candidate.origin,
                "parents": candidate.parents,
                "inherit": candidate.inherit,
                "hash": candidate.hash,
                "fidelity": proposal.fidelity,
                "status": result.status,
                "reason": result.reason,
                "message": result.message,
                "values": {name: value for name, value in result.values.items() if abs(value) < float("inf")},
                "curve": [(p.samples, p.score) for p in result.curve],
                "cost": round(result.samples / whole, 4),
                "spent": round(spent, 4),
                "seconds": round(result.seconds, 2),
                "shares": result.shares,
                "whole": is_whole(trial, goals) and result.shares is None,
                "front": proposal.number in front,
            }
        )
    return found


def quantities(trials: Iterable[Ended], goals: Goals) -> list[str]:
    """What is known of trials: the objectives first."""
    keys = [o.key for o in goals.objectives]
    others = {name for t in trials for name in t.result.values}
    return [*keys, *sorted(others - set(keys))]


def ancestors(trials: Iterable[Ended], front: Iterable[int]) -> list[int]:
    """The front, then all that it was made of."""
    parents = {t.proposal.number: t.proposal.candidate.parents for t in trials}
    order = list(front)
    for number in order:
        order += (p for p in parents.get(number, ()) if p not in order)
    return order
