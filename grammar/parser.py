"""Reading `.arch` text: `parse(text, file)` and `parse_file(path)`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.machine import Fault, Machine
from archc.grammar.source import check_text, read_source
from archc.grammar.syntax import Program
from archc.grammar.tables import load
from archc.grammar.tree import TreeBuilder
from archc.ir.diagnostics import CompileError, Diagnostic

MOST_FAULTS = 20
"""Syntax errors reported in one run; more than that is noise."""


def parse(text: str, file: str = "<text>", limits: Limits = DEFAULT) -> Program:
    """The syntax tree of a program; `file` is the name that its spans carry.

    Raises CompileError with all the syntax errors found (E01xx), or with the limit that the text exceeds (E00xx).

    >>> program = parse("arch tiny(width = 8)\\ninput x: f32[N, 4]\\noutput y: f32[N, width]\\ny = x -> linear(width)")
    >>> program.kind, program.name.text, [type(item).__name__ for item in program.items]
    ('arch', 'tiny', ['Port', 'Port', 'Bind'])
    >>> parse("y = linear(3")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    archc.ir.diagnostics.CompileError: error[E0102]: this `(` is never closed
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

    with paused_collector():
        program = Machine(load(), builder, builder.limits).run(text, builder.file, keep)
    diagnostics = builder.diagnostics
    if faults:
        from archc.grammar.syntax_errors import explain  # only a wrong program pays for the examples

        diagnostics = diagnostics + [explain(fault, text) for fault in faults]
    if diagnostics:
        raise CompileError(*sorted(diagnostics, key=_place))
    assert isinstance(program, Program)
    return program


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
