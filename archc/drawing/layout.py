"""Where everything goes: each cluster is laid out on its own by Graphviz's `dot`, from the inside out.

Sizes are given to Graphviz and positions taken from it; no text is measured there, so that the fonts of a machine do
not move a picture. All lengths are points, y grows downwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from archc.drawing.picture import Block, Box, Cluster, Edge
from archc.drawing.words import count_text, text_width
from archc.ir.diagnostics import fail

TITLE, ROW, SMALL = 12.0, 11.0, 9.0  # sizes of fonts
ROW_HEIGHT = 19.0
PAD = 12.0
HEADER = 10.0  # from the upper border to where edges fan out; the title stands beside them
SHEET = 6.0  # by how much the sheets behind a repeat stick out
RADIUS = 6.0

Point = tuple[float, float]


@dataclass(eq=False, slots=True)
class Curve:
    """An edge as a chain of cubic Bézier curves: 1 + 3·n points."""

    edge: Edge
    points: list[Point]


@dataclass(eq=False, slots=True)
class Placed:
    """A block with its size; for an open cluster, its children at their places, edges and labels.

    ins, outs   x of each port on the upper and lower border
    title_x     where the title of an open cluster starts, clear of the edges that come in
    labels      (x, y of the centre, text)
    compact     an open cluster drawn as one titled box, at whose border edges end
    """

    block: Block
    width: float
    height: float
    ins: list[float] = field(default_factory=list)
    outs: list[float] = field(default_factory=list)
    children: list[tuple[Placed, float, float]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    labels: list[tuple[float, float, str]] = field(default_factory=list)
    title_x: float = PAD
    open: bool = False
    compact: bool = False

    @property
    def has_ports(self) -> bool:
        """Whether edges go on inside: into an open cluster, unless that is one box of ops."""
        return self.open and not self.compact


def place(block: Block, is_open: Callable[[Cluster], bool]) -> Placed:
    """Lay out a block: a box, a closed cluster, or an open one (the network always is) with everything in it."""
    if isinstance(block, Box) or not (is_open(block) or block.kind == "network"):
        width, height = closed_size(block)
        return Placed(block, width, height, [width / 2] * len(block.ins), [width / 2] * len(block.outs))
    return arrange(block, [place(child, is_open) for child in block.children])


def arrange(cluster: Cluster, children: list[Placed]) -> Placed:
    """Lay out an open cluster whose children are laid out."""
    if cluster.kind == "network":
        return _place_network(cluster, children)
    leaves = [c.block for c in children if isinstance(c.block, Box) and c.block.kind == "ops"]
    if len(leaves) == len(children) == 1:
        return _titled(cluster, children[0])
    return _place_cluster(cluster, children)


def _place_network(root: Cluster, children: list[Placed]) -> Placed:
    """Parts without an edge between them stand side by side."""
    parts = _parts(root)
    placed = [_place_cluster(part, [c for c in children if c.block in part.children]) for part in parts]
    whole = Placed(root, -2 * PAD, max(p.height for p in placed), open=True)
    for part in placed:
        dx = whole.width + 2 * PAD
        whole.children += [(c, x + dx, y) for c, x, y in part.children]
        whole.labels += [(x + dx, y, t) for x, y, t in part.labels]
        whole.curves += [Curve(c.edge, [(x + dx, y) for x, y in c.points]) for c in part.curves]
        whole.width = dx + part.width
    return whole


def _parts(root: Cluster) -> list[Cluster]:
    """The network cut into its connected parts, in the order of their first blocks."""
    number = {id(child): i for i, child in enumerate(root.children)}
    home = list(range(len(number)))

    def find(i: int) -> int:
        while home[i] != i:
            home[i] = home[home[i]]
            i = home[i]
        return i

    for edge in root.edges:
        a, b = find(number[id(edge.tail[0])]), find(number[id(edge.head[0])])
        home[max(a, b)] = min(a, b)
    children: dict[int, list[Block]] = {}
    edges: dict[int, list[Edge]] = {}
    for i, child in enumerate(root.children):
        children.setdefault(find(i), []).append(child)
    for edge in root.edges:
        edges.setdefault(find(number[id(edge.tail[0])]), []).append(edge)
    return [replace(root, children=c, edges=edges.get(i, [])) for i, c in children.items()] or [root]


def _titled(cluster: Cluster, child: Placed) -> Placed:
    """A module that is one box of ops: a title above the box, and a frame close around both."""
    sheets = SHEET if cluster.count > 1 else 0.0
    width = max(child.width, title_width(cluster)) + 12
    placed = Placed(cluster, width + sheets, child.height + 30 + sheets, open=True, compact=True, title_x=8.0)
    placed.children = [(child, (width - child.width) / 2, 24.0)]
    placed.ins, placed.outs = [width / 2] * len(cluster.ins), [width / 2] * len(cluster.outs)
    return placed


def title_width(cluster: Cluster) -> float:
    """The width of an open cluster's title, badge and parameter count."""
    parts = (text_width(cluster.title, TITLE, bold=True), text_width(size_text(cluster), SMALL))
    return sum(p + 7 for p in parts if p) + (text_width(badge(cluster), SMALL, bold=True) + 17 if badge(cluster) else 0)


