"""What programs mean to the parser: trees, spans, words that are names, and agreement with Lark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lark import Token, UnexpectedInput

from archc.grammar import syntax as s
from archc.grammar.build_tables import HERE, build, lark_parser
from archc.grammar.limits import DEFAULT
from archc.grammar.parser import parse, parse_file
from archc.grammar.syntax import walk
from archc.grammar.tables import load
from archc.grammar.tree import TreeBuilder
from archc.ir.diagnostics import CompileError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.arch"))


def value(expression: str) -> s.Expr:
    (item,) = parse(f"y = {expression}").items
    assert isinstance(item, s.Bind)
    return item.value


def shape(node: object) -> object:
    """A tree as nested tuples of class names, texts and numbers: independent of how `repr` is written."""
    if isinstance(node, s.Node):
        return (type(node).__name__, *(shape(getattr(node, f)) for f in type(node).__match_args__[:-1]))
    return tuple(map(shape, node)) if isinstance(node, tuple) else node


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_parse(path: Path) -> None:
    program = parse_file(path)
    assert program.kind in ("arch", "space", "library")
    assert all(node.span.file == str(path) for node in walk(program))


def test_a_program() -> None:
    program = parse(
        """language 1
        space t(width: int = 16, depth,)
        import "std/blocks.arch" (block, stage)
        import "other.arch"
        input x: f32[N, 3, 2*H]
        def f(k = 3): ([*S, C], f32[N]) => [N, C / 2] = g
        rule R: [*S] => [*T] = | 0.5: a when depth < 3 | b
        require params < 500k
        a, b = c
        """
    )
    assert (program.kind, program.name, program.language) == ("space", s.Name("t", program.span), 1)
    assert [f.name.text for f in program.formals] == ["width", "depth"]
    blocks, other, port, f, rule, require, bind = program.items
    assert isinstance(blocks, s.Import)
    assert isinstance(other, s.Import)
    assert blocks.path.value == "std/blocks.arch"
    assert [n.text for n in blocks.names or ()] == ["block", "stage"]
    assert other.names is None
    assert isinstance(port, s.Port)
    assert (port.direction, port.name.text, port.type.dtype and port.type.dtype.text) == ("input", "x", "f32")
    assert isinstance(port.type.dims[2], s.Arithmetic)
    assert isinstance(f, s.Def)
    assert f.signature is not None
    assert [len(f.signature.inputs), len(f.signature.outputs)] == [2, 1]
    assert isinstance(f.signature.inputs[0].dims[0], s.Rest)
    assert isinstance(rule, s.Rule)
    assert [(a.weight and a.weight.value, a.guard is not None) for a in rule.alternatives] == [
        (0.5, True),
        (None, False),
    ]
    assert isinstance(require, s.Require)
    assert isinstance(require.condition, s.Compare)
    assert isinstance(bind, s.Bind)
    assert [n.text for n in bind.names] == ["a", "b"]


def test_a_file_without_a_header_is_a_library() -> None:
    assert (parse("def f = relu").kind, parse("").kind) == ("library", "library")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a -> b -> c", ("Pipe", (("Ref", "a"), ("Ref", "b"), ("Ref", "c")))),
        ("(a -> b) -> c", ("Pipe", (("Pipe", (("Ref", "a"), ("Ref", "b"))), ("Ref", "c")))),
        ("1 - 2 + 3", ("Arithmetic", (("Number", 1), ("Number", 2), ("Number", 3)), ("-", "+"))),
        ("1 + 2 * 3", ("Arithmetic", (("Number", 1), ("Arithmetic", (("Number", 2), ("Number", 3)), ("*",))), ("+",))),
        ("7 // 2 % 3", ("Arithmetic", (("Number", 7), ("Number", 2), ("Number", 3)), ("//", "%"))),
        ("-a * b", ("Arithmetic", (("Negate", ("Ref", "a")), ("Ref", "b")), ("*",))),
        ("-f(a)", ("Negate", ("Call", ("Ref", "f"), (("Ref", "a"),), ()))),
        (
            "not a and b or c",
            ("Logical", "or", (("Logical", "and", (("Not", ("Ref", "a")), ("Ref", "b"))), ("Ref", "c"))),
        ),
        ("not a == b", ("Not", ("Compare", ("Ref", "a"), "==", ("Ref", "b")))),
        ("if a then b else c -> d", ("If", ("Ref", "a"), ("Ref", "b"), ("Pipe", (("Ref", "c"), ("Ref", "d"))))),
        (
            "f(1)(2)[0]",
            ("Index", ("Call", ("Call", ("Ref", "f"), (("Number", 1),), ()), (("Number", 2),), ()), ("Number", 0)),
        ),
        ("[[a], []]", ("List", (("List", (("Ref", "a"),)), ("List", ())))),
        ("(a, b,) -> f()", ("Pipe", (("Tuple", (("Ref", "a"), ("Ref", "b"))), ("Call", ("Ref", "f"), (), ())))),
        (
            "choose { a | b }",
            ("Choose", (("Alternative", None, ("Ref", "a"), None), ("Alternative", None, ("Ref", "b"), None))),
        ),
        ("range(1, step = 2)", ("Range", (("Number", 1),), (("Keyword", ("Name", "step"), ("Number", 2)),))),
        ("repeat(2) as i { a }", ("Repeat", (("Number", 2),), (), ("Name", "i"), ("Ref", "a"))),
        ("fn() { return a, b }", ("Fn", (), (), (("Ref", "a"), ("Ref", "b")))),
        (
            "fn(x) { ; let a = x; return a; }",
            ("Fn", (("Name", "x"),), (("Let", (("Name", "a"),), ("Ref", "x")),), (("Ref", "a"),)),
        ),
        ("block1.conv -> none", ("Pipe", (("Ref", "block1.conv"), ("NoneLiteral",)))),
    ],
)
def test_expressions(text: str, tree: object) -> None:
    assert shape(value(text)) == tree


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-5", 1e-5),
        ("2E3", 2000.0),
        ("500k", 500_000),
        ("1.001k", 1001),
        ("0.5M", 500_000),
        ("2G", 2_000_000_000),
        ("0.0001k", 0.1),
        ("007", 7),
    ],
)
def test_numbers(text: str, number: float) -> None:
    literal = value(text)
    assert isinstance(literal, s.Number)
    assert literal.value == number
    assert type(literal.value) is type(number)


def test_strings() -> None:
    assert value(r'"\u{e9}\u{1F642}"') == s.String("é🙂", value("a").span)
    assert value(r'"a \"b\" \\ \n\t# no comment"') == s.String('a "b" \\ \n\t# no comment', value("a").span)


def test_words_are_names_where_no_statement_begins() -> None:
    call = value("f(input = 3, range = 2, fn = fn(input, h) { return input -> repeat + h }, if = 1, let\n = 2)")
    assert isinstance(call, s.Call)
    assert [k.name.text for k in call.keywords] == ["input", "range", "fn", "if", "let"]
    program = parse("y = if c then input else output\ninput image: f32[]\ndef f(range = 3, rule = 2) = range * rule")
    assert [type(item).__name__ for item in program.items] == ["Bind", "Port", "Def"]


def test_statements_need_no_separator_and_may_have_one() -> None:
    apart = parse("let a = b\nlet c = d\ny = a")
    assert parse("let a = b; let c = d;; y = a;") == apart == parse("let a = b let c = d y = a")


def test_layout_and_comments_mean_nothing() -> None:
    plain = parse("y = f(a, b) -> g")
    assert parse("\ufeffy=f (\r\n\ta ,# x\r\n b,\r\n)\r\n\r-># last\rg") == plain
    assert parse("y = f(a, c) -> g") != plain  # the control: `==` does see the trees


def test_spans() -> None:
    program = parse("let a = b\n\ty = f(\n  -x, k = [1,\n2]) -> g # end", "m.arch")
    places = {
        type(n).__name__: (n.span.line, n.span.column, n.span.end_line, n.span.end_column)
        for n in walk(program.items[1])
    }
    assert places == {
        "Bind": (2, 2, 4, 9),
        "Name": (3, 7, 3, 8),
        "Pipe": (2, 6, 4, 9),
        "Call": (2, 6, 4, 4),
        "Ref": (4, 8, 4, 9),
        "Negate": (3, 3, 3, 5),
        "Keyword": (3, 7, 4, 3),
        "List": (3, 11, 4, 3),
        "Number": (4, 1, 4, 2),
    }
    assert all(n.span.file == "m.arch" for n in walk(program))


def test_long_programs_are_flat_and_need_no_recursion() -> None:
    chain = value(" -> ".join(["a"] * 20_000))
    assert isinstance(chain, s.Pipe)
    assert len(chain.stages) == 20_000
    total = value(" + ".join(["1"] * 20_000))
    assert isinstance(total, s.Arithmetic)
    assert len(total.operands) == 20_000
    assert len(parse("let a = b\n" * 20_000).items) == 20_000


def test_the_tables_are_those_of_the_grammar() -> None:
    """Lark builds them in strict mode, so this also shows that the grammar has no conflict."""
    shipped = json.loads((HERE / "arch.tables.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(build())) == shipped, "run python -m archc.grammar.build_tables"


def test_agreement_with_lark() -> None:
    """Our loop takes the same texts apart as Lark's own parser does, and rejects what it rejects."""
    lark = lark_parser()
    for path in EXAMPLES[::3]:
        text = path.read_text(encoding="utf-8")
        names = [str(t) for t in lark.parse(text).scan_values(lambda v: isinstance(v, Token) and v.type == "NAME")]
        ours = [n.text if isinstance(n, s.Name) else n.name for n in walk(parse(text)) if isinstance(n, s.Name | s.Ref)]
        assert sorted(names) == sorted(ours)
        truncated = text.rstrip().rstrip(")")[:-1] + "("
        with pytest.raises(CompileError):
            parse(truncated)
        with pytest.raises(UnexpectedInput):
            lark.parse(truncated)


def test_every_production_has_a_builder() -> None:
    builder = TreeBuilder("", DEFAULT)
    missing = {p.builder for p in load().productions if p.builder and not hasattr(builder, p.builder)}
    assert not missing
