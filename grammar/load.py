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

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archc.grammar.elaborate import MAX_DEPTH
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.parser import parse, parse_file
from archc.grammar.program import Program
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
    with _room_to_recurse():
        return Program(parse_file(path, limits), values, dims, limits).elaborate()


def loads(
    text: str,
    values: Mapping[str, Any] | None = None,
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
    file: str = "<text>",
) -> Graph:
    """The graph of an architecture's text; see `load`. It can import from the standard library only."""
    with _room_to_recurse():
        return Program(parse(text, file, limits), values, dims, limits).elaborate()


@contextmanager
def _room_to_recurse() -> Iterator[None]:
    """Python's recursion limit raised so far that ours (`MAX_DEPTH`) is met first: some frames for each of our levels."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 1000 + 12 * MAX_DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
