"""Turning a fault of the parser into a diagnostic: what was needed, what was found, what to try."""

from __future__ import annotations

import re

from archc.grammar.machine import STATEMENT_STARTS, Fault, Token
from archc.grammar.malformed import Mistake, exact_mistake, mistake_in_state
from archc.grammar.tables import END, OTHER, load
from archc.grammar.tree import RESERVED, STATEMENT_WORDS
from archc.ir.diagnostics import Diagnostic, Note, Span, suggest

_CLOSER = {"(": ")", "[": "]", "{": "}"}
_DESCRIBED = {"NAME": "a name", "NUMBER": "a number", "STRING": "a string", "COMPARE": "a comparison"}
_DESCRIBED |= {END: "the end of the file"}
_EXPRESSION = {"NAME", "NUMBER", "STRING", "_LPAR", "_LSQB", "MINUS", "_NOT", "_IF", "_TRUE", "_FALSE", "_NONE"}
_EXPRESSION |= {"_CHOOSE", "_RANGE", "_FN", "_REPEAT"}
_OPERATORS = {"COMPARE", "PLUS", "MINUS", "STAR", "FLOOR", "SLASH", "PERCENT"}
_OPERATORS |= {"_ARROW", "_AND", "_OR", "_LPAR", "_LSQB"}
_FOREIGN = {  # words of other languages, and ours for the same thing
    "var": "let", "val": "let", "const": "let", "function": "def", "func": "def", "class": "def", "module": "def",
    "model": "arch", "network": "arch", "architecture": "arch", "include": "import", "use": "import", "from": "import",
    "shared": "share", "assert": "require", "in": "input", "out": "output",
}  # fmt: skip
_NUMBER_LIKE = re.compile(r"\.?[0-9][\w.]*")
_CHARACTERS = {
    "'": 'strings stand in double quotes: `"same"`',
    "“": 'write a straight double quote: `"`',
    "”": 'write a straight double quote: `"`',
    "→": "write `->`",
    "⇒": "write `=>`",
    "×": "write `*`",
    "−": "write `-`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "&": "write `and`",
    "!": "write `not`, or `!=` to compare",
    "?": "a choice between two values is written `if condition then a else b`",
    "@": "for a matrix product, use `matmul(a, b)`",
    "^": "for a power, use `pow(a, b)`",
    "\\": "lines need no continuation mark: a statement ends where the next begins",
    "\u00a0": "write an ordinary space instead of the no-break space",
    "…": "fill in what is meant",
}


def explain(fault: Fault, text: str) -> Diagnostic:
    """The diagnostic for a fault in `text`."""
    return (
        _bad_characters(fault, text)
        or _foreign_comment(fault, text)
        or _near_word(fault, text)
        or _like_an_example(fault)
        or _brackets(fault)
        or _confused_signs(fault)
        or _wrong_first_word(fault)
        or _in_a_known_state(fault)
        or _reserved(fault)
        or _unexpected(fault)
    )


def _bad_characters(fault: Fault, text: str) -> Diagnostic | None:
    token = fault.token
    span = token.span
    if token.kind != OTHER:
        return None
    line = text.split("\n")[span.line - 1]
    number = _NUMBER_LIKE.match(line, span.column - 1)
    if number is not None:
        whole = Span(span.file, span.line, span.column, span.line, number.end() + 1)
        help = "write numbers as `3`, `0.5`, `1e-5` or `500k` (k, M, G)"
        return Diagnostic("E0107", "this is not a number", whole, f"`{number[0]}`", help=help)
    if token.text == '"':
        rest = Span(span.file, span.line, span.column, span.line, len(line) + 1)
        help = 'a string ends on its line; a quote inside it is written `\\"`'
        return Diagnostic("E0105", "this string is never closed", rest, 'no `"` up to the end of the line', help=help)
    name = token.text if token.text.isprintable() else f"U+{ord(token.text):04X}"
    letters = "names are made of the letters a to z, digits and `_`" if token.text.isalpha() else None
    remedy = _CHARACTERS.get(token.text, letters)
    return Diagnostic("E0104", f"`{name}` has no meaning here", span, "unexpected character", help=remedy)


