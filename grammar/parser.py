"""Reading `.arch` text: `parse(text, file)` and `parse_file(path)`."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.machine import Fault, Machine
from archc.grammar.source import check_text, read_source
from archc.grammar.syntax import Program
from archc.grammar.tables import load
from archc.grammar.tree import TreeBuilder
from archc.ir.diagnostics import CompileError, Diagnostic, Span, TooManyMistakes

NAME = re.compile(r"[A-Za-z_]\w*")
MOST_FAULTS = 20
"""Syntax errors reported in one run; more than that is noise."""


class Malformed(CompileError):
    """Syntax errors. `rest` is the program without the statements that are wrong, `lost` are the names that those
    mention; `rest` is None where no more can be said of the program."""

    def __init__(self, diagnostics: Iterable[Diagnostic], rest: Program | None, lost: frozenset[str]) -> None:
        super().__init__(*diagnostics)
        self.rest, self.lost = rest, lost


def parse(text: str, file: str = "<text>", limits: Limits = DEFAULT) -> Program:
    """The syntax tree of a program; `file` is the name that its spans carry.

    Raises Malformed with all the syntax errors found (E01xx), or CompileError with the limit that the text exceeds
    (E00xx).

    >>> program = parse("arch tiny(width = 8)\\ninput x: f32[N, 4]\\noutput y: f32[N, width]\\ny = x -> linear(width)")
    >>> program.kind, program.name.text, [type(item).__name__ for item in program.items]
    ('arch', 'tiny', ['Port', 'Port', 'Bind'])
    >>> parse("y = linear(3")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    archc.grammar.parser.Malformed: error[E0102]: this `(` is never closed
      --> <text>:1:11
    ...
    """
    return parse_with(TreeBuilder(file, limits), text)


def parse_with(builder: TreeBuilder, text: str) -> Program:
    """`parse` by a builder of one's own."""
    text = check_text(text, builder.file, builder.limits)
    faults: list[Fault] = []

    def keep(fault: Fault) -> bool:
        faults.append(fault)
        return len(faults) < MOST_FAULTS

    program = None
    with paused_collector(), suppress(TooManyMistakes):
        program = Machine(load(), builder, builder.limits).run(text, builder.file, keep)
    diagnostics = builder.diagnostics
    if faults:
        from archc.grammar.syntax_errors import explain  # only a wrong program pays for the examples

        diagnostics = diagnostics + [explain(fault, text) for fault in faults]
    if diagnostics:
        diagnostics = sorted(diagnostics, key=_place)
        raise Malformed(diagnostics, *_what_is_right(program, text, faults, [d.span for d in builder.diagnostics]))
    assert isinstance(program, Program)
    return program


def _what_is_right(
    program: Program | None, text: str, faults: Sequence[Fault], noted: Sequence[Span | None]
) -> tuple[Program | None, frozenset[str]]:
    """The statements without mistakes, and the names that the others mention."""
    if program is None or len(noted) > MOST_FAULTS:
        return None, frozenset()
    rows = text.split("\n")

    def source(begin: tuple[int, int], end: tuple[int, int]) -> str:
        lines = [*rows[begin[0] - 1 : end[0] - 1], rows[end[0] - 1][: end[1] - 1]]
        return "\n".join(lines)[begin[1] - 1 :]

    kept, wrong = [], []
    for item in program.items:
        span = item.span
        if any(place in span for place in noted if place is not None):
            wrong.append(source((span.line, span.column), (span.end_line, span.end_column)))
        else:
            kept.append(item)
    last = len(rows), len(rows[-1]) + 1
    for fault in faults:
        first = (fault.statement or fault.token).span
        begin = first.line, first.column
        behind = [(i.span.line, i.span.column) for i in program.items if (i.span.line, i.span.column) > begin]
        wrong.append(source(begin, min(behind, default=last)))
    words = [NAME.findall(statement) for statement in wrong]
    elsewhere = sum(all(place not in i.span for i in program.items) for place in noted if place is not None)
    if elsewhere or any(w[:1] and w[0] in ("arch", "space", "language", "import") for w in words):
        return None, frozenset()  # what the header or an import brings is not known
    lost = {name for names in words for name in names}
    if any(w[:1] and w[0] not in ("output", "def", "share", "let", "rule", "require") for w in words):
        lost |= {name for name in NAME.findall(text) if name[0].isupper()}  # an input might have named it
    return replace(program, items=tuple(kept)), frozenset(lost)


def parse_file(path: str | Path, limits: Limits = DEFAULT) -> Program:
    """The syntax tree of a file; raises what `read_source` and `parse` raise."""
    return parse(read_source(path, limits), str(path), limits)


def _place(diagnostic: Diagnostic) -> tuple[int, int]:
    assert diagnostic.span is not None
    return diagnostic.span.line, diagnostic.span.column


@contextmanager
def paused_collector() -> Iterator[None]:
    """No garbage collection meanwhile: all of a growing tree is live, and searching it takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
