"""Comparing studies: what is refused, and what intervals say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up import WHOLE, trial
from small_studies import Scrambled, begin

from archc.ir.diagnostics import CompileError
from archc.search.compare import Entry, compare, entry_of
from archc.search.engine import run
from archc.search.goals import parse_goals

TERMS = {"task": "digits", "budget": "50"}


def entry(name: str, strategy: str, accuracies: list[float]) -> Entry:
    trials = [trial(i, accuracy=a) for i, a in enumerate(accuracies)]
    return Entry(name, strategy, 0, TERMS, parse_goals(["accuracy:max"]), trials, WHOLE)


def random_studies(count: int = 8, size: int = 50) -> list[Entry]:
    dice = np.random.default_rng(0)
    return [entry(f"random{i}", "random", dice.normal(0.7, 0.05, size).tolist()) for i in range(count)]


def test_improvement_is_a_share_of_what_random_search_finds():
    rows = compare([entry("r", "random", [0.4, 0.6, 0.8]), entry("e", "evolution", [0.5, 0.9])])
    assert [row.strategy for row in rows] == ["evolution", "random"]
    best = rows[0]
    assert best.best.value == pytest.approx(0.9)
    assert best.over_mean is not None
    assert best.over_mean.value == pytest.approx(0.3 / 0.6)
    assert best.over_best is not None
    assert best.over_best.value == pytest.approx(0.1 / 0.8)
    assert best.spent == 2
    assert best.hypervolume is None


def test_an_interval_holds_nothing_for_who_is_no_better_and_excludes_it_for_who_is():
    chance, dice = random_studies(), np.random.default_rng(1)
    same = [entry(f"s{i}", "same", dice.normal(0.7, 0.05, 50).tolist()) for i in range(8)]
    better = [entry(f"b{i}", "better", dice.normal(0.9, 0.01, 50).tolist()) for i in range(8)]
    rows = {row.strategy: row.over_best for row in compare([*chance, *same, *better])}
    assert rows["same"] is not None
    assert rows["same"].low < 0 < rows["same"].high
    assert rows["better"] is not None
    assert rows["better"].low > 0.02


def test_less_may_be_better():
    goals = parse_goals(["cost:min"])
    slow, fast = ([trial(i, cost=c) for i, c in enumerate(costs)] for costs in ([4.0, 6.0], [2.0, 5.0]))
    rows = compare(
        [Entry("r", "random", 0, TERMS, goals, slow, 100), Entry("e", "evolution", 0, TERMS, goals, fast, 100)]
    )
    assert rows[0].strategy == "evolution"
    assert rows[0].best.value == 2.0
    assert rows[0].over_best is not None
    assert rows[0].over_best.value == pytest.approx(0.5)


def test_the_same_numbers_each_time():
    entries = random_studies(3)
    assert compare(entries) == compare(entries) != compare(entries, seed=1)


def test_other_terms_are_refused():
    one, other = entry("a", "random", [0.5]), entry("b", "evolution", [0.6])
    with pytest.raises(CompileError, match=r"E0745(.|\n)*budget: `50` in a, `100` in b"):
        compare([one, replace(other, terms=TERMS | {"budget": "100"})])
    with pytest.raises(CompileError, match="not come to its end"):
        compare([one, replace(other, complete=False)])
    with pytest.raises(CompileError, match="nothing in it was trained"):
        compare([one, entry("c", "evolution", [])])


def test_studies_are_compared_by_what_they_were_set(tmp_path):
    """Other seeds and strategies are what is compared; another number of steps is another task."""
    made = []
    for name, how in {"a": {}, "b": {"seed": 1, "strategy": "evolution"}, "c": {"steps": 11}}.items():
        with begin(tmp_path / name, budget=8, **how) as study:
            run(study, Scrambled(study.folder, 1))
            made.append(entry_of(study))
    rows = compare(made[:2])
    assert {row.strategy for row in rows} == {"random", "evolution"}
    assert max(row.hypervolume.value for row in rows if row.hypervolume) <= 1
    with pytest.raises(CompileError, match=r"steps: `10` in .*a, `11` in .*c"):
        compare([made[0], made[2]])
