"""Each diagnostic code has a page, and what pages show is so: bad programs yield exactly their code, good ones none."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import archc
from archc.cli.main import run
from archc.grammar.load import check_text, loads
from archc.ir.diagnostics import CompileError
from archc.ir.explain import codes, page

PACKAGE = Path(archc.__file__).parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@cache
def raised() -> dict[str, str]:
    """Every code that stands in the package's sources, and a file that has it."""
    found = {}
    for folder in [PACKAGE, *(p for p in PACKAGE.iterdir() if p.is_dir())]:
        for file in sorted(folder.resolve().rglob("*.py")):
            for code in re.findall(r'"(E\d{4})"', file.read_text(encoding="utf-8")):
                found.setdefault(code, file.name)
    return found


def examples(code: str, heading: str) -> list[tuple[str, str]]:
    """(language, text) of the fences under a heading of a page."""
    text = page(code) or ""
    _, _, rest = text.partition(f"\n## {heading}\n")
    return FENCE.findall(rest.partition("\n## ")[0])


def found_in(text: str) -> list[str]:
    """The codes of the errors in a program; an architecture is built, a template or space is checked."""
    problems = [d.code for d in check_text(text) if d.severity == "error"]
    if (
        not problems
        and re.search(r"^arch\b", text, re.MULTILINE)
        and not re.search(r"^arch \w+\([^)=]*\w[^)=]*\)", text)
    ):
        try:
            loads(text)
        except CompileError as error:
            problems = [d.code for d in error.diagnostics if d.severity == "error"]
    return problems


def test_every_code_has_a_page():
    assert len(raised()) > 100, "the sources are searched"
    assert {c: where for c, where in raised().items() if page(c) is None} == {}


def test_every_page_is_of_a_code_that_is_raised():
    assert [c for c in codes() if c not in raised()] == []


@pytest.mark.parametrize("code", codes())
def test_a_page_has_its_parts(code):
    text = page(code)
    assert text is not None
    assert re.match(rf"# {code}: \S", text)
    assert examples(code, "Bad")
    assert examples(code, "Good")
    told = [text for language, text in examples(code, "Bad") if language == "text"]
    assert all(code in t for t in told), "a message that is shown has the page's code"


PROGRAMS = [
    pytest.param(code, heading, text, id=f"{code}-{heading}-{index}")
    for code in codes()
    for heading in ("Bad", "Good")
    for index, (language, text) in enumerate(examples(code, heading))
    if language == "arch"
]


@pytest.mark.parametrize(("code", "heading", "text"), PROGRAMS)
def test_programs_on_a_page(code, heading, text):
    warned = {d.code for d in check_text(text) if d.severity == "warning"}
    errors = set(found_in(text))
    if heading == "Bad":
        assert errors | warned == {code}
    else:
        assert errors | warned == set()


# What stands below a bad program is what the command prints, to the letter


def shown(code: str) -> list[tuple[str, str]]:
    """(program, message) for each bad program of a page that is followed by what `archc check` says about it."""
    fences = examples(code, "Bad")
    return [
        (program, message)
        for (kind, program), (after, message) in pairwise([*fences, ("", "")])
        if kind == "arch" and after == "text" and message.startswith(COMMAND)
    ]


COMMAND = "$ archc check net.arch\n"
SHOWN = [pytest.param(code, *pair, id=f"{code}-{i}") for code in codes() for i, pair in enumerate(shown(code))]
PLACE = re.compile(r"^(?:error|warning)\[(E\d+)\]: .*\n  --> net\.arch:(\d+):(\d+)\n", re.MULTILINE)


def said(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `archc check net.arch` prints about a program; 1 is its exit code when there is an error, 0 else."""
    monkeypatch.chdir(folder)
    Path("net.arch").write_text(program, encoding="utf-8")
    code = run(["check", "net.arch"])
    caught = capsys.readouterr()
    assert not caught.out
    assert code == int("error[" in caught.err)
    return caught.err


@pytest.mark.parametrize(("code", "program", "message"), SHOWN)
def test_a_page_shows_what_the_command_says(code, program, message, tmp_path, monkeypatch, capsys):
    assert COMMAND + said(program, tmp_path, monkeypatch, capsys) == message, "run `python docs/generate.py`"


@pytest.mark.parametrize(("code", "program", "message"), SHOWN)
def test_a_message_has_its_code_and_marks_a_place_of_the_program(code, program, message):
    (place,) = PLACE.findall(message)
    assert place[0] == code
    row, column = program.splitlines()[int(place[1]) - 1], int(place[2])
    source, carets = re.findall(r"^ +\d+ \| (.*)\n +\| ( *\^+)", message, re.MULTILINE)[0]
    assert source == row
    assert carets.index("^") + 1 == column
    assert row[column - 1 : len(carets)].strip() == row[column - 1 : len(carets)] != "", "the carets mark whole words"


def test_most_codes_about_programs_have_their_place_shown():
    families = ("E01", "E02", "E03")
    without = {c for c in codes() if c.startswith(families)} - {p.values[0] for p in SHOWN}
    # a package, settings of the command line, an operator of a package, a second file: a text alone shows none of them
    assert without == {"E0210", "E0214", "E0215", "E0218", "E0219"}
    assert len({p.values[0] for p in SHOWN}) >= 69


def test_a_shifted_place_is_noticed(tmp_path, monkeypatch, capsys):
    """The control: the mistake one column further right yields another message than the page's."""
    program, message = shown("E0201")[0]
    assert COMMAND + said(program, tmp_path, monkeypatch, capsys) == message
    moved = program.replace("-> linaer", "->  linaer")
    assert PLACE.findall(said(moved, tmp_path, monkeypatch, capsys)) == [("E0201", "4", "11")]
    assert PLACE.findall(message) == [("E0201", "4", "10")]
