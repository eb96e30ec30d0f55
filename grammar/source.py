"""Reading source files: regular files only, size checked before reading, UTF-8 text without hidden characters."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from archc.grammar.limits import DEFAULT, Limits
from archc.ir.diagnostics import HIDDEN, Span, fail

_ARTIFACT = b"\x93ARCHC"
_NAMES = {"\x00": "a NUL character", "\ufeff": "a byte order mark inside the text"}
_NAMES |= dict.fromkeys("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", "a reordering mark")


def read_source(path: str | Path, limits: Limits = DEFAULT) -> str:
    """The text of a file, ready for the parser.

    A leading byte order mark is dropped and line ends become `\\n`. Raises E0001 (no such file, or not a regular one;
    exit code 2), E0002 (too large), E0003 (not UTF-8, or hidden characters).
    """
    name = str(path)
    try:
        # without O_NONBLOCK, opening a FIFO would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise fail("E0001", f"there is no file `{name}`", exit_code=2) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise fail("E0001", f"cannot read `{name}`: {reason}", exit_code=2) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise fail("E0001", f"`{name}` is {kind}", help="give the path of an .arch file", exit_code=2)
    with open(descriptor, "rb") as file:
        try:
            data = file.read(limits.file_bytes + 1)  # it may have grown meanwhile
        except OSError as error:
            raise fail("E0001", f"cannot read `{name}`: {error.strerror}", exit_code=2) from None
    if data.startswith(_ARTIFACT):
        help = "give the .arch file that it was compiled from"
        raise fail("E0003", f"`{name}` is an artifact, compiled already, where a program is needed", help=help)
    if status.st_size > limits.file_bytes:
        raise limits.exceeded("file_bytes", status.st_size, Span(name, 1, 1, 1, 1))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        raise fail(
            "E0003",
            f"`{name}` is not a text file in UTF-8",
            _place(clean_lines(before), name),
            label=f"the byte 0x{data[error.start]:02x} cannot stand here",
            help="save the file as UTF-8",
        ) from None
    return check_text(text, name, limits)


def check_text(text: str, file: str, limits: Limits = DEFAULT) -> str:
    """`text` with `\\n` as its only line end and without a leading byte order mark; raises E0002 and E0003."""
    if len(text) > limits.file_bytes:
        raise limits.exceeded("file_bytes", len(text), Span(file, 1, 1, 1, 1))
    text = clean_lines(text)
    hidden = HIDDEN.search(text)
    if hidden is not None:
        character = hidden[0]
        raise fail(
            "E0003",
            "source text has no hidden characters",
            _place(text[: hidden.start()], file),
            label=f"{_NAMES.get(character, 'a control character')} (U+{ord(character):04X})",
            help="delete the character; is this an .arch file?",
        )
    return text


def clean_lines(text: str) -> str:
    """`text` with `\\n` as its only line end and without a leading byte order mark."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _place(before: str, file: str) -> Span:
    """The span of the single character that follows `before`."""
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return Span(file, line, column, line, column + 1)
