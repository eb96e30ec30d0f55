"""A picture that has been laid out, as a flat list of shapes: what the SVG and the PNG writer draw.

Colours are named by role, so that a page may be light or dark. The fills of op families are the `light` scheme of Paul
Tol (https://sros.nl/~tol/), made to be told apart with any colour vision and to carry black text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from archc.drawing.layout import (
    RADIUS,
    ROW,
    ROW_HEIGHT,
    SHEET,
    SMALL,
    TITLE,
    Curve,
    Placed,
    Point,
    badge,
    changed_rows,
    size_text,
)
from archc.drawing.picture import Box, Cluster, Picture
from archc.drawing.words import parameters_text, text_width
from archc.ir.cost import node_flops
from archc.ir.graph import Node

Theme = Mapping[str, str]
LIGHT: Theme = {
    "page": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#68707c",
    "edge": "#4a5260",
    "control": "#a3481b",
    "frame": "#b9c0cb",
    "module": "#f5f7f9",
    "module2": "#eaeef3",
    "structural": "#fdf6ec",
    "structural-frame": "#c98b4b",
    "region": "#fffdf9",
    "closed": "#e3e8ef",
    "terminal": "#2f3742",
    "terminal-ink": "#ffffff",
    "terminal-muted": "#c4cbd6",
    "badge": "#2f3742",
    "badge-ink": "#ffffff",
    "removed": "#c8480a",
    "added": "#0069b4",
    "row-ink": "#14181d",
    "row-muted": "#3d434b",
    "join": "#ffffff",
    "convolution": "#77aadd",
    "linear": "#6cc5ad",
    "attention": "#ee8866",
    "norm": "#eedd88",
    "activation": "#ffaabb",
    "pool": "#99ddff",
    "arithmetic": "#c5cc66",
    "shape": "#dddddd",
    "constant": "#ffffff",
}
DARK: Theme = {
    **LIGHT,
    "page": "#0f1318",
    "ink": "#e8ebef",
    "muted": "#98a1ad",
    "edge": "#a7b0bc",
    "control": "#f0a070",
    "frame": "#3f4956",
    "module": "#171c23",
    "module2": "#1e252e",
    "structural": "#241d15",
    "structural-frame": "#96683a",
    "region": "#1b1814",
    "closed": "#2a333f",
    "terminal": "#dfe4ea",
    "terminal-ink": "#14181d",
    "terminal-muted": "#4b535e",
    "badge": "#dfe4ea",
    "badge-ink": "#14181d",
    "removed": "#ff8a4c",
    "added": "#5ab4f5",
    "join": "#0f1318",
    "constant": "#eeeeee",
}


@dataclass(frozen=True, slots=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    radius: float
    fill: str
    stroke: str = ""
    dashed: bool = False
    line: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `y` is its baseline."""

    x: float
    y: float
    text: str
    size: float
    colour: str = "ink"
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A chain of cubic Bézier curves, with an arrow at its end when `arrow`."""

    points: tuple[Point, ...]
    colour: str = "edge"
    dashed: bool = False
    arrow: bool = True
    title: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Shapes that belong together; `title` is shown when one points at them."""

    id: str
    title: str
    shapes: tuple[Shape, ...]


Shape = Rect | Text | Line | Group


@dataclass(slots=True)
class Sheet:
    """A finished page."""

    width: float
    height: float
    title: str
    shapes: list[Shape] = field(default_factory=list)


def page(picture: Picture, placed: Placed) -> Sheet:
    """The whole page: heading, network, legend."""
    margin, top = 20.0, 58.0
    legend = legend_shapes(picture)
    legend_width = sum(w for _, w in legend) + 12 * max(len(legend) - 1, 0)
    heading = max(text_width(picture.title, 17, bold=True), text_width(picture.subtitle, 10.5))
    inner = max(placed.width, heading, min(legend_width, 560.0))
    rows = _wrapped(legend, inner)
    width, height = inner + 2 * margin, top + placed.height + 18 + 18 * len(rows) + margin - 6
    sheet = Sheet(width, height, picture.title)
    sheet.shapes.append(Rect(0, 0, width, height, 0, "page"))
    sheet.shapes.append(Text(width / 2, 28, picture.title, 17, "ink", "middle", bold=True))
    sheet.shapes.append(Text(width / 2, 44, picture.subtitle, 10.5, "muted", "middle"))
    paint(placed, (width - placed.width) / 2, top, sheet.shapes, 0)
    y = top + placed.height + 26
    for row in rows:
        x = (width - sum(w for _, w in row) - 12 * (len(row) - 1)) / 2
        for shapes, w in row:
            sheet.shapes += moved(shapes, x, y)
            x += w + 12
        y += 18
    return sheet


