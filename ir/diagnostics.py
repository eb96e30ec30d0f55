"""Diagnostics: what is wrong, where, what was needed, what was found, and what to try.

A user's mistake is a `Diagnostic`; several are gathered and raised together as one `CompileError`.
A mistake of ours is an assertion. Every code has a page in `ir/errors/CODE.md` (`archc explain CODE`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

# Control characters, line separators that editors count as lines and we do not, and the marks that reorder text on
# screen so that it reads otherwise than it is ("Trojan Source", Boucher and Anderson 2021).
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
MOST = 100
"""Diagnostics that are gathered in one run; who has more to mend than these begins with these."""
_LONGEST = 2000  # characters of a message that are shown
_LONGEST_NAME = 200  # characters of a name that may be a misspelt one


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of source text; lines and columns count from 1, in characters; the end is exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def __contains__(self, other: Span) -> bool:
        """Does `other` lie within this stretch?"""
        return (
            self.file == other.file
            and (self.line, self.column) <= (other.line, other.column)
            and (other.end_line, other.end_column) <= (self.end_line, self.end_column)
        )


@dataclass(frozen=True, slots=True)
class Note:
    """A second place (or remark) that helps to understand a diagnostic: the definition behind a use, say."""

    message: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing to tell the user.

    `message` says what was needed, `label` stands beside the caret and says what was found there,
    `help` says what to try.
    """

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    notes: tuple[Note, ...] = ()
    help: str | None = None
    severity: Literal["error", "warning"] = "error"

    def to_json(self) -> dict[str, Any]:
        """The diagnostic as plain data, for `--json`."""

        def place(span: Span | None) -> dict[str, Any] | None:
            if span is None:
                return None
            return {
                "file": span.file,
                "line": span.line,
                "column": span.column,
                "end_line": span.end_line,
                "end_column": span.end_column,
            }

        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "label": self.label,
            "span": place(self.span),
            "notes": [{"message": n.message, "span": place(n.span)} for n in self.notes],
            "help": self.help,
        }


class CompileError(Exception):
    """One or more diagnostics; the command line prints them and leaves with `exit_code`.

    Exit codes: 1 the input is wrong, 2 usage or a missing file, 3 a verification mismatch,
    4 a target or device is unavailable.
    """

    def __init__(self, *diagnostics: Diagnostic, exit_code: int = 1) -> None:
        assert diagnostics, "a CompileError carries at least one diagnostic"
        super().__init__(*diagnostics)
        self.diagnostics = diagnostics
        self.exit_code = exit_code

    def __str__(self) -> str:
        """All that is known, place and help included: what a traceback or a notebook shows."""
        return render(self.diagnostics)


def fail(
    code: str,
    message: str,
    span: Span | None = None,
    *,
    label: str = "",
    notes: Sequence[Note] = (),
    help: str | None = None,
    exit_code: int = 1,
) -> CompileError:
    """A `CompileError` of one diagnostic, to be raised: `raise fail("E0301", …)`."""
    return CompileError(Diagnostic(code, message, span, label, tuple(notes), help), exit_code=exit_code)


class TooManyMistakes(Exception):
    """Raised by a sink that stops when it is full: no more need be looked for."""


