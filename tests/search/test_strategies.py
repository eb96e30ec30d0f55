"""What holds for every strategy: it is a function of its seed, its options and what it was told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from archc.ir.diagnostics import CompileError
from archc.search.goals import Goals, parse_goals
from archc.search.records import Point, Proposal, Result
from archc.search.strategies.base import Base
from archc.search.strategies.random import KIND as RANDOM
from archc.search.strategies.random import Random, RandomOptions
from archc.search.strategy import Options, Strategy, StrategyKind, replay, strategies, strategy_kind
from archc.search.table import TINY, TableSpace

SPACE = TableSpace.of(TINY, width=list(range(8, 72, 4)), act=["relu", "gelu", "tanh", "silu", "sigmoid"])
ONE = parse_goals(["accuracy:max"])
TWO = parse_goals(["accuracy:max", "params:min"], ["params < 6k"])
Log = list[Proposal | Result]


def make(kind: StrategyKind, goals: Goals = ONE, seed: int = 0, space: TableSpace = SPACE, **options: Any) -> Strategy:
    return kind.make(space, goals, seed, kind.options(**options))


def result_of(proposal: Proposal, space: TableSpace = SPACE, faults: bool = True) -> Result:
    """A made-up quality: smooth in the width, best at 40; now and then a crash, a stop, a duplicate, no value."""
    trace = proposal.candidate.trace
    assert trace is not None
    accuracy = 0.9 - abs(trace["width"] - 8) / 20 - 0.03 * trace["act"] - 0.1 * (1 - proposal.fidelity)
    values = {"accuracy": accuracy, "params": 500.0 * (trace["width"] + 1)}
    samples, number, fate = round(6400 * proposal.fidelity), proposal.number, proposal.number % 11 if faults else 0
    if fate == 3:
        return Result(number=number, status="infeasible", reason="crash", samples=samples // 2)
    if values["params"] >= 6000:
        return Result(number=number, status="infeasible", reason="params", values={"params": values["params"]})
    if fate == 5:
        return Result(number=number, status="stopped", values={"accuracy": accuracy / 2}, samples=samples // 2)
    if fate == 7:
        return Result(number=number, status="finished", values={**values, "accuracy": float("nan")}, samples=samples)
    curve = tuple(Point(samples=samples * k // 4, score=accuracy * k / 4) for k in range(1, 5))
    return Result(number=number, status="finished", values=values, curve=curve, samples=samples)


def run(strategy: Strategy, proposals: int, workers: int = 1, order: int = 0) -> Log:
    """A study of one strategy: up to `workers` trials under way, which end in random order."""
    log: Log = []
    pending: list[Proposal] = []
    dice = np.random.Generator(np.random.Philox(order))
    number = 0
    while True:
        while number < proposals and len(pending) < workers:
            proposal = strategy.ask(number)
            if proposal is None:
                break
            strategy.proposed(proposal)
            log.append(proposal)
            pending.append(proposal)
            number += 1
        if not pending:
            return log
        done = result_of(pending.pop(int(dice.integers(len(pending)))))
        strategy.tell(done)
        log.append(done)


def differs(kind: StrategyKind, log: Log, goals: Goals, options: Mapping[str, Any]) -> list[int]:
    """The proposals that a replay of what stands before them in the log does not repeat."""
    wrong = []
    for at, record in enumerate(log):
        if isinstance(record, Proposal):
            again = replay(make(kind, goals, **options), log[:at])
            if not again.ask(record.number) == record == again.ask(record.number):
                wrong.append(record.number)
    return wrong


@pytest.fixture(autouse=True)
def _optuna(request: pytest.FixtureRequest) -> None:
    if "tpe" in request.node.name:
        pytest.importorskip("optuna", reason="the extra `archc[search]` is not installed")


CASES: list[tuple[str, dict[str, Any]]] = [
    ("random", {}),
    ("random", {"distinct": False, "seeds": True}),
    ("evolution", {"population": 8}),
    ("evolution", {"population": 8, "crossover": 0.5, "inherit": "always", "distinct": False}),
    ("nsga2", {"population": 8}),
    ("halving", {}),
    ("halving", {"mutate": 0.5, "eta": 2, "rungs": 2}),
    ("halving", {"asynchronous": False, "width": 6}),
    ("local", {"starts": 3}),
    ("tpe", {"startup": 4, "domain": 16}),
]


@pytest.mark.parametrize("goals", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_replayed_prefix_proposes_the_same(name: str, options: dict[str, Any], workers: int, goals: Goals) -> None:
    kind = strategy_kind(name)
    count = 12 if name == "tpe" else 40  # Optuna's thoughts take long
    log = run(make(kind, goals, **options), count, workers)
    assert sum(isinstance(r, Proposal) for r in log) == count
    assert differs(kind, log, goals, options) == []


class Forgetful(Random):
    """Keeps a counter that no log holds."""

    asked = 0

    def ask(self, number: int) -> Proposal | None:
        self.asked += 1
        return Proposal(number=number, candidate=self.fresh(1000 + self.asked))


def test_hidden_state_is_found() -> None:
    kind = StrategyKind("forgetful", "", RandomOptions, Forgetful)
    assert differs(kind, run(make(kind), 5), ONE, {}) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_seeds_matter(name: str, options: dict[str, Any]) -> None:
    kind = strategy_kind(name)
    first, second = ([r for r in run(make(kind, seed=s, **options), 10) if isinstance(r, Proposal)] for s in (0, 1))
    assert first != second


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if c[1].get("distinct", True)], ids=str)
def test_a_closed_space_ends(name: str, options: dict[str, Any]) -> None:
    small = TableSpace(SPACE.candidates[:12])
    strategy = make(strategy_kind(name), space=small, **options)
    log = run(strategy, 200)
    first = [r for r in log if isinstance(r, Proposal) and r.continues is None]
    assert len({r.candidate.hash for r in first}) == 12
    assert strategy.ask(200) is None


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_when_all_is_infeasible_it_goes_on(name: str, options: dict[str, Any]) -> None:
    strategy = make(strategy_kind(name), **options)
    for number in range(30):
        proposal = strategy.ask(number)
        assert proposal is not None
        strategy.proposed(proposal)
        strategy.tell(Result(number=number, status="infeasible", reason="memory"))


def test_every_strategy_has_options_with_descriptions() -> None:
    for name in strategies():
        kind = strategy_kind(name)
        assert kind.name == name
        assert kind.doc
        assert issubclass(kind.options, Options)
        kind.options()
        assert all(f.description for f in kind.options.model_fields.values()), name


def test_what_was_never_proposed_cannot_be_told() -> None:
    strategy = make(RANDOM)
    assert isinstance(strategy, Base)
    with pytest.raises(AssertionError, match="before it was proposed"):
        strategy.tell(Result(number=0, status="finished"))


def test_tpe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CompileError) as caught:
        make(strategy_kind("tpe"))
    assert [d.code for d in caught.value.diagnostics] == ["E0740"]
    assert "archc[search]" in str(caught.value)