def closed_size(block: Block) -> tuple[float, float]:
    """Width and height of a box, or of a cluster that is drawn closed."""
    if isinstance(block, Cluster):
        title = text_width(block.title, TITLE, bold=True) + (
            text_width(badge(block), TITLE) + 24 if badge(block) else 0
        )
        return max(title, text_width(block.note, SMALL), 80.0) + 2 * PAD, 46.0 if block.note else 32.0
    if block.kind == "ops":
        shared = [text_width(f"◆ {r.shared}", SMALL) + 8 if r.shared else 0.0 for r in block.rows]
        left = max(text_width(r.text, ROW) + s for r, s in zip(block.rows, shared, strict=True))
        right = max((text_width(r.shape, SMALL) for r in block.rows[:1] + changed_rows(block)), default=0.0)
        return max(left + (right + 14 if len(block.rows) > 1 else 0) + 18, 64.0), ROW_HEIGHT * len(block.rows) + 4
    if block.kind == "join":
        return (22.0, 22.0) if len(block.title) == 1 else (text_width(block.title, ROW) + 20, 22.0)
    title, note = text_width(block.title, ROW, bold=True), text_width(block.note, SMALL)
    return max(title, note, 40.0) + 24, 36.0 if block.note else 24.0


def changed_rows(box: Box) -> list[Any]:
    """The rows of a box whose shape differs from that of the row before: those that show it. The first does."""
    shown = [box.rows[0]] if box.rows else []
    shown += [b for a, b in zip(box.rows, box.rows[1:], strict=False) if a.shape != b.shape]
    return shown if len(box.rows) > 1 else []


def badge(cluster: Cluster) -> str:
    """`× 12` of a repeat."""
    if cluster.count == 1:
        return ""
    return f"× {cluster.count}" + (", one set of weights" if cluster.tied else "")


def size_text(cluster: Cluster) -> str:
    """The parameter count of a module, all copies together."""
    return count_text(cluster.params) if cluster.params else ""


