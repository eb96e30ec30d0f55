"""`archc fmt`: canonical layout of source text, with its comments and names.

The formatter is a second builder for the parser: for each rule it lays out the tokens of that rule (all of them,
brackets and commas too, each carrying the comments beside it). So it prints what stands in the text and nothing else.

The layout: lines of at most 100 characters, indented by 4. What fits on one line is put on one line, except that each
statement has its own. A pipe too long for that is broken before `->`: where the source has a break, and where a stage
would not fit. Brackets too long are broken after the opener, with an item on each line. Between statements, one blank
line is kept where there are any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias

from archc.grammar.layout import Break, Doc, Group, Leading, Nest, Trailing, render
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.machine import Fault, Machine
from archc.grammar.parser import parse, paused_collector
from archc.grammar.source import check_text
from archc.grammar.syntax import same_tree
from archc.grammar.tables import Production, Tables, load
from archc.ir.diagnostics import Span

WIDTH = 100


def format_source(text: str, file: str = "<text>", limits: Limits = DEFAULT) -> str:
    """`text` in canonical layout. It means the same, and formatting it again changes nothing.

    Raises what `parse` raises.

    >>> print(format_source("y=x->linear( 3,bias=false )# last"), end="")
    y = x -> linear(3, bias = false)  # last
    """
    text = check_text(text, file, limits)

    def no_fault(fault: Fault) -> bool:
        raise AssertionError(f"the parser accepted this text: {fault}")

    with paused_collector():
        program = parse(text, file, limits)
        doc = Machine(_concrete(load()), _LayoutBuilder(text, load()), limits).run(text, file, no_fault)
        result = render(doc, WIDTH).strip("\n") + "\n" if doc else ""
        assert same_tree(parse(result, file, limits), program), "formatting changed the meaning of the program"
    return result


def _concrete(tables: Tables) -> Tables:
    """The same tables, but handing every symbol of a production to its builder."""

    def whole(p: Production) -> Production:
        lists = {offset for offset, splice in p.take if splice}
        take = tuple((offset, offset in lists) for offset in range(-p.size, 0))
        return replace(p, take=take[p.grows :])

    return replace(tables, productions=tuple(map(whole, tables.productions)))


class _Token(list[Doc]):
    """A token and its comments, as a document."""

    __slots__ = ("before", "behind", "ends_line", "spaced", "starts_line", "text")

    def __init__(self, text: str, offset: int, known: _Comments) -> None:
        self.text = text
        self.before: list[Doc] = [Leading(tuple(known.before[offset]))] if known.before[offset] else []
        self.behind: list[Doc] = [Trailing(known.behind[offset])] if offset in known.behind else []
        self.starts_line = offset in known.starts_line
        self.ends_line = offset in known.ends_line
        self.spaced = offset in known.spaced
        super().__init__([*self.before, text, *self.behind])

    def comments(self) -> list[str]:
        """The comments beside the token, without blank lines."""
        leading = [text for doc in self.before if isinstance(doc, Leading) for text in doc.comments if text]
        return leading + [doc.comment for doc in self.behind if isinstance(doc, Trailing)]

    def dropped(self) -> list[Doc]:
        """What is printed instead of the token behind the one before it: its comments alone."""
        if not self.before:
            return self.behind
        return [doc for comment in self.comments() for doc in (Break.HARD, Trailing(comment))]


class _Items(list[Doc]):
    """The items of a bracket, each with its comma, and the comments of a last comma that is dropped."""

    __slots__ = ("comments",)

    def __init__(self, items: Iterable[Doc] = ()) -> None:
        super().__init__(items)
        self.comments: list[Doc] = []


class _Pipe(list[Doc]):
    """A pipe; its later stages are indented unless the statement that it belongs to does so."""

    __slots__ = ("first", "rest")

    def __init__(self, first: Doc, rest: list[Doc]) -> None:
        super().__init__([first, Nest(rest)])
        self.first = first
        self.rest = rest


class _Bracketed(list[Doc]):
    """A list, or an expression with a block: as an only argument, it shares the lines of the call's bracket."""


class _Statement(list[Doc]):
    """A statement, and whether it follows a blank line."""

    __slots__ = ("spaced",)

    def __init__(self, first: _Token, doc: Doc) -> None:
        super().__init__([doc])
        self.spaced = first.spaced


