"""Exports hold every trial that has ended."""

from __future__ import annotations

import csv
import json

import pytest
from small_studies import Scrambled, begin

from archc.ir.diagnostics import CompileError
from archc.search.engine import run
from archc.search.export import export, table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "study"
    with begin(folder, budget=12, strategy="evolution", options={"population": 4}, constraints=["cost < 0.5"]) as made:
        run(made, Scrambled(folder, 2))
        yield made


def arguments(study, path, format):
    return study.ended, [t.number for t in study.front()], study.goals, path, format, "tiny"


def test_csv(study, tmp_path):
    export(*arguments(study, tmp_path / "t.csv", "csv"))
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == [e.proposal.number for e in study.ended]
    one = rows[0]
    assert float(one["value:accuracy"]) == study.ended[0].result.values["accuracy"]
    assert one["text"] == study.ended[0].proposal.candidate.text
    assert {int(row["number"]) for row in rows if row["front"] == "True"} == {t.number for t in study.front()}
    assert {row["reason"] for row in rows} == {"", "cost"}


def test_parquet(study, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(*arguments(study, tmp_path / "t.parquet", "parquet"))
    rows = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert rows == table(*arguments(study, tmp_path, "parquet")[:3])


def test_optuna_reads_it(study, tmp_path):
    optuna = pytest.importorskip("optuna")
    export(*arguments(study, tmp_path / "t.db", "optuna"))
    found = optuna.load_study(storage=f"sqlite:///{tmp_path / 't.db'}", study_name="tiny")
    assert len(found.trials) == len(study.ended)
    numbers = {t.user_attrs["number"] for t in found.best_trials}
    assert numbers == {t.number for t in study.front()}
    traces = {e.proposal.number: e.proposal.candidate.trace for e in study.ended}
    assert all(t.params == traces[t.user_attrs["number"]] for t in found.trials)
    states = [t.state.name for t in found.trials]
    assert states.count("FAIL") == study.history.counts["infeasible"] > 0


def test_an_unknown_format(study, tmp_path):
    with pytest.raises(CompileError, match=r"E0747(.|\n)*did you mean `csv`"):
        export(*arguments(study, tmp_path / "t", "cvs"))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CompileError, match=r"E0747(.|\n)*archc\[search\]") as error:
        export(*arguments(study, tmp_path / "t", "parquet"))
    assert error.value.exit_code == 4


def test_values_are_plain(study):
    assert json.loads(json.dumps(table(*arguments(study, None, "csv")[:3])))