def _place_cluster(cluster: Cluster, children: list[Placed]) -> Placed:
    source = _dot(cluster, children)
    drawn = run_dot(source)
    _, _, right, top = (float(n) for n in drawn["bb"].split(","))
    positions = {o["name"]: _point(o["pos"], top) for o in drawn.get("objects", ()) if "pos" in o}
    curves = {int(e["i"]): _points(e["pos"], top) for e in drawn.get("edges", ())}

    root = cluster.kind == "network"
    fans = len({e.tail[1] for e in cluster.edges if e.tail[0] is None}) < sum(e.tail[0] is None for e in cluster.edges)
    header = 0.0 if root else 24.0 if fans else HEADER
    bottom = 0.0
    ins = [positions[f"i{i}"][0] for i in range(len(cluster.ins))] if not root else []
    outs = [positions[f"o{i}"][0] for i in range(len(cluster.outs))] if not root else []

    placed = Placed(cluster, right, top, open=True)
    for i, child in enumerate(children):
        x, y = positions[f"n{i}"]
        placed.children.append((child, x - child.width / 2, y - child.height / 2))
    data = [i for i, e in enumerate(cluster.edges) if e.style != "loop"]
    placed.curves = [Curve(cluster.edges[i], curves[i]) for i in data]
    loops = [e for e in cluster.edges if e.style == "loop"]
    for k, edge in enumerate(loops):
        placed.curves.append(Curve(edge, _loop(placed, edge, 14.0 + 9 * k, 8.0 + 5 * k)))
    _label(placed)

    # Bounds of what is drawn, then room for the frame and its title.
    xs = [x for c in placed.curves for x, _ in c.points] + [0.0, right]
    xs += [x + s * text_width(t, SMALL) / 2 for x, _, t in placed.labels for s in (-1, 1)]
    ys = [y for c in placed.curves if c.edge.style == "loop" for _, y in c.points] + [0.0, top]
    left, over = min(xs), min(ys)
    pad = 0.0 if root else PAD
    dx, dy = pad - left, header - min(over, 0.0)
    width, height = max(xs) - left + 2 * pad, max(max(ys), top) - min(over, 0.0) + header + bottom
    if not root:
        title = title_width(cluster) + 8
        first, last = (min(ins) + dx, max(ins) + dx) if ins else (width, 0.0)
        more = title + PAD - 8 - first
        placed.title_x = PAD - 2
        if not ins or more <= 0:
            width = max(width, title + PAD)
        elif more < 36:  # a little more room on either side keeps the edge in the middle
            dx += more
            width += 2 * more
        else:
            placed.title_x = last + 10
            width = max(width, last + 10 + title)
    placed.children = [(c, x + dx, y + dy) for c, x, y in placed.children]
    placed.labels = [(x + dx, y + dy, t) for x, y, t in placed.labels]
    reached: set[int] = set()
    for curve in placed.curves:
        curve.points = [(x + dx, y + dy) for x, y in curve.points]
        _reach_border(curve, height + (SHEET if cluster.count > 1 else 0.0), reached)
    placed.ins, placed.outs = [x + dx for x in ins], [x + dx for x in outs]
    sheets = SHEET if cluster.count > 1 else 0.0
    placed.width, placed.height = width + sheets, height + sheets
    return placed


def _reach_border(curve: Curve, height: float, reached: set[int]) -> None:
    """Prolong an edge that comes in or goes out, through the frame's margin, to the border; of several that come in
    together the first."""
    points, edge = curve.points, curve.edge
    if edge.tail[0] is None and edge.tail[1] not in reached:
        reached.add(edge.tail[1])
        x, y = points[0]
        curve.points = points = [(x, 0.0), (x, y / 3), (x, y * 2 / 3), *points]
    if edge.head[0] is None and height - points[-1][1] > 0.5:
        x, y = points[-1]
        rest = height - y
        curve.points = [*points, (x, y + rest / 3), (x, y + rest * 2 / 3), (x, height)]


def _loop(placed: Placed, edge: Edge, out: float, drop: float) -> list[Point]:
    """From the lower border of a cell around its right side to its upper border."""
    child, x, y = next((c, x, y) for c, x, y in placed.children if c.block is edge.tail[0])
    start, end = (x + child.outs[edge.tail[1]], y + child.height), (x + child.ins[edge.head[1]], y)
    side, low, high, r = x + child.width + out, start[1] + drop, end[1] - drop - 6, 6.0
    corners = [start, (start[0], low), (side, low), (side, high), (end[0], high), end]
    points = [start]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        a, b = _towards(corner, before, r), _towards(corner, after, r)
        points += [_mix(points[-1], a, 1 / 3), _mix(points[-1], a, 2 / 3), a]
        points += [_mix(a, corner, 0.55), _mix(b, corner, 0.55), b]
    points += [_mix(points[-1], end, 1 / 3), _mix(points[-1], end, 2 / 3), end]
    return points


