"""Traces: the choices of a drawn architecture by path, and parts of them.

A part is a choice with everything beneath it: `Body:1/Layer` and each path that begins with `Body:1/Layer:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from archc.grammar.choices import Production
from archc.ir.diagnostics import fail

Trace = Mapping[str, Production]
Edit = dict[str, Production]
"""A trace with a change in it: choices that are missing are open."""


def read_trace(path: Path) -> Edit:
    """The choices of a file that `archc sample` wrote, or of one that was edited.

    Raises: CompileError E0001 for a file that cannot be read, E0708 for one that holds no trace.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise fail("E0001", f"cannot read `{path}`", label=error.strerror or str(error), exit_code=2) from error
    except (ValueError, RecursionError) as error:
        raise fail("E0708", f"`{path}` is no trace", label=str(error)) from error
    wrong = next((k for k, v in found.items() if type(v) not in (int, float)), None) if isinstance(found, dict) else ""
    if wrong is not None:
        label = f"`{wrong}` is none" if wrong else "found no object"
        raise fail("E0708", f"`{path}` is no trace", label=label, help="it maps paths of choices to numbers")
    return dict(found)


def beneath(path: str, other: str) -> bool:
    """Is the second path a choice within the first?

    >>> beneath("A", "A:0/B"), beneath("A", "A#1:0/B"), beneath("A", "A")
    (True, False, False)
    """
    return other.startswith(path + ":")


def cut(trace: Trace, path: str) -> Edit:
    """The trace without a part."""
    return {p: n for p, n in trace.items() if p != path and not beneath(path, p)}


def part_of(trace: Trace, path: str) -> dict[str, Production]:
    """A part, its paths relative to where it stands."""
    return {p[len(path) :]: n for p, n in trace.items() if p == path or beneath(path, p)}


def put(trace: Trace, path: str, part: Mapping[str, Production]) -> Edit:
    """The trace with another part in the place of the one at `path`."""
    return cut(trace, path) | {path + p: n for p, n in part.items()}


def taking(trace: Trace, path: str, production: Production) -> Edit:
    """The trace with another production at a choice. What stood beneath the old one and has a name in the new one
    stays: `A:0/Width` becomes `A:2/Width`."""
    old, new = f"{path}:{trace[path]}/", f"{path}:{production}/"
    return {(new + p[len(old) :] if p.startswith(old) else p): n for p, n in trace.items()} | {path: production}