def _like_an_example(fault: Fault) -> Diagnostic | None:
    stray = fault.token.text in _CLOSER.values() and not fault.openers
    next_statement = fault.begins_statement and fault.token.kind == "NAME"
    mistake = exact_mistake(fault)
    if mistake is None or mistake.any_token or stray or next_statement:
        return None
    return _told(mistake, fault)


def _told(mistake: Mistake, fault: Fault) -> Diagnostic:
    span, label = _place(fault)
    if mistake.place == "statement" and fault.statement is not None:
        span, label = fault.statement.span, mistake.label
    elif mistake.place == "before" and fault.previous is not None:
        span, label = fault.previous.span, mistake.label
    return Diagnostic(mistake.code, mistake.message, span, label, help=mistake.help)


def _place(fault: Fault) -> tuple[Span, str]:
    """Where something else was expected, and what is there: before the end of a line, if the next statement follows."""
    token, before = fault.token, fault.previous
    if before is not None and token.span.line > before.span.end_line and (fault.begins_statement or token.kind == END):
        return before.span, f"{_described(token)} follows"
    return token.span, _found(token)


def _brackets(fault: Fault) -> Diagnostic | None:
    token = fault.token
    closes = token.text in _CLOSER.values()
    if not fault.openers:
        message = f"this `{token.text}` closes nothing"
        return Diagnostic("E0103", message, token.span, "no bracket is open here") if closes else None
    opener = fault.openers[-1]
    closer = _CLOSER[opener.text]
    if closes and all(_CLOSER[o.text] != token.text for o in fault.openers):
        notes = (Note(f"`{opener.text}` is open", opener.span),)
        message = f"this `{token.text}` closes nothing"
        return Diagnostic("E0103", message, token.span, f"expected `{closer}`", notes, f"write `{closer}`")
    if token.kind == END or fault.begins_statement or (closes and token.text != closer):
        where = "the file ends" if token.kind == END else f"{_described(token)} cannot stand inside it"
        message = f"this `{opener.text}` is never closed"
        notes = (Note(where, token.span),)
        return Diagnostic("E0102", message, opener.span, f"no `{closer}` for it", notes, f"add `{closer}`")
    return None


def _foreign_comment(fault: Fault, text: str) -> Diagnostic | None:
    """`y = x // the input`: the comment of another language, taken for a division and a statement."""
    if fault.previous is None:
        return None
    end = fault.previous.span
    start = max(0, end.end_column - 200)
    words = r"//[ \w]*$" if fault.token.span.line == end.end_line else r"//\s*\w+\s+\w[ \w]*$"
    found = re.search(words, text.split("\n")[end.end_line - 1][start : end.end_column - 1])
    if found is None:
        return None
    column = start + found.start() + 1
    span = Span(end.file, end.end_line, column, end.end_line, column + 2)
    return Diagnostic("E0101", "`//` divides", span, "taken for a division", help="a comment begins with `#`")


def _confused_signs(fault: Fault) -> Diagnostic | None:
    token, previous, expected = fault.token, fault.previous, fault.expected
    help = None
    if token.kind == "_MAPS" and "_ARROW" in expected:
        help = "the arrow of a pipe is `->`"
    elif token.kind == "_EQ" and "COMPARE" in expected:
        help = "to compare, write `==`"
    elif token.kind == "COMPARE" and "_EQ" in expected and token.text == "==":
        help = "to bind, write `=`"
    elif token.kind == "_COLON" and {"_COMMA", "_RPAR"} <= expected and "COMPARE" in expected:
        help = "an argument is named by `=`: `kernel = 3`"
    elif token.kind == "STAR" and previous is not None and previous.text == "*" and _adjacent(previous, token):
        help = "for a power, use `pow(a, b)`"
    elif token.text == "//" or (token.text == "/" and fault.statement is None):
        help = "a comment begins with `#`"
    return None if help is None else _unexpected(fault, help)


