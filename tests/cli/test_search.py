"""archc search: what it prints, keeps and refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archc.cli.app import app
from archc.search.strategy import strategies

SPACE = """\
space tiny(hidden = 8)

input x: f32[N, 13]
output y: f32[N, 3]

rule Body = linear(range(4, 24, step = 4)) -> choose { relu | gelu | tanh } | 0.4: Body -> Body when depth < 3
y = x -> Body -> linear(3)
"""
MADE_UP = ("--task", "synthetic", "--objective", "accuracy", "--objective", "cost:min", "--workers", 1)
"""Nothing is trained: values follow from the candidate's hash."""


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "tiny.arch"
    file.write_text(SPACE)
    return file


def test_a_search_trains_measures_and_keeps_the_front(archc, space, tmp_path):
    """On a real task: programs, trained weights and compiled networks, and the command that trains one again."""
    study = tmp_path / "study"
    goals = ("--objective", "accuracy", "--objective", "latency_ms:min@cpu", "--require", "params < 500")
    flags = ("--budget", 3, "--steps", 40, "--strategy", "random", "--workers", 1, "--seed", 3)
    found = archc("search", space, "--task", "wine", *goals, *flags, "--study", study, "--json", "--quiet")
    assert found.code == 0, found.err
    told = found.json
    assert told["closed"] == "complete"
    assert told["spent"] == pytest.approx(3)
    winner = told["winners"][0]
    assert 0 < winner["values"]["latency_ms@cpu"] < 100
    assert winner["values"]["params"] < 500
    assert archc("check", winner["arch"]).code == 0

    out = tmp_path / "again.safetensors"
    train, build = (command.split()[1:] for command in winner["commands"])
    trained = archc(*[w if w != train[-1] else out for w in train], "--json", "--quiet")
    assert trained.code == 0, trained.err
    assert trained.json["val"]["metrics"]["accuracy"] == pytest.approx(winner["values"]["accuracy"], abs=0.06)
    assert build[0] == "compile"

    verified = archc("verify", winner["artifact"], "--weights", winner["weights"])
    assert verified.code == 0, verified.err
    again = archc("search", space, "--task", "wine", *goals, *flags, "--study", study)
    assert again.code == 1
    assert "E0730" in again.err
    assert "archc study resume" in again.err


def test_progress_is_lines_where_nobody_watches(archc, space, tmp_path):
    found = archc("search", space, *MADE_UP, "--budget", 12, "--study", tmp_path / "s")
    assert found.code == 0
    assert re.search(r"^100 %: 12\.0 trainings spent, .* on the front, best accuracy", found.err, re.MULTILINE)
    head, _, *rows = found.out.partition("\n\n")[0].splitlines()
    assert head.split() == ["trial", "accuracy", "cost", "made", "by", "program"]
    winners = sorted(p.name for p in (tmp_path / "s/winners").iterdir())
    assert winners == sorted(Path(row.split()[-1]).name for row in rows)


def test_the_same_command_in_another_folder_proposes_the_same(archc, space, tmp_path):
    """What the report gives as the command that runs the study again does that."""
    flags = ("--budget", 10, "--deterministic", "--strategy", "evolution", "--option", "population=4")
    first = archc(
        "search", space, *MADE_UP, *flags, "--set", "hidden=4", "--study", tmp_path / "s", "--json", "-q"
    ).json
    status = archc("study", "status", tmp_path / "s", "--json").json[0]
    assert archc(*status["command"].split()[1:], "--quiet").code == 0
    again = archc("study", "status", tmp_path / "s-again", "--json").json[0]
    assert again["front"] == first["front"]
    names = status["config"].keys() - {"versions"}
    assert {n: again["config"][n] for n in names} == {n: status["config"][n] for n in names}


