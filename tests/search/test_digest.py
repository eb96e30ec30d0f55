"""What a report counts, by hand."""

from __future__ import annotations

import pytest
from made_up import WHOLE, trial

from archc.search.goals import parse_goals
from archc.search.report import digest

GOALS = parse_goals(["accuracy:max", "cost:min"])
TRIALS = [
    trial(0, accuracy=0.5, cost=4.0),
    trial(1, status="infeasible", reason="memory", message="it took 5 GB", samples=20),
    trial(2, "mutation/resample", (0,), accuracy=0.7, cost=5.0),
    trial(3, "mutation/resample", (0,), accuracy=0.4, cost=6.0),
    trial(4, "crossover", (0, 2), accuracy=0.6, cost=2.0),
    trial(5, "mutation/resample", (4,), status="stopped", accuracy=0.1, samples=30),
    trial(6, "draw", shares=0, samples=0, accuracy=0.5, cost=4.0),
    trial(7, "mutation/production", (1,), accuracy=0.3, cost=9.0),
]
FRONT = [2, 4]


def test_progress_is_a_row_for_each_step_up():
    rows = digest.progress(TRIALS, FRONT, GOALS, WHOLE)
    assert [(spent, best) for spent, best, _ in rows] == [(1.0, 0.5), (2.2, 0.7), (4.2, 0.7)]
    shares = [share for *_, share in rows]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def test_ways_are_judged_by_their_children():
    told = {row["origin"]: row for row in digest.origins(TRIALS, FRONT, GOALS)}
    mutation = told["mutation/resample"]
    assert (mutation["trials"], mutation["compared"], mutation["better"], mutation["front"]) == (3, 2, 1, 1)
    assert (told["crossover"]["compared"], told["crossover"]["better"]) == (1, 0)  # no better than its better parent
    assert told["mutation/production"]["compared"] == 0  # its parent was infeasible
    assert told["draw"]["infeasible"] == 1


def test_what_a_way_is_worth_counts_its_descendants():
    """The crossover descends from a mutation: without that the front is empty but for what was drawn."""
    told = {row["origin"]: row["loss"] for row in digest.origins(TRIALS, FRONT, GOALS)}
    assert told["draw"] == 1.0
    assert told["mutation/resample"] >= told["crossover"] > 0
    assert told["mutation/production"] == 0.0


def test_reasons_and_savings():
    assert digest.reasons(TRIALS) == [{"reason": "memory", "count": 1, "example": 1, "message": "it took 5 GB"}]
    told = digest.savings(TRIALS, WHOLE)
    assert told.startswith("1 trial was an architecture")
    assert "saved 0.7 trainings" in told
    assert digest.savings(TRIALS[:1], WHOLE) == ""


def test_ancestors_begin_with_the_front():
    assert digest.ancestors(TRIALS, [4]) == [4, 0, 2]


def test_one_objective_has_no_hypervolume():
    goals = parse_goals(["accuracy:max"])
    assert {row[2] for row in digest.progress(TRIALS, [2], goals, WHOLE)} == {None}
    assert {row["loss"] for row in digest.origins(TRIALS, [2], goals)} == {None}


@pytest.mark.parametrize("trials", [[], TRIALS[1:2]])
def test_nothing_found(trials):
    assert digest.progress(trials, [], GOALS, WHOLE) == []
    assert [row["loss"] for row in digest.origins(trials, [], GOALS)] == [None] * len(trials)
