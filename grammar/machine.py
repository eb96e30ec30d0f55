"""The LALR(1) automaton that runs the generated tables over a text.

Lark computes the tables and could run them too. This loop builds a tree with spans in half the time in which Lark's
runs the bare productions (220,000 tokens a second against 120,000): it keeps no token objects and takes whole chains of
renaming reductions, `atom → postfix → … → expr`, in one step. It needs no import of Lark at start, and it can be
inspected and resumed at an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from archc.grammar.limits import Limits
from archc.grammar.tables import END, Tables
from archc.ir.diagnostics import Span

STATEMENT_STARTS = frozenset(
    ("_LANGUAGE", "ARCH", "SPACE", "_IMPORT", "INPUT", "OUTPUT", "_DEF", "_SHARE", "_LET", "_RULE", "_REQUIRE")
)
_BINDING = re.compile(r"[A-Za-z_][\w.]*(?:[ \t]*,[ \t]*[A-Za-z_][\w.]*)*[ \t]*=(?![=>])")
_GAP = re.compile(r"(?:[ \t\n]++|#[^\n]*+)*+")
_TOKEN = re.compile(  # a token, or several signs in a row, with what stands before it
    _GAP.pattern + r'(?:"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"|[\w.]++(?:(?<=[eE])[-+]\d+)?|[-=<>!/]++|.|\Z)', re.ASCII
)
_MANY = 20_000  # tokens after which it is worth a look whether the rest has too many
_STATEMENT = re.compile(  # the beginning of a line that may begin a statement
    rf"^[ \t]*(?=(?:{'|'.join(sorted(word.strip('_').lower() for word in STATEMENT_STARTS))})\b|{_BINDING.pattern})",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of source text; `kind` is the name of its terminal."""

    kind: str
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where the text cannot go on."""

    states: tuple[int, ...]
    """The topmost two of the automaton; malformed examples are recognised by them."""
    token: Token
    previous: Token | None
    expected: frozenset[str]
    """The terminals that could have stood there."""
    openers: tuple[Token, ...]
    """The brackets that were open."""
    statement: Token | None
    """The first token of the statement; None where one was about to begin."""
    begins_statement: bool
    """Whether `token` looks like the beginning of the next statement."""


class Machine:
    """Runs tables over a text, calling a method of `builder` for every production.

    Where the builder has a method `token(text, offset)`, it makes the value of a token; else that is the token's text.
    """

    def __init__(self, tables: Tables, builder: object, limits: Limits) -> None:
        self.tables = tables
        self.limits = limits
        self.token: Callable[[str, int], Any] | None = getattr(builder, "token", None)
        self.builders: list[Any] = [getattr(builder, p.builder) if p.builder else None for p in tables.productions]

    def run(self, text: str, file: str, on_fault: Callable[[Fault], bool]) -> Any:
        """The value of the start rule; None when parsing was given up.

        `on_fault` is told of each fault and says whether to go on: then the statement is dropped, and parsing resumes
        at the next line that begins a statement no deeper indented. Raises E0004 and E0005.
        """
        states, productions, builders = self.tables.states, self.tables.productions, self.builders
        make_token = self.token
        passes = [p.passes_through for p in productions]
        ignored, nesting = self.tables.ignored, self.tables.nesting
        most_tokens, deepest = self.limits.tokens, self.limits.nesting
        shortcuts: dict[tuple[int, int, str], int] = {}
        stack = [0]  # the states
        values: list[Any] = []  # one for each state but the first …
        starts: list[tuple[int, int]] = []  # … and the line and column where it begins
        line, line_start = 1, 0
        last_kind, last_word, end_line, end_column = "", "", 1, 1
        tokens = depth = 0
        matches = self.tables.lexer.finditer(text)

        while True:
            match = next(matches)  # the END terminal is the last, and leads out of the loop
            kind: str = match.lastgroup  # type: ignore[assignment]  # every alternative is a group
            if kind in ignored:
                if kind == "NEWLINE":
                    line += 1
                    line_start = match.end()
                    if text[line_start : line_start + 1] in ("\n", "#"):  # a million of them are one step
                        gap = _GAP.match(text, line_start)
                        assert gap is not None
                        line += gap.group().count("\n")
                        line_start = text.rfind("\n", 0, gap.end()) + 1
                        matches = self.tables.lexer.finditer(text, gap.end())
                continue
            word = match.group()
            column = match.start() - line_start + 1
            tokens += 1
            if tokens > most_tokens or (tokens == _MANY and _has_more(text, match.end(), most_tokens - tokens)):
                raise self.limits.exceeded(
                    "tokens", most_tokens + 1, Span(file, line, column, line, column + len(word))
                )

            while True:
                state = stack[-1]
                action = states[state].get(kind)

                if action is None:  # a fault
                    kept = 1 if values and type(values[0]) is list else 0  # the statements before this one
                    fresh = len(values) == kept
                    left = column if fresh else starts[kept][1]
                    begins = _begins_statement(kind, text, match.start(), line_start)
                    begins = begins and not fresh and (column <= left or kind in STATEMENT_STARTS)
                    token = Token(kind, word, Span(file, line, column, line, column + len(word)))
                    begin_last = end_column - len(last_word)
                    previous = Token(last_kind, last_word, Span(file, end_line, begin_last, end_line, end_column))
                    fault = Fault(
                        tuple(stack[-2:]),
                        token,
                        previous if last_kind else None,
                        frozenset(k for k in states[state] if k in self.tables.words and self._accepts(stack, k)),
                        _openers(file, values, starts),
                        None if fresh else Token("", "", Span(file, *starts[kept], *starts[kept])),
                        begins,
                    )
                    if not on_fault(fault) or kind == END:
                        return None
                    del stack[kept + 1 :], values[kept:], starts[kept:]
                    depth = 0
                    if begins and column <= left:
                        continue  # this token begins the next statement
                    position = self._next_statement(text, match.end(), left)
                    matches = self.tables.lexer.finditer(text, position)
                    line += text.count("\n", line_start, position)
                    line_start = text.rfind("\n", 0, position) + 1
                    break

                if action >= 0:  # shift
                    if kind == END:
                        return values[-1]
                    stack.append(action)
                    values.append(word if make_token is None else make_token(word, match.start()))
                    starts.append((line, column))
                    last_kind, last_word, end_line, end_column = kind, word, line, column + len(word)
                    if kind in nesting:
                        depth += 1
                        if depth > deepest:
                            raise self.limits.exceeded("nesting", depth, Span(file, line, column, line, end_column))
                    break

                if passes[~action]:  # reduce, by renaming alone
                    key = (stack[-2], state, kind)
                    target = shortcuts.get(key)
                    if target is None:
                        target = shortcuts[key] = self._renamed(*key)
                    stack[-1] = target
                    continue

                production = productions[~action]
                size = production.size
                depth -= production.nesting
                value: Any
                if production.gathers:
                    value = values[-size] if production.grows else []
                    for offset, _ in production.take:
                        value.append(values[offset])
                else:
                    value = []
                    for offset, splice in production.take:
                        if splice:
                            value += values[offset]
                        else:
                            value.append(values[offset] if offset else None)
                    begin = starts[-size] if size else (line, column)
                    end = (end_line, end_column) if size else begin
                    value = builders[~action](value, Span(file, *begin, *end))
                if size:
                    del stack[-size:], values[-size:], starts[1 - size or len(starts) :]
                else:
                    starts.append((line, column))
                values.append(value)
                stack.append(states[stack[-1]][production.origin])

    def _next_statement(self, text: str, position: int, column: int) -> int:
        """Where the next line begins with a statement at `column` or to the left of it; else the end of the text."""
        for start in _STATEMENT.finditer(text, text.find("\n", position) + 1 or len(text)):
            first = self.tables.lexer.match(text, start.end())
            assert first is not None
            if start.end() - start.start() < column and _begins_statement(
                first.lastgroup or "", text, start.end(), start.start()
            ):
                return start.end()
        return len(text)

    def _renamed(self, below: int, state: int, kind: str) -> int:
        """The state after all the renaming reductions that `kind` calls for in `state` on top of `below`."""
        states, productions = self.tables.states, self.tables.productions
        while (action := states[state].get(kind, 0)) < 0 and productions[~action].passes_through:
            state = states[below][productions[~action].origin]
        return state

    def _accepts(self, stack: list[int], kind: str) -> bool:
        """Whether `kind` can really come next: a reduction in the table may lead to a state that rejects it."""
        stack = list(stack)
        while True:
            action = self.tables.states[stack[-1]].get(kind)
            if action is None or action >= 0:
                return action is not None
            production = self.tables.productions[~action]
            if production.size:
                del stack[-production.size :]
            stack.append(self.tables.states[stack[-1]][production.origin])


def _has_more(text: str, position: int, tokens: int) -> bool:
    """Whether so many tokens do not hold what follows, however they are counted: seen in a tenth of the time that
    parsing takes."""
    if len(text) - position < tokens:
        return False
    beyond = next(islice(_TOKEN.finditer(text, position), tokens, None), None)
    return beyond is not None and beyond.end() < len(text)


def _begins_statement(kind: str, text: str, begin: int, line_start: int) -> bool:
    """Whether a token is the first of its line and looks like the beginning of a statement."""
    if text[line_start:begin].strip(" \t"):
        return False
    return kind in STATEMENT_STARTS or (kind == "NAME" and _BINDING.match(text, begin) is not None)


def _openers(file: str, values: list[Any], starts: list[tuple[int, int]]) -> tuple[Token, ...]:
    """The brackets still open; those of an unfinished `repeat(…) {` may be on the stack together with their closers."""
    openers = []
    for value, (line, column) in zip(values, starts, strict=True):
        if not isinstance(value, str):
            continue
        if value in ("(", "[", "{"):
            openers.append(Token(value, value, Span(file, line, column, line, column + 1)))
        elif value in (")", "]", "}"):
            openers.pop()
    return tuple(openers)