class DiagnosticSink:
    """Gathers diagnostics, so that one run reports several; `finish` raises when any is an error.

    Each is kept once for its code, place and message, and no more than `MOST` are. `stops`: one error more raises
    TooManyMistakes, as finding each takes time.
    """

    def __init__(self, stops: bool = False) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.stops = stops
        self._known: set[tuple[str, Span | None, str]] = set()

    def add(self, *diagnostics: Diagnostic) -> None:
        for d in diagnostics:
            key = (d.code, d.span, d.message)
            if key in self._known:
                continue
            self._known.add(key)
            if len(self.diagnostics) < MOST:
                self.diagnostics.append(d)
                continue
            if len(self._known) == MOST + 1:
                last = self.diagnostics[-1]
                self.diagnostics[-1] = replace(last, notes=(*last.notes, Note("there are more mistakes than these")))
            if self.stops and d.severity == "error":
                raise TooManyMistakes

    def again(self, told: Diagnostic, span: Span, most: int) -> Diagnostic:
        """The diagnostic `told` with a note on another place that has the same mistake, which is then told there no
        more. It has at most `most` notes."""
        self._known.add((told.code, span, told.message))
        if told not in self.diagnostics or len(told.notes) >= most:
            return told
        more = replace(told, notes=(*told.notes, Note("here, too", span)))
        self.diagnostics[self.diagnostics.index(told)] = more
        return more

    @property
    def has_errors(self) -> bool:
        return any(d.severity == "error" for d in self.diagnostics)

    def finish(self) -> tuple[Diagnostic, ...]:
        """The warnings; raises `CompileError` with everything gathered when there is an error among them."""
        if self.has_errors:
            raise CompileError(*self.in_order())
        return self.in_order()

    def in_order(self) -> tuple[Diagnostic, ...]:
        """What was gathered as one reads the text, file by file; what has no place comes last."""
        files = list(dict.fromkeys(d.span.file for d in self.diagnostics if d.span is not None))

        def place(d: Diagnostic) -> tuple[int, int, int]:
            return (files.index(d.span.file), d.span.line, d.span.column) if d.span else (len(files), 0, 0)

        return tuple(sorted(self.diagnostics, key=place))


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to a misspelt `name`, or None when nothing is close.

    >>> suggest("linera", ["linear", "conv"])
    'linear'
    """
    from rapidfuzz import distance, process

    letters = len(name.lstrip("-"))
    limit = max(1, letters // 3) if letters > 1 else 0  # one letter is close to every other
    best = process.extractOne(
        name, list(candidates), scorer=distance.OSA.distance, score_cutoff=limit, processor=str.lower
    )
    return best[0] if best else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """`did you mean …?`, or None when no candidate is close to `name`."""
    close = suggest(name, candidates)
    return f"did you mean `{close}`?" if close else None


def render(
    diagnostics: Iterable[Diagnostic],
    source: Callable[[str], str | None] | None = None,
    style: Callable[[str, str], str] = lambda text, role: text,
) -> str:
    """Diagnostics as text with carets, in the manner of rustc.

    `source` maps a file name to its text (None: show no excerpt). `style(text, role)` colours a piece;
    roles are `error`, `warning`, `note`, `help`, `caret`, `gutter`, `bold`.
    """
    rows: dict[str, list[str]] = {}  # of the files that were looked into

    def excerpt(span: Span, label: str, role: str) -> list[str]:
        if span.file not in rows:
            text = (source(span.file) if source else None) or ""
            rows[span.file] = text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if text else []
        return _excerpt(rows[span.file], span, visible(label), lambda text: style(text, role), style)

    blocks = []
    for d in diagnostics:
        lines = [style(f"{d.severity}[{d.code}]", d.severity) + style(f": {visible(d.message)}", "bold")]
        if d.span is not None:
            lines.append(style(f"  --> {visible(str(d.span))}", "gutter"))
            lines += excerpt(d.span, d.label, "caret")
        elif d.label:
            lines.append(f"  {visible(d.label)}")
        for note in d.notes:
            if note.span is None:
                lines.append(style("  note", "note") + f": {visible(note.message)}")
                continue
            lines.append(style(f"  ::: {visible(str(note.span))}", "gutter"))
            lines += excerpt(note.span, note.message, "note")
        if d.help:
            lines.append(style("  help", "help") + f": {visible(d.help)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def visible(text: str) -> str:
    """`text` as a terminal may show it: without what it would obey, and not without end.

    >>> visible("a\\x1b[2Jb")
    'a�[2Jb'
    """
    text = HIDDEN.sub("\ufffd", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 200]} … {text[-200:]}"


def _excerpt(
    rows: Sequence[str],
    span: Span,
    label: str,
    emphasis: Callable[[str], str],
    style: Callable[[str, str], str],
) -> list[str]:
    if not 1 <= span.line <= len(rows):
        return [f"  {label}"] if label else []
    row, column = rows[span.line - 1], span.column
    end = span.end_column if span.end_line == span.line else len(row) + 1
    if len(row) > 160:  # keep a very long line readable: a window around the caret
        start = max(0, column - 60)
        row, column, end = row[start : start + 140], column - start, min(end - start, 141)
    row = visible(row)
    lead = "".join("\t" if c == "\t" else " " for c in row[: column - 1])
    number = f"{span.line:5d}"
    caret = emphasis("^" * max(1, end - column))
    return [
        style(f"{number} | ", "gutter") + row,
        style(" " * len(number) + " | ", "gutter") + lead + caret + (f" {emphasis(label)}" if label else ""),
    ]
