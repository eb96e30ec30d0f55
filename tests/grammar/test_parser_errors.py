"""Malformed programs, and exactly what is said about them, where.

Each program is followed by the diagnostics that it yields: `CODE line:column` and a piece of the text.
"""

from __future__ import annotations

import pytest

from archc.grammar.malformed import MISTAKES, first_fault
from archc.grammar.parser import MOST_FAULTS, parse
from archc.grammar.syntax_errors import _DESCRIBED
from archc.grammar.tables import load
from archc.ir.diagnostics import CompileError, Diagnostic


def diagnose(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(CompileError) as caught:
        parse(text, "m.arch")
    assert caught.value.exit_code == 1
    return caught.value.diagnostics


def said(diagnostic: Diagnostic) -> str:
    notes = "".join(f" | {n.message} {n.span}" for n in diagnostic.notes)
    return f"{diagnostic.message} | {diagnostic.label}{notes} | {diagnostic.help}"


PROGRAMS = {
    "y = f(a b)": ["E0101 1:9 expected `)`, `,` or `=` | found `b`"],
    "y = a ->": ["E0101 1:9 expected an expression | found the end of the file"],
    "y = a => b": ["E0101 1:7 the arrow of a pipe is `->`"],
    "require a = b": ["E0101 1:11 to compare, write `==`"],
    "y = f(a: 3)": ["E0101 1:8 an argument is named by `=`"],
    "y = a ** b": ["E0101 1:8 pow(a, b)"],
    "// words": ["E0101 1:1 a comment begins with `#`"],
    "let x y = 3": ["E0101 1:7 expected `,` or `=`"],
    "y = a[0:3]": ["E0101 1:8 slice"],
    "arch a { }": ["E0101 1:8 not put in braces"],
    "y = f(3,\nlet z = 3": ["E0102 1:6 `let` cannot stand inside it m.arch:2:1"],
    "y = f(3\nz = a -> b\nw = c": ["E0102 1:6 `z` cannot stand inside it m.arch:2:1"],
    "y = f([a)": ["E0102 1:7 add `]`"],
    "y = fn(x) {\n  let a = g(3 -> b\n  let b = a\n  return b }": ["E0102 2:12 m.arch:3:3"],
    "y = f(a, (b, [c": ["E0102 1:14 the file ends m.arch:1:16"],
    "y = a)": ["E0103 1:6 closes nothing"],
    "y = (a]": ["E0103 1:7 expected `)` | `(` is open m.arch:1:5"],
    "y = (a → b)": ["E0104 1:8 write `->`"],
    "y = 'same'": ["E0104 1:5 double quotes"],
    "y = größe": ["E0104 1:7 letters a to z"],
    'y = "abc': ["E0105 1:5 never closed"],
    'y = "a\\q"': ["E0106 1:7 \\n, \\t"],
    'y = "\\u{d800}"': ["E0106 1:6 not one of them"],
    "y = 1.5x": ["E0107 1:5 `1.5x`"],
    "y = .5": ["E0107 1:5 `.5`"],
    "y = 3.": ["E0107 1:5 `3.`"],
    "y = 1e999": ["E0107 1:5 cannot be represented"],
    "require a < b < c": ["E0108 1:15 a < b and b < c"],
    "y = f(a = 1, 3)": ["E0109 1:14 named argument m.arch:1:7"],
    "y = f(a = 1, a = 2)": ["E0110 1:14 given twice"],
    "let x, x = y": ["E0110 1:8 bound twice"],
    "def f(a, b, a) = a": ["E0110 1:13 bound twice"],
    "y = fn(x, x) { return x }": ["E0110 1:11 bound twice"],
    "let then = a": ["E0111 1:5 followed, on its line, by a name"],
    "def f(then) = a": ["E0111 1:7 a word of the language"],
    "let = 3": ["E0111 1:1 `let` begins a statement"],
    "input: f32[N]": ["E0111 1:6 write `input NAME"],
    "import blocks": ['E0111 1:8 write `import "blocks.arch"'],
    "arch a\narch b": ["E0112 2:1 the first one: `arch a` m.arch:1:1"],
    "let z = 3\narch a": ["E0112 2:1 move it up"],
    "language 2": ["E0113 1:1 language version 1"],
    "let a = 1\nlanguage 1": ["E0113 2:1 too late"],
    "dfe f(x) = 3": ["E0114 1:1 did you mean `def`?"],
    "inptu x: f32[N]": ["E0114 1:1 did you mean `input`?"],
    "function f(x) = 3": ["E0114 1:1 did you mean `def`?"],
    "y = if a thn b else c": ["E0114 1:10 did you mean `then`?"],
    "y = if a then b esle c": ["E0114 1:17 did you mean `else`?"],
    "y = fn(x) {\n    lte y = x\n    return y }": ["E0114 2:5 did you mean `let`?"],
    "y = fn(x) {\n    let y = x\n    retrun y }": ["E0114 3:5 did you mean `return`?"],
    "input x\ny = a": ["E0115 1:7 a port has a type | `y` follows"],
    "y = fn(x) { let a = x }": ["E0116 1:23 add `return`"],
    "y = f(if a then b)": ["E0117 1:17 has an `else`"],
    "y = (a,)": ["E0119 1:8 two items or more"],
    "y = repeat(3) a": ["E0120 1:15 repeat(3) { body }"],
    "y = fn(x) { a = x\n return a }": ["E0121 1:13 bound by `let`"],
    "def f(x) { a }": ["E0122 1:10 follows `=`"],
    "y = choose { 16, 32 }": ["E0124 1:16 separated by `|`"],
    "y = choose(16, 32)": ["E0124 1:5 stand in braces"],
    "let f(c) = a": ["E0126 1:1 is a `def`"],
    "x -> f": ["E0127 1:1 binds a name"],
    "y = a ->\nlet b = c": ["E0101 1:7 expected an expression | `let` follows"],
    "input x: f32\nlet b = c": ["E0115 1:10 has dimensions"],
    # several in one run, and nothing about what is right between them
    "y = f(\n  a,\n\ndef g = 3\ndef h = )\nlet q = = 3\nlet fine = 3\nz = (": [
        "E0102 1:6 m.arch:4:1",
        "E0103 5:9 closes nothing",
        "E0101 6:9 found `=`",
        "E0102 8:5 never closed",
    ],
    "let a = 1 1\ny = f(k = 1, k = 2)": ["E0101 1:11 found `1`", "E0110 2:14 given twice"],
    "def f = fn(x) {\n  let a = = x\n  return a\n}\nlet b = $": ["E0101 2:11 found `=`", "E0104 5:9 `$`"],
}


@pytest.mark.parametrize("text", PROGRAMS)
def test_malformed_programs(text: str) -> None:
    found = diagnose(text)
    expected = PROGRAMS[text]
    assert len(found) == len(expected)
    for diagnostic, line in zip(found, expected, strict=True):
        code, place, piece = line.split(" ", 2)
        assert diagnostic.span is not None
        assert (diagnostic.code, f"{diagnostic.span.line}:{diagnostic.span.column}") == (code, place)
        assert piece in said(diagnostic)


@pytest.mark.parametrize(("mistake", "text"), [(m, e) for m in MISTAKES for e in m.examples], ids=lambda v: str(v)[:30])
def test_every_example_of_a_mistake_is_told_so(mistake: object, text: str) -> None:
    for program in (text, "let a = b\n" + text, text + "\nlet a = b"):
        assert (diagnose(program)[0].message, diagnose(program)[0].code) == (mistake.message, mistake.code)  # type: ignore[attr-defined]


def test_a_wellformed_program_has_no_fault() -> None:
    assert first_fault("y = a") is None


def test_no_more_than_some_faults_are_reported() -> None:
    assert len(diagnose("let a = =\n" * 1000)) == MOST_FAULTS


def test_every_terminal_has_words() -> None:
    tables = load()
    assert all(word or kind in _DESCRIBED for kind, word in tables.words.items())


def test_an_error_in_any_place_of_a_program_is_a_diagnostic() -> None:
    """Each token of a program removed, doubled or replaced: the parser accepts it or explains, and never fails."""
    text = 'arch t(a: int = 3)\ndef f(x): [N] => [N] = fn(y) { let z = y -> g(k = "s")[0]; return z }\n'
    text += "y = if a then -b else c"
    words = [m for m in load().lexer.finditer(text) if m.lastgroup not in load().ignored and m[0]]
    outcomes = {"accepted": 0, "explained": 0}
    for word in words:
        for other in ("", word[0] * 2, f"{word[0]} {word[0]}", ")", "{", "let", "=", "@"):
            found: tuple[Diagnostic, ...] = ()
            try:
                parse(text[: word.start()] + other + text[word.end() :])
            except CompileError as error:
                found = error.diagnostics
            assert all(d.span is not None and d.code.startswith("E01") for d in found)
            outcomes["explained" if found else "accepted"] += 1
    assert outcomes["explained"] > 300
    assert outcomes["accepted"] > 20
