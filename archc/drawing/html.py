"""A page that opens and closes modules: everything in one file, nothing loaded.

Every cluster is laid out for a few states of what is in it, open or closed. In any other state the page (page.js) takes
the plan that comes closest and stretches it just enough to make room: where things stand relative to each other stays.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape

from archc.drawing.layout import SHEET, Curve, Placed, arrange, closed_size, place
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
from archc.drawing.picture import Block, Box, Cluster, Picture
from archc.drawing.svg import shape_svg, style

LARGE = 200  # blocks in one cluster: laying it out takes a second, so it has no plans but the first and the last
MANY = 16  # modules in one cluster for which a plan of its own is worth its bytes


def write_html(picture: Picture, chosen: Collection[str]) -> str:
    """The page; the clusters named in `chosen` are open at first."""
    blocks: dict[str, Any] = {}
    plans = _Plans(chosen)
    todo: list[tuple[Cluster, int]] = [(picture.root, 0)]
    while todo:
        cluster, depth = todo.pop()
        blocks[cluster.id] = _cluster(cluster, depth, plans.of(cluster))
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
        "@STYLE@": style(light=True),
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


class _Plans:
    """The plans of clusters for states that a reader is likely to see, so that these need no stretching: everything
    closed, as at first, that but one module opened or closed, everything open."""

    def __init__(self, chosen: Collection[str]) -> None:
        self.chosen = chosen
        self.known: dict[tuple[str, bool, bool], Placed] = {}

    def child(self, block: Block, is_open: bool, everything: bool) -> Placed:
        """A block, open or closed; what is in it as at first, or all open."""
        key = block.id, is_open, everything
        if key not in self.known:
            if is_open and isinstance(block, Cluster):
                inner = [self.child(c, everything or c.id in self.chosen, everything) for c in block.children]
                self.known[key] = arrange(block, inner)
            else:
                self.known[key] = place(block, lambda _: False)
        return self.known[key]

    def of(self, cluster: Cluster) -> list[Placed]:
        inner = [c for c in cluster.children if isinstance(c, Cluster)]
        start = frozenset(c.id for c in inner if c.id in self.chosen)
        states = [start]
        if len(cluster.children) <= LARGE:
            states += [frozenset(), *(start ^ {c.id} for c in inner[:MANY])]
        plans = [
            arrange(cluster, [self.child(c, c.id in state, False) for c in cluster.children])
            for state in dict.fromkeys(states)
        ]
        if inner:
            plans.append(self.child(cluster, True, True))
        return plans


def _cluster(cluster: Cluster, depth: int, plans: list[Placed]) -> dict[str, Any]:
    """What the page needs of a cluster: how it looks closed, and plans of its inside."""
    found: dict[str, Any] = {"plans": [_plan(p) for p in plans]}
    if cluster.kind == "network":
        return found
    width, height = closed_size(cluster)
    return found | {
        "w": width,
        "h": height,
        "svg": shape_svg(closed_shapes(cluster, width, height)),
        "title": "".join(map(shape_svg, title_shapes(cluster, 0))),
        "tip": cluster_tip(cluster),
        "frame": [frame_fill(cluster, depth), frame_stroke(cluster), cluster.kind == "region"],
        "sheets": SHEET if cluster.count > 1 else 0,
    }


def _plan(plan: Placed) -> dict[str, Any]:
    number = {id(c.block): i for i, (c, _, _) in enumerate(plan.children)}
    loops = [c for c in plan.curves if c.edge.style == "loop"]
    return {
        "w": _short(plan.width),
        "h": _short(plan.height),
        "ins": [_short(x) for x in plan.ins],
        "outs": [_short(x) for x in plan.outs],
        "compact": plan.compact,
        "title": _short(plan.title_x),
        "children": [[c.block.id, *map(_short, (x, y, c.width, c.height))] for c, x, y in plan.children],
        "edges": [_edge(c, number, loops) for c in plan.curves],
        "labels": [[_short(x), _short(y), t] for x, y, t in plan.labels],
    }


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
