"""Imports: definitions from other files. Only from below the importing file's folder, or from the standard library."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from archc.grammar.parser import parse
from archc.grammar.scope import Env
from archc.grammar.source import read_source
from archc.grammar.syntax import Import, Program, String
from archc.ir.diagnostics import CompileError, Note, did_you_mean, fail

if TYPE_CHECKING:
    from archc.grammar.limits import Limits

STANDARD = "std/"
BELOW = 'move the file to this folder or below it; the standard library is imported as `"std/…"`'


@cache
def standard_files() -> dict[str, str]:
    """The text of every file of the standard library, by the path that imports it."""
    folder = files("archc.grammar") / "std"
    found = [file for file in folder.iterdir() if file.name.endswith(".arch")]
    return {STANDARD + file.name: file.read_text(encoding="utf-8") for file in found}


def source_text(file: str) -> str | None:
    """The text behind a span's file name, for messages; None when it cannot be read."""
    if file in standard_files():
        return standard_files()[file]
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError):
        return None


@dataclass(slots=True)
class Importer:
    """Reads each imported file once. `chain` holds the files that are being read, outermost first."""

    limits: Limits
    known: dict[str, tuple[Program, Env]] = field(default_factory=dict)
    chain: list[str] = field(default_factory=list)

    def find(self, item: Import, importing: str) -> tuple[str, Program | None]:
        """The key of an imported file and its syntax, or None for the syntax when it is known already.

        Raises: CompileError: E0010 for a path that leads outside, E0011 for a cycle, E0006 for too long a chain,
        E0001 when there is no such file.
        """
        path = item.path
        if path.value.startswith(STANDARD):
            key = path.value
            if key not in standard_files():
                names = ", ".join(f'"{name}"' for name in sorted(standard_files()))
                raise fail("E0001", f"the standard library has no file `{key}`", path.span,
                           help=did_you_mean(key, standard_files()) or f"it has {names}")  # fmt: skip
        else:
            key = self._below(path, importing)
        if key in self.chain:
            names = " -> ".join(f"`{os.path.basename(f)}`" for f in (*self.chain[self.chain.index(key) :], key))
            raise fail("E0011", "files import one another in a circle", path.span, label=names)
        if key in self.known:
            return key, None
        if len(self.chain) > self.limits.import_depth:
            raise self.limits.exceeded("import_depth", len(self.chain), path.span)
        return key, self._read(key, path)

    def _read(self, key: str, path: String) -> Program:
        try:
            text = standard_files()[key] if key.startswith(STANDARD) else read_source(key, self.limits)
        except CompileError as error:
            first = error.diagnostics[0]
            if first.span is not None:
                raise
            raise fail(first.code, first.message, path.span, help=first.help) from None
        syntax = parse(text, key, self.limits)
        if syntax.kind != "library":
            raise fail("E0219", f"`{path.value}` is a program of its own, not a library", path.span,
                       notes=[Note("because of this line", syntax.span)],
                       help="move what is to be shared into a file without an `arch` or `space` line")  # fmt: skip
        return syntax

    def _below(self, path: String, importing: str) -> str:
        if not os.path.isfile(importing):
            raise fail("E0010", "a text that is no file can import from the standard library only", path.span,
                       help='the standard library is imported as `"std/…"`')  # fmt: skip
        outside = "an import stays below the folder of the importing file"
        parts = path.value.split("/")
        if os.path.isabs(path.value) or "\\" in path.value or "\0" in path.value or ".." in parts or not path.value:
            raise fail("E0010", outside, path.span, label="this path leads elsewhere", help=BELOW)
        folder = os.path.realpath(os.path.dirname(os.path.abspath(importing)))
        found = os.path.realpath(os.path.join(folder, *parts))
        if os.path.commonpath([folder, found]) != folder:
            raise fail("E0010", outside, path.span, label="this is a link that leads elsewhere", help=BELOW)
        return found
