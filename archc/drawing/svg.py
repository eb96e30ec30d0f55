"""A page as SVG: selectable text, tooltips, light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape, quoteattr

from archc.drawing.paint import DARK, LIGHT, Group, Line, Rect, Shape, Sheet, Text

FONTS = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
ARROW = 6.5


def write_svg(sheet: Sheet) -> str:
    """The SVG text. It stands alone and loads nothing."""
    w, h = number(sheet.width), number(sheet.height)
    body = "\n".join(shape_svg(s) for s in sheet.shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img">\n'
        f"<title>{escape(sheet.title)}</title>\n<style>{style()}</style>\n{body}\n</svg>\n"
    )


def style(light: bool = False) -> str:
    """The fonts, and what changes when the reader prefers dark pages. Light colours stand at each shape, for programs
    that know no style sheets; `light` has them here too."""
    dark = "".join(
        f".f-{role}{{fill:{colour}}}.s-{role}{{stroke:{colour}}}"
        for role, colour in DARK.items()
        if colour != LIGHT[role]
    )
    always = "".join(f".f-{r}{{fill:{c}}}.s-{r}{{stroke:{c}}}" for r, c in LIGHT.items()) if light else ""
    return f"text{{font-family:{FONTS}}}{always}@media (prefers-color-scheme:dark){{{dark}}}"


def shape_svg(shape: Shape) -> str:
    if isinstance(shape, Group):
        mark = f" id={quoteattr(shape.id)}" if shape.id else ""
        title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
        return f"<g{mark}>{title}{''.join(map(shape_svg, shape.shapes))}</g>"
    if isinstance(shape, Rect):
        radius = f' rx="{number(shape.radius)}"' if shape.radius else ""
        stroke = f'{_paint("stroke", shape.stroke)} stroke-width="{number(shape.line)}"' if shape.stroke else ""
        dash = ' stroke-dasharray="4 3"' if shape.dashed else ""
        size = f'width="{number(shape.width)}" height="{number(shape.height)}"'
        classes = _classes(fill=shape.fill, stroke=shape.stroke)
        return (
            f'<rect x="{number(shape.x)}" y="{number(shape.y)}" {size}{radius}{classes}'
            f"{_paint('fill', shape.fill)}{stroke}{dash}/>"
        )
    if isinstance(shape, Text):
        anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
        weight = ' font-weight="600"' if shape.bold else ""
        place = f'x="{number(shape.x)}" y="{number(shape.y)}" font-size="{number(shape.size)}"'
        colour = f"{_classes(fill=shape.colour)}{_paint('fill', shape.colour)}"
        return f"<text {place}{anchor}{weight}{colour}>{escape(shape.text)}</text>"
    return line_svg(shape)


def line_svg(line: Line) -> str:
    dash = ' stroke-dasharray="4 3"' if line.dashed else ""
    points, tip = with_arrow(line.points) if line.arrow else (line.points, ())
    title = f"<title>{escape(line.title)}</title>" if line.title else ""
    drawn = (
        f'<path d="{path(points)}" fill="none"{_classes(stroke=line.colour)}{_paint("stroke", line.colour)} '
        f'stroke-width="1.2"{dash}/>'
    )
    if tip:
        corners = " ".join(f"{number(x)},{number(y)}" for x, y in tip)
        drawn += f'<polygon points="{corners}"{_classes(fill=line.colour)}{_paint("fill", line.colour)}/>'
    return f"<g>{title}{drawn}</g>" if title else drawn


def with_arrow(
    points: Sequence[tuple[float, float]],
) -> tuple[list[tuple[float, float]], tuple[tuple[float, float], ...]]:
    """The curve, shortened to make room, and the three corners of the arrow at its end."""
    x, y = points[-1]
    back = next((p for p in reversed(points[:-1]) if math.dist(p, (x, y)) > 0.5), (x, y - 1))
    length = math.dist(back, (x, y))
    dx, dy = (x - back[0]) / length, (y - back[1]) / length
    base = (x - dx * ARROW, y - dy * ARROW)
    half = ARROW * 0.42
    tip = ((x, y), (base[0] - dy * half, base[1] + dx * half), (base[0] + dy * half, base[1] - dx * half))
    return [*points[:-1], (x - dx * ARROW * 0.8, y - dy * ARROW * 0.8)], tip


def path(points: Iterable[tuple[float, float]]) -> str:
    first, *rest = (f"{number(x)},{number(y)}" for x, y in points)
    return f"M{first}C{' '.join(rest)}"


def number(value: float) -> str:
    """Two decimals at most, none that say nothing."""
    return (
        f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0", 1)
        if abs(value) < 0.005
        else f"{value:.2f}".rstrip("0").rstrip(".")
    )


def _paint(attribute: str, role: str) -> str:
    return f' {attribute}="{LIGHT[role]}"'


def _classes(fill: str = "", stroke: str = "") -> str:
    names = [f"{p}-{role}" for p, role in (("f", fill), ("s", stroke)) if role and LIGHT[role] != DARK[role]]
    return f' class="{" ".join(names)}"' if names else ""
