"""A program with many mistakes: each is told once, where it is, and nothing is said because of another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from archc.cli.main import run
from archc.grammar.load import check_text

RIGHT = {
    "header": "arch net(width: int = 8)",
    "image": "input image: f32[N, 8, 4, 4]",
    "x": "input x: f32[N, 8]",
    "y": "output y: f32[N, 8]",
    "z": "output z: f32[N, 4]",
    "block": "def block(c, stride = 1) = conv(c, kernel = 3, stride = stride) -> relu",
    "stem": "let stem = image -> block(width) -> global_avg_pool",
    "head": "share head = linear(8)",
    "gate": "let gate = x -> linear(8) -> sigmoid",
    "mixed": "let mixed = stem * gate + head(x)",
    "tall": "let tall = mixed -> unflatten(1, [2, 4])",
    "first": "let first, second = tall -> split(2, axis = 1)",
    "require": "require params < 10M",
    "bind y": "y = mixed -> head -> dropout(0.1)",
    "bind z": "z = first -> flatten -> linear(4)",
}
WRONG = {  # statement: how it is wrong, the mistake's code and column
    "image": ("input image f32[N, 8, 4, 4]", "E0115", 13),
    "x": ("input x: float[N, 8]", "E0337", 10),
    "block": ("def block(c, stride = 1) = conv(c, kernal = 3, stride = stride) -> relu", "E0204", 36),
    "stem": ("let stem = image -> block(width) -> global_avg_pol", "E0201", 37),
    "head": ("share head = linear(8))", "E0103", 23),
    "gate": ("let gate = x -> linear(7) -> sigmoid -> attention(2)", "E0302", 41),
    "mixed": ("let mixed = stem * gate + head(x) + relu", "E0331", 37),
    "tall": ("let tall = mixed -> unflatten(1, [3, 4])", "E0301", 34),
    "first": ("let first, second, third = tall -> split(2, axis = 1)", "E0332", 28),
    "require": ("require params < 10M <", "E0108", 22),
    "bind y": ('y = mixed -> head -> dropout("0.1")', "E0205", 30),
    "bind z": ("z = first -> flatten -> linear(4)[0]", "E0334", 25),
}


def program(*wrong: str) -> str:
    return "".join(f"{WRONG[key][0] if key in wrong else line}\n" for key, line in RIGHT.items())


def told(*wrong: str) -> list[tuple[str, int, int]]:
    """What should be said: one mistake for each wrong statement."""
    return [(WRONG[key][1], row, WRONG[key][2]) for row, key in enumerate(RIGHT, 1) if key in wrong]


def found(text: str) -> list[tuple[str, int, int]]:
    return [(d.code, d.span.line, d.span.column) for d in check_text(text) if d.span is not None]


def test_the_right_program_is_right() -> None:
    assert check_text(program()) == ()


@pytest.mark.parametrize("wrong", WRONG)
def test_one_mistake_is_told_alone(wrong: str) -> None:
    assert found(program(wrong)) == told(wrong)


@pytest.mark.parametrize("wrong", list(itertools.combinations(WRONG, 2)), ids=" and ".join)
def test_two_mistakes_are_told_once_each(wrong: tuple[str, str]) -> None:
    """Two may hide one another: what comes of a wrong statement is not looked at. Nothing else is said, ever."""
    said, expected = found(program(*wrong)), told(*wrong)
    assert len(said) >= 1
    assert set(said) <= set(expected)
    assert said == sorted(said, key=lambda place: place[1:])
    hidden = set(expected) - set(said)
    assert not hidden or all(code in ("E0301", "E0302", "E0331", "E0332", "E0334", "E0205") for code, _, _ in hidden)


EIGHT = """\
arch net(width: int = 8, depth: integer = 2)
input image: f32[N, 8, 4, 4]
input x: f32[N, 8]
output y: f32[N, 8]
def block(c) = conv(c, kernel = 3) -> batchnorm -> relu
let a = x -> linear(8, bais = false)
let b = a -> linear(8
let c = x -> linear(8) -> softmax(axis = 2)
let d = image -> block(8) -> conv(9, kernel = 3)
let e = image + image -> group_norm(3)
let f = (b, a, c, d, e) -> concat(axis = 1)
require widht < 9
let g = x -> exit(head = linear(3), rest = linear(8), threshold = 0.9)
y = f -> linear(8) -> relu(g)
"""
TOLD = [
    ("E0211", 1, 33), ("E0201", 5, 39), ("E0204", 6, 24), ("E0102", 7, 20), ("E0306", 8, 42), ("E0305", 10, 37),
    ("E0201", 12, 9), ("E0315", 13, 26),
]  # fmt: skip


def test_eight_mistakes_of_all_kinds_in_one_run() -> None:
    assert found(EIGHT) == TOLD


def test_the_command_tells_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.arch").write_text(EIGHT)
    assert run(["check", "net.arch"]) == 1
    said = capsys.readouterr()
    assert not said.out
    places = [line.strip() for line in said.err.splitlines() if "-->" in line]
    assert places == [f"--> net.arch:{r}:{c}" for _, r, c in TOLD]
    assert said.err.count("error[") == len(TOLD)


def test_a_mistake_more_is_noticed() -> None:
    """The control: what is right now would be told, were it wrong."""
    assert found(EIGHT.replace("let a = x", "let a = w")) != TOLD
    assert found(EIGHT.replace("depth: integer", "depth: int")) == TOLD[1:]


def test_a_name_that_is_unknown_at_several_places_is_one_mistake() -> None:
    text = program().replace("def block", "def blokc").replace("let gate =", "let gates =")
    text = text.replace("y = mixed", "y = block(8)(image) -> global_avg_pool -> block(8) + gate")
    found = check_text(text)
    assert [(d.code, d.span and (d.span.line, d.span.column)) for d in found] == [
        ("E0201", (7, 21)),
        ("E0201", (10, 20)),
    ]
    assert [(n.message, n.span and n.span.line) for n in found[0].notes] == [("here, too", 14), ("here, too", 14)]
    assert [(n.message, n.span and n.span.line) for n in found[1].notes] == [("here, too", 14)]
    assert [d.help for d in found] == ["did you mean `blokc`?", "did you mean `gates`?"]
