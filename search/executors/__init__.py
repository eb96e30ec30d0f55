"""Executors by name: `inline`, `pool`, `ray`; others by entry points in the group `archc.executors`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from archc.search import plugins
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
    return plugins.names(ENTRY_POINTS, _HOMES)


def make_executor(name: str, folder: Path, **options: Any) -> Executor:
    """The executor of that name for the study in `folder`; `options` are its own (such as `workers` of a pool).

    Raises: CompileError (E0736) for one that is unknown or cannot be loaded, and what its start raises.
    """
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        made: Executor = getattr(import_module(module), attribute)(folder, **options)
        return made
    other: Executor = plugins.load(ENTRY_POINTS, name, _HOMES, "E0736", "executor")(folder, **options)
    return other
