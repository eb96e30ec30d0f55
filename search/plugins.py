"""What installed packages add to searches, by entry points: strategies, objectives, kinds of work, executors."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points
from typing import Any

from archc.ir.diagnostics import did_you_mean, fail


def names(group: str, own: Collection[str]) -> list[str]:
    """The names of archc's own, then those of installed packages."""
    return [*own, *(e.name for e in entry_points(group=group) if e.name not in own)]


def load(group: str, name: str, own: Collection[str], code: str, what: str, kind: type | None = None) -> Any:
    """What an installed package has under a name that is none of archc's own.

    Raises: CompileError (`code`) where nobody has it, where it cannot be loaded, and where it is no `kind`.
    """
    for entry in entry_points(group=group):
        if entry.name == name:
            try:
                found = entry.load()
            except Exception as error:  # whatever a foreign package raises, its user needs to hear which one it was
                raise fail(
                    code, f"{what} `{name}` cannot be loaded from `{entry.value}`", label=f"{error!r}"
                ) from error
            if kind is not None and not isinstance(found, kind):
                raise fail(code, f"`{entry.value}` is no {kind.__name__}", label=f"found {type(found).__name__}")
            return found
    known = names(group, own)
    raise fail(code, f"there is no {what} `{name}`", help=did_you_mean(name, known) or f"known: {', '.join(known)}")
