"""Axes that were cut for nothing: factors that no op tells apart are one axis again."""

from __future__ import annotations

from archc.ir.axes import Axes
from archc.ir.graph import Graph


def mend(graph: Graph, axes: Axes) -> None:
    """Join factors of products that every op treats alike."""
