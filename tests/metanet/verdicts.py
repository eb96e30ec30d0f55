"""The derived group of a network held against the permutations that computing alone finds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from brute import Function, GaveUp, Search, active, axis_space, entry_space

from archc.grammar.load import loads
from archc.ir.axes import Axes
from archc.ir.graph import Graph
from archc.metanet.symmetry import group


@dataclass(frozen=True)
class Verdict:
    """Orders: of the derived classes and of the derived exchanges, and what was counted.

    entries   permutations of the numbers inside each parameter
    axes      permutations of the positions of each axis (the same beside all other places)
    exchanged the same with exchanges of whole layers
    constant  the outputs are the same for all inputs: what can be permuted then is no matter of axes
    partly    parameters of which some numbers, but not all, have no influence on these inputs: nothing can be said
    """

    classes: int
    exchanges: int
    entries: int
    axes: int
    exchanged: int
    partly: tuple[str, ...]
    constant: bool = False
    gave_up: bool = False

    @property
    def decided(self) -> bool:
        return not (self.partly or self.constant or self.gave_up)

    @property
    def level(self) -> str:
        """Where the derived order equals the counted one: among all permutations of numbers ("entries"), or among
        those of whole axes ("axes"); empty where it does not."""
        if self.exchanged != self.axes * self.exchanges:
            return ""
        return "entries" if self.entries == self.classes else "axes" if self.axes == self.classes else ""


def active_order(axes: Axes, alive: set[str]) -> tuple[int, int]:
    """The orders of classes and exchanges that move a parameter which does something."""
    classes = math.prod(
        math.factorial(c.size) ** c.copies for c in axes.classes if any(m.parameter in alive for m in c.members)
    )
    return classes, math.prod(math.factorial(e.size) for e in axes.exchanges)


def judge(graph: Graph, seed: int) -> Verdict:
    function = Function(graph, seed)
    alive = active(function, seed)
    parts = np.split(alive, np.cumsum(function.sizes)[:-1])
    partly = tuple(p.name for p, part in zip(function.parameters, parts, strict=True) if part.any() and not part.all())
    names = {p.name for p, part in zip(function.parameters, parts, strict=True) if part.any()}
    classes, exchanges = active_order(group(graph), names)
    if partly or function.constant(seed):
        return Verdict(classes, exchanges, 0, 0, 0, partly, constant=not partly)
    spaces = entry_space(graph, alive), axis_space(graph, alive, exchange=False), axis_space(graph, alive)
    try:
        orders = [Search(function, space, seed).order()[0] for space in spaces]
    except GaveUp:
        return Verdict(classes, exchanges, 0, 0, 0, (), gave_up=True)
    return Verdict(classes, exchanges, *orders, ())


def judge_text(text: str, seed: int) -> Verdict:
    return judge(loads(text), seed)
