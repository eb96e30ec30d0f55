"""Limits hold before the work is done: each hostile text is refused at once, with the code of its limit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from archc.grammar.limits import Limits, flags
from archc.grammar.parser import parse, parse_file
from archc.ir.diagnostics import CompileError, Diagnostic

MILLION = 1_000_000


def refusal(text: str, limits: Limits | None = None) -> Diagnostic:
    with pytest.raises(CompileError) as caught:
        parse(text, "m.arch", limits or Limits())
    return caught.value.diagnostics[0]


@pytest.mark.parametrize(
    "unit",
    ["(", "[", "-", "- ", "not ", "f(", "[(", "if a then ", "if ", "fn(x) { return ", "repeat(2) { ", "choose { "],
)
def test_a_million_deep_nest(unit: str) -> None:
    begin = time.process_time()
    assert refusal("y = " + unit * MILLION).code == "E0005"
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("unit", ["(1)", "[0]", "(1)[0]"])
def test_a_million_calls_of_calls(unit: str) -> None:
    assert refusal("y = f" + unit * MILLION).code == "E0005"


def test_nesting_is_counted_exactly() -> None:
    def nested(depth: int) -> str:
        return "y = " + "(" * depth + "a" + ")" * depth

    limits = Limits(nesting=50)
    parse(nested(50), limits=limits)
    diagnostic = refusal(nested(51), limits)
    assert diagnostic.span is not None
    assert (diagnostic.code, diagnostic.span.column) == ("E0005", 55)
    assert "--max-nesting" in (diagnostic.help or "")
    parse("\n".join([nested(50), "y = a - b - -c - (d)", "y = if a then b else c"] * 100), limits=limits)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("y = " + ")" * MILLION, "E0103"),
        ("@" * MILLION, "E0104"),
        ('y = "' + "a" * MILLION, "E0105"),
        ("1" * MILLION, "E0101"),
        ("y = " + "{" * MILLION, "E0101"),
        ("y = 1e" + "9" * 50, "E0107"),
        ("y = " + "1" * MILLION, "E0107"),
        ('y = "' + "\\n" * MILLION, "E0105"),
    ],
)
def test_other_hostile_texts(text: str, code: str) -> None:
    begin = time.process_time()
    assert refusal(text).code == code
    assert time.process_time() - begin < 1


def test_too_many_tokens() -> None:
    limits = Limits(tokens=100)
    parse("y = a" + " + a" * 48, limits=limits)
    assert refusal("y = a" + " + a" * 50, limits).code == "E0004"


def test_too_large_a_text() -> None:
    assert refusal("# " + "x" * 100, Limits(file_bytes=50)).code == "E0002"


def test_a_sparse_file_of_five_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "big.arch"
    with path.open("wb") as file:
        file.truncate(5_000_000_000)
    begin = time.process_time()
    with pytest.raises(CompileError) as caught:
        parse_file(path)
    assert time.process_time() - begin < 0.5
    assert caught.value.diagnostics[0].code == "E0002"
    assert "5_000_000_000" in caught.value.diagnostics[0].message


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.arch")
    for path in (tmp_path / "missing.arch", tmp_path, tmp_path / "pipe.arch", "/dev/zero", "a\0b"):
        with pytest.raises(CompileError) as caught:
            parse_file(path)
        assert (caught.value.exit_code, caught.value.diagnostics[0].code) == (2, "E0001")


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"let a = b\ny = \xff\xfe", 2, 5),
        (b"y = a\0b", 1, 6),
        ("# é \u202e".encode(), 1, 5),
        (b"y = \x1b[0m", 1, 5),
        ("y\r\n = a\u2028".encode(), 2, 5),
        ("y =\ufeff a".encode(), 1, 4),
    ],
)
def test_what_is_not_text(tmp_path: Path, data: bytes, line: int, column: int) -> None:
    path = tmp_path / "m.arch"
    path.write_bytes(data)
    with pytest.raises(CompileError) as caught:
        parse_file(path)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.span is not None
    assert (diagnostic.code, diagnostic.span.line, diagnostic.span.column) == ("E0003", line, column)


def test_text_in_any_script_is_fine_in_comments_and_strings() -> None:
    parse('# naïve 模型 🙂\ny = f(name = "模型 🙂")')


def test_limits_are_positive_and_have_flags() -> None:
    with pytest.raises(ValueError, match="nesting"):
        Limits(nesting=0)
    assert set(flags()) == set(Limits.__slots__)
