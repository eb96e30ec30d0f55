"""The picture of a network: `draw(graph, "net.svg")`; also .png, .dot and .html."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from archc.drawing.layout import place
from archc.drawing.paint import page
from archc.drawing.picture import compose, opened
from archc.drawing.svg import write_svg
from archc.ir.graph import Graph

Collapse = Literal["auto", "all", "none"] | int


def draw(graph: Graph, path: Path | str | None = None, *, collapse: Collapse = "auto") -> str:
    picture = compose(graph)
    chosen = opened(picture, collapse)
    sheet = page(picture, place(picture.root, lambda c: c.id in chosen))
    svg = write_svg(sheet)
    if path: Path(path).write_text(svg)
    return svg