_Children: TypeAlias = list[Any]


class _Comments:
    """Which token each comment stands by, and where the source has line ends and blank lines."""

    def __init__(self, text: str, tables: Tables) -> None:
        self.before: dict[int, list[str]] = {}  # offset of a token: comments on lines of their own before it
        self.behind: dict[int, str] = {}  # offset of a token: the comment behind it on its line
        self.starts_line: set[int] = set()  # offsets of tokens
        self.ends_line: set[int] = set()
        self.spaced: set[int] = set()  # offsets of tokens that, with the comments before them, follow a blank line
        waiting: list[str] = []
        last, newlines, blank = -1, 1, False
        for match in tables.lexer.finditer(text):
            kind = match.lastgroup
            if kind == "NEWLINE":
                newlines += 1
                continue
            if kind in tables.ignored and kind != "COMMENT":
                continue
            if newlines > 1 and waiting:
                waiting.append("")
            elif newlines > 1:
                blank = True
            if kind == "COMMENT":
                if newlines:
                    waiting.append(match[0].rstrip())
                else:
                    self.behind[last] = match[0].rstrip()
                newlines = 0 if newlines else newlines
                continue
            if newlines or waiting:
                self.starts_line.add(match.start())
                self.ends_line.add(last)
            if blank:
                self.spaced.add(match.start())
            self.before[match.start()] = waiting
            last, newlines, waiting, blank = match.start(), 0, [], False


