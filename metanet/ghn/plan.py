"""How each weight of a net is laid out, as a decoder needs it: its axes as factors that have coordinates.

Every element of a weight is a sum over products of functions of its coordinates. The axis rules say what a coordinate
is: an axis that `flatten` made of channels, rows and columns has three, and each is of a kind.

    index   interchangeable elements, such as hidden channels: each has a learned embedding by its number
    label   the last axis of an output, the classes of a task: another table of embeddings
    grid    ordered positions, such as pixels, taps or basis functions: cosines of the position

Kinds and sizes are local facts. That one flattened axis counts columns first, or mirrored, is not told here: to know
it, a decoder has to be told by the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from archc.ir.axes import Axes, AxisVar, derive_axes
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Node, Parameter

Kind = Literal["index", "label", "grid"]

MAX_GRID = 32
"""An axis without inner structure that is longer is a table of embeddings, not a row of positions."""

SLOTS = ("out", "in", "tap")
"""The first axis of a weight, the second, and all others together."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A coordinate of an axis. `part` counts the pieces of a concatenation before it."""

    kind: Kind
    size: int
    part: int = 0
    start: int = 0
    """Of an index: how many elements of the same axis stand before, in other parts."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of an axis whose elements are a product of factors, outermost first; a sum axis has several."""

    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        return math.prod(f.size for f in self.factors)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What is to be predicted of one parameter.

    rule    "matrix": zero mean, deviation `scale` (from its fan-in) times a predicted gain; "offset": `base` plus a
            predicted deviation; "kept": `base` as the program has it, nothing is predicted (statistics, buffers)
    slots   the pieces of each of `SLOTS`; a slot that the weight lacks has one empty piece
    """

    name: str
    shape: tuple[int, ...]
    rule: Literal["matrix", "offset", "kept"]
    scale: float
    base: float
    slots: tuple[tuple[Piece, ...], ...]
    parameter: Parameter

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def weight_plans(graph: Graph) -> list[WeightPlan]:
    """A plan for every parameter of a graph, in the order of `graph.parameters()`.

    Raises: CompileError (E0820) for a parameter of codes, which no net that trains has.
    """
    axes = derive_axes(graph)
    special: dict[AxisVar, Kind] = {}
    for value in graph.inputs:
        if value.type.rank == 4:  # colours are told apart by what they are, not by where they stand
            special.update((leaf, "index") for leaf in axes.values[value][1].leaves())
    for value in graph.outputs:
        if value.type.rank:
            special.update((leaf, "label") for leaf in axes.values[value][-1].leaves())
    plans = []
    seen: set[str] = set()
    for node in graph.walk():
        for role, parameter in node.weights.items():
            if parameter.name not in seen:
                seen.add(parameter.name)
                plans.append(_plan(node, role, parameter, axes, special))
    return plans


def _plan(node: Node, role: str, parameter: Parameter, axes: Axes, special: dict[AxisVar, Kind]) -> WeightPlan:
    shape, init = parameter.shape, parameter.init
    variables = axes.parameters[parameter]
    if not parameter.type.dtype.startswith(("f", "bf")):
        raise fail(
            "E0820",
            f"no metanetwork predicts the {role} of `{node.op.name}`",
            node.span,
            label=f"`{parameter.name}` is {parameter.type}",
            help="predict the weights of the net as it was before it was quantised",
        )
    table = node.op.name == "embedding"
    pieces = [_pieces(var, special, table and i == 0) for i, var in enumerate(variables)]
    slots = (
        pieces[0] if pieces else (Piece(()),),
        pieces[1] if len(pieces) > 1 else (Piece(()),),
        _product(pieces[2:]),
    )
    if not parameter.trainable:
        rule: Literal["matrix", "offset", "kept"] = "kept"
    elif init.kind in ("constant", "values") or len(shape) < 2:
        rule = "offset"
    else:
        rule = "matrix"
    base = init.a if init.kind == "constant" else 0.0
    return WeightPlan(
        parameter.name, shape, rule, _scale(parameter) if rule == "matrix" else 1.0, base, slots, parameter
    )


def _scale(parameter: Parameter) -> float:
    """The deviation that keeps the size of what passes through: that of the initial values, but that torch's uniform
    ones are a third of the variance."""
    return max(parameter.init.a, 1e-3)


def _pieces(var: AxisVar, special: dict[AxisVar, Kind], table: bool) -> tuple[Piece, ...]:
    """The pieces of one axis: one, or those of a sum."""
    root = var.find()
    parts = list(_summands(root))
    found: list[Piece] = []
    before = 0
    for number, part in enumerate(parts):
        factors = []
        leaves = list(part.leaves())
        for leaf in leaves:
            assert isinstance(leaf.size, int), "a weight has sizes that are numbers"
            factors.append(Factor(_kind(leaf, special, table, len(leaves) > 1), leaf.size, number, before))
        if not factors and len(parts) > 1:  # a single element, as the class token before the others
            factors.append(Factor("index", 1, number, before))
        piece = Piece(tuple(_merged(factors)))
        found.append(piece)
        before += piece.size
    return tuple(found)


def _summands(var: AxisVar) -> Iterable[AxisVar]:
    root = var.find()
    if root.kind == "sum":
        for part in root.parts:
            yield from _summands(part)
    elif root.kind == "product" and any(p.find().kind == "sum" for p in root.parts):
        yield AxisVar(root.size)  # a product with a sum inside: elements by their number
    else:
        yield root


def _kind(leaf: AxisVar, special: dict[AxisVar, Kind], table: bool, inner: bool) -> Kind:
    if leaf in special:
        return special[leaf]
    if leaf.pin is None or table:
        return "index"
    assert isinstance(leaf.size, int)
    return "grid" if inner or leaf.size <= MAX_GRID else "index"


def _merged(factors: list[Factor]) -> list[Factor]:
    """Neighbouring indices as one: a channel of a head is counted over all heads."""
    found: list[Factor] = []
    for factor in factors:
        if found and factor.kind == found[-1].kind == "index":
            factor = Factor("index", found.pop().size * factor.size, factor.part, factor.start)
        found.append(factor)
    return found


def _product(axes: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """Several axes as one; where one of them is a sum, its elements go by their number."""
    factors: list[Factor] = []
    for pieces in axes:
        if len(pieces) == 1:
            factors += pieces[0].factors
        else:
            factors.append(Factor("index", sum(p.size for p in pieces)))
    return (Piece(tuple(factors)),)
