"""A page as PNG, drawn by matplotlib from the same shapes as the SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

from archc.drawing.paint import LIGHT, Group, Line, Rect, Shape, Sheet, Text
from archc.drawing.svg import with_arrow

SCALE = 2.0  # pixels for each point
MAX_PIXELS = 60_000_000  # of an image: about 240 MB while it is drawn


def write_png(sheet: Sheet) -> bytes:
    """The PNG's bytes, at two pixels a point, less where the page is very large."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    scale = min(SCALE, math.sqrt(MAX_PIXELS / (sheet.width * sheet.height)), 60_000 / max(sheet.width, sheet.height))
    figure = Figure(figsize=(sheet.width / 72, sheet.height / 72), dpi=72 * scale)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(sheet.height, 0)
    axes.axis("off")
    for order, shape in enumerate(_flat(sheet.shapes)):
        if isinstance(shape, Rect):
            corners, codes = rounded(shape)
            axes.add_patch(
                PathPatch(
                    Path(corners, codes),
                    facecolor=LIGHT[shape.fill],
                    edgecolor=LIGHT[shape.stroke] if shape.stroke else "none",
                    linewidth=shape.line,
                    linestyle=(0, (4, 3)) if shape.dashed else "-",
                    zorder=order,
                )
            )
        elif isinstance(shape, Text):
            axes.text(
                shape.x,
                shape.y,
                shape.text.replace("$", r"\$"),
                fontsize=shape.size,
                color=LIGHT[shape.colour],
                ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor],
                va="baseline",
                weight="bold" if shape.bold else "normal",
                family="DejaVu Sans",  # comes with matplotlib, so that the image is the same everywhere
                zorder=order,
            )
        else:
            points, tip = with_arrow(shape.points) if shape.arrow else (list(shape.points), ())
            codes = [1] + [4] * (len(points) - 1)
            dash = (0, (4, 3)) if shape.dashed else "-"
            colour = LIGHT[shape.colour]
            axes.add_patch(PathPatch(Path(points, codes), fill=False, ec=colour, lw=1.2, ls=dash, zorder=order))
            if tip:
                axes.add_patch(Polygon(tip, facecolor=colour, edgecolor="none", zorder=order))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def rounded(r: Rect) -> tuple[list[tuple[float, float]], list[int]]:
    """A rectangle with round corners as points and codes of a matplotlib path (1 move, 2 line, 4 cubic, 79 close)."""
    x0, y0, x1, y1 = r.x, r.y, r.x + r.width, r.y + r.height
    a = min(r.radius, r.width / 2, r.height / 2)
    k = a * 0.4477  # of a cubic curve's handle that follows a quarter circle
    points = [(x0 + a, y0), (x1 - a, y0), (x1 - k, y0), (x1, y0 + k), (x1, y0 + a)]
    points += [(x1, y1 - a), (x1, y1 - k), (x1 - k, y1), (x1 - a, y1)]
    points += [(x0 + a, y1), (x0 + k, y1), (x0, y1 - k), (x0, y1 - a)]
    points += [(x0, y0 + a), (x0, y0 + k), (x0 + k, y0), (x0 + a, y0), (x0 + a, y0)]
    return points, [1, *[2, 4, 4, 4] * 4, 79]


def _flat(shapes: Iterable[Shape]) -> Iterable[Rect | Text | Line]:
    for shape in shapes:
        if isinstance(shape, Group):
            yield from _flat(shape.shapes)
        else:
            yield shape
