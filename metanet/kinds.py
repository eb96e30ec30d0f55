"""The kinds of metanetworks that can be trained and evaluated, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from archc.ir.diagnostics import did_you_mean, fail
from archc.metanet.store import Card, Stored

Say = Callable[[str], None]
"""Where a line of progress goes."""


@dataclass(frozen=True)
class Kind:
    """A kind of metanetwork.

    config      the options of its training: a frozen schema whose fields have descriptions
    train       `train(config, out, resume, say)` writes the file `out`; an interrupted run goes on from `out`.state
    evaluate    `evaluate(stored, config, say)` measures it on what it has not seen: figures by name
    """

    name: str
    doc: str
    config: type[BaseModel]
    train: Callable[[Any, Path, bool, Say], Card]
    evaluate: Callable[[Stored, Any, Say], dict[str, Any]]


_HOMES: dict[str, str] = {
    "ghn": "archc.metanet.ghn.kind",
    "gmn": "archc.metanet.gmn.kind",
    "nowcast": "archc.metanet.nowcast.kind",
    "surrogate": "archc.metanet.surrogate.kind",
}
"""Kind -> the module whose `KIND` describes it (each imports torch)."""


def kind(name: str) -> Kind:
    """The kind of that name.

    Raises: CompileError (E0803) for an unknown one.
    """
    if name not in _HOMES:
        help = did_you_mean(name, _HOMES) or f"kinds: {', '.join(_HOMES)}"
        raise fail("E0803", f"there is no kind of metanetwork `{name}`", help=help)
    found = import_module(_HOMES[name]).KIND
    assert isinstance(found, Kind)
    return found


def kinds() -> list[str]:
    """The names of all kinds."""
    return list(_HOMES)