class _LayoutBuilder:
    """One method for each rule of arch.lark, as in `TreeBuilder`, each giving a document."""

    def __init__(self, text: str, tables: Tables) -> None:
        self.comments = _Comments(text, tables)
        self.end = len(text)

    def token(self, text: str, offset: int) -> _Token:
        """A token, when the parser takes it up."""
        return _Token(text, offset, self.comments)

    def start(self, c: _Children, span: Span) -> Doc:
        last = self.comments.before[self.end]
        while last and not last[-1]:
            last.pop()
        docs = self._statements(c)
        if last:
            spaced = self.end in self.comments.spaced
            docs += [Break.BLANK if spaced and docs else Break.HARD, Leading(tuple(last))]
        return docs

    def _statements(self, c: _Children) -> list[Doc]:
        """Statements on lines of their own; `;` between them are dropped."""
        docs: list[Doc] = []
        for child in c:
            if isinstance(child, _Token):
                docs += child.dropped() if docs else [Trailing(comment) for comment in child.comments()]
                continue
            if docs:
                docs.append(Break.BLANK if child.spaced else Break.HARD)
            docs.append(child)
        return docs

    def language(self, c: _Children, span: Span) -> Doc:
        return _Statement(c[0], [c[0], " ", c[1]])

    def header(self, c: _Children, span: Span) -> Doc:
        return _Statement(c[0], [c[0], " ", c[1], *_optional_bracket(c[2:])])

    def import_(self, c: _Children, span: Span) -> Doc:
        names = [" ", *_optional_bracket(c[2:])] if c[2:] else []
        return _Statement(c[0], [c[0], " ", c[1], *names])

    def port(self, c: _Children, span: Span) -> Doc:
        return _Statement(c[0], [c[0], " ", c[1], c[2], " ", c[3]])

    def def_(self, c: _Children, span: Span) -> Doc:
        *head, equals, value = c
        return _binding(c[0], _head(head), equals, value)

    def share(self, c: _Children, span: Span) -> Doc:
        return _binding(c[0], [c[0], " ", c[1]], c[2], c[3])

    def let_(self, c: _Children, span: Span) -> Doc:
        return _binding(c[0], [c[0], " ", c[1]], c[2], c[3])

    def bind(self, c: _Children, span: Span) -> Doc:
        first = c[0][0]  # alone, or in a list with its comma
        return _binding(first if isinstance(first, _Token) else first[0], [c[0]], c[1], c[2])

    def rule_(self, c: _Children, span: Span) -> Doc:
        *head, equals, (first, *others) = c
        later: list[Doc] = [Nest([Break.LINE, other], 2) for other in others]
        return _Statement(c[0], Group([*_head(head), " ", equals, Nest([Break.LINE, first]), *later]))

    def require(self, c: _Children, span: Span) -> Doc:
        return _Statement(c[0], Group([c[0], " ", c[1]]))

    def names(self, c: _Children, span: Span) -> Doc:
        return _spread(_separated(c))

    def arguments(self, c: _Children, span: Span) -> Doc:
        return _separated(c)

    formals = dims = results = name_list = arguments

    def name(self, c: _Children, span: Span) -> Doc:
        (token,) = c
        return token  # type: ignore[no-any-return]

    number = string = true = false = none = ref = name

    def formal(self, c: _Children, span: Span) -> Doc:
        docs: list[Doc] = []
        for child in c:
            sign = child.text if isinstance(child, _Token) else ""
            docs += [child, " "] if sign == ":" else [" ", child, " "] if sign == "=" else [child]
        return docs

    def keyword(self, c: _Children, span: Span) -> Doc:
        return [c[0], " ", c[1], " ", c[2]]

    def type_(self, c: _Children, span: Span) -> Doc:
        return [c[0], _bracket(*c[1:])]

    def bare_shape(self, c: _Children, span: Span) -> Doc:
        return _bracket(*c)

    def signature(self, c: _Children, span: Span) -> Doc:
        return [c[0], " ", c[1], " ", c[2], " ", c[3]]

    def shapes(self, c: _Children, span: Span) -> Doc:
        return c[0] if len(c) == 1 else _bracket(c[0], _separated(c[1:-1]), c[-1])

    def rest(self, c: _Children, span: Span) -> Doc:
        return c

    def alternatives(self, c: _Children, span: Span) -> list[Doc]:
        """Each alternative with the `|` before it; one before the first is dropped."""
        alternatives: list[Doc] = []
        bar: list[Doc] = []
        for child in c:
            if isinstance(child, _Token) and child.text == "|":
                comments: list[Doc] = [Leading(tuple(child.comments()))] if child.comments() else []
                bar = [child, " "] if alternatives else comments
            else:
                alternatives.append([*bar, child])
        return alternatives

    def alternative(self, c: _Children, span: Span) -> Doc:
        docs: list[Doc] = []
        for child in c:
            sign = child.text if isinstance(child, _Token) else ""
            docs += [child, " "] if sign == ":" else [" ", child, " "] if sign == "when" else [child]
        return [docs]  # not a token, even if its expression is one

    def if_(self, c: _Children, span: Span) -> Doc:
        if_, condition, then, consequent, else_, alternative = c
        later = Nest([Break.LINE, else_, " ", alternative])
        return Group([if_, " ", condition, " ", then, " ", consequent, later])

    def pipe(self, c: _Children, span: Span) -> Doc:
        rest: list[Doc] = []
        for arrow, stage in zip(c[1::2], c[2::2], strict=True):
            step: list[Doc] = [Break.LINE, arrow, " ", Group(stage)]
            rest.append(step if arrow.starts_line else Group(step))
        return _Pipe(Group(c[0]), rest)

    def arithmetic(self, c: _Children, span: Span) -> Doc:
        pairs = zip(c[1::2], c[2::2], strict=True)
        return [c[0], Nest([Group([Break.LINE, sign, " ", operand]) for sign, operand in pairs])]

    or_ = and_ = compare = arithmetic

    def not_(self, c: _Children, span: Span) -> Doc:
        return [c[0], " ", c[1]]

    def negate(self, c: _Children, span: Span) -> Doc:
        return [c[0], c[1]]

    def call(self, c: _Children, span: Span) -> Doc:
        return [c[0], _bracket(*c[1:])]

    range_ = call

    def index(self, c: _Children, span: Span) -> Doc:
        return [c[0], _bracket(c[1], _Items([c[2]]), c[3])]

    def group(self, c: _Children, span: Span) -> Doc:
        return _bracket(c[0], _Items([c[1]]), c[2])

    def tuple_(self, c: _Children, span: Span) -> Doc:
        return _bracket(c[0], _separated(c[1:-1]), c[-1])

    def list_(self, c: _Children, span: Span) -> Doc:
        return _Bracketed([_bracket(c[0], _separated(c[1:-1]), c[-1], fill=True)])

    def choose(self, c: _Children, span: Span) -> Doc:
        word, opener, alternatives, closer = c
        body = [doc for alternative in alternatives for doc in (Break.LINE, alternative)]
        return _Bracketed([Group([word, " ", opener, *_closed(body, closer, Break.LINE)])])

    def repeat(self, c: _Children, span: Span) -> Doc:
        word, opener, arguments, closer, *index, opening, body, closing = c
        head = [word, _bracket(opener, arguments, closer), " ", *(doc for child in index for doc in (child, " "))]
        return _Bracketed([Group([*head, opening, *_closed([Break.LINE, body], closing, Break.LINE)])])

    def fn(self, c: _Children, span: Span) -> Doc:
        word, opener, names, closer, opening, body, closing = c
        edge = Break.LINE if len(body) == 1 else Break.HARD
        head: list[Doc] = [word, _bracket(opener, names, closer), " ", opening]
        return _Bracketed([Group([*head, *_closed([edge, *body], closing, edge)])])

    def body(self, c: _Children, span: Span) -> list[Doc]:
        where = next(i for i, child in enumerate(c) if isinstance(child, _Token) and child.text == "return")
        statements, word, results, ends = c[:where], c[where], c[where + 1], c[where + 2 :]
        docs = self._statements(statements)
        if docs:
            docs.append(Break.BLANK if word.spaced else Break.HARD)
        return [*docs, [word, " ", _spread(results), *(doc for end in ends for doc in end.dropped())]]


