"""One-shot search: supernets first, then what they tell; and how a supernet is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archc.grammar.draw import read_space
from archc.ir.diagnostics import CompileError
from archc.search.evaluation import Evaluation
from archc.search.executor import Job
from archc.search.goals import parse_goals
from archc.search.records import Proposal, Result
from archc.search.space import KINDS, GrammarSpace
from archc.search.strategies.oneshot import SUMS, TIMES, evaluate
from archc.search.strategy import Strategy, replay, strategy_kind
from archc.search.table import TINY, TableSpace
from archc.search.work import work_kind

GOALS = parse_goals(["accuracy"])
SPACE = """
space small()
input  image:  f32[N, 1, 8, 8]
output logits: f32[N, 10]
rule Body = linear(16) -> relu | zero | linear(16)
def zero = fn(x) { return 0 * (x -> linear(16)) }
rule Act = relu | tanh
logits = image -> flatten -> Body -> Act -> linear(choose { 8 | 12 }) -> linear(10)
"""


def space() -> GrammarSpace:
    return GrammarSpace(read_space(SPACE), (), (), KINDS)


def make(**options: int) -> Strategy:
    kind = strategy_kind("oneshot")
    return kind.make(space(), GOALS, 0, kind.options(**options))


def test_supernets_then_derivations_by_weight() -> None:
    strategy, log = make(), list[Proposal | Result]()
    first = strategy.ask(0)
    assert first is not None
    assert (first.work, first.candidate.origin) == ("oneshot", "supernet/softmax")
    strategy.proposed(first)
    assert strategy.ask(1) is None, "nothing is known of its sums yet"
    sums = {"mix0": [0.1, 0.2, 0.7], "mix1": [0.6, 0.4]}
    told = Result(number=0, status="finished", samples=100, extra={SUMS: json.dumps(sums)})
    strategy.tell(told)
    log += [first, told]
    chosen = []
    for number in range(1, 8):
        proposal = strategy.ask(number)
        again = replay(make(), log).ask(number)
        assert proposal == again
        if proposal is None:
            break
        strategy.proposed(proposal)
        log.append(proposal)
        trace = proposal.candidate.trace or {}
        chosen.append((trace["Body"], trace["Act"]))
        assert proposal.work == "train"
        assert proposal.candidate.parents == (0,)
    assert chosen == [(2, 0), (2, 1), (1, 0), (1, 1), (0, 0), (0, 1)]


def test_a_supernet_that_failed_leads_to_nothing() -> None:
    strategy = make()
    first = strategy.ask(0)
    assert first is not None
    strategy.proposed(first)
    strategy.tell(Result(number=0, status="infeasible", reason="diverged"))
    assert strategy.ask(1) is None


def test_a_list_has_no_choices_to_sum() -> None:
    kind = strategy_kind("oneshot")
    with pytest.raises(CompileError, match="E0742"):
        kind.make(TableSpace.of(TINY, width=[8, 16], act=["relu"]), GOALS, 0, kind.options())


def test_training_learns_which_alternative_is_of_use(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    proposal = make(effort=1).ask(0)
    assert proposal is not None
    evaluation = Evaluation(task="digits", goals=GOALS, steps=25, recipe={"batch_size": 32, "lr": 0.01})
    job = Job(key="k", proposal=proposal, evaluation=evaluation)
    assert work_kind("oneshot").run is evaluate
    scores = []
    result = evaluate(job, tmp_path, lambda point: scores.append(point.score) is None)
    assert result.status == "finished"
    steps = TIMES * 25
    assert result.samples == 32 * (steps + steps * 3 // 4)
    assert scores[-1] > 0.5
    sums = json.loads(str(result.extra[SUMS]))
    assert sums["mix0"][1] < 0.2, "nothing comes out of `zero`"
    assert sum(sums["mix0"]) == pytest.approx(1)
    again = evaluate(job, tmp_path, lambda point: True)
    assert again.extra == result.extra
    assert evaluate(job, tmp_path, lambda point: False).status == "stopped"
