"""Wrong programs, and the exact code and place of every mistake that is reported for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archc.backends.artifact import MAGIC
from archc.grammar.limits import Limits
from archc.grammar.load import check_text, load, loads
from archc.ir.diagnostics import CompileError, Diagnostic

HEAD = "arch a(d = 8)\ninput x: f32[N, 8]\noutput y: f32[N, 8]\n"


def mistakes(text: str, **options: object) -> tuple[Diagnostic, ...]:
    with pytest.raises(CompileError) as caught:
        loads(text, **options)  # type: ignore[arg-type]
    return caught.value.diagnostics


def places(text: str, **options: object) -> list[tuple[str, int, int]]:
    return [(d.code, d.span.line if d.span else 0, d.span.column if d.span else 0) for d in mistakes(text, **options)]


@pytest.mark.parametrize(
    ("body", "code", "line", "column", "help"),
    [
        ("y = x -> linaer(8)", "E0201", 4, 10, "`linear`"),
        ("y = x -> reshape([M, 8])", "E0201", 4, 19, "a dimension is named"),
        ("def f = relu\ndef f = tanh\ny = x -> f", "E0202", 5, 5, ""),
        ("def f = g\ndef g = f -> relu\ny = x -> f", "E0203", 5, 9, "repeat"),
        ("y = x -> linear(8, bais = false)", "E0204", 4, 20, "`bias`"),
        ("y = x -> linear(-8)", "E0205", 4, 17, ""),
        ("y = x -> linear(8.5)", "E0205", 4, 17, ""),
        ('y = x -> gelu(approximate = "tan")', "E0205", 4, 29, '"tanh"'),
        ("y = x -> linear", "E0206", 4, 10, "`linear(out, bias = true, init = none)`"),
        ("def f(c, d = 1) = linear(c)\ny = x -> f", "E0206", 5, 10, "`f(c, d = …)`"),
        ("y = x -> swiglu_ffn(8, 8)", "E0201", 4, 10, 'import "std/ffn.arch" (swiglu_ffn)'),
        ("y = x -> self_attention(2)", "E0201", 4, 10, "`attention`"),
        ("y = x -> relu\ny = x -> tanh", "E0202", 5, 1, ""),
        ("y = (x, x) -> fn(a, b) { return a, b }", "E0332", 4, 5, "let first, second"),
        ("y = x -> residual(linear(4) -> relu)", "E0301", 4, 10, "shortcut"),
        ("y = x -> if d > 4 then relu else tanh", "E0117", 4, 10, "(if condition"),
        ("y = x -> relu |> tanh", "E0101", 4, 15, "`x -> f`"),
        ("def f(c) = linear(c)\ny = x -> f(8, 9)", "E0207", 5, 15, ""),
        ("let m = linear(8)\ny = x -> m", "E0208", 4, 9, "`share m"),
        ('y = x -> linear(8, name = "n") -> linear(8, name = "n")', "E0209", 4, 52, "def"),
        ("y = x -> linear(8, weight = s.weight)\nshare s = linear(8)", "E0213", 4, 29, "behind"),
        ("share s = linear(8)\ny = x -> linear(8, weight = s.weight)", "E0212", 5, 29, "apply"),
        ("y = a\nlet a = x -> relu", "E0213", 4, 5, "behind"),
        ("let z = x", "E0216", 3, 8, "y ="),
        ("y = x\nz = x", "E0217", 5, 1, "let z"),
        ("y = x -> 3", "E0330", 4, 10, ""),
        ("y = x -> x", "E0330", 4, 10, "feeds two"),
        ("y = 3 -> linear(8)", "E0331", 4, 5, ""),
        ("y = relu + x", "E0331", 4, 5, ""),
        ("let a, b = x\ny = a", "E0332", 4, 12, ""),
        ("def f = fn(p, q) { return p }\ny = f(x, x, x)", "E0332", 5, 5, ""),
        ("y = x -> linear(9 / 2)", "E0333", 4, 17, "rounds down"),
        ("y = x -> linear(9 // 0)", "E0333", 4, 17, ""),
        ('y = x -> linear("a" * 2)', "E0334", 4, 17, ""),
        ("y = if N == 3 then x else relu(x)", "E0335", 4, 8, "--dim N"),
        ("require d > 9\ny = x", "E0336", 4, 9, ""),
        ("require params < 10\ny = x -> linear(8)", "E0336", 4, 9, ""),
        ("def f: [N, C, D] => [N, C] = mean(2)\ny = x -> f", "E0338", 5, 10, ""),
        ("def f: [N, C] => [N, 2 * C] = relu\ny = x -> f", "E0339", 4, 31, ""),
        ("y = x -> linear(9)", "E0340", 4, 5, ""),
        ("y = x -> scan(fn(v, h) { return h, h }, state = [[8]], axis = 8)", "E0306", 4, 63, "axes count"),
        ("y = x -> choose { relu | tanh }", "E0702", 4, 10, "one value"),
        ('import "std/nothing.arch"\ny = x', "E0001", 4, 8, "std/ffn.arch"),
        ('import "std/ffn.arch" (swiglu)\ny = x -> swiglu(8, 8)', "E0220", 4, 24, ""),
        ('import "../secret.arch"\ny = x', "E0010", 4, 8, "std"),
    ],
)
def test_a_mistake_has_a_code_and_a_place(body: str, code: str, line: int, column: int, help: str) -> None:
    (found,) = mistakes(HEAD + body)
    assert (found.code, found.span and (found.span.line, found.span.column)) == (code, (line, column)), found
    assert help in (found.help or "") or help in found.message


BOOK = "arch a\ninput i: i64[N]\noutput y: f32[N, 6]\nshare book = embedding(6, 6)\nlet e = book(i)\n"
BOOK_HELP = "`linear(4, weight = book.weight)`"
HABITS = [  # what is written out of habit, and what to write instead
    (HEAD + "y = x -> linear(8) + x", "E0331", "`(x -> linear) + …`"),
    (HEAD + "y = x + linear(8)", "E0331", "less tightly"),
    ("arch a\ninput x: f32[batch, 8]\noutput y: f32[batch, 8]\ny = x", "E0201", "a capital letter: `Batch`"),
    (HEAD + "def f: [N, 8] => [batch, 8] = relu\ny = x -> f", "E0201", "a capital letter: `Batch`"),
    (HEAD + "y = if x > 0 then x else 0", "E0334", "`where(x > 0, a, b)`"),
    (HEAD + "y = where(x > 0 and x < 1, x, 0)", "E0334", "`logical_and`"),
    (HEAD + "y = x -> linear(8, bias = False)", "E0201", "did you mean `false`?"),
    (HEAD + "y = x -> linear(8, init = None)", "E0201", "did you mean `none`?"),
    (HEAD + "y = x @ x", "E0104", "`matmul(a, b)`"),
    (HEAD + "// a comment\ny = x", "E0101", "`#`"),
    (HEAD + "y = x\n// a comment", "E0101", "`#`"),
    (HEAD + "y = x // as it is", "E0101", "`#`"),
    (HEAD + "y = x -> reshape(N, 8)", "E0207", "`reshape([N, 8])`"),
    (HEAD + "y = x -> reshape(N)", "E0205", "`[N]`"),
    (HEAD + "y = x -> permute(1, 0)", "E0207", "`permute([1, 0])`"),
    (HEAD + "y = linear(8) -> relu", "E0331", "`x -> linear -> relu`"),
    (HEAD + "let a = split(x, 2, axis = 1)\ny = a -> linear(8)", "E0303", "`let a, b = …`"),
    (HEAD + "y = x -> cast(f32)", "E0201", '`"f32"`'),
    (HEAD + "y = x -> cast(float16)", "E0201", '`"f16"`'),
    (BOOK + "y = e + sum(book.weight, axis = 0)", "E0205", BOOK_HELP),
    (BOOK + "y = e + book.weight", "E0331", BOOK_HELP),
    (BOOK + "y = book.weight", "E0331", BOOK_HELP),
    (BOOK + "y = book.weight -> square", "E0331", BOOK_HELP),
]


@pytest.mark.parametrize(("text", "code", "help"), HABITS)
def test_a_habit_of_other_languages_is_told_what_to_write(text: str, code: str, help: str) -> None:
    first = check_text(text)[0]
    assert (first.code, help in (first.help or "")) == (code, True), first
    assert "Shared" not in first.message + first.label, "no insides of the compiler"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (HEAD + "y = if 3 then x else x", "E0334"),
        (HEAD + "y = x -> linear(8, 9, 9, 9, 9)", "E0207"),
        (HEAD + "y = x -> linear(8, bias = Frobnicate)", "E0201"),
        (HEAD + "y = linear(8, x, x)", "E0303"),
        (HEAD + "let a = 7 // 2\n)\ny = x", "E0103"),
    ],
)
def test_other_mistakes_of_the_same_codes_are_not_told_so(text: str, code: str) -> None:
    helps = {help for _, _, help in HABITS}
    first = check_text(text)[0]
    assert first.code == code
    assert not any(help in (first.help or "") for help in helps)


def test_an_artifact_is_no_program_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "net.archc"
    for rest in (b"", bytes(99)):
        path.write_bytes(MAGIC + rest)
        with pytest.raises(CompileError) as caught:
            load(path, limits=Limits(file_bytes=50))
        (told,) = caught.value.diagnostics
        assert (told.code, told.help) == ("E0003", "give the .arch file that it was compiled from")
    path.write_bytes(MAGIC[:1] + b"other")
    with pytest.raises(CompileError, match="not a text file"):
        load(path)


def test_several_mistakes_are_found_in_one_run_and_none_because_of_another() -> None:
    text = HEAD + (
        "let a = x -> linear(-1)\nlet b = a -> linear(8) -> nothing\n"
        "let c = x -> linear(4)\nlet e = c + x\ny = e -> linear(9)"
    )
    assert places(text) == [("E0205", 4, 21), ("E0201", 5, 27), ("E0301", 7, 9)]


def test_mistakes_inside_a_function_do_not_stop_its_other_statements() -> None:
    text = HEAD + "def f = fn(v) {\n let p = v -> linear(0)\n let q = v -> conv(8)\n return p * q }\ny = x -> f"
    assert [d.code for d in mistakes(text)] == ["E0205", "E0206"]


def test_a_mistake_in_a_definition_shows_the_definition_and_its_uses() -> None:
    text = HEAD + "def inner(c) = linear(c) -> conv(8, kernel = 3)\ndef outer = inner(4)\ny = x -> outer"
    (found,) = mistakes(text)
    assert found.code == "E0302"
    assert found.span is not None
    assert (found.span.line, found.span.column) == (4, 29)
    uses = [(n.span.line, n.span.column) for n in found.notes if n.message == "used here" and n.span]
    assert uses == [(5, 13), (6, 10)]


def test_a_mistake_in_a_definition_is_reported_once_for_many_uses() -> None:
    assert len(mistakes(HEAD + "def f = conv(8, kernel = 3)\nlet a = x -> f\nlet b = x -> f\ny = x -> f")) == 1


def test_an_output_of_the_wrong_type_points_at_binding_and_declaration() -> None:
    (found,) = mistakes(HEAD + "y = x -> linear(9)")
    assert found.notes[0].span is not None
    assert found.notes[0].span.line == 3
    assert found.message == "output `y` needs f32[N, 8]"


def test_parameters_and_dimensions_of_the_command_line_are_checked() -> None:
    text = "arch a(width = 8, deep: bool = true)\ninput x: f32[N, T]\noutput y: f32[N, T]\ny = x"
    assert "`width`" in (mistakes(text, values={"widht": 3})[0].help or "")
    assert mistakes(text, values={"width": "wide"})[0].code == "E0205"
    assert mistakes(text, values={"deep": "3"})[0].code == "E0205"
    assert mistakes(text, dims={"S": 3})[0].code == "E0215"
    assert mistakes(text.replace("width = 8", "width"))[0].code == "E0214"


def test_unused_definitions_are_checked_too() -> None:
    assert [d.code for d in check_text(HEAD + "def f = conv(8, kernel = 0) -> nothing\ny = x")] == ["E0205", "E0201"]
    assert check_text(HEAD + "def f(c) = conv(c, kernel = 3) -> relu\ny = x") == ()


def test_a_wrong_type_of_an_output_is_one_mistake() -> None:
    assert places("arch a\ninput x: f32[N]\noutput y: float[N]\ny = x -> linear(3)")[0] == ("E0337", 3, 11)
    assert [d.code for d in mistakes("arch a\ninput x: f32[*S]\noutput y: f32[3]\ny = x")] == ["E0337"]


# Bombs: refused before they are expanded


def chain(template: str, count: int, first: str) -> str:
    return f"def a0{first}\n" + "".join(template.format(i=i, j=i - 1) + "\n" for i in range(1, count))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (chain("def a{i} = a{j} -> a{j}", 61, " = relu") + "y = x -> a60", "E0008"),
        (chain("def a{i} = fn(v) {{ return a{j}(a{j}(v)) }}", 61, " = relu") + "y = x -> a60", "E0008"),
        (chain("def a{i}(c) = residual(a{j}(c) -> a{j}(c))", 61, "(c) = linear(c)") + "y = x -> a60(8)", "E0008"),
        (chain("def a{i}: [N, C] => [N, C] = a{j} -> a{j}", 61, " = relu") + "y = x -> a60", "E0008"),
        (chain("def a{i} = a{j} -> a{j}", 61, " = identity") + "y = x -> a60", "E0008"),
        (chain("def a{i} = [a{j}, a{j}]", 61, " = 1") + "y = x -> linear(a60)", "E0009"),
        (chain("def a{i} = a{j} * a{j}", 61, " = 9") + "y = x -> linear(a60)", "E0334"),
        (chain("def a{i} = a{j} -> relu", 4000, " = relu") + "y = x -> a3999", "E0009"),
        ("y = x -> repeat(1000000000) { relu }", "E0007"),
        ("y = x -> repeat(10000) { repeat(10000) { repeat(10000) { relu } } }", "E0008"),
        ("y = x -> repeat(10000) as i { repeat(10000) as j { identity } }", "E0008"),
        ("y = x -> branch(1000000000, relu)", "E0007"),
    ],
)
def test_a_program_that_expands_too_far_is_refused_at_once(body: str, code: str) -> None:
    start = time.process_time()
    found = mistakes(HEAD + body)
    assert found[0].code == code
    assert len(found[0].notes) < 12
    assert time.process_time() - start < 5


def test_the_limit_of_nodes_is_exact_for_plain_programs() -> None:
    body = HEAD + "y = x -> repeat(10) { relu }"
    assert len(loads(body, limits=Limits(nodes=10)).nodes) == 10
    assert mistakes(body, limits=Limits(nodes=9))[0].code == "E0008"


# Files


def test_imports_stay_below_the_importing_file(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "outside.arch").write_text("def f = relu\n")
    (folder / "link.arch").symlink_to(tmp_path / "outside.arch")
    (folder / "inside.arch").write_text("def f = relu\n")

    def attempt(path: str) -> list[str]:
        main = folder / "main.arch"
        main.write_text(f'arch a\nimport "{path}" (f)\ninput x: f32[N]\noutput y: f32[N]\ny = x -> f\n')
        try:
            load(main)
        except CompileError as error:
            return [d.code for d in error.diagnostics]
        return []

    assert attempt("inside.arch") == []
    assert attempt("../outside.arch") == ["E0010"]
    assert attempt(str(tmp_path / "outside.arch")) == ["E0010"]
    assert attempt("link.arch") == ["E0010"]
    assert attempt("absent.arch") == ["E0001"]
    assert attempt("main.arch") == ["E0011"]


def test_imports_in_a_circle_or_too_long_a_chain_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.arch").write_text('import "b.arch"\ndef f = relu\n')
    (tmp_path / "b.arch").write_text('import "a.arch"\ndef g = relu\n')
    main = tmp_path / "main.arch"
    main.write_text('arch m\nimport "a.arch" (f)\ninput x: f32[N]\noutput y: f32[N]\ny = x -> f\n')
    with pytest.raises(CompileError) as caught:
        load(main)
    assert [d.code for d in caught.value.diagnostics] == ["E0011"]
    for i in range(6):
        (tmp_path / f"c{i}.arch").write_text(f'import "c{i + 1}.arch"\ndef f{i} = relu\n')
    (tmp_path / "c6.arch").write_text("def f6 = relu\n")
    main.write_text('arch m\nimport "c0.arch" (f0)\ninput x: f32[N]\noutput y: f32[N]\ny = x -> f0\n')
    load(main)
    with pytest.raises(CompileError) as caught:
        load(main, limits=Limits(import_depth=3))
    assert caught.value.diagnostics[0].code == "E0006"


# Spaces


SPACE = """space s
input x: f32[N, 8]
output y: f32[N, 8]
rule M = 0.6: Op | 0.4: sequential(M, M)
rule Op = linear(choose { 8 | 16 }) | relu
y = x -> M
"""


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda s: s, []),
        (lambda s: s.replace("0.6", "0.3"), ["E0704"]),
        (lambda s: s.replace("sequential(M, M)", "repeat(3) { M }"), ["E0704"]),
        (lambda s: s.replace("sequential(M, M)", "branch(2, M)"), []),
        (lambda s: s.replace("16 }", "0 }"), ["E0205"]),
        (lambda s: s.replace("| relu", "| rleu"), ["E0201"]),
        (lambda s: s + "rule Other = relu\n", ["E0703"]),
    ],
)
def test_spaces_are_checked_without_drawing(change: Callable[[str], str], codes: list[str]) -> None:
    assert [d.code for d in check_text(change(SPACE))] == codes


def test_the_warning_of_a_growing_space_tells_the_figure() -> None:
    (found,) = check_text(SPACE.replace("0.6", "0.3"))
    assert found.severity == "warning"
    assert "1.14" in found.message  # 2 * 0.4 / 0.7


def test_a_space_is_no_architecture() -> None:
    assert mistakes(SPACE)[0].code == "E0701"


def test_only_a_space_leaves_choices_open() -> None:
    choosing = HEAD + "y = x -> choose { relu | tanh }"
    assert [(d.code, d.span and (d.span.line, d.span.column)) for d in check_text(choosing)] == [("E0702", (4, 10))]
    assert [d.code for d in check_text(HEAD + "rule M = relu | tanh\ny = x -> M")] == ["E0702"]
    assert check_text(choosing.replace("arch a(d = 8)", "space a(d = 8)")) == ()
    assert check_text("arch a(d)\ninput x: f32[N, 8]\noutput y: f32[N, 8]\ny = x -> linear(d) -> linear(8)") == ()


def test_the_warning_of_a_growing_space_tells_how_it_leads_back() -> None:
    (direct,) = check_text(SPACE.replace("0.6", "0.3"))
    assert direct.label == "one draw mentions itself 1.14 times on average"
    (found,) = check_text(SPACE.replace("0.6", "0.3").replace("sequential(M, M)", "P") + "rule P = sequential(M, M)\n")
    assert "itself" not in found.label
    assert found.label in (
        "one draw mentions `P` 0.571 times on average, and that leads back to it",
        "one draw mentions `M` 2 times on average, and that leads back to it",
    )


def test_a_name_of_the_program_that_hides_an_operator_is_told() -> None:
    head = "arch a(relu: bool = true)\ninput x: f32[N, 8]\noutput y: f32[N, 8]\n"
    assert [n.op.name for n in loads(head + "y = x -> relu()").nodes] == ["relu"]
    (found,) = mistakes(head + "y = x -> relu")
    assert (found.code, found.help) == (
        "E0330",
        "`relu` is a name of this program here: rename it, or call the operator, `relu(…)`",
    )


def test_a_plugin_that_cannot_be_loaded_is_told_beside_the_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from archc.grammar import unknown

    warning = Diagnostic(
        "E0210", "the operators of `p` could not be loaded", label="ImportError: q", severity="warning"
    )
    text = HEAD + "y = x -> star(8)"
    assert mistakes(text)[0].notes == ()
    monkeypatch.setattr(unknown, "load_plugins", lambda: (warning,))
    for (found,) in (mistakes(text), check_text(text)):
        assert [n.message for n in found.notes] == ["the operators of `p` could not be loaded [E0210]: ImportError: q"]


def test_an_odd_size_that_lost_a_row_is_told() -> None:
    text = "arch a(side = 33)\ninput x: f32[N, 1, side, side]\noutput y: f32[N, 2, side, side]\n"
    text += "y = concat(x -> max_pool(2) -> upsample(2), x, axis = 1)"
    (found,) = mistakes(text)
    assert found.code == "E0301"
    assert "odd size" in (found.help or "")
    loads(text, values={"side": 32})
    (other,) = mistakes(text.replace("upsample(2)", "upsample(4)"))
    assert "odd size" not in (other.help or "")