def _head(c: _Children) -> list[Doc]:
    """`def name(formals): signature`, of which all but the name may be missing."""
    word, name, *others = c
    signature = [others.pop()] if others and not isinstance(others[-1], _Token) else []
    return [word, " ", name, *_optional_bracket(others), *signature]


def _optional_bracket(c: _Children) -> list[Doc]:
    if not c:
        return []
    opener, items, closer = c
    return [_bracket(opener, items, closer, fill=True)]


def _binding(first: _Token, head: list[Doc], equals: _Token, value: Doc) -> _Statement:
    """`head = value`; a line end after the `=` is kept where the statement is longer than a line."""
    if not equals.ends_line:
        return _Statement(first, Group([*head, " ", equals, " ", value]))
    lines: list[Doc] = [value.first, *value.rest] if isinstance(value, _Pipe) else [value]
    return _Statement(first, Group([*head, " ", equals, Nest([Break.LINE, *lines])]))


def _separated(c: _Children) -> _Items:
    """Items with the comma that follows each; a comma after the last is dropped."""
    items = _Items()
    for i, child in enumerate(c):
        if not (isinstance(child, _Token) and child.text == ","):
            items.append(child)
        elif i + 1 < len(c):
            items[-1] = [items[-1], child]
        else:
            items.comments = child.dropped()
    return items


def _spread(items: Doc) -> Doc:
    """Items without brackets around them."""
    assert isinstance(items, _Items)
    docs: list[Doc] = []
    for item in items:
        docs += [" ", item] if docs else [item]
    return docs


def _bracket(opener: _Token, items: _Items, closer: _Token, fill: bool = False) -> Doc:
    """Items in brackets: on one line, or else each on its own (with `fill`, as many on a line as fit)."""
    if not items:
        return [opener, closer]
    comments = opener.comments() or items.comments or closer.before
    if len(items) == 1 and isinstance(items[0], _Bracketed) and not comments:
        return [opener, items[0], closer]
    body: list[Doc] = [Break.SOFT, Group(items[0])]
    for item in items[1:]:
        step: list[Doc] = [Break.LINE, Group(item)]
        body.append(Group(step) if fill else step)
    body += items.comments
    return Group([opener, *_closed(body, closer, None)])


def _closed(body: list[Doc], closer: _Token, edge: Break | None) -> list[Doc]:
    """The indented content of a bracket and its closer; comments before the closer are indented with the content."""
    comments = [text for leading in closer.before if isinstance(leading, Leading) for text in leading.comments if text]
    for comment in comments:
        body += [Break.HARD, comment]
    if comments:
        edge = Break.HARD
    return [Nest(body), *([edge] if edge else []), closer.text, *closer.behind]
