"""Executors by name: `inline`, `pool`, `ray`; others by entry points in the group `archc.executors`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from archc.ir.diagnostics import did_you_mean, fail
from archc.search.executor import Executor

ENTRY_POINTS = "archc.executors"
_HOMES = {
    "inline": "archc.search.executors.inline:Inline",
    "pool": "archc.search.executors.pool:Pool",
    "ray": "archc.search.executors.ray:RayCluster",
}
"""Executor -> its class."""


def executors() -> list[str]:
    """The names of all executors: those of archc, then those of installed packages."""
    return [*_HOMES, *(e.name for e in entry_points(group=ENTRY_POINTS) if e.name not in _HOMES)]


def make_executor(name: str, folder: Path, **options: Any) -> Executor:
    """The executor of that name for the study in `folder`; `options` are its own (such as `workers` of a pool).

    Raises: CompileError (E0736) for one that is unknown or cannot be loaded, and what its start raises.
    """
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        made: Executor = getattr(import_module(module), attribute)(folder, **options)
        return made
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            try:
                kind = entry.load()
            except Exception as error:  # whatever a foreign package raises, its user needs to hear which one it was
                raise fail(
                    "E0736", f"executor `{name}` cannot be loaded from `{entry.value}`", label=f"{error!r}"
                ) from error
            made = kind(folder, **options)
            return made
    known = executors()
    help = did_you_mean(name, known) or f"executors: {', '.join(known)}"
    raise fail("E0736", f"there is no executor `{name}`", help=help)