def legend_shapes(picture: Picture) -> list[tuple[list[Shape], float]]:
    """The entries of the legend, each from (0, 0), with their widths."""
    entries: list[tuple[list[Shape], float]] = []
    for family in picture.families():
        swatch = Rect(0, 0, 12, 12, 3, family, "frame" if family == "constant" else "")
        entries.append(([swatch, Text(17, 10, family, SMALL + 0.5, "muted")], 17 + text_width(family, SMALL + 0.5)))
    if picture.shared:
        text = "◆ A  shared weights"
        entries.append(([Text(0, 10, text, SMALL + 0.5, "muted")], text_width(text, SMALL + 0.5)))
    if any(e.style == "control" for c in picture.root.clusters() for e in c.edges):
        line = Line(((0, 6), (7, 6), (14, 6), (22, 6)), "control", dashed=True)
        entries.append(([line, Text(27, 10, "decides", SMALL + 0.5, "muted")], 27 + text_width("decides", SMALL + 0.5)))
    if any(e.style == "loop" for c in picture.root.clusters() for e in c.edges):
        line = Line(((0, 6), (7, 6), (14, 6), (22, 6)), "control")
        text = "state, to the next step"
        entries.append(([line, Text(27, 10, text, SMALL + 0.5, "muted")], 27 + text_width(text, SMALL + 0.5)))
    return entries


def _wrapped(entries: list[tuple[list[Shape], float]], width: float) -> list[list[tuple[list[Shape], float]]]:
    rows: list[list[tuple[list[Shape], float]]] = []
    used = 0.0
    for entry in entries:
        if rows and used + 12 + entry[1] <= width:
            rows[-1].append(entry)
            used += 12 + entry[1]
        else:
            rows.append([entry])
            used = entry[1]
    return rows


def paint(placed: Placed, x: float, y: float, shapes: list[Shape], depth: int) -> None:
    """Add a laid-out block at (x, y)."""
    block = placed.block
    if isinstance(block, Box):
        shapes.append(moved_group(box_shapes(block, placed.width, placed.height), x, y))
        return
    if not placed.open:
        shapes.append(moved_group(closed_shapes(block, placed.width, placed.height), x, y))
        return
    if block.kind != "network":
        sheets = SHEET if block.count > 1 else 0.0
        size = placed.width - sheets, placed.height - sheets
        shapes.append(moved_group(frame_shapes(block, *size, placed.title_x, depth), x, y))
    for child, cx, cy in placed.children:
        paint(child, x + cx, y + cy, shapes, depth + (block.kind != "network"))
    passed = {id(c.block) for c, _, _ in placed.children if c.has_ports}
    for curve in placed.curves:
        shapes += moved([curve_shape(curve, id(curve.edge.head[0]) in passed)], x, y)
    for lx, ly, text in placed.labels:
        shapes.append(Text(x + lx, y + ly + 3, text, SMALL, "muted", "middle"))


def curve_shape(curve: Curve, passes: bool) -> Line:
    """The line of an edge; it has an arrow where it ends at what reads it, not where it crosses a frame."""
    edge = curve.edge
    arrow = edge.head[0] is not None and (not passes or edge.style == "loop")
    special = edge.style in ("control", "loop")
    return Line(tuple(curve.points), "control" if special else "edge", edge.style == "control", arrow, edge.type)


