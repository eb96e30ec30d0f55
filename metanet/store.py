"""Trained metanetworks on disk: one safetensors file each, with a card in its metadata.

The card says what the tensors are: the kind of metanetwork, its configuration, the vocabularies *by name* (so that an
operator added later cannot shift a row of a table), the command that reproduces it, what it was trained on and how it
fared. The file holds its own SHA-256 (`backends/weights.py`); nothing is ever unpickled. Small ones come with archc, in
`metanet/shipped/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from archc.backends.weights import Array, read_weights, write_weights
from archc.ir.diagnostics import did_you_mean, fail

CARD = "archc.metanet"
"""The metadata entry that holds the card, as JSON."""

FORMAT = 1


class Card(BaseModel):
    """What a trained metanetwork is, and where it comes from.

    >>> Card(kind="ghn", name="ghn-digits", config={}, command="archc metanet train ghn").format
    1
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    name: str
    config: dict[str, Any]
    """What builds the empty model, as plain data."""
    command: str
    """The command that reproduces the file."""
    format: int = FORMAT
    vocabulary: dict[str, list[str]] = {}
    """Table -> the names of its rows, in order."""
    tasks: list[str] = []
    trained: dict[str, Any] = {}
    """Seeds, steps, seconds, versions: how it was trained, as it went."""
    figures: dict[str, Any] = {}
    """What it reached, as measured at the end of training."""
    log: list[dict[str, Any]] = []


@dataclass(frozen=True, slots=True)
class Stored:
    """A metanetwork file in memory: its card, and arrays by name."""

    card: Card
    arrays: Mapping[str, Array] = field(repr=False)
    path: Path
    sha256: str


def save(path: Path | str, card: Card, arrays: Mapping[str, Array]) -> str:
    """Write a metanetwork, atomically; returns the file's SHA-256."""
    return write_weights(path, arrays, {CARD: card.model_dump_json()})


def load(source: Path | str, kind: str | None = None) -> Stored:
    """A metanetwork by path, or by the name of one that comes with archc.

    Raises: CompileError E0801 for a name that is not shipped and no file, E0802 for a file without a sound card or of
    another kind, E0601 and E0602 for a file that is no sound safetensors file.
    """
    path = _find(source)
    weights = read_weights(path)
    if CARD not in weights.metadata:
        raise fail(
            "E0802", f"{path} holds no metanetwork", label="it has no card", help="weights of a network are none"
        )
    try:
        card = Card.model_validate(json.loads(weights.metadata[CARD]))
    except (ValueError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise fail("E0802", f"the card of {path} cannot be read", label=reason, help="train it again") from error
    if card.format != FORMAT:
        raise fail("E0802", f"{path} has format {card.format}, and this archc reads {FORMAT}", help="train it again")
    if kind is not None and card.kind != kind:
        raise fail("E0802", f"{path} is a metanetwork of kind `{card.kind}`", label=f"`{kind}` was needed")
    return Stored(card, weights.arrays, path, weights.sha256)


def shipped() -> dict[str, Path]:
    """The metanetworks that come with archc, by name."""
    folder = Path(str(files("archc.metanet") / "shipped"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _find(source: Path | str) -> Path:
    known = shipped()
    if str(source) in known:
        return known[str(source)]
    path = Path(source)
    if path.exists() or path.suffix:
        return path
    help = did_you_mean(str(source), known) or f"shipped: {', '.join(known) or 'none'}; or give the path of a file"
    raise fail("E0801", f"there is no metanetwork `{source}`", help=help)
