"""`archc fmt`: the layout, and that it keeps comments and meaning and is reached in one step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archc.grammar.format import WIDTH, format_source
from archc.grammar.limits import Limits
from archc.grammar.parser import parse
from archc.grammar.tables import load
from archc.ir.diagnostics import CompileError

EXAMPLES = Path(__file__).parents[2] / "examples"

LAYOUTS = {
    # blanks and separators
    "y=x->linear( 3,bias=false )": "y = x -> linear(3, bias = false)\n",
    "let a=-b+c*(d-1)//2;let e=not a and b==c;;": "let a = -b + c * (d - 1) // 2\nlet e = not a and b == c\n",
    "def f ( a,b : int=3, ) : ([N,*S],[C]) => f32[N,2*C] = a[ 0 ]": (
        "def f(a, b: int = 3): ([N, *S], [C]) => f32[N, 2 * C] = a[0]\n"
    ),
    'language 1 arch t import"a.arch"(b,c,)input x:f32[ ]': (
        'language 1\narch t\nimport "a.arch" (b, c)\ninput x: f32[]\n'
    ),
    "rule R=|a|0.5:b when c<3": "rule R = a | 0.5: b when c < 3\n",
    "y=repeat(3,tied=true)as i{f(i)}->choose{1|2}": "y = repeat(3, tied = true) as i { f(i) } -> choose { 1 | 2 }\n",
    "y = fn(x){return x,x}": "y = fn(x) { return x, x }\n",
    "y = fn(){let a=x;return a}": "y = fn() {\n    let a = x\n    return a\n}\n",
    "": "",
    "\n\n# only\n\n\n# this\n\n": "# only\n\n# this\n",
    # blank lines: one is kept
    "let a = b\n\n\n\n# why\nlet c = d\nlet e = f": "let a = b\n\n# why\nlet c = d\nlet e = f\n",
    # what fits on a line is put there
    "y = f(\n  a,\n  b\n)\n  -> g": "y = f(a, b) -> g\n",
    # comments keep their place
    "y = f( # of\n a, # first\n # before\n b # last\n) # end": (
        "y = f(  # of\n    a,  # first\n    # before\n    b  # last\n)  # end\n"
    ),
    "y = fn(x) {\n let a = x # one\n\n # two\n return a\n # three\n}": (
        "y = fn(x) {\n    let a = x  # one\n\n    # two\n    return a\n    # three\n}\n"
    ),
    # a line shared with the bracket of the call
    f"y = f([{'a' * 60}, {'b' * 60}])": f"y = f([\n    {'a' * 60},\n    {'b' * 60}])\n",
    f"arch a({'a' * 40}, {'b' * 40}, {'c' * 40})": f"arch a(\n    {'a' * 40}, {'b' * 40},\n    {'c' * 40})\n",
    "arch t(a, b # of b\n, # dropped\n)": "arch t(\n    a, b  # of b\n    # dropped\n)\n",
    # long pipes keep the breaks of the source …
    f"y = {'a' * 60}\n -> {'b' * 30} -> c\n-> d": f"y = {'a' * 60}\n    -> {'b' * 30} -> c\n    -> d\n",
    f"y =\n{'a' * 60}\n -> {'b' * 40}": f"y =\n    {'a' * 60}\n    -> {'b' * 40}\n",
    # … and get more where a stage does not fit
    f"y = {'a' * 60} -> {'b' * 30} -> cccccccc": f"y = {'a' * 60} -> {'b' * 30}\n    -> cccccccc\n",
    f"y = f({'a' * 50}, {'b' * 50}, c = d)": f"y = f(\n    {'a' * 50},\n    {'b' * 50},\n    c = d)\n",
    f"rule R = {'a' * 50} | {'b' * 50} when c": f"rule R =\n    {'a' * 50}\n  | {'b' * 50} when c\n",
}


@pytest.mark.parametrize("text", LAYOUTS)
def test_layout(text: str) -> None:
    assert format_source(text) == LAYOUTS[text]
    assert format_source(LAYOUTS[text]) == LAYOUTS[text]


@pytest.mark.parametrize("name", ["resnet20", "moe_lm", "tagger", "spaces/digits_net"])
def test_examples_are_in_canonical_layout(name: str) -> None:
    path = EXAMPLES / f"{name}.arch"
    text = path.read_text(encoding="utf-8")
    assert format_source(text, str(path)) == text


def test_long_lists_are_filled() -> None:
    text = format_source(f"y = constant([{', '.join(map(str, range(200)))}])")
    assert len(text.splitlines()) < 12
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_wrong_program_is_not_formatted() -> None:
    with pytest.raises(CompileError, match="E0102"):
        format_source("y = f(")


def test_deep_and_long_programs_need_no_recursion() -> None:
    for text in ("y = " + "f(" * 190 + "a" + ")" * 190, "y = a" + " -> b" * 3000, "y = " + "-" * 190 + "a"):
        assert format_source(format_source(text)) == format_source(text)
    deep = "y = " + "f([" * 1000 + "a" + "])" * 1000
    assert parse(format_source(deep, limits=Limits(nesting=2_000)), limits=Limits(nesting=2_000)).items


def _joined(*parts: str | st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    """Strategies and tokens, one after the other, as one list of tokens."""
    drawn: list[st.SearchStrategy[list[str]]] = [st.just([p]) if isinstance(p, str) else p for p in parts]
    return st.tuples(*drawn).map(lambda lists: [token for tokens in lists for token in tokens])


_name = st.sampled_from(["a", "image", "conv_bn", "block1.conv", "x" * 30]).map(lambda n: [n])
# a word that opens statements names an argument too; elsewhere a name behind it on its line would make it a statement
_argument = _name | st.just(["input"])
_atom = _name | st.sampled_from(["3", "0.5", "500k", '"a # b"', "true", "none", "[]"]).map(
    lambda t: ["[", "]"] if t == "[]" else [t]
)


def _expressions(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    def several(separator: str, least: int = 1) -> st.SearchStrategy[list[str]]:
        return st.lists(inner, min_size=least, max_size=4).map(
            lambda items: [token for i, item in enumerate(items) for token in ([separator] if i else []) + item]
        )

    in_brackets = _joined("(", inner, ")")
    return st.one_of(
        _joined(_name, "(", several(","), ")"),
        _joined(_name, "(", several(","), ",", _argument, "=", inner, ",", ")"),
        _joined("(", several("->", 2), ")"),
        _joined("(", several(",", 2), ")"),
        _joined("[", several(","), "]"),
        _joined("-", in_brackets),
        _joined(
            in_brackets, st.sampled_from(["+", "-", "*", "//", "<", "==", "and", "or"]).map(lambda t: [t]), in_brackets
        ),
        _joined("(", "if", in_brackets, "then", inner, "else", inner, ")"),
        _joined("choose", "{", several("|"), "}"),
        _joined("repeat (", inner, ")", "as", "i", "{", inner, "}"),
        _joined("fn (", "a", ",", "b", ")", "{", "let a", "=", inner, ";", "return", several(","), "}"),
    )


_expression = st.recursive(_atom, _expressions, max_leaves=8)
_statement = st.one_of(
    _joined("let a", ",", "b", "=", _expression),
    _joined("y", "=", _expression, "->", _expression, "->", _expression),
    _joined(
        "def f", "(", "a", ",", "k", "=", _expression, ")", ":", "[", "*", "S", "]", "=>", "[", "]", "=", _expression
    ),
    _joined("rule R", "=", "0.5", ":", _expression, "when", _expression, "|", _expression),
    _joined("require", _expression, ";"),
)
_gap = st.sampled_from(
    [" "] * 12 + ["\n", "\n\n\n", " # c\n", "\n# c\n", "\n\n  # c\n\n\n# d\n", " #" + "c" * 90 + "\n"]
)


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Programs with every construct, and with blank lines and comments between any two tokens."""
    tokens = [token for statement in draw(st.lists(_statement, min_size=1, max_size=4)) for token in statement]
    return "".join(token + draw(_gap) for token in tokens)


def comments(text: str) -> list[str]:
    return [m[0].rstrip() for m in load().lexer.finditer(text) if m.lastgroup == "COMMENT"]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_formatting_keeps_meaning_and_comments_and_is_idempotent(text: str) -> None:
    once = format_source(text)
    assert parse(once) == parse(text)
    assert comments(once) == comments(text)
    assert format_source(once) == once
    assert not any(line != line.rstrip() for line in once.splitlines())


def test_the_property_can_fail() -> None:
    """The control: a formatter that joined the lines would lose comments and change trees, and we would see it."""
    text = "y = a # b\n-> c\nlet d = e"
    joined = text.replace("\n", " ")
    assert comments(joined) != comments(text)
    assert parse(joined) != parse(text)
