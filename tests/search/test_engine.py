"""The coordinator: what it asks, logs, runs and tells, in whatever order work ends and wherever it is cut off."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_studies import EIGHT, Scrambled, begin, hashes

from archc.ir.diagnostics import CompileError
from archc.search import engine, vault
from archc.search.engine import judged, run
from archc.search.executor import Event, Job
from archc.search.executors.pool import Pool
from archc.search.goals import parse_goals
from archc.search.pareto import dominates
from archc.search.records import Proposal, Result
from archc.search.store import Entry
from archc.search.study import Study, parse_budget


def kinds(study: Study, trial: int | None = None) -> list[str]:
    entries = list(study._store.entries())
    return [e.kind for e in entries if trial is None or e.trial == trial]


def test_a_search(tmp_path: Path) -> None:
    heard: list[Entry] = []
    with begin(tmp_path / "s", budget=12) as study:
        run(study, Scrambled(study.folder, 3), heard.append)
        assert study.history.spent == 12
        assert study.history.counts == {"running": 0, "finished": 12, "stopped": 0, "infeasible": 0, "shared": 0}
        assert kinds(study, 0) == ["proposed", "leased", "report", "report", "report", "finished"]
        assert heard == list(study._store.entries())
        assert (heard[0].kind, heard[-1].kind) == ("opened", "closed")
        assert study.complete
        losses = {t.number: study.goals.losses(t.result) for t in study.trials if t.result}
        for trial in study.front():
            assert not any(dominates(other, losses[trial.number]) for other in losses.values())
        best = study.best()
        assert best is not None
        assert losses[best.number][0] == min(l[0] for l in losses.values())


def test_what_strategies_hear_is_what_the_log_holds(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=20, strategy="evolution", options={"population": 5}) as study:
        run(study, Scrambled(study.folder, 3))
        assert study.replay() == []
        other = study.strategy([])
        control = [r for r in study.history.heard if isinstance(r, Proposal)]
        for record in control:  # the control: without the results it proposes something else
            if other.ask(record.number) != record:
                break
            other.proposed(record)
        else:
            pytest.fail("evolution does not depend on results")


# Equal work


def test_equal_work_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MOST_IDLE", 20)
    with begin(tmp_path / "s", EIGHT, budget=9, options={"distinct": False}) as study:
        executor = Scrambled(study.folder, 3)
        run(study, executor)
        assert len(executor.done) == len(set(executor.done)) == 8, "the space has eight architectures"
        assert study.history.spent == 8
        assert study.complete, "where nothing costs anything any more, a search ends"
        assert len(study.trials) > 8
        assert study.history.counts["shared"] == len(study.trials) - 8
        for trial in study.trials:
            if trial.shares is not None:
                assert trial.result is not None
                leader = study.trials[trial.shares].result
                assert leader is not None
                assert (trial.result.values, trial.result.samples) == (leader.values, 0)
                assert trial.result.shares == leader.number
                assert kinds(study, trial.number) == ["proposed", "duplicate", "finished"]


def test_without_dedupe_it_is_done_again(tmp_path: Path) -> None:
    """The control."""
    with begin(tmp_path / "s", EIGHT, budget=9, options={"distinct": False}, dedupe=False) as study:
        run(study, Scrambled(study.folder, 3))
        assert study.history.spent == 9
        assert len(set(hashes(study))) <= 8
        assert study.history.counts["shared"] == 0


# Constraints


def test_a_result_is_judged() -> None:
    goals = parse_goals(["accuracy:max"], ["params < 10"])
    good = Result(number=0, status="finished", values={"accuracy": 0.5, "params": 9})
    assert judged(goals, good) == good
    for values, reason in (
        ({"accuracy": 0.5, "params": 10}, "params"),
        ({"accuracy": float("nan"), "params": 1}, "diverged"),
    ):
        bad = judged(goals, Result(number=0, status="finished", values=values))
        assert (bad.status, bad.reason) == ("infeasible", reason)


def test_infeasible_candidates_are_told_as_such(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=30, constraints=["params < 0.5"]) as study:
        run(study, Scrambled(study.folder, 2))
        assert study.history.reasons.keys() == {"params"}
        for trial in study.trials:
            assert trial.result is not None
            assert (trial.state == "infeasible") == (trial.result.values["params"] >= 0.5)
            assert ("failed" in kinds(study, trial.number)) == (trial.state == "infeasible")


def test_an_empty_feasible_set_says_what_bites(tmp_path: Path) -> None:
    study = begin(tmp_path / "s", budget=10, constraints=["params < 0", "accuracy < 0.05"])
    with study, pytest.raises(CompileError) as caught:
        run(study, Scrambled(study.folder, 2))
    found = caught.value.diagnostics[0]
    assert found.code == "E0727"
    assert "none of 10" in found.message
    notes = [n.message for n in found.notes]
    nearest = min(t.result.values["params"] for t in study.trials if t.result)
    assert f"`params < 0`: 10 of 10 break it, the nearest has {nearest:g}" in notes
    over = sum(t.result.values["accuracy"] >= 0.05 for t in study.trials if t.result)
    assert any(note.startswith(f"`accuracy < 0.05`: {over} of 10 break it") for note in notes)


# Trainings that go on


def test_a_promoted_trial_pays_for_what_it_adds(tmp_path: Path) -> None:
    options = {"eta": 2, "rungs": 2}
    with begin(tmp_path / "s", budget=12, strategy="halving", options=options, steps=10) as study:
        run(study, Scrambled(study.folder, 2))
        promoted = [t for t in study.trials if t.proposal.continues is not None]
        assert promoted
        assert all(study.history.cost(t.proposal) == 0.5 for t in study.trials)
        assert "promoted" in kinds(study, promoted[0].number)
        assert all(t.proposal.fidelity == 1 for t in study.front())


def test_a_budget_is_not_exceeded(tmp_path: Path) -> None:
    """What is left over when the next training does not fit stays unspent."""
    with begin(tmp_path / "s", budget=3.6, strategy="random") as study:
        run(study, Scrambled(study.folder, 2))
        assert study.history.spent == 3
        assert study.complete


# Workers that are lost


class Lossy(Scrambled):
    """Loses the jobs of some trials, so many times."""

    def __init__(self, folder: Path, lose: dict[int, int]) -> None:
        super().__init__(folder, 2)
        self.lose = lose

    def end(self, job: Job, result: Result) -> Event:
        if self.lose.get(job.proposal.number, 0) > 0:
            self.lose[job.proposal.number] -= 1
            return Event(key=job.key, kind="lost", message="its worker was killed")
        return super().end(job, result)


def test_what_was_lost_is_tried_again(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=6) as study:
        run(study, Lossy(study.folder, {2: 2, 4: 1000}))
        assert study.trials[2].state == "finished"
        assert study.trials[2].lost == kinds(study, 2).count("retried") == 2
        given_up = study.trials[4].result
        assert given_up is not None
        assert (given_up.status, given_up.reason) == ("infeasible", "crash")
        assert "its worker was killed" in given_up.message


# Deterministic studies


def deterministic(folder: Path, executor: Callable[[Path], Any], **how: Any) -> list[str]:
    options = {"strategy": "evolution", "options": {"population": 5}, "budget": 25, "lag": 4}
    with begin(folder, **(options | how)) as study:
        run(study, executor(study.folder))
        assert study.replay() == []
        return hashes(study)


def test_workers_and_their_speed_do_not_count(tmp_path: Path) -> None:
    orders = itertools.product((1, 2, 4), range(2))
    found = [deterministic(tmp_path / f"{w}{s}", lambda f, w=w, s=s: Scrambled(f, w, s)) for w, s in orders]  # type: ignore[misc]
    assert len(set(map(tuple, found))) == 1


def test_they_do_count_otherwise(tmp_path: Path) -> None:
    """The control."""
    found = [deterministic(tmp_path / f"{s}", lambda f, s=s: Scrambled(f, 4, s), lag=None) for s in range(3)]  # type: ignore[misc]
    assert len(set(map(tuple, found))) > 1


def test_a_proposal_sees_results_up_to_its_lag_and_no_others(tmp_path: Path) -> None:
    with begin(tmp_path / "s", strategy="evolution", budget=20, lag=3) as study:
        run(study, Scrambled(study.folder, 2))
        told: list[int] = []
        for record in study.history.heard:
            if isinstance(record, Result):
                told.append(record.number)
            elif record.number >= 3:
                assert told == list(range(record.number - 2))


def test_a_strategy_that_waits_is_deterministic_too(tmp_path: Path) -> None:
    """Successive halving, rung by rung, has nothing to propose before it has heard all of a rung."""
    how = {"strategy": "halving", "options": {"eta": 2, "rungs": 3, "asynchronous": False}, "budget": 10}
    found = [deterministic(tmp_path / f"{s}", lambda f, s=s: Scrambled(f, 4, s), **how) for s in range(3)]  # type: ignore[misc]
    assert len(set(map(tuple, found))) == 1
    assert len(found[0]) > 10


@pytest.mark.parametrize(
    "how", [{"budget": "10m"}, {"objectives": ["latency_ms:min@cpu"]}, {"constraints": ["latency_ms@cpu < 2"]}]
)
def test_what_cannot_be_deterministic(tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(CompileError) as caught:
        begin(tmp_path / "s", **({"lag": 2} | how))
    assert caught.value.diagnostics[0].code == "E0731"
    assert not (tmp_path / "s").exists()
    begin(tmp_path / "s", **how).close()


def test_a_deterministic_study_has_no_more_workers_than_its_lag(tmp_path: Path) -> None:
    with begin(tmp_path / "s", lag=2) as study, pytest.raises(CompileError) as caught:
        run(study, Scrambled(study.folder, 3))
    assert caught.value.diagnostics[0].code == "E0731"


# Cut off, and taken up again


class Cut(Exception):
    pass


@pytest.mark.parametrize("lag", [None, 3])
def test_resumed_after_any_event(tmp_path: Path, lag: int | None) -> None:
    """Cut off behind every third event of its log, and gone on with each time: nothing is done twice (`Scrambled` sees
    to that), the log has no gap, and a deterministic study comes to the same as one that was left alone."""
    how: dict[str, Any] = {"strategy": "evolution", "options": {"population": 4}, "budget": 12, "lag": lag}
    folder = tmp_path / "s"
    begin(folder, **how).close()
    cuts = 0
    for attempt in itertools.count():
        count = itertools.count(1)

        def cut(entry: Entry, count: Any = count) -> None:
            if next(count) == 8:
                raise Cut

        with Study.open(folder) as study:
            try:
                run(study, Scrambled(folder, 2, attempt), cut)
            except Cut:
                cuts += 1
                continue
            break
    assert cuts > 5
    with Study.open(folder) as study:
        assert study.history.spent == 12
        assert study.replay() == []
        assert len(list((folder / vault.RESULTS).iterdir())) == 12
        if lag is not None:
            assert hashes(study) == deterministic(tmp_path / "alone", lambda f: Scrambled(f, 1), **how)


def test_an_interrupted_search_can_be_resumed(tmp_path: Path) -> None:
    def interrupt(entry: Entry) -> None:
        if entry.kind == "finished":
            raise KeyboardInterrupt

    with begin(tmp_path / "s", budget=6) as study:
        with pytest.raises(KeyboardInterrupt):
            run(study, Scrambled(study.folder, 2), interrupt)
        assert study.history.closed == "interrupted"
        assert len(study.history.told) == 1
        run(study, Scrambled(study.folder, 2))
        assert study.history.spent == 6
        assert study.complete


def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=4) as study:
        run(study, Scrambled(study.folder, 2))
        run(study, Scrambled(study.folder, 2))
        assert len(study.trials) == 4
        run(study, Scrambled(study.folder, 2), budget=parse_budget("7"))
        assert len(study.trials) == 7


def test_minutes(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget="0.03m", recipe={"takes": 0.1}) as study:
        run(study, Scrambled(study.folder, 2))
        number = len(study.trials)
        assert number <= 18, "as many as fit in 1.8 seconds"
        assert study.complete
        run(study, Scrambled(study.folder, 2))
        assert len(study.trials) == number, "its time is up"
        run(study, Scrambled(study.folder, 2), budget=parse_budget("20"))
        assert len(study.trials) == 20


SEARCH = """
import sys
from pathlib import Path
from archc.search.engine import run
from archc.search.executors.pool import Pool
from archc.search.study import Study
folder = Path(sys.argv[1])
with Study.open(folder) as study:
    run(study, Pool(folder, 2), lambda entry: print(entry.id, flush=True))
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """`kill -9` of the coordinator, again and again (`benchmarks/search_crash.py` does it hundreds of times)."""
    how: dict[str, Any] = {"strategy": "evolution", "options": {"population": 4}, "budget": 10, "lag": 3}
    how["recipe"] = {"takes": 0.02}
    folder, dice = tmp_path / "s", random.Random(0)
    begin(folder, **how).close()
    known, seen, kills = 0, dict[str, int](), 0
    for _ in range(100):
        child = subprocess.Popen([sys.executable, "-c", SEARCH, str(folder)], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            for _ in range(dice.randrange(5, 30)):
                line = child.stdout.readline()
                known = int(line or known)
            time.sleep(dice.random() * 0.01)
        finally:
            child.kill()
            ended = child.wait()
        results = {p.name: p.stat().st_mtime_ns for p in (folder / vault.RESULTS).glob("[0-9a-f]*")}
        assert seen.items() <= results.items(), "a result that stands there is not worked out again"
        seen = results
        with Study.open(folder) as study:  # no lock is left behind
            assert study.history.last >= known
        if ended == 0:
            break
        kills += 1
    assert kills >= 2
    with Study.open(folder) as study:
        assert study.complete
        assert hashes(study) == deterministic(tmp_path / "alone", lambda f: Scrambled(f, 1), **how)


def test_a_pool_proposes_what_one_process_does(tmp_path: Path) -> None:
    found = [deterministic(tmp_path / f"{w}", lambda f, w=w: Pool(f, w), budget=12) for w in (1, 2, 4)]  # type: ignore[misc]
    found.append(deterministic(tmp_path / "inline", lambda f: Scrambled(f, 1), budget=12))
    assert len(set(map(tuple, found))) == 1


FULL = """
import resource, sys
from pathlib import Path
from archc.ir.diagnostics import CompileError
from archc.search.engine import run
from archc.search.executors.inline import Inline
from archc.search.study import Study
folder = Path(sys.argv[1])
with Study.open(folder) as study:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    try:
        run(study, Inline(folder))
    except CompileError as error:
        print(error.diagnostics[0].code)
"""


def test_a_full_disk_stops_the_search_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    begin(folder, budget=60, lag=2).close()
    done = subprocess.run([sys.executable, "-c", FULL, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "E0728\n"
    with Study.open(folder) as study:
        before = len(study.history.told)
        assert 3 < before < 60
        run(study, Scrambled(folder, 1))
        assert len(study.trials) == 60
        assert hashes(study) == deterministic(
            tmp_path / "alone", lambda f: Scrambled(f, 1), budget=60, lag=2, strategy="random", options={}
        )


def test_curves_for_early_stopping_are_those_that_were_known(tmp_path: Path) -> None:
    """After a crash, too: a job that is begun again is judged by what it was judged by."""
    jobs: dict[str, list[str]] = {}

    class Watching(Scrambled):
        def submit(self, job: Job) -> None:
            jobs.setdefault(job.key, []).append(json.dumps([[p.model_dump() for p in c] for c in job.curves]))
            super().submit(job)

    def cut(entry: Entry) -> None:
        if entry.kind == "leased" and entry.trial == 7:
            raise Cut

    with begin(tmp_path / "s", budget=10, early_stop=True) as study:
        with pytest.raises(Cut):
            run(study, Watching(study.folder, 2), cut)
        run(study, Watching(study.folder, 2))
    twice = [found for found in jobs.values() if len(found) > 1]
    assert twice
    assert all(len(set(found)) == 1 for found in twice)
    assert len({found[0] for found in jobs.values()}) > 5
