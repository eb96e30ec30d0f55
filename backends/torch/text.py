"""Pieces of Python source: literals, comments, lines that are not too long."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

WIDTH = 120
INDENT = "    "
ROOM = WIDTH - 2 * len(INDENT)
"""What a line of a method has room for."""


def number(value: Any) -> str:
    """A number as Python; negative ones in parentheses, so that it can stand in any expression.

    >>> number(-1.5), number(2), number(float("inf"))
    ('(-1.5)', '2', 'float("inf")')
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return f"({value!r})" if value < 0 else repr(value)


def tuple_text(items: Sequence[str]) -> str:
    """`(a, b)`, `(a,)` or `()`."""
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def quoted(text: str) -> str:
    """A string literal, in double quotes where that needs no more escapes."""
    single = repr(text)
    return f'"{single[1:-1]}"' if '"' not in single and "\\'" not in single else single


def remark(text: str) -> str:
    r"""Text for a comment or docstring: names may hold any character, line breaks and quotes too, and must not end it.

    >>> remark('say "x"\n\\')
    "say 'x'  "
    """
    return "".join(c if c.isprintable() and c != "\\" else " " for c in text.replace('"', "'"))


def names_in(source: str) -> set[str]:
    """The words of some source, comments apart."""
    return set(re.findall(r"[A-Za-z_]\w*", re.sub(r"(^|  )#.*", "", source, flags=re.MULTILINE)))


def statement(start: str, expression: str, comment: str) -> list[str]:
    room = ROOM - len(start + expression)
    if room >= len(comment) + 4:
        return [f"{start}{expression}  # {comment}"]
    return [start + expression] if room >= 0 else _wrapped(start, expression)


def _wrapped(start: str, expression: str) -> list[str]:
    """A call that is too long for a line, with its arguments on lines of their own."""
    call = ast.parse(expression, mode="eval").body
    if not isinstance(call, ast.Call):
        return [start + expression]
    function, *arguments = (ast.get_source_segment(expression, part) or "" for part in (call.func, *call.args))
    arguments += [f"{k.arg}={ast.get_source_segment(expression, k.value)}" for k in call.keywords]
    lines, line = [], INDENT
    for i, argument in enumerate(arguments):
        piece = argument + ", " * (i + 1 < len(arguments))
        if line.strip() and len(line + piece.rstrip()) > ROOM:
            lines.append(line.rstrip())
            line = INDENT
        line += piece
    return [f"{start}{function}(", *lines, line, ")"]
