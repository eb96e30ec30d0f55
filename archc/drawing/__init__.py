"""The picture of a network: `draw(graph, "net.svg")`; also .png, .dot and .html.

`hierarchy` reads modules and repeats from the graph, `picture` says what there is to see, `layout` where it goes,
`paint` what it looks like; `svg`, `png`, `dot` and `html` write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from archc.backends.weights import atomic_file
from archc.drawing.layout import place
from archc.drawing.paint import Sheet, page
from archc.drawing.picture import Picture, compose, opened
from archc.drawing.svg import write_svg
from archc.ir.diagnostics import did_you_mean, fail
from archc.ir.graph import Graph

Collapse = Literal["auto", "all", "none"] | int
PICTURES = (".svg", ".png")
SUFFIXES = (*PICTURES, ".dot", ".html")


def draw(graph: Graph, path: Path | str | None = None, *, collapse: Collapse = "auto") -> str:
    """The picture of a network as SVG text; with `path`, also written there in the format that its suffix names.

    collapse  which modules are drawn closed: "all"; "none"; a number: those below so many levels; "auto": as many as
              it takes to stay readable, where of modules that are alike the first is drawn open

    The same graph always gives the same bytes. Raises: E0022 (exit 2) when the suffix is none of .svg, .png, .dot and
    .html, E0023 (exit 4) without pygraphviz, E0608 when the place cannot be written.

    >>> from archc.grammar.load import loads
    >>> svg = draw(loads("arch tiny  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(2)"))
    >>> svg.startswith("<svg"), "linear 2" in svg
    (True, True)
    """
    suffix = _suffix(path, SUFFIXES)
    picture = compose(graph)
    chosen = opened(picture, collapse)
    sheet = page(picture, place(picture.root, lambda c: c.id in chosen))
    svg = write_svg(sheet)
    if path is not None:
        data = svg.encode() if suffix == ".svg" else _bytes(suffix, picture, chosen, sheet)
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
    return svg


def draw_change(old: Graph, new: Graph, path: Path | str | None = None) -> str:
    """Two versions of a network side by side as SVG text: what only the old one has in one colour, what only the new
    one has in another. With `path` (.svg, .png) also written there. Raises what `draw` raises."""
    from archc.drawing.change import side_by_side

    suffix = _suffix(path, PICTURES)
    sheet = side_by_side(old, new)
    svg = write_svg(sheet)
    if path is not None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(svg.encode() if suffix == ".svg" else _png(sheet))
    return svg


def _suffix(path: Path | str | None, known: Sequence[str]) -> str:
    suffix = Path(path).suffix.lower() if path is not None else ".svg"
    if suffix not in known:
        found = f"`{suffix}` is not one of {', '.join(known)}" if suffix else f"`{path}` has no suffix"
        help = did_you_mean(suffix, known) or "the suffix names the format"
        raise fail("E0022", "cannot draw in this format", label=found, help=help, exit_code=2)
    return suffix


def _bytes(suffix: str, picture: Picture, chosen: set[str], sheet: Sheet) -> bytes:
    if suffix == ".png":
        return _png(sheet)
    if suffix == ".dot":
        from archc.drawing.dot import write_dot

        return write_dot(picture, chosen).encode()
    from archc.drawing.html import write_html

    return write_html(picture, chosen).encode()


def _png(sheet: Sheet) -> bytes:
    from archc.drawing.png import write_png

    return write_png(sheet)


__all__ = ["SUFFIXES", "Collapse", "draw", "draw_change"]
