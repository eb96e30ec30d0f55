"""How a search stands, in figures and in a line."""

from __future__ import annotations

from typing import Any

from archc.search.history import History, Trial
from archc.search.records import Record
from archc.search.study import StudyConfig


class Standing(Record):
    """How far a search has come. `share` of the budget, from 0 to 1; `closed` says why the last coordinator ended, and
    is empty while one is at work or when it was killed; rates are per minute of wall time."""

    spent: float
    budget: str
    share: float
    trials: int
    running: int
    finished: int
    stopped: int
    infeasible: int
    shared: int
    reasons: dict[str, int]
    minutes: float
    evaluations_per_minute: float
    front: list[dict[str, Any]]
    closed: str

    def line(self) -> str:
        """
        >>> told = dict(running=2, finished=9, stopped=0, shared=1, trials=13, minutes=0.5, closed="")
        >>> Standing(spent=9, budget="20", share=0.45, infeasible=1, reasons={"params": 1}, front=[],
        ...          evaluations_per_minute=18, **told).line()
        '45 %: 9.0 trainings spent, 18.0 evaluations/min, 1 infeasible (params 1), 1 duplicate, nothing found yet'
        """
        told = [f"{self.spent:.1f} trainings spent", f"{self.evaluations_per_minute:.1f} evaluations/min"]
        if self.infeasible:
            told.append(f"{self.infeasible} infeasible ({', '.join(f'{r} {n}' for r, n in self.reasons.items())})")
        if self.shared:
            told.append(f"{self.shared} duplicate{'s' * (self.shared > 1)}")
        if self.front:
            best = self.front[0]
            key, value = next(iter(best["values"].items()))
            told.append(f"{len(self.front)} on the front, best {key} {value:.4g} (#{best['number']})")
        else:
            told.append("nothing found yet")
        return f"{min(1.0, self.share):.0%}".replace("%", " %") + ": " + ", ".join(told)


def standing(config: StudyConfig, history: History) -> Standing:
    """How a study stands, by what its log has come to."""
    counts, goals, budget = history.counts, config.evaluation.goals, config.budget
    minutes = history.seconds / 60
    evaluated = len(history.told) - counts["shared"]
    share = history.spent / budget.evaluations if budget.evaluations else minutes / (budget.minutes or 1)
    if history.closed == "complete":  # perhaps by another budget, or since there was nothing left to propose
        share = 1.0
    return Standing(
        spent=history.spent,
        budget=str(budget),
        share=share,
        trials=len(history.trials),
        running=counts["running"],
        finished=counts["finished"],
        stopped=counts["stopped"],
        infeasible=counts["infeasible"],
        shared=counts["shared"],
        reasons=history.reasons,
        minutes=minutes,
        evaluations_per_minute=evaluated / minutes if minutes > 0 else 0.0,
        front=[row(trial, [o.key for o in goals.objectives]) for trial in history.front(goals)],
        closed=history.closed,
    )


def row(trial: Trial, keys: list[str]) -> dict[str, Any]:
    """A trial in short: its number, origin and these values."""
    assert trial.result is not None
    values = {key: trial.result.values[key] for key in keys if key in trial.result.values}
    return {"number": trial.number, "values": values, "origin": trial.proposal.candidate.origin}