def box_shapes(box: Box, width: float, height: float) -> Group:
    """A leaf, from (0, 0)."""
    if box.kind == "ops":
        return Group(box.id, "", tuple(_rows(box, width, height)))
    tip = "\n".join(node_lines(box.rows[0].node, box.rows[0].shared)) if box.rows else ""
    middle = width / 2
    if box.kind == "join":
        mark = box.rows[0].mark if box.rows else ""
        edge, line = (mark, 2.5) if mark else ("edge", 1.2)
        circle = Rect(0.5, 0.5, width - 1, height - 1, (height - 1) / 2, "join", edge, line=line)
        size = 15.0 if len(box.title) == 1 else ROW
        return Group(box.id, tip, (circle, Text(middle, height / 2 + size * 0.36, box.title, size, "ink", "middle")))
    ink, muted, fill, radius = "terminal-ink", "terminal-muted", "terminal", height / 2
    frame = Rect(0, 0, width, height, radius, fill)
    if box.kind == "choice":
        ink, muted = "ink", "muted"
        frame = Rect(0.5, 0.5, width - 1, height - 1, RADIUS, "join", "structural-frame", line=1.2)
    texts = [Text(middle, 15.5, box.title, ROW, ink, "middle", bold=True)]
    if box.note:
        texts.append(Text(middle, 28, box.note, SMALL, muted, "middle"))
    return Group(box.id, tip, (frame, *texts))


def _rows(box: Box, width: float, height: float) -> Iterable[Shape]:
    yield Rect(0, 0, width, height, RADIUS, "frame")
    shown = changed_rows(box)
    for i, row in enumerate(box.rows):
        y = 1 + i * ROW_HEIGHT + (1 if i else 0)
        h = (
            ROW_HEIGHT
            + (1 if i == 0 else 0)
            + (1 if i == len(box.rows) - 1 else 0)
            - (0 if i == len(box.rows) - 1 else 1)
        )
        baseline = y + h / 2 + ROW * 0.36
        radius = RADIUS - 1 if len(box.rows) == 1 else 2.5
        shapes: list[Shape] = [Rect(1, y, width - 2, h, radius, row.family, row.mark, line=2.5)]
        if len(box.rows) == 1 and not row.shared:
            shapes.append(Text(width / 2, baseline, row.text, ROW, "row-ink", "middle"))
        else:
            shapes.append(Text(9, baseline, row.text, ROW, "row-ink"))
        if row.shared:
            shapes.append(Text(9 + text_width(row.text, ROW) + 8, baseline, f"◆ {row.shared}", SMALL, "row-muted"))
        if row in shown:
            shapes.append(Text(width - 8, baseline, row.shape, SMALL, "row-muted", "end"))
        yield Group("", "\n".join(node_lines(row.node, row.shared)), tuple(shapes))


def closed_shapes(cluster: Cluster, width: float, height: float) -> Group:
    """A cluster that is not opened: title, ops, parameter count."""
    shapes: list[Shape] = []
    if cluster.count > 1:
        shapes += [Rect(d + 0.5, d + 0.5, width - 1, height - 1, RADIUS, "closed", "frame") for d in (5.0, 2.5)]
    stroke, dashed = frame_stroke(cluster), cluster.kind == "region"
    line = 2.5 if cluster.mark else 1.0
    shapes.append(Rect(0.5, 0.5, width - 1, height - 1, RADIUS, "closed", stroke, dashed, line))
    mark = badge(cluster)
    across = text_width(cluster.title, TITLE, bold=True) + (text_width(mark, SMALL) + 20 if mark else 0)
    x = (width - across) / 2
    shapes.append(Text(x, 19, cluster.title, TITLE, "ink", bold=True))
    if mark:
        shapes += _badge(mark, width - (width - across) / 2 - text_width(mark, SMALL, bold=True) - 10, 7)
    if cluster.note:
        shapes.append(Text(width / 2, 35, cluster.note, SMALL, "muted", "middle"))
    return Group(cluster.id, cluster_tip(cluster), tuple(shapes))


def frame_fill(cluster: Cluster, depth: int) -> str:
    """The colour of an open cluster; modules alternate with depth."""
    return {"structural": "structural", "region": "region"}.get(cluster.kind, "module2" if depth % 2 else "module")


