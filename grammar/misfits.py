"""Mistakes in a space that only drawing shows: nothing in it fits, or an alternative never does.

>>> from archc.grammar.draw import read_space
>>> space = read_space('''
... space leaky()
... input  x: f32[N, 4]
... output y: f32[N, 4]
... rule Act = relu | conv(4, kernel = 3)
... y = x -> Act -> linear(4)
... ''')
>>> for found in misfits(space):
...     print(found.code, found.message)
E0713 an alternative of `Act` fits nowhere
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from archc.grammar.draw import Space, Trace
from archc.grammar.drawer import Choice, Unfit
from archc.grammar.enumerate import count
from archc.grammar.mutate import Watcher
from archc.grammar.traces import taking
from archc.ir.diagnostics import CompileError, Diagnostic, Note

DRAWS = 24
"""Architectures that are looked at."""
TRIES = 12
"""Places in them where an alternative is tried that was not drawn."""


def misfits(space: Space, draws: int = DRAWS, tries: int = TRIES) -> list[Diagnostic]:
    """E0712, an error, for a space that holds no architecture; E0713, a warning, for each alternative that was drawn
    nowhere, and did not fit where it was put in the place of another.
    """
    return [*_misfits(space, draws, tries)]


def empty(space: Space, error: CompileError) -> CompileError:
    """E0712 for a space from which nothing can be drawn, from what drawing says (E0705)."""
    (first, *_) = error.diagnostics
    return CompileError(
        replace(first, code="E0712", message=f"space `{space.name}` holds no architecture", label=_tried(space, first))
    )


def _tried(space: Space, first: Diagnostic) -> str:
    size = count(space)
    return f"its grammar has {size} derivations" + (f"; {first.label}" if first.label else "")


def _misfits(space: Space, draws: int, tries: int) -> Iterator[Diagnostic]:
    try:
        traces = [space.draw(0, i).trace for i in range(draws)]
    except CompileError as error:
        yield from empty(space, error).diagnostics
        return
    seen: set[tuple[int, int]] = set()
    places: dict[tuple[int, int], list[tuple[Trace, Choice]]] = {}
    for trace in traces:
        watcher = Watcher(space, trace)
        for path, choice in watcher.met.items():
            seen.add((id(choice.alternatives), int(trace[path])))
            for other in watcher.part(path).others:
                places.setdefault((id(choice.alternatives), int(other)), []).append((trace, choice))
    for key, found in places.items():
        if key in seen:
            continue
        reason: Diagnostic | None = None
        for drawn, choice in found[:: max(1, len(found) // tries)]:
            edit = taking(drawn, choice.path, key[1])
            if space.redraw(edit).trace.get(choice.path) == key[1]:
                break
            reason = reason or _why(space, edit)
        else:
            alternative = found[0][1].alternatives[key[1]]
            yield Diagnostic(
                "E0713",
                f"an alternative of `{found[0][1].name}` fits nowhere",
                alternative.span,
                severity="warning",
                label=f"none of {draws} draws has it",
                notes=() if reason is None else (Note(f"{reason.code}: {reason.message}", reason.span),),
                help="leave it out, or mend it",
            )


def _why(space: Space, edit: Trace) -> Diagnostic | None:
    """What is wrong with choices that do not fit."""
    try:
        Watcher(space, edit)
    except Unfit as unfit:
        return unfit.error.diagnostics[0]
    return None
