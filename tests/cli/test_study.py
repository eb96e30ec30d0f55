"""archc study: looking at searches, comparing and exporting them."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from archc.cli.main import run

SPACE = """\
space tiny()
input x: f32[N, 4]
output y: f32[N, 2]
rule Body = linear(range(8, 64, step = 8)) -> choose { relu | gelu | tanh } | 0.5: Body -> Body when depth < 3
y = x -> Body -> linear(2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three searches with made-up objectives: random, evolution, and evolution with another budget."""
    made = tmp_path_factory.mktemp("studies")
    (made / "tiny.arch").write_text(SPACE)
    goals = ["--task", "synthetic", "--objective", "accuracy", "--objective", "cost:min", "--workers", "1", "--quiet"]
    for name, strategy, budget in (("r", "random", "16"), ("e", "evolution", "16"), ("f", "evolution", "10")):
        rest = ["--strategy", strategy, "--budget", budget, "--study", str(made / name)]
        assert run(["search", str(made / "tiny.arch"), *goals, *rest]) == 0
    return made


def test_status(archc, folder):
    told = archc("study", "status", folder / "r", folder / "e").out
    assert told.count("complete") == 2
    found = archc("study", "status", folder / "e", "--json").json[0]
    assert (found["strategy"], found["state"], found["spent"]) == ("evolution", "complete", 16)
    assert found["command"].startswith(f"archc search {folder}/e/space/tiny.arch --task synthetic")


def test_pareto(archc, folder):
    found = archc("study", "pareto", folder / "e", "--json").json
    assert [w["number"] for w in found["winners"]] == [row["number"] for row in found["front"]]
    commands = archc("study", "pareto", folder / "e", "--commands").out
    assert commands.count("archc train") == commands.count("archc compile") == len(found["winners"])


def test_compare(archc, folder):
    found = archc("study", "compare", folder / "r", folder / "e", "--json").json
    rows = {row["strategy"]: row for row in found["strategies"]}
    assert rows["random"]["over_best"]["value"] == pytest.approx(0)
    assert rows["evolution"]["over_mean"]["value"] > 0
    told = archc("study", "compare", folder / "r", folder / "e")
    assert "over best of random" in told.out
    assert "has one study" in told.err


def test_unequal_budgets_are_refused(archc, folder):
    found = archc("study", "compare", folder / "r", folder / "f")
    assert found.code == 1
    assert "E0745" in found.err
    assert "budget: `16` in" in found.err
    assert archc("study", "plot", folder / "r", folder / "f", "-o", folder / "both.svg").code == 0  # drawn they may be


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot(archc, folder, tmp_path, suffix):
    out = tmp_path / f"front{suffix}"
    assert archc("study", "plot", folder / "r", folder / "e", "-o", out).out == f"{out}\n"
    assert out.stat().st_size > 5000
    wrong = archc("study", "plot", folder / "r", "-o", tmp_path / "front.bmp")
    assert (wrong.code, "E0022" in wrong.err) == (2, True)


def test_report_and_export(archc, folder, tmp_path):
    assert archc("study", "report", folder / "e", "-o", tmp_path / "r.html").code == 0
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert archc("study", "export", folder / "e", "-o", tmp_path / "t.csv").code == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) > 16
    wrong = archc("study", "export", folder / "e", "--format", "cvs", "-o", tmp_path / "t")
    assert (wrong.code, "did you mean `csv`?" in wrong.err) == (2, True)


def test_replay(archc, folder, tmp_path):
    """A log in which a proposal is another one than the strategy makes is found out."""
    assert "the same again" in archc("study", "replay", folder / "e").out
    shutil.copytree(folder / "e", tmp_path / "e")
    with sqlite3.connect(tmp_path / "e/study.sqlite") as log:
        log.execute(
            "UPDATE event SET data = replace(data, '\"hash\":\"', '\"hash\":\"0') WHERE kind = 'proposed' AND trial = 9"
        )
    log.close()
    found = archc("study", "replay", tmp_path / "e", "--json")
    assert found.code == 3
    assert [difference[0] for difference in found.json["differences"]] == [9]


def test_gc(archc, folder):
    """Made-up trials leave nothing behind; what a killed worker left half written goes."""
    found = archc("study", "gc", folder / "e", "--dry-run", "--json").json
    assert found == {"freed": {str(folder / "e"): 0}, "dry_run": True}
    stray = folder / "e/weights" / ("ab" * 32 + ".safetensors")
    stray.write_bytes(b"x" * 3000)
    assert "3.00 kB would be freed" in archc("study", "gc", folder / "e", "--dry-run").out
    assert stray.exists()
    assert "3.00 kB freed" in archc("study", "gc", folder / "e").out
    assert not stray.exists()


def test_more_budget(archc, folder, tmp_path):
    shutil.copytree(folder / "f", tmp_path / "f")
    found = archc("study", "resume", tmp_path / "f", "--budget", 14, "--workers", 1, "--json", "--quiet").json
    assert found["spent"] == pytest.approx(14)


def test_what_is_no_study(archc, folder, tmp_path):
    for command in (("status",), ("watch",), ("pareto",), ("replay",), ("gc",), ("resume",)):
        found = archc("study", *command, tmp_path)
        assert (found.code, "E0729" in found.err) == (2, True), command
    shutil.copytree(folder / "f", tmp_path / "f")
    with sqlite3.connect(tmp_path / "f/study.sqlite") as log:
        log.execute("PRAGMA user_version = 99")
    log.close()
    found = archc("study", "status", tmp_path / "f")
    assert (found.code, "E0725" in found.err) == (1, True)