def frame_shapes(cluster: Cluster, width: float, height: float, title_x: float, depth: int) -> Group:
    """The frame of an open cluster with its title, from (0, 0); behind a repeat lie sheets."""
    fill, stroke, dashed = frame_fill(cluster, depth), frame_stroke(cluster), cluster.kind == "region"
    offsets = (SHEET, SHEET / 2, 0.0) if cluster.count > 1 else (0.0,)
    sheets = [
        Rect(d + 0.5, d + 0.5, width - 1, height - 1, RADIUS + 2, fill, stroke, dashed and not d) for d in offsets
    ]
    return Group("", cluster_tip(cluster), (*sheets, *title_shapes(cluster, title_x)))


def title_shapes(cluster: Cluster, x: float) -> list[Shape]:
    """Title, badge and parameter count of an open cluster, from `x` on."""
    shapes: list[Shape] = []
    if cluster.title:
        shapes.append(Text(x, 17, cluster.title, TITLE, "ink", bold=True))
        x += text_width(cluster.title, TITLE, bold=True) + 7
    mark = badge(cluster)
    if mark:
        shapes += _badge(mark, x, 5)
        x += text_width(mark, SMALL, bold=True) + 10 + 7
    size = size_text(cluster)
    if size:
        shapes.append(Text(x, 17, size, SMALL, "muted"))
    return shapes


def frame_stroke(cluster: Cluster) -> str:
    return cluster.mark or ("structural-frame" if cluster.kind in ("structural", "region") else "frame")


def _badge(text: str, x: float, y: float) -> list[Shape]:
    width = text_width(text, SMALL, bold=True) + 10
    pill = Rect(x, y, width, 16, 8, "badge")
    return [pill, Text(x + width / 2, y + 11.3, text, SMALL, "badge-ink", "middle", bold=True)]


def cluster_tip(cluster: Cluster) -> str:
    """What is shown when one points at a module."""
    lines = [cluster.title + (f" {badge(cluster)}" if badge(cluster) else "")]
    if cluster.params:
        lines.append(f"{cluster.params:,} parameters")
    lines += [f"in {v.type}" for v in cluster.ins] + [f"out {v.type}" for v in cluster.outs]
    if cluster.node is not None:
        lines += node_lines(cluster.node)
    return "\n".join(line for line in lines if line)


def node_lines(node: Node, shared: str = "") -> list[str]:
    """Everything about one op, a line each: name, parameters, types, weights, FLOPs, place in the source."""
    lines = [f"{node.op.name}  {node.name}", *filter(None, [parameters_text(node)])]
    lines += [f"in {v.type}" for v in dict.fromkeys(node.inputs)] + [f"out {v.type}" for v in node.outputs]
    lines += [f"{role} {p.type}" + ("" if p.trainable else " (not trained)") for role, p in node.weights.items()]
    if shared:
        lines.append(f"shares weights {shared}")
    flops = node_flops(node)
    if flops != 0:
        lines.append(f"{flops:,} FLOPs" if isinstance(flops, int) else f"{flops} FLOPs")
    if node.span is not None:
        lines.append(f"{node.span.file.rpartition('/')[2]}:{node.span.line}")
    return lines


def moved_group(group: Group, x: float, y: float) -> Group:
    return Group(group.id, group.title, tuple(moved(group.shapes, x, y)))


def moved(shapes: Iterable[Shape], x: float, y: float) -> list[Shape]:
    """Shapes, shifted by (x, y)."""
    result: list[Shape] = []
    for s in shapes:
        if isinstance(s, Rect):
            result.append(Rect(s.x + x, s.y + y, s.width, s.height, s.radius, s.fill, s.stroke, s.dashed, s.line))
        elif isinstance(s, Text):
            result.append(Text(s.x + x, s.y + y, s.text, s.size, s.colour, s.anchor, s.bold))
        elif isinstance(s, Line):
            points = tuple((px + x, py + y) for px, py in s.points)
            result.append(Line(points, s.colour, s.dashed, s.arrow, s.title))
        else:
            result.append(moved_group(s, x, y))
    return result
