"""Every pass by name: cleanups, and the transforms that change an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archc.passes.gated import GATED_ATTENTION, GATED_CONV, GMLP
from archc.passes.glu import GLU
from archc.passes.low_rank import LOW_RANK
from archc.passes.manager import Pass
from archc.passes.pipeline import NAMED
from archc.passes.rezero import REZERO
from archc.passes.transform import Transform

PASSES: Mapping[str, Pass] = {p.name: p for p in NAMED}
"""What keeps the function, whatever the network."""

_TRANSFORMS: tuple[Transform[Any], ...] = (
    LOW_RANK,
    REZERO,
    GLU,
    GATED_ATTENTION,
    GATED_CONV,
    GMLP,
)

TRANSFORMS: Mapping[str, Transform[Any]] = {t.name: t for t in _TRANSFORMS}
"""What changes an architecture, born equal where its contract says so."""