def _near_word(fault: Fault, text: str) -> Diagnostic | None:
    """A keyword misspelt where it alone could stand: `if a thn b else c`."""
    token = fault.token
    if token.kind != "NAME" or len(token.text) < 3:
        return None
    rest = text.split("\n")[token.span.line - 1][token.span.end_column - 1 :].lstrip()
    if rest.startswith("="):
        return None  # a name that is bound
    words = load().words
    near = suggest(token.text, [word for kind in fault.expected if (word := words[kind]) and word.isalpha()])
    if near is None:
        return None
    message = f"`{token.text}` is not a word of the language"
    return Diagnostic("E0114", message, token.span, f"expected `{near}`", help=f"did you mean `{near}`?")


def _wrong_first_word(fault: Fault) -> Diagnostic | None:
    """The statement began with a misspelt or incomplete keyword, which was taken for a name."""
    token, previous = fault.token, fault.previous
    if previous is None or previous.kind != "NAME" or fault.statement is None:
        return None
    if (previous.span.line, previous.span.column) != (fault.statement.span.line, fault.statement.span.column):
        return None
    if previous.text in STATEMENT_WORDS:
        follower = {"import": 'a file: `import "blocks.arch" (block)`', "language": "a number: `language 1`"}
        needed = follower.get(previous.text, f"a name: `{previous.text} NAME …`")
        message = f"`{previous.text}` is followed, on its line, by {needed.split(':')[0]}"
        return Diagnostic("E0111", message, token.span, _found(token), help=f"write {needed.split(': ')[1]}")
    if token.kind not in ("NAME", "STRING", "NUMBER"):
        return None
    near = _FOREIGN.get(previous.text) or suggest(previous.text, STATEMENT_WORDS)
    message = f"`{previous.text}` does not begin a statement"
    if near is not None:
        return Diagnostic("E0114", message, previous.span, "unknown word", help=f"did you mean `{near}`?")
    help = "a statement begins with a word such as `def`, `let` or `input`, or with `name =`"
    return Diagnostic("E0114", message, previous.span, "unknown word", help=help)


def _in_a_known_state(fault: Fault) -> Diagnostic | None:
    mistake = mistake_in_state(fault)
    if mistake is None:
        return None
    return _told(mistake, fault)


def _reserved(fault: Fault) -> Diagnostic | None:
    if fault.token.text not in RESERVED or "NAME" not in fault.expected or "NUMBER" in fault.expected:
        return None
    message = f"`{fault.token.text}` is a word of the language, not a name"
    return Diagnostic("E0111", message, fault.token.span, "a name is needed", help="choose another name")


def _unexpected(fault: Fault, help: str | None = None) -> Diagnostic:
    span, label = _place(fault)
    return Diagnostic("E0101", f"expected {_needed(fault)}", span, label, help=help)


def _needed(fault: Fault) -> str:
    """The expected terminals in words; what can stand at almost every place is summed up, operators are left out."""
    rest = set(fault.expected)
    said = []
    if {"NAME", "NUMBER", "_LPAR"} <= rest:
        said.append("an expression")
        rest -= _EXPRESSION
    elif "_ARROW" in rest:
        said += ["an operator"] if "_DEF" in rest else []
        rest -= _OPERATORS
    if "_DEF" in rest:
        said.append("a new statement" if fault.statement else "a statement")
        rest -= STATEMENT_STARTS | {"NAME", "_SEMI", END}
    elif "_LET" in rest:
        said.append("a statement")
        rest -= STATEMENT_STARTS | {"_SEMI"}
    words = load().words
    said += sorted(_DESCRIBED.get(kind) or f"`{words[kind]}`" for kind in rest)
    if not said:
        return "an operator"
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"


def _found(token: Token) -> str:
    return f"found {_described(token)}"


def _described(token: Token) -> str:
    if token.kind == END:
        return "the end of the file"
    return f"`{token.text}`" if len(token.text) <= 40 else f"`{token.text[:40]}…`"


def _adjacent(first: Token, second: Token) -> bool:
    return (first.span.end_line, first.span.end_column) == (second.span.line, second.span.column)
