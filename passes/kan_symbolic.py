"""Reading a trained KAN: which formula is the function on an edge, `c · f(a x + b) + d`?

For every edge and every f of a library the best a and b are searched for on a grid, first a coarse one that all edges
share, then finer ones around what it has found; c and d follow by least squares. What is compared are the functions on
the range of what the edge reads, so the R² of a formula is that of a curve, not of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph, Node
from archc.ir.ops.kan import KAN
from archc.passes.fitting import samples
from archc.passes.functions import sigmoid
from archc.passes.kan_basis import edges
from archc.passes.manager import Context
from archc.passes.matrices import weights_or_initial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

POINTS = 65
"""Points of a curve."""
CONSTANT = 1e-9
"""A curve that varies less is a number."""
STEEPEST = 30.0
"""How much larger than the curve a formula's part may be: larger ones cancel, and look at the tail of a function."""
CHUNK = 512
"""Edges that the coarse grid looks at together."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function of the library. `text` shows it of `{}`; simpler ones win where R² is the same to three digits; only
    `total` ones, defined everywhere, may take an edge's place in a network."""

    name: str
    text: str
    function: Callable[[Any], Any]
    complexity: int
    total: bool = True


def library() -> tuple[Symbol, ...]:
    """The functions that edges are compared with."""
    import numpy as np

    return (
        Symbol("x", "{}", lambda z: z, 1),
        Symbol("x^2", "({})²", np.square, 2),
        Symbol("x^3", "({})³", lambda z: z**3, 3),
        Symbol("x^4", "({})⁴", lambda z: z**4, 4),
        Symbol("exp", "exp({})", np.exp, 2),
        Symbol("log", "log({})", np.log, 2, total=False),
        Symbol("sqrt", "√({})", np.sqrt, 2, total=False),
        Symbol("1/x", "1/({})", lambda z: np.where(np.abs(z) < 1e-3, np.nan, 1 / z), 2, total=False),
        Symbol("sin", "sin({})", np.sin, 2),
        Symbol("tanh", "tanh({})", np.tanh, 3),
        Symbol("abs", "|{}|", np.abs, 3),
        Symbol("gauss", "exp(-({})²)", lambda z: np.exp(-(z**2)), 3),
        Symbol("silu", "silu({})", lambda z: z * sigmoid(z), 3),
    )


@dataclass(frozen=True, slots=True)
class Formula:
    """`c · f(a x + b) + d`, and its R² against the edge's function."""

    symbol: str
    a: float
    b: float
    c: float
    d: float
    r2: float

    def __str__(self) -> str:
        """
        >>> str(Formula("sin", 2.0, -0.5, 1.5, 0.0, 0.999)), str(Formula("x^2", 2.0, 2.0, 0.25, -1.0, 1.0))
        ('1.5·sin(2x - 0.5)', '(x + 1)² - 1')
        """
        f = self.simple()
        argument = f"{_number(f.a)}x{_signed(f.b)}"
        if f.symbol == "x":
            return argument if f.a else f"{f.b:.3g}"
        text = next(s.text for s in library() if s.name == f.symbol).format(argument)
        factor = _number(f.c)
        return f"{factor}{'' if factor in ('', '-') else '·'}{text}{_signed(f.d)}"

    def simple(self) -> Formula:
        """The same function, the numbers that do the same as others set to 1 or 0."""
        a, b, c, d = self.a, self.b, self.c, self.d
        power = {"x^2": 2, "x^3": 3, "x^4": 4, "1/x": -1}.get(self.symbol)
        if self.symbol == "x":
            a, b, c, d = a * c, b * c + d, 1.0, 0.0
        elif power is not None:
            a, b, c = 1.0, b / a, c * a**power
        elif self.symbol == "abs":
            a, b, c = 1.0, b / a, c * abs(a)
        elif self.symbol == "sqrt":
            a, b, c = math.copysign(1.0, a), b / abs(a), c * math.sqrt(abs(a))
        elif self.symbol == "log":
            a, b, d = math.copysign(1.0, a), b / abs(a), d + c * math.log(abs(a))
        elif self.symbol == "exp":
            b, c = 0.0, c * math.exp(b)
        elif a < 0 and self.symbol in ("sin", "tanh", "gauss"):
            a, b, c = -a, -b, c if self.symbol == "gauss" else -c
        if self.symbol == "sin":
            b, c = math.remainder(b if c > 0 else b + math.pi, 2 * math.pi), abs(c)
        return Formula(self.symbol, a, b, c, d, self.r2)


