"""Each diagnostic code has a page, and what pages show is so: bad programs yield exactly their code, good ones none."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

import archc
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