def _mix(a: Point, b: Point, t: float) -> Point:
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t


def _towards(a: Point, b: Point, distance: float) -> Point:
    length = max(abs(b[0] - a[0]) + abs(b[1] - a[1]), 1e-9)
    return _mix(a, b, min(0.5, distance / length))


def bezier(points: Sequence[Point], t: float) -> Point:
    """The point at `t` in 0 … 1 of a chain of cubic curves."""
    pieces = (len(points) - 1) // 3
    k = min(int(t * pieces), pieces - 1)
    u = t * pieces - k
    p = points[3 * k : 3 * k + 4]
    a, b, c, d = (1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u * u * (1 - u), u**3
    return (
        a * p[0][0] + b * p[1][0] + c * p[2][0] + d * p[3][0],
        a * p[0][1] + b * p[1][1] + c * p[2][1] + d * p[3][1],
    )


def _label(placed: Placed) -> None:
    """Put each edge's label beside it, where it covers least."""
    clutter = _Clutter()
    for child, x, y in placed.children:
        clutter.add_box((x, y, x + child.width, y + child.height))
    for curve in placed.curves:
        clutter.add_points(bezier(curve.points, i / 24) for i in range(25))
    for curve in placed.curves:
        text = curve.edge.label
        if not text:
            continue
        w, h = text_width(text, SMALL) + 2, SMALL + 2
        best: tuple[float, float, float] | None = None
        for rank, (t, side) in enumerate((t, s) for t in (0.5, 0.35, 0.65, 0.2, 0.8, 0.1, 0.9) for s in (1, -1)):
            x, y = bezier(curve.points, t)
            x += side * (w / 2 + 4)
            cost = 0.4 * rank + clutter.cost((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            if best is None or cost < best[0]:
                best = cost, x, y
        assert best is not None
        _, x, y = best
        placed.labels.append((x, y, text))
        clutter.add_box((x - w / 2, y - h / 2, x + w / 2, y + h / 2))


Area = tuple[float, float, float, float]


class _Clutter:
    """What a label should not cover, by strips of the page."""

    STRIP = 24.0

    def __init__(self) -> None:
        self.boxes: dict[int, list[Area]] = {}
        self.points: dict[int, list[Point]] = {}

    def strips(self, low: float, high: float) -> range:
        return range(int(low // self.STRIP), int(high // self.STRIP) + 1)

    def add_box(self, box: Area) -> None:
        for strip in self.strips(box[1], box[3]):
            self.boxes.setdefault(strip, []).append(box)

    def add_points(self, points: Iterable[Point]) -> None:
        for point in points:
            self.points.setdefault(int(point[1] // self.STRIP), []).append(point)

    def cost(self, area: Area) -> float:
        """100 for each box or label that an area touches, 4 for each point of an edge in it."""
        x0, y0, x1, y1 = area
        strips = self.strips(y0, y1)
        boxes = {
            b for s in strips for b in self.boxes.get(s, ()) if x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1
        }
        points = sum(x0 < x < x1 and y0 < y < y1 for s in strips for x, y in self.points.get(s, ()))
        return 100.0 * len(boxes) + 4.0 * points


def _dot(cluster: Cluster, children: Sequence[Placed]) -> str:
    """The cluster's inside as a graph of boxes without text, in the language of `dot`."""
    number = {id(c.block): i for i, c in enumerate(children)}
    root = cluster.kind == "network"
    lines = [
        "digraph g { graph [nodesep=0.28, ranksep=0.33, splines=true]; edge [dir=none];",
        'node [shape=box, fixedsize=true, label="", margin=0];',
    ]
    if not root:
        for side, ports, rank in (("i", cluster.ins, "source"), ("o", cluster.outs, "sink")):
            names = " ".join(f"{side}{k} [shape=point, width=0.01, height=0.01];" for k in range(len(ports)))
            lines.append(f"{{ rank={rank}; {names} }}")
    for i, child in enumerate(children):
        size = f"width={child.width / 72:.4f}, height={child.height / 72:.4f}"
        if child.has_ports:
            lines.append(f"n{i} [shape=plain, fixedsize=false, label=<{_ports(child)}>];")
        elif isinstance(child.block, Box) and child.block.kind == "join" and len(child.block.title) == 1:
            lines.append(f"n{i} [shape=circle, {size}];")
        else:
            lines.append(f"n{i} [{size}];")
    depth = _depths(cluster, number)
    for i, edge in enumerate(cluster.edges):
        (tail, out), (head, port) = edge.tail, edge.head
        if edge.style == "loop":
            continue
        a = f"i{out}" if tail is None else f"n{number[id(tail)]}"
        b = f"o{port}" if head is None else f"n{number[id(head)]}"
        if tail is not None and children[number[id(tail)]].has_ports:
            a += f":o{out}:s"
        if head is not None and children[number[id(head)]].has_ports:
            b += f":i{port}:n"
        start = 0 if tail is None else depth[number[id(tail)]]
        end = len(children) + 1 if head is None else depth[number[id(head)]]
        straight = (end - start <= 1 or head is None) and (tail is None or bool(tail.ins) or not cluster.ins)
        lines.append(f"{a} -> {b} [i={i}, weight={8 if straight else 1}];")
    return "\n".join([*lines, "}"])


def _depths(cluster: Cluster, number: dict[int, int]) -> list[int]:
    """The longest way from the top to each child."""
    depth = [1] * len(number)
    for _ in number:
        moved = False
        for edge in cluster.edges:
            if edge.style == "loop" or edge.tail[0] is None or edge.head[0] is None:
                continue
            a, b = number[id(edge.tail[0])], number[id(edge.head[0])]
            if depth[b] < depth[a] + 1 <= len(number) + 1:
                depth[b], moved = depth[a] + 1, True
        if not moved:
            break
    return depth


def _ports(child: Placed) -> str:
    """An open cluster as a table whose upper and lower edges have cells where its ports are."""
    table = '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0">'

    def cell(width: float, height: float, port: str = "") -> str:
        name = f'PORT="{port}" ' if port else ""
        return f'<TD {name}FIXEDSIZE="TRUE" WIDTH="{round(width)}" HEIGHT="{round(height)}"></TD>'

    def border(side: str, xs: Sequence[float]) -> str:
        cells, at = [], 0
        for x, k in sorted((x, k) for k, x in enumerate(xs)):
            start = max(round(x) - 1, at)
            if start > at:
                cells.append(cell(start - at, 2))
            cells.append(cell(2, 2, f"{side}{k}"))
            at = start + 2
        if round(child.width) > at:
            cells.append(cell(round(child.width) - at, 2))
        return f"<TR><TD>{table}<TR>{''.join(cells)}</TR></TABLE></TD></TR>"

    middle = f"<TR>{cell(child.width, child.height - 4)}</TR>"
    return f"{table}{border('i', child.ins)}{middle}{border('o', child.outs)}</TABLE>"


def _point(text: str, top: float) -> Point:
    x, y = text.split(",")
    return float(x), top - float(y)


def _points(text: str, top: float) -> list[Point]:
    return [_point(p, top) for p in text.split()]


def run_dot(source: str) -> dict[str, Any]:
    """Graphviz's layout of a graph, as its `json0` output.

    Raises: E0023 when pygraphviz, which brings Graphviz with it, is not there.
    """
    try:
        import pygraphviz
    except ImportError as error:
        raise fail(
            "E0023",
            "drawing needs Graphviz's layout, which comes with pygraphviz",
            label=str(error),
            help="pip install 'pygraphviz>=2.0' (its wheel needs no system Graphviz)",
            exit_code=4,
        ) from error
    graph = pygraphviz.AGraph(string=source)
    result: dict[str, Any] = json.loads(graph.draw(format="json0", prog="dot"))
    return result
