"""A page that opens and closes modules: everything in one file, nothing loaded.

Every cluster is laid out once, with what is in it closed. When one is opened, the page (page.js) stretches the plan of
its parent just enough to make room; where things stand relative to each other never changes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape

from archc.drawing.layout import SHEET, Curve, Placed, place, place_network
from archc.drawing.paint import (
    DARK,
    LIGHT,
    box_shapes,
    closed_shapes,
    cluster_tip,
    frame_fill,
    frame_stroke,
    legend_shapes,
    moved,
    title_shapes,
)
from archc.drawing.picture import Box, Cluster, Picture
from archc.drawing.svg import shape_svg, style


def write_html(picture: Picture, chosen: Collection[str]) -> str:
    """The page; the clusters named in `chosen` are open at first."""
    blocks: dict[str, Any] = {}
    todo: list[tuple[Cluster, int]] = [(picture.root, 0)]
    while todo:
        cluster, depth = todo.pop()
        blocks[cluster.id] = _cluster(cluster, depth)
        for child in cluster.children:
            if isinstance(child, Cluster):
                todo.append((child, depth + (cluster is not picture.root)))
            else:
                blocks[child.id] = _box(child)
    data = {"root": picture.root.id, "open": sorted(chosen), "blocks": dict(sorted(blocks.items()))}
    legend, x = "", 0.0
    for shapes, width in legend_shapes(picture):
        legend += "".join(map(shape_svg, moved(shapes, x, 2)))
        x += width + 14
    folder = files("archc.drawing")
    text = folder.joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "@TITLE@": escape(picture.title),
        "@TITLE2@": escape(picture.title),
        "@SUBTITLE@": escape(picture.subtitle),
        "@COLOURS@": _colours(),
        "@STYLE@": style(),
        "@LEGEND@": f'<svg width="{x:.0f}" height="16">{legend}</svg>',
        "@DATA@": json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        "@SCRIPT@": folder.joinpath("page.js").read_text(encoding="utf-8"),
    }
    for mark, part in parts.items():
        before, found, after = text.partition(mark)
        assert found, f"page.html has no {mark}"
        text = before + part + after
    return text


def _colours() -> str:
    """The page's own colours as variables, for light and dark."""
    roles = ("page", "ink", "muted", "frame", "module", "edge")
    light, dark = ("".join(f"--{r}:{theme[r]};" for r in roles) for theme in (LIGHT, DARK))
    return f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _box(box: Box) -> dict[str, Any]:
    placed = place(box, lambda _: False)
    return {
        "w": placed.width,
        "h": placed.height,
        "svg": shape_svg(box_shapes(box, placed.width, placed.height)),
        "find": " ".join([box.title, *(f"{r.node.name} {r.text}" for r in box.rows)]).lower(),
    }


def _cluster(cluster: Cluster, depth: int) -> dict[str, Any]:
    """What the page needs of a cluster: how it looks closed, and the plan of its inside."""
    found: dict[str, Any] = {}
    if cluster.kind == "network":
        plan = place_network(cluster, lambda _: False)
    else:
        closed = place(cluster, lambda _: False)
        plan = place(cluster, lambda c: c is cluster)
        found |= {
            "w": closed.width,
            "h": closed.height,
            "svg": shape_svg(closed_shapes(cluster, closed.width, closed.height)),
            "title": "".join(map(shape_svg, title_shapes(cluster, 0))),
            "tip": cluster_tip(cluster),
            "frame": [frame_fill(cluster, depth), frame_stroke(cluster), cluster.kind == "region"],
            "sheets": SHEET if cluster.count > 1 else 0,
        }
    number = {id(c.block): i for i, (c, _, _) in enumerate(plan.children)}
    loops = [c for c in plan.curves if c.edge.style == "loop"]
    found["plan"] = {
        "w": _short(plan.width),
        "h": _short(plan.height),
        "ins": [_short(x) for x in plan.ins],
        "outs": [_short(x) for x in plan.outs],
        "compact": plan.compact,
        "title": _short(plan.title_x),
        "children": [[c.block.id, _short(x), _short(y)] for c, x, y in plan.children],
        "edges": [_edge(c, number, loops) for c in plan.curves],
        "labels": [[_short(x), _short(y), t] for x, y, t in plan.labels],
    }
    return found


def _edge(curve: Curve, number: dict[int, int], loops: list[Curve]) -> dict[str, Any]:
    edge = curve.edge
    (tail, out), (head, port) = edge.tail, edge.head
    return {
        "p": [_short(c) for point in curve.points for c in point],
        "tail": None if tail is None else [number[id(tail)], out],
        "head": None if head is None else [number[id(head)], port],
        "style": edge.style,
        "loop": loops.index(curve) if curve in loops else 0,
        "tip": edge.type,
    }


def _short(value: float) -> float:
    return round(value, 2)


__all__ = ["Placed", "write_html"]
