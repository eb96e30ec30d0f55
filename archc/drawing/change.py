"""Two versions of a network on one page: what went and what came, each in a colour of its own."""

from __future__ import annotations

from archc.drawing.layout import SMALL, place
from archc.drawing.paint import Rect, Shape, Sheet, Text, moved, page
from archc.drawing.picture import Box, Cluster, Picture, compose, opened
from archc.drawing.words import text_width
from archc.ir.graph import Graph, Node

GAP = 30.0


def side_by_side(old: Graph, new: Graph) -> Sheet:
    """The page: the old network on the left, the new one on the right. A node that goes on with other parameters or
    types counts on both sides."""
    before, after = {n.name: _what(n) for n in old.walk()}, {n.name: _what(n) for n in new.walk()}
    sheets = []
    for graph, own, other, mark in ((old, before, after, "removed"), (new, after, before, "added")):
        changed = {name for name, what in own.items() if other.get(name) != what}
        sheets.append(_sheet(graph, changed, mark))
    left, right = sheets
    width, height = left.width + GAP + right.width, max(left.height, right.height) + 26
    sheet = Sheet(width, height, f"{old.name}: before and after")
    sheet.shapes.append(Rect(0, 0, width, height, 0, "page"))
    sheet.shapes += left.shapes[1:] + moved(right.shapes[1:], left.width + GAP, 0)
    sheet.shapes += _legend(width / 2, height - 18)
    return sheet


def _sheet(graph: Graph, changed: set[str], mark: str) -> Sheet:
    picture = compose(graph)
    chosen = opened(picture) | _mark(picture, changed, mark)
    return page(picture, place(picture.root, lambda c: c.id in chosen))


def _mark(picture: Picture, changed: set[str], mark: str) -> set[str]:
    """Colour what stands for a changed node; the ids of the clusters that lead to the first such place."""

    def concerns(node: Node) -> bool:
        return any(n.name in changed for n in picture.tree.covers[node])

    path: set[str] = set()

    def visit(cluster: Cluster) -> bool:
        within = cluster.node is not None and concerns(cluster.node)
        for block in cluster.children:
            if isinstance(block, Box):
                for row in block.rows:
                    row.mark = mark if concerns(row.node) else ""
                    within |= bool(row.mark)
            elif visit(block):
                within = True
                if not path & {c.id for c in cluster.clusters()}:
                    path.add(block.id)
        if within and cluster is not picture.root:
            cluster.mark = mark
        return within

    visit(picture.root)
    return path


def _what(node: Node) -> object:
    return node.op.name, node.params, [v.type for v in node.outputs]


def _legend(middle: float, y: float) -> list[Shape]:
    words = (("only before", "removed"), ("only after", "added"))
    width = sum(text_width(text, SMALL + 1) + 34 for text, _ in words)
    x, shapes = middle - width / 2, list[Shape]()
    for text, mark in words:
        shapes.append(Rect(x, y - 9, 12, 10, 2, "page", mark, line=2.5))
        shapes.append(Text(x + 17, y, text, SMALL + 1, "muted"))
        x += text_width(text, SMALL + 1) + 34
    return shapes
