"""From `.arch` text to a graph.

>>> graph = loads('''
... arch tiny(width = 8)
... input  x: f32[N, 4]
... output y: f32[N, 2]
... y = x -> linear(width) -> relu -> linear(2)
... ''')
>>> list(graph.parameters())
['linear.weight', 'linear.bias', 'linear1.weight', 'linear1.bias']
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from archc.grammar.expressions import MAX_DEPTH
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.parser import Malformed, parse, parse_file
from archc.grammar.program import Program
from archc.grammar.spaces import lint_space
from archc.grammar.syntax import Program as Syntax
from archc.ir.diagnostics import CompileError, Diagnostic, TooManyMistakes
from archc.ir.graph import Graph


def load(
    path: str | Path,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
) -> Graph:
    """The graph of an architecture file; `values` sets its parameters, `dims` fixes symbolic dimensions.

    Raises: CompileError with every mistake found.
    """
    with room_to_recurse():
        return Program(parse_file(path, limits), values, dims, limits).elaborate()


def loads(
    text: str,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
    file: str = "<text>",
) -> Graph:
    """The graph of an architecture's text; see `load`. It can import from the standard library only."""
    with room_to_recurse():
        return Program(parse(text, file, limits), values, dims, limits).elaborate()


def check(
    path: str | Path,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
) -> tuple[Diagnostic, ...]:
    """All mistakes and warnings in a file: an architecture, a template, a space or a library. Raises nothing."""
    return _checked(lambda: parse_file(path, limits), values, dims, limits)


def check_text(
    text: str,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
    file: str = "<text>",
) -> tuple[Diagnostic, ...]:
    """All mistakes and warnings in a text.

    >>> [d.message for d in check_text("arch a(width) input x: f32[N, 4] output y: f32[N, 4] y = x -> linaer(width)")]
    ['unknown name `linaer`']
    """
    return _checked(lambda: parse(text, file, limits), values, dims, limits)


def _checked(
    read: Callable[[], Syntax], values: Mapping[str, Any] | None, dims: Mapping[str, int] | None, limits: Limits
) -> tuple[Diagnostic, ...]:
    wrong: tuple[Diagnostic, ...] = ()
    lost: frozenset[str] = frozenset()
    try:
        syntax = read()
    except CompileError as error:
        if not isinstance(error, Malformed) or error.rest is None:
            return error.diagnostics
        syntax, lost, wrong = error.rest, error.lost, error.diagnostics
    return checked(syntax, values, dims, limits, lost, wrong)


def checked(
    syntax: Syntax,
    values: Mapping[str, Any] | None,
    dims: Mapping[str, int] | None,
    limits: Limits,
    lost: frozenset[str] = frozenset(),
    wrong: tuple[Diagnostic, ...] = (),
) -> tuple[Diagnostic, ...]:
    """All mistakes and warnings in a parsed file, with those of its syntax (`wrong`), which `lost` some statements."""
    with room_to_recurse():
        program = Program(syntax, values, dims, limits)
        program.lost = lost
        with suppress(TooManyMistakes):
            program.e.sink.add(*wrong)
        program.parameters_open = True
        program.e.choices_open = syntax.kind != "arch"
        program.check(arguments=True)
        if syntax.kind == "space" and not program.e.sink.has_errors:
            program.e.sink.add(*lint_space(syntax, values))
    return program.e.sink.in_order()


@contextmanager
def room_to_recurse() -> Iterator[None]:
    """Python's recursion limit raised so far that ours (`MAX_DEPTH`) is met first: some frames for each of our levels.

    The collector of cycles pauses, too: a graph under construction has no garbage, and looking for it again and again
    takes a third of the time.
    """
    before, collecting = sys.getrecursionlimit(), gc.isenabled()
    sys.setrecursionlimit(max(before, 1000 + 12 * MAX_DEPTH))
    gc.disable()
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
        if collecting:
            gc.enable()
