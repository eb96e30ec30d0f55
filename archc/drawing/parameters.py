"""Pictures of parameter graphs.

At tensor level ops stand in rows by depth, coloured by family, each with its parameters beside it. At neuron level
every neuron is a dot, every set of neurons a row, and every weight a line: blue above zero, orange below, grey where it
is no weight but a link.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from archc.backends.weights import atomic_file
from archc.drawing.layout import SMALL
from archc.drawing.paint import Group, Line, Rect, Shape, Sheet, Text
from archc.drawing.svg import write_svg
from archc.drawing.words import FAMILY_OF, text_width
from archc.ir.diagnostics import fail
from archc.ir.op import REGISTRY
from archc.metanet.neuron_graph import NeuronArrays, edge_types
from archc.metanet.tensor_graph import FLOWS, TensorGraph

if TYPE_CHECKING:
    from archc.metanet.parameter_graph import ParameterGraph
    from archc.metanet.vocabulary import Vocabulary

PICTURES = (".svg", ".png", ".html")

MAX_LINES = 4000
"""Lines of a picture: more cannot be told apart."""

MARGIN, TOP, GAP = 24.0, 64.0, 14.0
BOX, ROW, BOW = 22.0, 62.0, 48.0
DOT, SPACE, LAYER = 7.0, 13.0, 74.0


def draw_parameters(found: ParameterGraph, path: Path) -> None:
    """Write the picture of a parameter graph, in the format that the suffix names.

    Raises: CompileError (E0813) where there are more lines than one can tell apart.
    """
    sheet = sheet_of(found)
    if path.suffix == ".png":
        from archc.drawing.png import write_png

        data = write_png(sheet)
    elif path.suffix == ".html":
        page = f"<!doctype html>\n<meta charset=utf-8>\n<title>{escape(sheet.title)}</title>\n{write_svg(sheet)}"
        data = page.encode()
    else:
        data = write_svg(sheet).encode()
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def sheet_of(found: ParameterGraph) -> Sheet:
    """The page. Raises what `draw_parameters` raises."""
    lines = sum(found.edges.values())
    if lines > MAX_LINES:
        small = found.level == "neuron"
        raise fail(
            "E0813",
            f"a picture of {lines:,} edges cannot be read",
            label=f"at most {MAX_LINES:,} are drawn",
            help="draw the graph at tensor level (`--level tensor`), or write it to .safetensors"
            if small
            else "draw the network with `archc show`, which closes modules, or write the graph to .safetensors",
        )
    if isinstance(found.arrays, TensorGraph):
        return _tensor_sheet(found.arrays, found.words)
    assert found.weights is not None
    return _neuron_sheet(found.arrays, found.arrays.values(found.weights), found.words)


def _family(op: str) -> str:
    known = REGISTRY.get(op)
    return FAMILY_OF.get(known.category, "arithmetic") if known is not None else "terminal"


# -- tensor level -----------------------------------------------------------------------------------------------------


def _tensor_sheet(arrays: TensorGraph, words: Vocabulary) -> Sheet:
    kinds = [words.ops[kind] for kind in arrays.op_kind]
    of: dict[int, list[tuple[int, str]]] = {}
    for (parameter, op), (role,) in zip(arrays.weighs.T.tolist(), arrays.weighs_attr.tolist(), strict=True):
        of.setdefault(op, []).append((parameter, words.roles[role]))
    rows: dict[int, list[int]] = {}
    for op, depth in enumerate(arrays.op_depth.tolist()):
        rows.setdefault(depth, []).append(op)
    before: dict[int, list[int]] = {}
    for source, target in arrays.feeds.T.tolist():
        before.setdefault(target, []).append(source)
    labels = [
        f"{kind.strip('%')} {name}" if kind.startswith("%") else kind
        for kind, name in zip(kinds, arrays.ops, strict=True)
    ]
    widths = [max(34.0, text_width(label, SMALL + 1) + 14) for label in labels]
    pills = {op: [(p, role, text_width(role, SMALL) + 10) for p, role in own] for op, own in of.items()}
    span = [w + sum(4 + x for _, _, x in pills.get(op, ())) for op, w in enumerate(widths)]
    x = [0.0] * len(kinds)
    for depth in sorted(rows):
        row = rows[depth]
        wanted = {
            o: sum(x[s] for s in before[o]) / len(before[o]) if o in before else float(k) for k, o in enumerate(row)
        }
        row.sort(key=lambda o: (wanted[o], o))
        at = -(sum(span[o] for o in row) + GAP * (len(row) - 1)) / 2
        if len(row) == 1 and row[0] in before:
            at = wanted[row[0]] - widths[row[0]] / 2
        for op in row:
            x[op] = at + widths[op] / 2
            at += span[op] + GAP
    left = min((x[o] - widths[o] / 2 for o in range(len(x))), default=0.0) - MARGIN - BOW
    right = max((x[o] - widths[o] / 2 + span[o] for o in range(len(x))), default=0.0) + MARGIN
    title = f"{len(kinds)} ops, {len(arrays.names)} parameters of {int(arrays.parameter_size.sum()):,} elements"
    width = max(right - left, text_width(title, 13, bold=True) + 2 * MARGIN, 420.0)
    height = TOP + (max(rows, default=0) + 1) * ROW + MARGIN
    shapes: list[Shape] = [Rect(0, 0, width, height, 0, "page"), Text(MARGIN, 26, title, 13, "ink", bold=True)]
    shapes += _legend(
        [
            ("edge", "data"),
            ("control", "into and out of a region"),
            ("row-muted", "used again"),
            ("closed", "parameter"),
        ]
    )
    top = [TOP + depth * ROW for depth in arrays.op_depth.tolist()]
    for (source, target), (flow, slot, _) in zip(arrays.feeds.T.tolist(), arrays.feeds_attr.tolist(), strict=True):
        x0, y0, x1, y1 = x[source] - left, top[source] + BOX, x[target] - left + 6 * (slot % 4), top[target]
        if y1 - y0 > ROW:  # past other rows: on the left of the boxes
            x0, y0, x1, y1 = x0 - widths[source] / 2, y0 - BOX / 2, x[target] - left - widths[target] / 2, y1 + BOX / 2
            out = min(x0, x1) - min(BOW, 14 + (y1 - y0) / 16)
            points = ((x0, y0), (out, y0 + ROW / 2), (out, y1 - ROW / 2), (x1, y1))
        else:
            bend = (y1 - y0) / 2
            points = ((x0, y0), (x0, y0 + bend), (x1, y1 - bend), (x1, y1))
        told = f"{arrays.ops[source]} to {arrays.ops[target]}, {FLOWS[flow]} {slot}"
        shapes.append(Line(points, "edge" if flow == 0 else "control", flow == 1, True, told))
    drawn: dict[int, tuple[float, float]] = {}
    for op, kind in enumerate(kinds):
        ox, oy = x[op] - widths[op] / 2 - left, top[op]
        terminal = kind.startswith("%")
        box = Rect(ox, oy, widths[op], BOX, 11 if terminal else 4, "terminal" if terminal else _family(kind), "frame")
        ink = "terminal-ink" if terminal else "row-ink"
        text = Text(ox + widths[op] / 2, oy + 15, labels[op], SMALL + 1, ink, "middle")
        shapes.append(Group(f"op{op}", f"{kind} {arrays.ops[op]}", (box, text)))
        at = ox + widths[op] + 4
        for parameter, role, pill in pills.get(op, ()):
            shape = "×".join(map(str, arrays.shapes[parameter])) or "1"
            tip = f"{arrays.names[parameter]}  {shape}"
            if parameter in drawn:
                px, py = drawn[parameter]
                shapes.append(
                    Line(
                        ((px, py), (px, py + 20), (at, oy - 10), (at + pill / 2, oy + 3)), "row-muted", True, False, tip
                    )
                )
            drawn.setdefault(parameter, (at + pill / 2, oy + BOX - 3))
            parts = (
                Rect(at, oy + 3, pill, BOX - 6, 8, "closed", "frame"),
                Text(at + pill / 2, oy + 14.5, role, SMALL, "ink", "middle"),
            )
            shapes.append(Group("", tip, parts))
            at += pill + 4
    return Sheet(width, height, title, shapes)


def _legend(entries: list[tuple[str, str]]) -> list[Shape]:
    shapes: list[Shape] = []
    x = MARGIN
    for colour, text in entries:
        shapes += [Rect(x, 38, 10, 10, 3, colour, "frame"), Text(x + 15, 47, text, SMALL, "muted")]
        x += 15 + text_width(text, SMALL) + 16
    return shapes


# -- neuron level -----------------------------------------------------------------------------------------------------


def _neuron_sheet(arrays: NeuronArrays, values: Any, words: Vocabulary) -> Sheet:
    types = edge_types(words)
    depths = sorted({float(arrays.x[s.base, 9]) for s in arrays.sets})
    rows: dict[float, list[int]] = {depth: [] for depth in depths}
    for k, s in enumerate(arrays.sets):
        rows[float(arrays.x[s.base, 9])].append(k)
    place: list[tuple[float, float]] = [(0.0, 0.0)] * len(arrays.x)
    labels: list[tuple[float, float, str]] = []
    wide = 0.0
    for r, depth in enumerate(depths):
        at, y = MARGIN, TOP + 20 + r * LAYER
        for k in rows[depth]:
            s = arrays.sets[k]
            text = " ".join((words.ops[int(arrays.kind[s.base])].strip("%"), *s.chain))
            text = "" if arrays.x[s.base, 1] else text
            labels.append((at + s.size * SPACE + 2, y + 3, text))
            for i in range(s.size):
                place[s.base + i] = (at + DOT / 2 + i * SPACE, y)
            at += s.size * SPACE + text_width(text, SMALL) + 2 * GAP
        wide = max(wide, at)
    title = f"{len(arrays.x)} neurons, {arrays.offsets[-1]:,} weights, {(arrays.edge_mark == 2).sum():,} links"
    width = max(wide + MARGIN, text_width(title, 13, bold=True) + 2 * MARGIN, 420.0)
    height = TOP + 20 + len(depths) * LAYER + MARGIN
    shapes: list[Shape] = [Rect(0, 0, width, height, 0, "page"), Text(MARGIN, 26, title, 13, "ink", bold=True)]
    shapes += _legend(
        [
            ("added", "weight above 0"),
            ("removed", "below 0"),
            ("frame", "zero, or a link"),
            ("terminal", "hub of an op"),
        ]
    )
    order = sorted(range(len(values)), key=lambda e: -int(arrays.edge_mark[e]))  # weights above links
    parallel: dict[tuple[int, int], int] = {}
    for e in order:
        source, target = int(arrays.edge_index[0, e]), int(arrays.edge_index[1, e])
        (x0, y0), (x1, y1), value = place[source], place[target], float(values[e])
        shift = 3.0 * (n := parallel.get((source, target), 0)) * (-1) ** n
        parallel[source, target] = n + 1
        link = arrays.edge_mark[e] == 2
        colour = "frame" if link or value == 0 else "added" if value > 0 else "removed"
        if y0 == y1:  # a loop, or neighbours: above the dots
            lift = 16.0 + abs(x1 - x0) / 8 + abs(shift)
            spread = 8.0 if source == target else 0.0
            points = ((x0, y0), (x0 - spread, y0 + lift), (x1 + spread, y1 + lift), (x1, y1))
        else:
            middle = (y1 - y0) / 2
            points = ((x0, y0), (x0 + shift, y0 + middle), (x1 + shift, y1 - middle), (x1, y1))
        told = types[int(arrays.edge_type[e])] + ("" if link else f" {value:.4g}")
        shapes.append(Line(points, colour, bool(link), False, told))
    for node, (x, y) in enumerate(place):
        op = words.ops[int(arrays.kind[node])]
        fill = "terminal" if arrays.x[node, 1] or op.startswith("%") else _family(op)
        shapes.append(Group("", f"{op} {node}", (Rect(x - DOT / 2, y - DOT / 2, DOT, DOT, DOT / 2, fill, "edge"),)))
    shapes += [Text(x, y, text, SMALL, "muted") for x, y, text in labels if text]
    return Sheet(width, height, title, shapes)
