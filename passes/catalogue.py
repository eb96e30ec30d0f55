"""Every pass by name: cleanups, and the transforms that change an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from archc.ir.diagnostics import fail
from archc.passes.deepen import DEEPEN
from archc.passes.early_exit import EARLY_EXIT
from archc.passes.gated import GATED_ATTENTION, GATED_CONV, GMLP
from archc.passes.glu import GLU
from archc.passes.kan import KAN_EDGES
from archc.passes.kan_formulas import KAN_SYMBOLIC
from archc.passes.kan_prune import KAN_PRUNE
from archc.passes.kan_refine import KAN_REFINE
from archc.passes.linear_attention import LINEAR_ATTENTION
from archc.passes.low_rank import LOW_RANK
from archc.passes.manager import Pass
from archc.passes.moe import MOE_PASS
from archc.passes.pipeline import NAMED
from archc.passes.prune import PRUNE
from archc.passes.quantize_weights import QUANTIZE_WEIGHTS
from archc.passes.rezero import REZERO
from archc.passes.share_weights import SHARE_WEIGHTS
from archc.passes.skip import SKIP_BLOCKS
from archc.passes.transform import Transform
from archc.passes.widen import WIDEN

PASSES: Mapping[str, Pass] = {p.name: p for p in NAMED}
"""What keeps the function, whatever the network."""

_TRANSFORMS: tuple[Transform[Any], ...] = (
    LINEAR_ATTENTION,
    LOW_RANK,
    QUANTIZE_WEIGHTS,
    REZERO,
    SHARE_WEIGHTS,
    MOE_PASS,
    GLU,
    GATED_ATTENTION,
    GATED_CONV,
    GMLP,
    KAN_EDGES,
    KAN_REFINE,
    KAN_PRUNE,
    KAN_SYMBOLIC,
    SKIP_BLOCKS,
    EARLY_EXIT,
    PRUNE,
    WIDEN,
    DEEPEN,
)

TRANSFORMS: Mapping[str, Transform[Any]] = {t.name: t for t in _TRANSFORMS}
"""What changes an architecture, born equal where its contract says so."""

GROUP = "archc.passes"
"""The entry points of transforms from other packages: each names a `Transform`."""


@lru_cache(maxsize=1)
def installed() -> Mapping[str, Transform[Any]]:
    """The transforms of installed packages, by name. They are looked for when archc has none of a name.

    Raises: CompileError E0409 for a package whose transform cannot be loaded.
    """
    found: dict[str, Transform[Any]] = {}
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
        except Exception as e:  # whatever a foreign package raises, its user needs to hear which one it was
            label = f"{type(e).__name__}: {e}"
            raise fail("E0409", f"pass `{entry.name}` cannot be loaded from `{entry.value}`", label=label) from e
        if not isinstance(loaded, Transform):
            raise fail("E0409", f"`{entry.value}` is not a Transform", label=f"found {type(loaded).__name__}")
        found.setdefault(loaded.name, loaded)
    return found


def find_transform(name: str) -> Transform[Any] | None:
    """The transform of a name: one of archc's, or else of an installed package."""
    if name in TRANSFORMS or name in PASSES:
        return TRANSFORMS.get(name)
    return installed().get(name)
