"""Printing: results on stdout, diagnostics and progress on stderr, colours only for people."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, TextIO

from archc.ir.diagnostics import Diagnostic, render

MOST_SOURCE = 256 << 20  # bytes
_STYLES = {
    "error": "\033[1;31m",
    "warning": "\033[1;33m",
    "note": "\033[1;36m",
    "help": "\033[1;32m",
    "caret": "\033[1;31m",
    "gutter": "\033[34m",
    "bold": "\033[1m",
}


def coloured(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that wants colours."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def report(diagnostics: Iterable[Diagnostic], as_json: bool = False) -> None:
    """Diagnostics: as text on stderr, or with `--json` as a document on stdout."""
    found = list(diagnostics)
    if as_json:
        print_json({"ok": not any(d.severity == "error" for d in found), "diagnostics": [d.to_json() for d in found]})
        return
    if not found:
        return
    plain = not coloured(sys.stderr)
    style = (lambda text, role: text) if plain else (lambda text, role: f"{_STYLES[role]}{text}\033[0m")
    print(render(found, _source, style), file=sys.stderr)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, default=_plain, allow_nan=False)
    sys.stdout.write("\n")


loudness = 0
"""-1 for --quiet, 1 for --verbose; set before a command runs."""


def note(text: str, at: int = 0) -> None:
    """A remark for the person at the terminal, never part of the result; `at=1` for the curious alone."""
    if loudness >= at:
        print(text, file=sys.stderr)


SPEC = "--pass "
"""What stands before the text of a pass where a span names it as its file (`archc.passes.spec`)."""


class StdoutError(Exception):
    """stdout does not take the results: nobody reads it any more (`archc summary … | head`), or its disk is full."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason.strerror)
        self.unread = isinstance(reason, BrokenPipeError)


class _Stdout(io.FileIO):
    """Its failures are told apart from those of other files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as e:
            raise StdoutError(e) from e


class _Stderr(io.FileIO):
    """Remarks, which people may have stopped reading: no training ends for that."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Make stdout and stderr what a command needs: open, lest a file of its own take their numbers, and able to print
    every character, if need be as its code."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the smallest free number: this one
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, like: TextIO | None) -> TextIO:
    encoding = like.encoding if like else "utf-8"
    line_buffering = isinstance(raw, _Stderr) or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=line_buffering)


def discard_stdout() -> None:
    """Send what is left of stdout nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _source(file: str) -> str | None:
    """The text that a diagnostic points into; None for what cannot be read, or is too large to be a program."""
    if file.startswith(SPEC):
        return file.removeprefix(SPEC)
    try:
        path = Path(file)
        return path.read_text("utf-8-sig", errors="replace") if 0 < path.stat().st_size < MOST_SOURCE else None
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, paths and infinities as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value)} in a JSON document")
