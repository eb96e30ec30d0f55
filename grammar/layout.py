"""Laying out text within a width, after Wadler's "A prettier printer" (1998), without recursion.

A document is a string, a list of documents, or one of the classes below.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Break(Enum):
    """A place where a line may end: `LINE` is else a blank and `SOFT` nothing; `HARD` always ends the line."""

    LINE = " "
    SOFT = ""
    HARD = "\n"
    BLANK = "\n\n"


@dataclass(frozen=True, slots=True)
class Nest:
    """`doc` with its lines indented by `indent` more."""

    doc: Doc
    indent: int = 4


@dataclass(frozen=True, slots=True)
class Group:
    """`doc` on one line if it fits, else with all of its own breaks taken."""

    doc: Doc


@dataclass(frozen=True, slots=True)
class Leading:
    """Comments on lines of their own; an empty string is a blank line."""

    comments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trailing:
    """A comment after the end of a line: what follows begins the next line."""

    comment: str


Doc: TypeAlias = "str | list[Doc] | Break | Nest | Group | Leading | Trailing"
_Command: TypeAlias = tuple[int, bool, Doc]  # indentation, whether on one line, document


def render(doc: Doc, width: int) -> str:
    """The text of `doc`, in lines of at most `width` characters where its breaks allow it.

    >>> print(render(Group(["f(", Nest([Break.SOFT, "aaaa,", Break.LINE, "bbbb"]), ")"]), width=10))
    f(
        aaaa,
        bbbb)
    """
    lines: list[str] = []
    current = ""  # the line so far, with its indentation
    ended = False  # by a trailing comment
    pending: list[_Command] = [(0, False, doc)]
    while pending:
        indent, flat, doc = pending.pop()
        if isinstance(doc, str):
            if ended and doc.strip():
                lines.append(current)
                current, ended = " " * indent, False
            if not ended:
                current += doc
        elif isinstance(doc, list):
            pending.extend((indent, flat, part) for part in reversed(doc))
        elif isinstance(doc, Nest):
            pending.append((indent + doc.indent, flat, doc.doc))
        elif isinstance(doc, Group):
            flat = flat or (not ended and _fits(doc.doc, pending, width - len(current)))
            pending.append((indent, flat, doc.doc))
        elif isinstance(doc, Break):
            if flat and not ended and doc in (Break.LINE, Break.SOFT):
                current += doc.value
            else:
                lines.append(current)
                lines += [""] if doc is Break.BLANK else []
                current, ended = " " * indent, False
        elif isinstance(doc, Leading):
            if current.strip():
                lines.append(current)
            lines += [" " * indent + comment for comment in doc.comments]
            current, ended = " " * indent, False
        else:
            if ended:
                lines.append(current)
                current = " " * indent
            current += f"  {doc.comment}" if current.strip() else doc.comment
            ended = True
    lines.append(current)
    return "\n".join(line.rstrip() for line in lines)


def _fits(doc: Doc, following: list[_Command], room: int) -> bool:
    """Whether `doc` on one line, and what follows it up to the next possible break, have a length of at most `room`."""
    own: list[Doc] = [doc]
    written = commented = False
    while own:
        part = own.pop()
        if isinstance(part, str):
            if commented and part.strip():
                return False
            room -= len(part)
            written = True
        elif isinstance(part, list):
            own.extend(reversed(part))
        elif isinstance(part, (Nest, Group)):
            own.append(part.doc)
        elif isinstance(part, Break):
            if part in (Break.HARD, Break.BLANK):
                return False
            room -= len(part.value)
        elif isinstance(part, Leading):
            if written:
                return False
        else:
            commented = True
        if room < 0:
            return False
    return commented or _rest_fits(following, room)


def _rest_fits(following: list[_Command], room: int) -> bool:
    for _, flat, doc in _flattened(following):
        if isinstance(doc, str):
            room -= len(doc)
        elif isinstance(doc, Break) and flat and doc in (Break.LINE, Break.SOFT):
            room -= len(doc.value)
        else:
            return True
        if room < 0:
            return False
    return True


def _flattened(following: list[_Command]) -> Iterable[_Command]:
    """The strings, breaks and comments that follow, in order."""
    for command in reversed(following):
        inner = [command]
        while inner:
            indent, flat, doc = inner.pop()
            if isinstance(doc, list):
                inner.extend((indent, flat, part) for part in reversed(doc))
            elif isinstance(doc, (Nest, Group)):
                inner.append((indent, flat, doc.doc))
            else:
                yield indent, flat, doc