def _number(value: float) -> str:
    """A factor: nothing for 1."""
    text = f"{value:.3g}"
    return {"1": "", "-1": "-"}.get(text, text)


def _signed(value: float) -> str:
    text = f"{abs(value):.3g}"
    return "" if abs(value) < 5e-4 else f" {'-' if value < 0 else '+'} {text}"


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge of a layer and what its function looks like, best first. `weight` is how much it varies, as a share of
    the layer's most varying edge; [low, high] is where the layer's input lies."""

    layer: str
    output: int
    input: int
    weight: float
    low: float
    high: float
    formulas: tuple[Formula, ...]


def symbolic(graph: Graph, context: Context, *, top: int = 3, least: float = 0.0) -> list[Edge]:
    """Formulas for every edge of every `kan` layer with functions on its edges (GR-KAN has them on channels).

    Inputs are looked at on the context's sample data, or random ones; without weights at initial values. `top` formulas
    are given for an edge, none for edges of a weight below `least`.
    """
    nodes = [n for region in graph.graphs() for n in region.nodes if n.op is KAN and n.call.params.basis != "grkan"]
    rows = samples(graph, context, [n.operands[0] for n in nodes], -1)
    return [edge for n in nodes for edge in read_layer(n, rows[n.operands[0]], context, library(), top, least)]


def read_layer(
    node: Node, rows: Array, context: Context, symbols: Sequence[Symbol], top: int, least: float
) -> Iterator[Edge]:
    """The edges of one layer whose inputs lie as `rows` [samples, in] do."""
    import numpy as np

    low, high = np.quantile(rows, 0.005, axis=0), np.quantile(rows, 0.995, axis=0)
    high = np.maximum(high, low + 1e-6)
    middle, half = (low + high) / 2, (high - low) / 2
    t = np.linspace(-1, 1, POINTS)
    weights = {role: weights_or_initial(context, p) for role, p in node.weights.items()}
    curves = np.moveaxis(edges(node, weights, middle + half * t[:, None]), 0, -1)  # [out, in, points]
    spread = curves.std(-1)
    relative = spread / (spread.max() or 1.0)
    outputs, inputs = np.nonzero((relative >= least) & (spread > CONSTANT))
    read = dict(zip(zip(outputs, inputs, strict=True), _read(curves[outputs, inputs], t, symbols, top), strict=True))
    for o, i in np.ndindex(*relative.shape):
        if spread[o, i] <= CONSTANT:
            read[o, i] = [Formula("x", 0.0, 0.0, 1.0, float(curves[o, i].mean()), 1.0)]
        formulas = tuple(_unscaled(f, float(middle[i]), float(half[i])) for f in read.get((o, i), ()))
        yield Edge(node.name, o, i, float(relative[o, i]), float(low[i]), float(high[i]), formulas)


def _unscaled(f: Formula, middle: float, half: float) -> Formula:
    """A formula in t, where x = middle + half · t, as one in x."""
    a = f.a / half
    return Formula(f.symbol, a, f.b - a * middle, f.c, f.d, f.r2)


def _read(curves: Array, t: Array, symbols: Sequence[Symbol], top: int) -> Iterator[list[Formula]]:
    """The best formulas in t of each curve [edges, points]."""
    import numpy as np

    slopes = np.geomspace(0.1, 12, 25)
    grid = np.array([(a, b) for a in (*slopes, *-slopes) for b in np.linspace(-10, 10, 41)])
    tables = [_features(s, grid, t) for s in symbols]
    for start in range(0, len(curves), CHUNK):
        some = curves[start : start + CHUNK]
        fits = [(features @ _unit(some).T) ** 2 for features in tables]  # [places, edges] each
        best = np.stack([fit.max(0) for fit in fits])  # [symbols, edges]
        likely = np.argsort(-best, axis=0, kind="stable")[: top + 3]
        found: list[list[tuple[bool, float, int, float, Formula]]] = [[] for _ in some]
        for k, (symbol, fit) in enumerate(zip(symbols, fits, strict=True)):
            chosen = np.flatnonzero((likely == k).any(0))
            for i, formula in zip(chosen, _refined(symbol, grid[fit.argmax(0)[chosen]], some[chosen], t), strict=True):
                wild = symbol.name != "x" and abs(formula.c) * _largest(symbol, formula, t) > STEEPEST * np.ptp(some[i])
                found[i].append((bool(wild), -round(formula.r2, 3), symbol.complexity, -formula.r2, formula))
        for candidates in found:
            yield [formula for *_, formula in sorted(candidates, key=lambda c: c[:4])[:top]]


def _largest(symbol: Symbol, formula: Formula, t: Array) -> float:
    """The largest value of the function itself, from where the formula puts its zero."""
    import numpy as np

    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.abs(symbol.function(formula.a * t + formula.b)), nan=0.0).max())


def _features(symbol: Symbol, places: Array, t: Array) -> Array:
    """The curves of a function at places [*b, (a, b)], centred and of length 1: [*b, points]. Zeros, which fit nothing,
    where it is constant or not defined."""
    import numpy as np

    with np.errstate(all="ignore"):
        values = np.asarray(symbol.function(places[..., :1] * t + places[..., 1:]))
        fine = np.isfinite(values).all(-1, keepdims=True) & (np.abs(values).max(-1, keepdims=True) < 1e6)
    return _unit(np.where(fine, values, 0.0))


def _unit(curves: Array) -> Array:
    import numpy as np

    centred = curves - curves.mean(-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    size = np.abs(curves).max(-1, keepdims=True)
    return np.where(length > 1e-7 * size, centred / np.maximum(length, 1e-300), 0.0)


def _refined(symbol: Symbol, places: Array, curves: Array, t: Array) -> Iterator[Formula]:
    """The best formulas near places (a, b), one for each curve: finer and finer grids, then c and d."""
    import numpy as np

    unit, reach = _unit(curves), np.linspace(-1, 1, 7)
    steps = np.array([(u, v) for u in reach for v in reach])
    for step in (0.25, 0.1, 0.04, 0.015, 0.006, 0.0025):
        near = places[:, None, :] + step * steps * np.stack([places[:, 0], np.full(len(places), 2.0)], -1)[:, None, :]
        fit = np.einsum("ekp,ep->ek", _features(symbol, near, t), unit) ** 2
        places = near[np.arange(len(places)), fit.argmax(1)]
    for (a, b), curve in zip(places, curves, strict=True):
        with np.errstate(all="ignore"):
            value = np.asarray(symbol.function(a * t + b))
        if not np.isfinite(value).all():
            value = np.zeros_like(t)
        centred = value - value.mean()
        c = float(centred @ curve / (centred @ centred or 1.0))
        missing = curve - curve.mean() - c * centred
        r2 = 1 - float(missing @ missing) / float(((curve - curve.mean()) ** 2).sum())
        yield Formula(symbol.name, float(a), float(b), c, float(curve.mean() - c * value.mean()), r2)


def table(found: Iterable[Edge]) -> list[dict[str, Any]]:
    """Rows for people and for JSON."""
    return [
        {
            "layer": e.layer,
            "output": e.output,
            "input": e.input,
            "weight": e.weight,
            "range": [e.low, e.high],
            "formulas": [{"text": str(f), "symbol": f.symbol, "r2": f.r2} for f in e.formulas],
        }
        for e in found
    ]
