"""Studies: begun once, opened by one writer and any number of readers, with all that they depend on in the folder."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from small_studies import EIGHT, SPACE, Scrambled, begin, hashes

from archc.ir.diagnostics import CompileError
from archc.search import vault
from archc.search.engine import run
from archc.search.evaluation import Evaluation
from archc.search.executor import Event, Job
from archc.search.executors.inline import Inline
from archc.search.executors.pool import Pool
from archc.search.goals import parse_goals
from archc.search.history import curves
from archc.search.records import Result
from archc.search.study import Study, parse_budget


def code(caught: pytest.ExceptionInfo[CompileError]) -> str:
    return caught.value.diagnostics[0].code


def test_a_study_is_what_its_folder_holds(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=5, seed=3) as study:
        run(study, Scrambled(study.folder, 2))
        before, config = study.history, study.config
    os.rename(tmp_path / "s", tmp_path / "elsewhere")
    with Study.open(tmp_path / "elsewhere") as study:
        assert study.config == config
        assert [t.result for t in study.trials] == [t.result for t in before.trials]
        assert study.history.heard == before.heard
        assert (study.history.seconds, study.history.last) == (before.seconds, before.last)


def test_the_space_is_kept_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/act.arch").write_text("rule Act = relu | gelu | tanh\n")
    text = 'import "parts/act.arch"\nimport "std/vision.arch"\n'
    text = SPACE.replace("rule", text + "rule", 1).replace("choose { relu | gelu | tanh }", "Act")
    seed = tmp_path / "mine.arch"
    seed.write_text("arch mine\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear(8) -> tanh -> linear(2)\n")
    begin(tmp_path / "s", text, seeds=[seed]).close()
    drawn = []
    for _ in range(2):
        with Study.open(tmp_path / "s") as study:
            drawn.append([study.space.draw(str(i)).hash for i in range(5)])
            assert [c.origin for c in study.space.seeds()] == ["seed"]
        for path in [tmp_path / "s.arch", tmp_path / "parts/act.arch", seed]:
            path.unlink(missing_ok=True)
        (tmp_path / "s/space/s.arch").write_text("somebody has edited the copy")
    assert drawn[0] == drawn[1]


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    with begin(tmp_path / "s", seed=1) as study:
        with pytest.raises(CompileError) as caught:
            Study.open(tmp_path / "s")
        assert code(caught) == "E0726"
        assert study.config.seed == 1
    with pytest.raises(CompileError) as caught:
        begin(tmp_path / "s")
    assert code(caught) == "E0730"
    Study.open(tmp_path / "s").close()


def test_mistakes_leave_no_study(tmp_path: Path) -> None:
    for how, expected in (
        ({"strategy": "randm"}, "E0711"),
        ({"options": {"distnct": True}}, "E0711"),
        ({"text": "space broken("}, "E0102"),
    ):
        with pytest.raises(CompileError) as caught:
            begin(tmp_path / "s", **how)
        assert code(caught)[:3] == expected[:3]
        assert not (tmp_path / "s").exists()


def test_a_folder_without_a_study_stays_as_it_is(tmp_path: Path) -> None:
    for readonly in (False, True):
        with pytest.raises(CompileError) as caught:
            Study.open(tmp_path, readonly=readonly)
        assert code(caught) == "E0729"
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    begin(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s/study.sqlite") as connection:
        connection.execute("UPDATE config SET text = ?", (json.dumps({"space": "?"}),))
    with pytest.raises(CompileError) as caught:
        Study.open(tmp_path / "s")
    assert code(caught) == "E0729"


@pytest.mark.parametrize("event", ["'report', 7, '{}'", "'proposed', 0, '{}'", "'leased', 0, 'no json'"])
def test_a_log_of_what_is_no_event(tmp_path: Path, event: str) -> None:
    begin(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s/study.sqlite") as connection:
        connection.execute(f"INSERT INTO event (time, kind, trial, data) VALUES (0, {event})")
    with pytest.raises(CompileError) as caught:
        Study.open(tmp_path / "s")
    assert code(caught) == "E0729"


@pytest.mark.parametrize("name", ["../outside.arch", "/tmp/outside.arch", "a/../../outside.arch"])
def test_no_file_of_a_study_leads_elsewhere(tmp_path: Path, name: str) -> None:
    with begin(tmp_path / "s") as study:
        files = study.config.space.model_copy(update={"files": {**study.config.space.files, name: "mine"}})
        study.config = study.config.model_copy(update={"space": files})
        with pytest.raises(CompileError) as caught:
            _ = study.space
        assert code(caught) == "E0729"
    assert not Path("/tmp/outside.arch").exists()
    assert [p.name for p in tmp_path.iterdir() if "outside" in p.name] == []


def test_somebody_looks_on(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=4) as study:
        reader = Study.open(study.folder, readonly=True)
        assert reader.refresh() == []
        seen = []
        run(study, Scrambled(study.folder, 2), lambda entry: seen.extend(reader.refresh()))
        assert [e.id for e in seen] == list(range(1, study.history.last + 1))
        assert reader.history.counts == study.history.counts
        assert [t.number for t in reader.front()] == [t.number for t in study.front()]
        reader.close()


def test_a_replay_tells_where_a_strategy_has_changed(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=5) as study:
        run(study, Scrambled(study.folder, 2))
        assert study.replay() == []
        study.config = study.config.model_copy(update={"seed": 99})
        differences = study.replay()
        assert [number for number, _, _ in differences] == [0, 1, 2, 3, 4]
        assert [then for _, then, _ in differences] == hashes(study)
        assert all(then != now for _, then, now in differences)


def test_budgets() -> None:
    assert parse_budget("200").evaluations == 200
    assert parse_budget("1.5h").minutes == 90
    for text in ("", "0", "-3", "20s", "m", "0m"):
        with pytest.raises(CompileError) as caught:
            parse_budget(text)
        assert code(caught) == "E0710"


def test_curves_that_were_known(tmp_path: Path) -> None:
    with begin(tmp_path / "s", EIGHT, budget=8, options={"distinct": False}) as study:
        run(study, Scrambled(study.folder, 2))
        history = study.history
        assert curves(history, 0, 10) == ()
        own = [history.trials[n].result for n in history.told]
        whole = [r.curve for r in own if r is not None and r.shares is None]
        assert curves(history, len(own), 100) == tuple(whole)
        assert curves(history, len(own), 3) == tuple(whole[-3:])


# What is kept


class Keeping(Scrambled):
    """Trains nothing, and leaves weights and an artifact behind, as trainings do."""

    def end(self, job: Job, result: Result) -> Event:
        array = np.full(50, job.proposal.number, np.float32)
        state = vault.store_weights(self.folder, {"moment": array + 0.5})
        weights = vault.store_weights(self.folder, {"w": array}, {vault.STATE: state})
        vault.artifact_path(self.folder, weights).write_bytes(b"code")
        return super().end(job, result.model_copy(update={"weights": weights, "artifact": weights}))


def files(folder: Path, kind: str) -> set[str]:
    return {p.stem for p in (folder / kind).iterdir()}


def test_what_may_be_needed_is_kept_while_the_search_goes_on(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(entry: object) -> None:
        if len(study.history.told) == 6:
            raise Cut

    with begin(tmp_path / "s", budget=10, strategy="evolution", constraints=["params < 0.7"]) as study:
        with pytest.raises(Cut):
            run(study, Keeping(study.folder, 2), cut)
        ended = [e.result for e in study.ended]
        before = files(study.folder, vault.WEIGHTS)
        infeasible = {r.weights for r in ended if r.status == "infeasible"}
        assert infeasible
        study.collect()
        kept = files(study.folder, vault.WEIGHTS)
        assert {r.weights for r in ended if r.status != "infeasible"} <= kept
        assert not kept & infeasible
        assert len(before) - len(kept) >= 2 * len(infeasible), "with the states of their trainings"
        front = {t.result.artifact for t in study.front() if t.result}
        assert files(study.folder, vault.ARTIFACTS) == front
        run(study, Keeping(study.folder, 2))
        assert study.complete


def test_the_front_is_kept_when_the_search_has_ended(tmp_path: Path) -> None:
    with begin(tmp_path / "s", budget=10) as study:
        run(study, Keeping(study.folder, 2))
        front = {t.number for t in study.front()}
        other = next(t.number for t in study.trials if t.number not in front)
        pretended = study.collect([other], pretend=True)
        assert len(files(study.folder, vault.WEIGHTS)) == 20
        assert study.collect([other]) == pretended > 0
        wanted = {t.result.weights for t in study.trials if t.result and t.number in front | {other}}
        assert files(study.folder, vault.WEIGHTS) == wanted == files(study.folder, vault.ARTIFACTS)
        assert len(files(study.folder, vault.RESULTS)) == 10
        assert study.collect([other]) == 0


# Real trainings

DIGITS = """space digits()
input  image:  f32[N, 1, 8, 8]
output logits: f32[N, 10]
logits = image -> flatten -> linear(range(4, 32, step = 4)) -> choose { relu | gelu | tanh } -> linear(10)
"""


def digits(folder: Path, **how: object) -> Study:
    space = folder.with_suffix(".arch")
    space.write_text(DIGITS)
    goals = parse_goals(["accuracy:max", "params:min"], ["params < 2000"])
    evaluation = Evaluation(task="digits", goals=goals, steps=6, recipe={"batch_size": 32})
    return Study.create(folder, space, evaluation=evaluation, budget=parse_budget("8"), strategy="evolution", **how)  # type: ignore[arg-type]


def test_real_trainings_come_to_the_same_anywhere(tmp_path: Path) -> None:
    """In this process and interrupted, and in two others: equal proposals, equal values, equal weights."""

    def interrupt(entry: object) -> None:
        if len(study.history.told) == 3:
            raise KeyboardInterrupt

    found = []
    for name in ("here", "there"):
        with digits(tmp_path / name, lag=2, options={"population": 2, "inherit": "always"}) as study:
            assert study.config.whole == 6 * 32
            if name == "here":
                with pytest.raises(KeyboardInterrupt):
                    run(study, Inline(study.folder), interrupt)
                run(study, Inline(study.folder))
            else:
                run(study, Pool(study.folder, 2))
            assert study.replay() == []
            found.append([(t.proposal, t.result and (t.result.values, t.result.weights)) for t in study.trials])
            assert any(t.proposal.candidate.inherit is not None and t.start is not None for t in study.trials)
    assert found[0] == found[1]


@pytest.mark.slow
def test_latencies_are_measured_with_workers_paused(tmp_path: Path) -> None:
    space = tmp_path / "digits.arch"
    space.write_text(DIGITS)
    goals = parse_goals(["accuracy:max", "latency_ms:min@cpu"], ["latency_ms@cpu < 1000"])
    evaluation = Evaluation(task="digits", goals=goals, steps=6, recipe={"batch_size": 32})
    with Study.create(
        tmp_path / "s", space, evaluation=evaluation, budget=parse_budget("4"), strategy="random"
    ) as study:
        run(study, Pool(study.folder, 2))
        assert len(study.history.measured) == 4
        for trial in study.trials:
            assert trial.result is not None
            assert trial.result.artifact is not None
            latency = study.history.measured[trial.result.artifact].latency
            assert trial.result.values["latency_ms@cpu"] == latency.median_ms > 0
            assert len(latency.repeats) > 1
        assert study.history.overheads["measuring"] > 0
        assert study.front()
