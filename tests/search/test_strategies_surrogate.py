"""Surrogate-assisted search: what it believes, what it proposes, and that nothing but the log decides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from archc.search.goals import Goals, parse_goals, parse_objective
from archc.search.learners import Forest, Process, Read, learner, ranked, sizes
from archc.search.predictor import LatencyPredictor, Sieve, see_text
from archc.search.records import Proposal, Result
from archc.search.strategies.surrogate import chebyshev, expected_improvement
from archc.search.strategy import Strategy, replay, strategy_kind
from archc.search.table import TINY, TableSpace

SPACE = TableSpace.of(TINY, width=list(range(4, 68, 4)), act=["relu", "gelu", "tanh", "silu", "sigmoid"])
ONE = parse_goals(["accuracy"])
TWO = parse_goals(["accuracy", "latency_ms:min@cpu"], ["latency_ms@cpu < 0.03"])
SMALL: dict[str, Any] = {"initial": 8, "pool": 16}


def result_of(proposal: Proposal) -> Result:
    """Best at one width and one activation; a crash, a duplicate and a value that is missing among them."""
    trace = proposal.candidate.trace
    assert trace is not None
    number = proposal.number
    if number == 4:
        return Result(number=number, status="infeasible", reason="crash")
    accuracy = 0.9 - abs(trace["width"] - 9) / 40 - 0.04 * trace["act"]
    values = {"accuracy": float("nan") if number == 6 else accuracy, "latency_ms@cpu": 0.01 + 0.002 * trace["width"]}
    return Result(number=number, status="finished", values=values)


def run(count: int, goals: Goals = ONE, workers: int = 1, seed: int = 0, **options: Any) -> list[Proposal | Result]:
    strategy, log, pending = make(goals, seed, **options), list[Proposal | Result](), list[Proposal]()
    for number in range(count):
        proposal = strategy.ask(number)
        assert proposal is not None
        strategy.proposed(proposal)
        log.append(proposal)
        pending.append(proposal)
        if len(pending) == workers:
            done = result_of(pending.pop(0))
            strategy.tell(done)
            log.append(done)
    return log


def make(goals: Goals = ONE, seed: int = 0, **options: Any) -> Strategy:
    kind = strategy_kind("surrogate")
    return kind.make(SPACE, goals, seed, kind.options(**SMALL | options))


def proposals(log: Sequence[Proposal | Result]) -> list[Proposal]:
    return [record for record in log if isinstance(record, Proposal)]


@pytest.mark.parametrize("model", ["gp", "forest"])
@pytest.mark.parametrize(("goals", "workers"), [(ONE, 1), (TWO, 3)], ids=["one", "two"])
def test_a_replayed_prefix_proposes_the_same(goals: Goals, workers: int, model: str) -> None:
    log = run(15, goals, workers, model=model)
    for at, record in enumerate(log):
        if isinstance(record, Proposal) and record.number in (11, 14):
            again = replay(make(goals, model=model), log[:at])
            assert again.ask(record.number) == record == again.ask(record.number)
    assert len({p.candidate.hash for p in proposals(log)}) == 15
    assert proposals(run(15, goals, workers, seed=1, model=model)) != proposals(log)


@pytest.mark.parametrize("model", ["gp", "forest"])
def test_it_finds_the_better_ones(model: str) -> None:
    log = run(24, explore=0.0, model=model)
    found = [r.values.get("accuracy", 0.0) for r in log if isinstance(r, Result)]
    drawn, chosen = found[:8], [a for a in found[8:] if a == a]
    assert np.median(chosen) > np.nanmedian(drawn)
    assert max(chosen) >= 0.85


def test_workers_do_not_all_get_the_same_idea() -> None:
    chosen = proposals(run(14, workers=5, explore=0.0))[10:]
    assert len({p.candidate.hash for p in chosen}) == len(chosen)


def test_what_is_under_way_counts_as_expected() -> None:
    texts = [c.text for c in SPACE.candidates[::7]]
    losses = np.linspace(0, 1, len(texts))
    for made in (Process(ranked), Forest(ranked)):
        made.learn([see_text(t) for t in texts], losses)
        other = [see_text(SPACE.candidates[3].text)]
        mean, spread, *_ = made.predict(other)
        made.believe(other)
        after, less, *_ = made.predict(other)
        assert abs(after - mean) < 0.35  # it is as it was thought to be
        assert isinstance(made, Forest) or less < spread  # and surer
        again = made.learn([see_text(t) for t in texts], losses)
        assert np.array_equal(again, ranked(losses))
        assert made.predict(other)[0] == pytest.approx(mean)


def test_the_process_follows_from_what_was_told_not_from_when_it_was_asked() -> None:
    seen = [see_text(c.text) for c in SPACE.candidates[::4]]
    losses = np.random.Generator(np.random.Philox(0)).random(len(seen))
    often, once = Process(ranked), Process(ranked)
    for count in (8, 9, 11, 12, 20):
        often.learn(seen[:count], losses[:count])
        often.believe(seen[count : count + 2])
    once.learn(seen[:20], losses[:20])
    often.learn(seen[:20], losses[:20])
    assert np.array_equal(often.predict(seen)[0], once.predict(seen)[0])


def test_what_stands_in_the_graph_is_not_guessed() -> None:
    text = SPACE.candidates[0].text
    made = learner(parse_objective("params:min"), "gp")
    assert isinstance(made, Read)
    mean, spread = made.predict([text])
    assert np.expm1(mean[0]) == pytest.approx(sizes(text)["params"])
    assert spread[0] == 0


def test_expected_improvement_by_simulation() -> None:
    mean, spread, best = np.array([0.3, -1.0, 2.0]), np.array([0.5, 1.0, 0.1]), 0.1
    draws = np.random.Generator(np.random.Philox(0)).normal(size=(200_000, 1)) * spread + mean
    assert expected_improvement(mean, spread, best) == pytest.approx(np.maximum(best - draws, 0).mean(0), abs=5e-3)
    assert chebyshev(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == 0.0


def measured(text: str) -> float:
    return 0.005 + 2e-8 * sizes(text)["flops"]


def test_latency_is_learned_with_intervals() -> None:
    texts = [c.text for c in SPACE.candidates]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(texts))
    predictor = LatencyPredictor()
    for i in order[:30]:
        predictor.learn(texts[i], measured(texts[i]))
    rest = [texts[i] for i in order[30:]]
    truth = np.array([measured(t) for t in rest])
    told = predictor.predict(rest)
    assert np.corrcoef(np.argsort(np.argsort(told.mean)), np.argsort(np.argsort(truth)))[0, 1] > 0.9
    assert ((told.low <= truth) & (truth <= told.high)).mean() > 0.75
    assert (predictor.predict(rest, 0.98).low <= told.low).all()


def test_the_sieve_keeps_what_may_be_feasible() -> None:
    bound = float(np.median([measured(c.text) for c in SPACE.candidates]))
    goals = parse_goals(["accuracy"], [f"latency_ms@cpu < {bound}"])
    sieve = Sieve(goals)
    assert sieve.possible(SPACE.candidates) == list(SPACE.candidates)  # it knows nothing yet
    for number, candidate in enumerate(SPACE.candidates[::3]):
        values = {"latency_ms@cpu": measured(candidate.text)}
        sieve.learn(candidate, Result(number=number, status="infeasible", reason="latency_ms", values=values))
    kept = {c.hash for c in sieve.possible(SPACE.candidates)}
    feasible = {c.hash for c in SPACE.candidates if measured(c.text) <= bound}
    assert len(feasible - kept) <= 1
    assert len(kept) < 0.8 * SPACE.size()
    assert Sieve(ONE).possible(SPACE.candidates) == list(SPACE.candidates)
