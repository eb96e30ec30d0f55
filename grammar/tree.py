"""Building the syntax tree: one method for each rule of arch.lark, called with the children and the span.

What a tree alone can show to be wrong (a malformed number, an argument given twice, a second header) is noted here in
`diagnostics`; what needs the meaning of names is left to the elaborator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from archc.grammar import syntax as s
from archc.grammar.limits import Limits
from archc.ir.diagnostics import Diagnostic, DiagnosticSink, Note, Span

LANGUAGE_VERSION = 1
STATEMENT_WORDS = frozenset(
    ("arch", "space", "language", "import", "input", "output", "def", "share", "let", "rule", "require")
)
RESERVED = frozenset(
    ("require", "as", "if", "then", "else", "return", "when", "and", "or", "not", "true", "false", "none")
)
"""Words that cannot be used as names (except for arguments), wherever they stand."""

_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}
_SUFFIXES = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_LONGEST_NUMBER = 100


@dataclass(frozen=True, slots=True)
class _Header:
    kind: str
    name: s.Name
    formals: tuple[s.Formal, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class _Language:
    version: s.Number
    span: Span


class TreeBuilder:
    """Builds the tree of one file."""

    def __init__(self, file: str, limits: Limits) -> None:
        self.file = file
        self.limits = limits
        self._sink = DiagnosticSink(stops=True)

    @property
    def diagnostics(self) -> list[Diagnostic]:
        return self._sink.diagnostics

    def _note(self, code: str, message: str, span: Span, label: str = "", **more: Any) -> None:
        self._sink.add(Diagnostic(code, message, span, label, **more))

    def start(self, c: list[Any], span: Span) -> s.Program:
        header: _Header | None = None
        language: _Language | None = None
        items: list[s.Item] = []
        for item in c:
            if isinstance(item, _Language):
                self._check_language(item, language, first=not items and header is None)
                language = language or item
            elif isinstance(item, _Header):
                self._check_header(item, header, items)
                header = header or item
            else:
                items.append(item)
        version = None if language is None else int(language.version.value)
        if header is None:
            return s.Program(self.file, "library", None, (), tuple(items), version, Span(self.file, 1, 1, 1, 1))
        kind: Any = header.kind
        return s.Program(self.file, kind, header.name, header.formals, tuple(items), version, header.span)

    def _check_language(self, found: _Language, earlier: _Language | None, first: bool) -> None:
        if earlier is not None:
            notes = (Note("the first one", earlier.span),)
            self._note("E0113", "a file names its language version once", found.span, "a second time here", notes=notes)
        elif not first:
            self._note("E0113", "`language` is the first line of a file", found.span, "it comes too late here")
        elif found.version.value != LANGUAGE_VERSION:
            message = f"this compiler reads language version {LANGUAGE_VERSION}"
            self._note("E0113", message, found.version.span, f"this file is in version {found.version.value}")

    def _check_header(self, found: _Header, earlier: _Header | None, items: Sequence[s.Item]) -> None:
        if earlier is not None:
            notes = (Note(f"the first one: `{earlier.kind} {earlier.name.text}`", earlier.span),)
            message = "a file describes one architecture or space"
            self._note("E0112", message, found.span, "a second header", notes=notes, help="move it to another file")
        elif items:
            label = f"`{found.kind}` comes after other statements"
            self._note("E0112", "the header is the first statement of a file", found.span, label, help="move it up")

    def language(self, c: list[Any], span: Span) -> _Language:
        return _Language(self.number(c, span), span)

    def header(self, c: list[Any], span: Span) -> _Header:
        self._check_bound((c[1],))
        return _Header(c[0], c[1], c[2] or (), span)

    def import_(self, c: list[Any], span: Span) -> s.Import:
        return s.Import(c[0], c[1], span)

    def port(self, c: list[Any], span: Span) -> s.Port:
        self._check_bound((c[1],))
        return s.Port(c[0], c[1], c[2], span)

    def def_(self, c: list[Any], span: Span) -> s.Def:
        self._check_bound((c[0],))
        return s.Def(c[0], c[1], c[2], c[3], span)

    def share(self, c: list[Any], span: Span) -> s.Share:
        self._check_bound((c[0],))
        return s.Share(c[0], c[1], span)

    def let_(self, c: list[Any], span: Span) -> s.Let:
        return s.Let(c[0], c[1], span)

    def rule_(self, c: list[Any], span: Span) -> s.Rule:
        self._check_bound((c[0],))
        return s.Rule(c[0], c[1], c[2], c[3], span)

    def require(self, c: list[Any], span: Span) -> s.Require:
        return s.Require(c[0], span)

    def bind(self, c: list[Any], span: Span) -> s.Bind:
        for name in c[0]:
            if name.text in STATEMENT_WORDS - RESERVED:
                message = f"`{name.text}` begins a statement: a name belongs between it and the `=`"
                self._note("E0111", message, name.span, "taken for a name here", help=f"write `{name.text} NAME …`")
        return s.Bind(c[0], c[1], span)

    def names(self, c: list[Any], span: Span) -> tuple[s.Name, ...]:
        names = tuple(c)
        self._check_bound(names)
        return names

    def name_list(self, c: list[Any], span: Span) -> tuple[s.Name, ...]:
        return self.names(c, span)

    def name(self, c: list[Any], span: Span) -> s.Name:
        return s.Name(c[0], span)

    def formals(self, c: list[Any], span: Span) -> tuple[s.Formal, ...]:
        self._check_bound([formal.name for formal in c])
        return tuple(c)

    def _check_bound(self, names: Iterable[s.Name]) -> None:
        """Names that are bound together differ, and none is a reserved word."""
        seen: dict[str, s.Name] = {}
        for name in names:
            if name.text in RESERVED:
                self._note("E0111", f"`{name.text}` is a word of the language, not a name", name.span, "bound here")
            elif name.text in seen:
                notes = (Note("the first one", seen[name.text].span),)
                self._note("E0110", f"the name `{name.text}` is bound twice here", name.span, "again", notes=notes)
            seen[name.text] = name

    def formal(self, c: list[Any], span: Span) -> s.Formal:
        return s.Formal(c[0], c[1], c[2], span)

    def type_(self, c: list[Any], span: Span) -> s.TensorType:
        return s.TensorType(c[0], c[1], span)

    def bare_shape(self, c: list[Any], span: Span) -> s.TensorType:
        return s.TensorType(None, c[0], span)

    def signature(self, c: list[Any], span: Span) -> s.Signature:
        return s.Signature(c[0], c[1], span)

    def shapes(self, c: list[Any], span: Span) -> tuple[s.TensorType, ...]:
        return tuple(c)

    def dims(self, c: list[Any], span: Span) -> tuple[s.Dim, ...]:
        return tuple(c)

    def rest(self, c: list[Any], span: Span) -> s.Rest:
        return s.Rest(c[1], span)

    def alternatives(self, c: list[Any], span: Span) -> tuple[s.Alternative, ...]:
        return tuple(c)

    def alternative(self, c: list[Any], span: Span) -> s.Alternative:
        return s.Alternative(c[0], c[1], c[2], span)

    def if_(self, c: list[Any], span: Span) -> s.If:
        return s.If(c[0], c[1], c[2], span)

    def pipe(self, c: list[Any], span: Span) -> s.Pipe:
        return s.Pipe(tuple(c), span)

    def or_(self, c: list[Any], span: Span) -> s.Logical:
        return s.Logical("or", tuple(c), span)

    def and_(self, c: list[Any], span: Span) -> s.Logical:
        return s.Logical("and", tuple(c), span)

    def not_(self, c: list[Any], span: Span) -> s.Not:
        return s.Not(c[0], span)

    def compare(self, c: list[Any], span: Span) -> s.Compare:
        return s.Compare(c[0], c[1], c[2], span)

    def arithmetic(self, c: list[Any], span: Span) -> s.Arithmetic:
        return s.Arithmetic(tuple(c[::2]), tuple(c[1::2]), span)

    def negate(self, c: list[Any], span: Span) -> s.Negate:
        return s.Negate(c[1], span)

    def call(self, c: list[Any], span: Span) -> s.Call:
        self._check_chain(c[0], span)
        if type(c[0]) is s.Ref and c[0].name == "choose":
            help = "write `choose { 16 | 32 | 64 }`"
            self._note("E0124", "the alternatives of `choose` stand in braces", span, "not in parentheses", help=help)
        arguments, keywords = self._sort_arguments(c[1])
        return s.Call(c[0], arguments, keywords, span)

    def index(self, c: list[Any], span: Span) -> s.Index:
        self._check_chain(c[0], span)
        return s.Index(c[0], c[1], span)

    def _check_chain(self, callee: s.Expr, span: Span) -> None:
        """`f(1)(2)(3)` leans to the left: a tree as deep as it is long, which the parser's stack does not show."""
        depth = 1
        while isinstance(callee, (s.Call, s.Index)):
            callee = callee.callee if isinstance(callee, s.Call) else callee.value
            depth += 1
            if depth > self.limits.nesting:
                raise self.limits.exceeded("nesting", depth, span, "a call of a call of a call …")

    def arguments(self, c: list[Any], span: Span) -> list[s.Expr | s.Keyword]:
        return c

    def keyword(self, c: list[Any], span: Span) -> s.Keyword:
        return s.Keyword(c[0], c[1], span)

    def _sort_arguments(self, arguments: list[Any]) -> tuple[tuple[s.Expr, ...], tuple[s.Keyword, ...]]:
        positional = []
        keywords: dict[str, s.Keyword] = {}
        for argument in arguments:
            if type(argument) is not s.Keyword:
                positional.append(argument)
                if keywords:
                    message = "arguments without a name come before those with one"
                    notes = (Note("a named argument", next(iter(keywords.values())).span),)
                    self._note("E0109", message, argument.span, "this one has no name", notes=notes)
            elif argument.name.text in keywords:
                notes = (Note("the first one", keywords[argument.name.text].span),)
                message = f"the argument `{argument.name.text}` is given twice"
                self._note("E0110", message, argument.span, "again", notes=notes, help="keep one of them")
            else:
                keywords[argument.name.text] = argument
        return tuple(positional), tuple(keywords.values())

    def number(self, c: list[Any], span: Span) -> s.Number:
        return s.Number(self._number(c[0], span), span)

    def _number(self, text: str, span: Span) -> int | float:
        if text.isdigit() and len(text) <= _LONGEST_NUMBER:
            return int(text)
        factor = _SUFFIXES.get(text[-1])
        digits = text if factor is None else text[:-1]
        if len(text) > _LONGEST_NUMBER or math.isinf(float(digits) * (factor or 1)):
            self._note("E0107", "a number this large cannot be represented", span, "at most about 1.8e308")
            return 0
        if factor is None:
            return float(text)
        from decimal import Decimal  # 1.001k is 1001 exactly, which 1.001 * 1000 is not

        exact = Decimal(digits) * factor
        return int(exact) if exact == exact.to_integral_value() else float(exact)

    def string(self, c: list[Any], span: Span) -> s.String:
        text = c[0][1:-1]
        return s.String(self._unescape(text, span) if "\\" in text else text, span)

    def _unescape(self, text: str, span: Span) -> str:
        def resolve(match: re.Match[str]) -> str:
            if match[1].startswith("u{"):
                point = int(match[1][2:-1], 16)
                if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:  # a surrogate alone is no character
                    return chr(point)
            if match[1] not in _ESCAPES:
                column = span.column + 1 + match.start()
                place = Span(span.file, span.line, column, span.line, column + 2)
                message = 'a string knows the escapes \\", \\\\, \\n, \\t and \\u{e9}'
                self._note("E0106", message, place, "not one of them", help="write `\\\\` for a backslash")
            return _ESCAPES.get(match[1], match[1])

        return re.sub(r"\\(u\{[0-9a-fA-F]{1,6}\}|.)", resolve, text)

    def true(self, c: list[Any], span: Span) -> s.Boolean:
        return s.Boolean(True, span)

    def false(self, c: list[Any], span: Span) -> s.Boolean:
        return s.Boolean(False, span)

    def none(self, c: list[Any], span: Span) -> s.NoneLiteral:
        return s.NoneLiteral(span)

    def ref(self, c: list[Any], span: Span) -> s.Ref:
        return s.Ref(c[0], span)

    def group(self, c: list[Any], span: Span) -> s.Expr:
        expr: s.Expr = c[0]
        return expr

    def tuple_(self, c: list[Any], span: Span) -> s.Tuple:
        return s.Tuple(tuple(c), span)

    def list_(self, c: list[Any], span: Span) -> s.List:
        return s.List(tuple(c), span)

    def choose(self, c: list[Any], span: Span) -> s.Choose:
        return s.Choose(c[0], span)

    def range_(self, c: list[Any], span: Span) -> s.Range:
        return s.Range(*self._sort_arguments(c[0]), span)

    def repeat(self, c: list[Any], span: Span) -> s.Repeat:
        if c[1] is not None:
            self._check_bound((c[1],))
        return s.Repeat(*self._sort_arguments(c[0]), c[1], c[2], span)

    def fn(self, c: list[Any], span: Span) -> s.Fn:
        parameters, (statements, results) = c
        return s.Fn(parameters, statements, results, span)

    def body(self, c: list[Any], span: Span) -> tuple[tuple[s.Statement, ...], tuple[s.Expr, ...]]:
        return tuple(c[:-1]), c[-1]

    def results(self, c: list[Any], span: Span) -> tuple[s.Expr, ...]:
        return tuple(c)
