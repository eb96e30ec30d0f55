"""Mistakes that no page can show in one short program: limits, files that import others, arguments by their kind.

Each test names the code, the line and the column; `tests/test_errors_pages.py` does so for the programs of the pages.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.load import check, check_text, loads
from archc.ir.diagnostics import CompileError, Diagnostic

HEAD = "arch a\ninput x: f32[N, 8]\ninput s: f32[N, 6, 8]\ninput image: f32[N, 8, 4, 4]\noutput y: f32[N, 8]\n"


def place(diagnostic: Diagnostic) -> tuple[str, int, int]:
    span = diagnostic.span
    return (diagnostic.code, span.line, span.column) if span else (diagnostic.code, 0, 0)


def marked(text: str, diagnostic: Diagnostic) -> str:
    """The text under the carets."""
    span = diagnostic.span
    assert span is not None
    assert span.line == span.end_line
    return text.splitlines()[span.line - 1][span.column - 1 : span.end_column - 1]


LIMITED = [
    ("E0003", 4, 3, "arch a\ninput x: f32[N]\noutput y: f32[N]\ny \u202e= x", DEFAULT),
    ("E0004", 2, 13, "arch a\ninput x: f32[N]\noutput y: f32[N]\ny = x", Limits(tokens=6)),
    ("E0005", 4, 7, "arch a\ninput x: f32[N]\noutput y: f32[N]\ny = (((x)))", Limits(nesting=2)),
    ("E0007", 4, 17, "arch a\ninput x: f32[N]\noutput y: f32[N]\ny = x -> repeat(4) { relu }", Limits(repeat=3)),
    ("E0008", 4, 10, "arch a\ninput x: f32[N]\noutput y: f32[N]\ny = x -> repeat(4) { relu }", Limits(nodes=3)),
    ("E0009", 6, 10, "arch a\ninput x: f32[N]\noutput y: f32[N]\ndef l0 = [1]\n"
        f"def l1 = [{', '.join(['l0'] * 1100)}]\ndef l2 = [{', '.join(['l1'] * 1100)}]\ny = x -> reshape(l2)", DEFAULT),
]  # fmt: skip


@pytest.mark.parametrize(("code", "line", "column", "text", "limits"), LIMITED, ids=[row[0] for row in LIMITED])
def test_a_limit_is_met_at_a_place(code: str, line: int, column: int, text: str, limits: Limits) -> None:
    found = check_text(text, limits=limits)
    assert [place(d) for d in found] == [(code, line, column)]


FILES = {
    "E0001": ({"net.arch": 'arch a\nimport "abent.arch"\n', "absent.arch": ""}, "net.arch", 2, 8),
    "E0006": (
        {"net.arch": 'arch a\nimport "b0.arch"\n'} | {f"b{i}.arch": f'import "b{i + 1}.arch"\n' for i in range(4)},
        "b1.arch", 1, 8,
    ),
    "E0010": ({"net.arch": 'arch a\nimport "/etc/hosts" (f)\n'}, "net.arch", 2, 8),
    "E0011": ({"net.arch": 'arch a\nimport "b.arch"\n', "b.arch": '\nimport "net.arch"\n'}, "b.arch", 2, 8),
    "E0201": ({"net.arch": 'arch a\nimport "b.arch" (f)\n', "b.arch": "\ndef f = rleu\n"}, "b.arch", 2, 9),
    "E0219": ({"net.arch": 'arch a\nimport "b.arch"\n', "b.arch": "def f = relu\ninput x: f32[N]\n"}, "b.arch", 2, 1),
    "E0220": ({"net.arch": 'arch a\nimport "b.arch" (f, g)\n', "b.arch": "def f = relu\n"}, "net.arch", 2, 21),
}  # fmt: skip


@pytest.mark.parametrize("code", FILES)
def test_a_mistake_among_files_is_told_in_the_file_that_has_it(code: str, tmp_path: Path) -> None:
    files, where, line, column = FILES[code]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with (tmp_path / "net.arch").open("a") as main:
        main.write("input x: f32[N]\noutput y: f32[N]\ny = x\n")
    (found,) = check(tmp_path / "net.arch", limits=Limits(import_depth=2))
    assert found.span is not None
    assert (place(found), Path(found.span.file).name) == ((code, line, column), where)


AT_FAULT = {  # the last line of a program: code, and what the carets mark
    "y = s -> mean(3)": ("E0306", "3"),
    "y = s -> sum(axis = [1, 1])": ("E0306", "[1, 1]"),
    "y = s -> flatten(from = 2, to = 1)": ("E0306", "2"),
    "y = s -> flatten(to = 4)": ("E0306", "4"),
    "y = s -> transpose(1, 5)": ("E0306", "5"),
    "y = s -> permute([0, 2])": ("E0306", "[0, 2]"),
    "y = s -> permute([0, 2, 2])": ("E0306", "[0, 2, 2]"),
    "y = s -> softmax(axis = -4)": ("E0306", "-4"),
    "y = s -> attention(3)": ("E0305", "3"),
    "y = s -> attention(4, kv_heads = 3)": ("E0305", "3"),
    'y = s -> attention(8, positions = "rope")': ("E0311", "8"),
    'y = s -> attention(8, head_dim = 3, positions = "rope")': ("E0311", "3"),
    "y = image -> group_norm(3)": ("E0305", "3"),
    "y = image -> conv(8, kernel = 3, groups = 3)": ("E0205", "3"),
    'let e = s -> einsum("nij->nx")': ("E0205", '"nij->nx"'),
    "let e = constant([[1, 2], [3]])": ("E0205", "[[1, 2], [3]]"),
    'let e = image -> upsample(2, mode = "nearest", align_corners = true)': ("E0205", '"nearest"'),
    "let e = image -> conv(8, 3, 1, 1, 1, 1, false, true, none, 9)": ("E0207", "9"),
    "let e = [1, 2][5]": ("E0334", "5"),
    'let e = [1, 2]["a"]': ("E0334", '"a"'),
    "let e = x[0]": ("E0334", "x"),
    'let e = x -> cast("float16")': ("E0205", '"float16"'),
    "y = image -> conv(9, kernel = 3, groups = 3)": ("E0305", "3"),
    "y = image -> conv(8, kernel = 7, padding = 0)": ("E0308", "7"),
    "y = image -> conv(8, kernel = [3, 3, 3])": ("E0302", "[3, 3, 3]"),
    "y = image -> max_pool(5)": ("E0308", "5"),
    "y = image -> max_pool(2, padding = 2)": ("E0311", "2"),
    "y = image -> conv_transpose(8, kernel = 2, stride = 2, output_padding = 2)": ("E0311", "2"),
    "y = image -> pixel_shuffle(3)": ("E0305", "3"),
    "let a, b = s -> split(5, axis = 2)": ("E0305", "5"),
    "let a, b = s -> split([3, 6], axis = 2)": ("E0301", "[3, 6]"),
    "y = s -> slice(1, to = 9)": ("E0312", "9"),
    "y = s -> slice(1, from = -7)": ("E0312", "-7"),
    "y = s -> slice(1, from = 7)": ("E0312", "7"),
    "y = s -> select(1, 6)": ("E0312", "6"),
    "y = s -> top_k(9)": ("E0312", "9"),
    "y = s -> pad([1, 2, 3])": ("E0302", "[1, 2, 3]"),
    'y = s -> pad([9, 9], mode = "reflect")': ("E0312", "[9, 9]"),
    "y = s -> reshape([N, 5, -1])": ("E0305", "[N, 5, -1]"),
    "y = s -> reshape([N, 5])": ("E0301", "[N, 5]"),
    "y = s -> unflatten(2, [3, -1])": ("E0305", "[3, -1]"),
    "y = x -> expand([N, 9])": ("E0301", "[N, 9]"),
    'y = x -> linear(8, init = "xavier")': ("E0309", '"xavier"'),
    "y = x + relu": ("E0331", "relu"),
    "y = relu * x": ("E0331", "relu"),
    "y = x + x + tanh": ("E0331", "tanh"),
    'y = x -> linear(4 + "4")': ("E0334", '"4"'),
    'y = x -> linear(2 * ("4" + 1))': ("E0334", '"4"'),
    "y = x -> exit(head = linear(3), rest = linear(8), threshold = 0.5)": ("E0315", "linear(3)"),
    "y = s -> exit(head = linear(8), rest = mean(1), threshold = 0.5)": ("E0315", "linear(8)"),
    "y = s -> moe(router = linear(3), experts = copies(2, linear(8)), top_k = 1)": ("E0315", "linear(3)"),
    "y = s -> moe(router = linear(2), experts = copies(2, linear(8)), top_k = 3)": ("E0311", "3"),
    "y = s -> moe(router = linear(2), experts = [linear(8), linear(9)], top_k = 1)": ("E0315", "linear(9)"),
    "y = s -> moe(router = linear(2), experts = [relu, fn(v) { return v, v }], top_k = 1)": (
        "E0315", "fn(v) { return v, v }",
    ),
    "y = s -> skip(gate = linear(2), body = relu)": ("E0315", "linear(2)"),
    "y = s -> skip(gate = linear(1), body = linear(9))": ("E0315", "linear(9)"),
    "let a, b = s -> scan(fn(v, h) { return v, v + 1.0 -> linear(3) }, state = [[8]])": (
        "E0315", "fn(v, h) { return v, v + 1.0 -> linear(3) }",
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", AT_FAULT)
def test_the_argument_at_fault_is_marked(line: str) -> None:
    text = HEAD + line
    found = next(d for d in check_text(text) if d.code != "E0216")
    assert (found.code, marked(text, found)) == AT_FAULT[line]
    assert "i" not in found.message.split("`")[1::2], "a letter of a signature says nothing to a user"


def test_an_argument_that_comes_from_elsewhere_shows_the_call_too() -> None:
    text = HEAD + "def norm(g) = group_norm(g)\ny = image -> norm(3)"
    (found,) = check_text(text)
    assert (place(found), marked(text, found)) == (("E0305", 6, 26), "g")
    assert [(n.message, n.span and n.span.line) for n in found.notes][-1] == ("used here", 7)
    text = HEAD + "def f(head) =\n    exit(head = head, rest = linear(8), threshold = 0.5)\ny = x -> f(linear(3))"
    (found,) = check_text(text)
    assert marked(text, found) == "linear(3)"
    assert [n.message for n in found.notes] == ["`rest` returns f32[Rows, 8]", "of this call", "used here"]


def test_a_share_that_does_not_fit_shows_the_use() -> None:
    (found,) = check_text(HEAD + "share f = linear(8)\nlet a = f(x)\ny = x -> linear(6) -> f")
    assert place(found) == ("E0310", 6, 11)
    assert [(n.message, n.span and (n.span.line, n.span.column)) for n in found.notes] == [("used here", (8, 23))]


def test_mistakes_come_in_the_order_of_the_text_whatever_found_them_first() -> None:
    text = "arch a\noutput z: f32[N]\ninput x: f32[N, 8]\noutput y: f32[N, 8]\n"
    text += "y = x -> linear(4) -> nothing\nlet b = x -> conv(8)"
    places = [place(d) for d in check_text(text)]
    assert places == sorted(places, key=lambda p: p[1:]) == [("E0216", 2, 8), ("E0201", 5, 23), ("E0206", 6, 14)]
    with pytest.raises(CompileError) as caught:
        loads(text)
    assert [place(d) for d in caught.value.diagnostics] == places


@pytest.mark.parametrize(
    ("text", "code", "under"),
    [
        ("space a\ninput x: f32[N]\noutput y: f32[N]\ny = x", "E0701", "space a"),
        ("arch a(width)\ninput x: f32[N]\noutput y: f32[N]\ny = x", "E0214", "width"),
        ("arch a(width: int = 1.5)\ninput x: f32[N]\noutput y: f32[N]\ny = x", "E0205", "1.5"),
        ("arch a(x = 1)\ninput x: f32[N]\noutput y: f32[N]\ny = x", "E0202", "x"),
    ],
)
def test_what_building_a_network_refuses_besides(text: str, code: str, under: str) -> None:
    with pytest.raises(CompileError) as caught:
        loads(text)
    (found,) = caught.value.diagnostics
    assert (found.code, marked(text, found)) == (code, under)