def test_a_dry_run_keeps_nothing(archc, space, tmp_path):
    found = archc("search", space, *MADE_UP, "--budget", 50, "--dry-run", "--json", "--study", tmp_path / "s")
    assert found.code == 0, found.err
    assert found.json["tried"] == 3
    assert 1 < found.json["distinct"] <= found.json["drawn"]
    assert found.json["trainings"] == 50
    assert found.json["disk"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.arch"]
    assert "different ones among" in archc("search", space, *MADE_UP, "--dry-run").out


@pytest.mark.parametrize(
    ("flags", "exit_code", "code", "said"),
    [
        (("--task", "winee"), 1, "E0610", "did you mean `wine`?"),
        (("--strategy", "evolutoin"), 1, "E0711", "did you mean `evolution`?"),
        (("--option", "populatoin=3"), 1, "E0711", "did you mean `population`?"),
        (("--objective", "accuracy:best"), 1, "E0710", "is no objective"),
        (("--objective", "acuracy"), 1, "E0721", "did you mean `accuracy`?"),
        (("--require", "params 500"), 1, "E0710", "is no constraint"),
        (("--budget", "many"), 1, "E0710", "is no budget"),
        (("--objective", "latency_ms"), 1, "E0722", "measured on a target"),
        (("--objective", "latency_ms@xpu"), 4, "E0746", "nothing can be measured on `xpu` here"),
        (("--task", "digits"), 1, "E0615", "needed f32[N, 1, 8, 8], found f32[N, 13]"),
        (("--recipe", "step=3"), 1, "E0617", "did you mean"),
        (("--from", "nothere.arch"), 2, "E0001", "nothere.arch"),
        (("--deterministic", "--budget", "5m"), 1, "E0731", "budget"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_told_before_anything_is_done(archc, space, tmp_path, flags, exit_code, code, said):
    task = () if "--task" in flags else ("--task", "wine")
    found = archc("search", space, *task, *flags, "--study", tmp_path / "s")
    assert f"error[{code}]" in found.err
    assert said in found.err
    assert found.code == exit_code
    assert not (tmp_path / "s/study.sqlite").exists()


def test_a_missing_space_and_a_missing_folder(archc, space, tmp_path):
    assert archc("search", tmp_path / "not.arch", *MADE_UP, "--study", tmp_path / "s").code == 2
    found = archc("search", space, *MADE_UP)
    assert (found.code, "name a new one: `--study DIR`" in found.err) == (2, True)


def test_nothing_feasible_says_which_constraint_bites(archc, space, tmp_path):
    found = archc("search", space, *MADE_UP, "--require", "width < 0", "--budget", 4, "--study", tmp_path / "s")
    assert found.code == 1
    assert "E0727" in found.err
    assert re.search(r"`width < 0`: \d+ of \d+ break it", found.err)


def test_a_cluster_that_is_not_there(archc, space, tmp_path):
    pytest.importorskip("ray")
    found = archc("search", space, *MADE_UP, "--ray", "127.0.0.1:1", "--study", tmp_path / "s")
    assert found.code in (1, 4)
    assert re.search(r"error\[E073\d\]", found.err)


def _heed_interrupts():
    """Who runs the tests may ignore Ctrl-C (`pytest &` in a script), and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupt_and_resume(archc, space, tmp_path):
    """Ctrl-C: 130, and how to go on; what was found is there, and nothing is done again."""
    study = tmp_path / "s"
    slow = ("--recipe", "takes=0.2", "--budget", "100000", "--study", str(study))
    command = [sys.executable, "-m", "archc", "search", str(space), *map(str, MADE_UP), *slow]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "on the front" in line:
                break
        using = archc("study", "resume", study)
        assert (using.code, "E0726" in using.err) == (1, True)
        assert archc("study", "status", study, "--json").json[0]["state"] == "searching"
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert not said
    assert f"archc study resume {study}" in told
    assert "Traceback" not in told
    before = archc("study", "status", study, "--json").json[0]
    assert before["state"] == "interrupted"
    assert before["finished"] > 0
    ended = before["finished"] + before["infeasible"] + before["shared"]
    resumed = archc("study", "resume", study, "--budget", before["trials"] + 2, "--workers", 1, "--json", "--quiet")
    assert resumed.code == 0, resumed.err
    assert resumed.json["closed"] == "complete"
    assert resumed.json["trials"] >= ended


def test_watching_ends_with_the_search(archc, space, tmp_path):
    """Another process looks on, and writes nothing."""
    study = tmp_path / "s"
    begun = [
        "search",
        str(space),
        *map(str, MADE_UP),
        "--recipe",
        "takes=0.1",
        "--budget",
        "20",
        "--study",
        str(study),
    ]
    process = subprocess.Popen([sys.executable, "-m", "archc", *begun, "--quiet"], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (study / "study.sqlite").exists():
            time.sleep(0.05)
        watched = archc("study", "watch", study, "--every", 0.1)
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert watched.code == 0
    assert "100 %" in watched.err
    assert "complete" in watched.err


def test_help_names_every_strategy(archc):
    told = archc("study", "strategies").out
    assert re.findall(r"^(\S+):", told, re.MULTILINE) == strategies()
    assert {c.name for c in app.registered_commands} >= {"search"}
    assert "--dry-run" in archc("search", "--help").out
