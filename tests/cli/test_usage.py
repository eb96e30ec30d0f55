"""Exit codes, JSON for errors, stdout against stderr; a traceback never (the `archc` fixture looks for one)."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from archc.cli.app import app
from archc.cli.main import INTERNAL

BAD = "arch a()\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linaer(2)\n"


def commands() -> list[tuple[str, ...]]:
    tree = get_command(app)
    found = []
    for name, command in tree.commands.items():  # type: ignore[attr-defined]
        found += [(name, sub) for sub in command.commands] if hasattr(command, "commands") else [(name,)]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(archc, command):
    ran = archc(*command, "--help")
    assert ran.code == 0
    assert "Example: archc " + " ".join(command) in " ".join(ran.out.split()), "the help shows how it is used"
    assert not ran.err


def test_alone_it_shows_what_there_is(archc):
    ran = archc()
    assert ran.code == 2
    assert "compile" in ran.out + ran.err


def test_version(archc):
    assert archc("--version").out.startswith("archc ")


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["check", "missing.arch"], "E0001", 2),
        (["summary", "missing.arch"], "E0001", 2),
        (["check", "bad.arch"], "E0201", 1),
        (["hash", "bad.arch"], "E0201", 1),
        (["frobnicate"], "E0028", 2),
        (["check", "--frobnicate", "good.arch"], "E0028", 2),
        (["compile", "good.arch"], "E0028", 2),
        (["compile"], "E0028", 2),
        (["export", "good.arch", "--format", "caffe", "-o", "x"], "E0028", 2),
        (["check", "good.arch", "--set", "width"], "E0021", 2),
        (["check", "good.arch", "--dim", "N=many"], "E0021", 2),
        (["compile", "good.arch", "-o", "x.archc", "--batch", "all"], "E0024", 2),
        (["compile", "fixed.arch", "-o", "x.archc", "--batch", "8"], "E0516", 1),
        (["compile", "good.arch", "-o", "x.archc", "--pass", "fold_batchnorm"], "E0401", 1),
        (["compile", "good.arch", "-o", "x.archc", "--weights", "missing.safetensors"], "E0601", 2),
        (["compile", "good.arch", "-o", "x.archc", "--weights", "good.arch"], "E0602", 1),
        (["compile", "good.arch", "-o", "x.archc", "--target", "abacus"], "E0501", 4),
        (["compile", "good.arch", "-o", "nowhere/x.archc"], "E0608", 1),
        (["train", "good.arch", "--task", "digitz", "-o", "w.safetensors"], "E0610", 1),
        (["train", "good.arch", "--task", "digits", "-o", "w.safetensors"], "E0615", 1),
        (["train", "good.arch", "--task", "digits", "-o", "nowhere/w.safetensors"], "E0608", 1),
        (["train", "good.arch", "--task", "digits", "-o", "w.safetensors", "--recipe", "speed=9"], "E0617", 1),
        (["train", "good.arch", "--task", "digits", "-o", "w.safetensors", "--device", "cuda:63"], "E0621", 4),
        (["train", "good.arch", "--task", "wine", "-o", "w.safetensors", "--recipe", "betas=[0.9, 1.5]"], "E0617", 1),
        (["run", "missing.archc", "--input", "x.npy"], "E0509", 2),
        (["run", "good.arch", "--input", "x.npy"], "E0510", 1),
        (["profile", "good.arch"], "E0510", 1),
        (["bench", "good.arch", "--against", "jax"], "E0027", 2),
        (["explain", "E9999"], "E0020", 2),
        (["explain", "E" * 1000], "E0020", 2),
        (["explain", "../E0301"], "E0020", 2),
        (["ops", "linaer"], "E0201", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_errors(archc, monkeypatch, tmp_path, arguments, code, exit_code):
    monkeypatch.chdir(tmp_path)
    Path("bad.arch").write_text(BAD)
    Path("good.arch").write_text(BAD.replace("linaer", "linear"))
    Path("fixed.arch").write_text(BAD.replace("linaer", "linear").replace("N", "2"))
    ran = archc(*arguments)
    assert (ran.code, f"error[{code}]" in ran.err, ran.out) == (exit_code, True, ""), ran
    ran = archc(*arguments, "--json")
    assert ran.code == exit_code
    assert [d["code"] for d in ran.json["diagnostics"]] == [code]
    assert ran.json["ok"] is False
    assert not ran.err
    assert not Path("x.archc").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "net.arch", "-o", "net.arch"],
        ["compile", "net.arch", "--weights", "w.safetensors", "-o", "w.safetensors"],
        ["export", "net.arch", "--format", "torch", "-o", "sub/../net.arch"],
        ["show", "net.arch", "-o", "link.svg"],
        ["train", "net.arch", "--task", "digits", "-o", "net.arch"],
        ["train", "net.arch", "--task", "npz:w.safetensors?val=0.1", "-o", "w.safetensors"],
        ["run", "net.archc", "--input", "x=in.npz", "-o", "in.npz"],
        ["run", "net.archc", "--input", "x.npy", "-o", "x.npy"],
        ["profile", "net.archc", "--trace", "net.archc"],
        ["profile", "net.archc", "--chart", "net.archc"],
    ],
    ids=" ".join,
)
def test_what_is_read_is_not_written_over(archc, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for name in ("net.arch", "w.safetensors", "net.archc", "in.npz", "x.npy"):
        Path(name).write_text(BAD)
    Path("link.svg").symlink_to("net.arch")
    ran = archc(*arguments)
    assert (ran.code, "error[E0029]" in ran.err) == (2, True), ran
    assert all(p.read_text() == BAD for p in tmp_path.iterdir() if p.is_file())
    ran = archc(*arguments[:-1], "other.svg")
    assert "E0029" not in ran.err, "another place is fine; what is in the files is not"


def test_a_missing_import_is_a_wrong_program(archc, tmp_path):
    file = tmp_path / "a.arch"
    file.write_text(BAD.replace("linaer", "linear").replace("input", 'import "std/nothing.arch"\ninput'))
    for command in ("check", "hash"):
        ran = archc(command, file)
        assert (ran.code, "error[E0001]" in ran.err) == (1, True)


def test_a_good_program_is_silent(archc, wine):
    ran = archc("check", wine)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert archc("check", wine, "--json").json == {"ok": True, "diagnostics": []}


def test_our_mistakes_leave_a_report_and_no_traceback(archc, wine, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("archc.grammar.load.check", broken)
    ran = archc("check", wine, bug=True)
    assert ran.code == INTERNAL
    assert "this is a bug in archc, not in your program" in ran.err
    report = Path(ran.err.split()[-1])
    assert "ZeroDivisionError: a bug" in report.read_text()
    assert f"arguments: ['check', '{wine}']" in report.read_text()
    report.unlink()
    with pytest.raises(AssertionError, match="ZeroDivisionError: a bug"):
        archc("check", wine)  # what every test that planted no bug makes of one


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("archc.grammar.parser.Machine.run", ["check", "{wine}"]),
        ("archc.ir.graph.bind", ["summary", "{wine}"]),
        ("archc.ir.canonical._Canonicaliser.result", ["hash", "{wine}"]),
        ("archc.grammar.format.format_source", ["fmt", "{wine}", "--check"]),
    ],
)
def test_a_planted_bug_is_never_taken_for_a_mistake_of_the_user(archc, wine, monkeypatch, place, arguments):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(place, broken)
    for options in ([], ["--json"]):
        ran = archc(*(a.format(wine=wine) for a in arguments), *options, bug=True)
        report = Path(ran.err.split()[-1])
        assert "KeyError: 'planted'" in report.read_text()
        assert "error[E" not in ran.err
        report.unlink()


def test_an_unwritable_place_is_told_before_training(archc, digits, tmp_path):
    ran = archc("train", digits, "--task", "digits", "-o", tmp_path / "no" / "w.safetensors")
    assert ran.code == 1
    assert "training" not in ran.err


@pytest.mark.parametrize("name", ["path", "dims", "text", "self", "parameters", "file"])
def test_parameters_of_any_name(archc, tmp_path, name):
    file = tmp_path / "a.arch"
    file.write_text(f"arch a({name} = 1)\ninput x: f32[N, 4]\noutput y: f32[N, 2]\ny = x -> linear({name} * 2)\n")
    assert archc("summary", file).code == 0
    ran = archc("summary", file, "--set", f"{name}=3")
    assert (ran.code, "E0" in ran.err) == (1, True), "the output has another size then"


@pytest.mark.parametrize("name", ["model", "task", "out", "defaults", "progress", "self"])
def test_recipe_options_of_any_name(archc, wine, tmp_path, name):
    ran = archc("train", wine, "--task", "wine", "-o", tmp_path / "w.safetensors", "--recipe", f"{name}=1")
    assert (ran.code, "E0617" in ran.err) == (1, True)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_takes_the_common_flags(archc, command):
    told = archc(*command, "--help").out
    for flag in ("--json", "-q, --quiet", "-v, --verbose"):
        assert flag in told.replace("--quiet, -q", "-q, --quiet").replace("--verbose, -v", "-v, --verbose")


@pytest.mark.parametrize(
    ("flag", "code", "enough"),
    [
        ("--max-file-bytes", "E0002", 10_000),
        ("--max-tokens", "E0004", 1000),
        ("--max-nesting", "E0005", 50),
        ("--max-repeat", "E0007", 10),
        ("--max-nodes", "E0008", 100),
    ],
)
def test_limits_are_set_by_flags(archc, tmp_path, flag, code, enough):
    file = tmp_path / "a.arch"
    body = "repeat(3) { residual(linear(4) -> relu) }"
    file.write_text(f"arch a\ninput x: f32[N, 4]\noutput y: f32[N, 4]\ny = x -> {body}\n")
    for command in ("check", "summary"):
        ran = archc(command, file, flag, 1)
        assert (ran.code, f"error[{code}]" in ran.err, f"`{flag} " in ran.err) == (1, True, True), ran
        assert archc(command, file, flag, enough).code == 0
        assert archc(command, file).code == 0, "a flag holds for one command"
    assert archc("ops", "relu", flag, 1).code == 2
    assert archc("check", file, flag, 0).code == 2
