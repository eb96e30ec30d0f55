"""What each strategy is about, on a made-up landscape: a hill with a smooth slope over two numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from archc.grammar.draw import read_space
from archc.search.goals import Goals, parse_goals
from archc.search.pareto import hypervolume
from archc.search.records import Candidate, Proposal, Result
from archc.search.space import KINDS, GrammarSpace
from archc.search.strategies.base import Base
from archc.search.strategy import Strategy, strategy_kind
from archc.search.table import TableSpace

HILL = TableSpace(
    [Candidate(text="", hash=f"{a} {b}", trace={"a": a, "b": b}) for a in range(24) for b in range(24)],
    seeds=[Candidate(text="", hash="own", origin="seed")],
)
TOP = {"a": 17, "b": 6}
ONE, TWO = parse_goals(["accuracy:max"]), parse_goals(["accuracy:max", "params:min"])


def make(name: str, goals: Goals = ONE, seed: int = 0, **options: Any) -> Strategy:
    kind = strategy_kind(name)
    return kind.make(HILL, goals, seed, kind.options(**options))


def climb(strategy: Strategy, count: int, accuracies: Sequence[float] = ()) -> list[tuple[Proposal, Result]]:
    """One trial after the other; the first few have these accuracies, whatever they are."""
    found = []
    for number in range(count):
        proposal = strategy.ask(number)
        assert proposal is not None
        strategy.proposed(proposal)
        trace = proposal.candidate.trace or {"a": 0, "b": 0}
        accuracy = 1 - sum(abs(trace[axis] - TOP[axis]) for axis in "ab") / 40
        if number < len(accuracies):
            accuracy = accuracies[number]
        values = {"accuracy": accuracy, "params": float(trace["a"] + 1)}
        result = Result(number=number, status="finished", values=values, samples=round(100 * proposal.fidelity))
        strategy.tell(result)
        found.append((proposal, result))
    return found


def mean_best(name: str, count: int, seeds: int, **options: Any) -> float:
    runs = [climb(make(name, seed=s, **options), count) for s in range(seeds)]
    return float(np.mean([max(r.values["accuracy"] for _, r in run) for run in runs]))


@pytest.mark.parametrize("name", ["evolution", "local", "nsga2"])
def test_it_climbs(name: str) -> None:
    assert mean_best(name, 60, 10) > mean_best("random", 60, 10) + 0.01


def test_tpe_climbs() -> None:
    pytest.importorskip("optuna", reason="the extra `archc[search]` is not installed")
    assert mean_best("tpe", 30, 3) > mean_best("random", 30, 3)


@pytest.mark.parametrize("name", ["evolution", "nsga2", "halving", "local", "tpe"])
def test_an_open_space(name: str) -> None:
    """Choices depend on choices, and some are real numbers."""
    if name == "tpe":
        pytest.importorskip("optuna", reason="the extra `archc[search]` is not installed")
    text = """
    space tiny()
    input  x: f32[N, 4]
    output y: f32[N, 2]
    rule Body = linear(range(8, 32, step = 8)) -> choose { relu | leaky_relu(range(0.01, 0.3, log = true)) }
              | 0.5: Body -> Body when depth < 4
    y = x -> Body -> linear(2)
    """
    space = GrammarSpace(read_space(text), (), (), KINDS)
    options = {"tpe": {"startup": 4, "domain": 16}, "evolution": {"population": 4}, "nsga2": {"population": 4}}
    kind = strategy_kind(name)
    strategy = kind.make(space, ONE, 0, kind.options(**options.get(name, {})))
    for number in range(14):
        proposal = strategy.ask(number)
        assert proposal == strategy.ask(number)
        assert proposal is not None
        strategy.proposed(proposal)
        accuracy = 1 / len(proposal.candidate.trace or {})
        strategy.tell(Result(number=number, status="finished", values={"accuracy": accuracy}))
    assert isinstance(strategy, Base)
    assert len(strategy.hashes) == len([p for p in strategy.proposals.values() if p.continues is None])


def test_evolution_the_oldest_dies() -> None:
    """A lucky first trial is the parent as long as it is alive, and never after."""
    log = climb(make("evolution", population=5, tournament=5, start="random"), 20, [0.99] + [0.5] * 19)
    parents = [p.candidate.parents for p, _ in log]
    assert parents[:6] == [()] * 5 + [(0,)]
    assert not any(0 in p for p in parents[6:])


@pytest.mark.parametrize(("start", "seeds"), [("random", 0), ("mixed", 1), ("seeds", 1)])
def test_evolution_starts_from_the_users_own_net(start: str, seeds: int) -> None:
    first = [p.candidate for p, _ in climb(make("evolution", start=start, population=6), 6)]
    assert [c.origin for c in first].count("seed") == seeds
    assert all(c.parents == (0,) for c in first[1:]) == (start == "seeds")


@pytest.mark.parametrize("inherit", ["never", "transforms", "always"])
def test_weights_are_inherited_when_asked(inherit: str) -> None:
    for name in ("evolution", "nsga2", "local"):
        strategy = make(name, inherit=inherit)
        children = [p.candidate for p, _ in climb(strategy, 40) if p.candidate.parents]
        assert children
        assert all((c.inherit is not None) == (inherit == "always") for c in children)
        assert isinstance(strategy, Base)
        grown = Candidate(text="", hash="", origin="transform/widen at linear", parents=(0,), inherit=0)
        assert (strategy.heir(grown).inherit is not None) == (inherit != "never")


def test_nsga2_finds_fronts() -> None:
    def volume(name: str, seed: int) -> float:
        log = climb(make(name, TWO, seed), 80)
        return hypervolume([TWO.losses(r) for _, r in log], [0.0, 30.0])

    assert np.mean([volume("nsga2", s) for s in range(5)]) > np.mean([volume("random", s) for s in range(5)])


def test_asha_promotes_the_better_third() -> None:
    log = climb(make("halving", seeds=False), 60)
    results = [r for _, r in log]
    for proposal, _ in log:
        before = proposal.continues
        if before is None:
            assert proposal.fidelity == pytest.approx(1 / 9)
            continue
        assert proposal.candidate == log[before][0].candidate
        assert proposal.fidelity == pytest.approx(3 * log[before][0].fidelity)
        rung = [n for n in range(proposal.number) if log[n][0].fidelity == log[before][0].fidelity]
        better = sum(results[n].values["accuracy"] > results[before].values["accuracy"] for n in rung)
        assert better < len(rung) // 3
    assert any(p.fidelity == 1 for p, _ in log)


def test_synchronous_halving_waits_for_the_rung() -> None:
    strategy = make("halving", asynchronous=False, rungs=2, width=6, seeds=False)
    proposals = []
    for number in range(6):
        proposal = strategy.ask(number)
        assert proposal is not None
        strategy.proposed(proposal)
        proposals.append(proposal)
    for number in (4, 2, 0, 1, 3):
        strategy.tell(Result(number=number, status="finished", values={"accuracy": number / 10}))
        assert strategy.ask(6) is None
    strategy.tell(Result(number=5, status="stopped", values={"accuracy": 0.9}))
    promoted = strategy.ask(6)
    assert promoted is not None
    assert (promoted.continues, promoted.fidelity) == (4, 1.0)  # what was stopped is not trained on


def test_local_search_restarts_at_the_top() -> None:
    log = climb(make("local", starts=3, seeds=False), 120)
    draws = [p.number for p, _ in log if not p.candidate.parents]
    peak = next(r.number for _, r in log if r.values["accuracy"] == 1)
    assert draws[:3] == [0, 1, 2]
    assert len(draws) > 3
    assert draws[3] > peak
