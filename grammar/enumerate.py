"""How large a space is, and what is in it.

`count` counts the derivations of a space's grammar without making them: exactly, with big integers, or by their
logarithm where the number has too many digits to be written. What does not fit its place is counted, too, so it is a
bound on the number of architectures, which `listing` lists: every derivation that fits, in a fixed order. That is for
small spaces.

>>> from archc.grammar.draw import read_space
>>> space = read_space('''
... space tiny()
... input  x: f32[N, 4]
... output y: f32[N, 4]
... rule Body = relu | linear(choose { 4 | 8 }) -> relu | conv(4, kernel = 3)
... y = x -> Body -> linear(4)
... ''')
>>> str(count(space)), len(list(listing(space)))
('4', 3)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from archc.grammar.choices import Choices, Decision, Grid, Production
from archc.grammar.draw import Space
from archc.grammar.drawer import Drawer, Unfit
from archc.grammar.load import room_to_recurse
from archc.grammar.program import Program
from archc.grammar.scope import Env
from archc.grammar.syntax import (
    Alternative,
    Bind,
    Call,
    Choose,
    Def,
    Expr,
    If,
    Let,
    Node,
    Range,
    Ref,
    Repeat,
    Rule,
    Share,
    children,
    walk,
)
from archc.ir.diagnostics import CompileError, fail
from archc.ir.graph import Graph

DEEPEST = 1000
"""Rules within rules that are followed; a grammar that goes on behind that is taken for endless."""
MOST_DIGITS = 4000
"""Longer numbers are known by their logarithm alone."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of derivations: `exact`, or None where it is too long or infinite; `log10` is then inf.

    >>> str(Count.of(1024)), str(Count.of(10) ** 5000), str(ENDLESS)
    ('1,024', 'about 10^5000', 'endless')
    """

    exact: int | None
    log10: float

    @staticmethod
    def of(number: int) -> Count:
        return Count(number, math.log10(number) if number else -math.inf)

    def __add__(self, other: Count) -> Count:
        if self.exact is not None and other.exact is not None:
            return Count.of(self.exact + other.exact)
        high, low = max(self.log10, other.log10), min(self.log10, other.log10)
        return Count(None, high if math.isinf(high) else high + math.log10(1 + 10 ** (low - high)))

    def __mul__(self, other: Count) -> Count:
        if 0 in (self.exact, other.exact):
            return NONE
        log10 = self.log10 + other.log10
        if self.exact is not None and other.exact is not None and log10 < MOST_DIGITS:
            return Count.of(self.exact * other.exact)
        return Count(None, log10)

    def __pow__(self, times: int) -> Count:
        if self.exact is not None and self.log10 * times < MOST_DIGITS:
            return Count.of(self.exact**times)
        return Count(None, self.log10 * times) if times else ONE

    def __str__(self) -> str:
        if self.exact is not None and self.log10 < 30:
            return f"{self.exact:,}"
        return "endless" if math.isinf(self.log10) else f"about 10^{self.log10:.0f}"


NONE, ONE, ENDLESS = Count.of(0), Count.of(1), Count(None, math.inf)


def count(space: Space) -> Count:
    """How many derivations the grammar of a space has, whether they fit or not. Guards on `depth` are heeded, others
    are taken as open. A definition that is handed over as an argument counts once, however often it is used.
    """
    return _Counter(space).total()


@dataclass(frozen=True)
class Derivation:
    """An architecture by its choices. `probability` is that of the weights of its choices alone, not knowing which of
    them fit: those of all that fit need not sum to 1."""

    graph: Graph
    trace: dict[str, Production]
    probability: float


def listing(space: Space, limit: int | None = None) -> Iterator[Derivation]:
    """All derivations that fit, in a fixed order: the first choice changes last. Architectures may come twice, derived
    in two ways; they have one canonical hash.

    Raises: CompileError (E0717) at a `range` without a step, and after `limit` derivations were tried.
    """
    ahead: list[Production] = []
    tried = 0
    while True:
        tried += 1
        if limit is not None and tried > limit:
            raise fail("E0717", f"space `{space.name}` is too large to be listed", space.syntax.span,
                       label=f"{limit:,} derivations were tried")  # fmt: skip
        walk = _Walk(ahead)
        drawer = Drawer(space.limits, walk)
        drawer.program = Program(space.syntax, space.values, space.dims, space.limits, drawer)
        drawer.program.is_resolved = True
        with suppress(Unfit):
            try:
                with room_to_recurse():
                    drawer.program.check()
            except _Continuous:
                raise fail("E0717", f"space `{space.name}` has a `range` without a step: its values are no list",
                           help="give it one: `step = 0.1`") from None  # fmt: skip
            if not drawer.sink.has_errors:
                yield Derivation(drawer.program.graph, walk.trace, walk.probability)
        following = walk.following()
        if following is None:
            return
        ahead = following


class _Walk(Choices):
    """Takes what is laid out ahead, then always the first production."""

    def __init__(self, ahead: Sequence[Production]) -> None:
        super().__init__("")
        self._ahead = ahead
        self._options: list[Sequence[Production]] = []
        self.probability = 1.0

    def among(self, path: str, weights: Mapping[int, float]) -> int:
        if path not in self.made:
            number = self._take(path, sorted(weights))
            self.probability *= weights[int(number)] / sum(weights.values())
        return int(self.made[path].chosen)

    def number(self, path: str, grid: Grid) -> int | float:
        if path not in self.made:
            options = grid_values(grid)
            if options is None:
                raise _Continuous
            self._take(path, options)
            self.probability /= len(options)
        return self.made[path].chosen

    def _take(self, path: str, options: Sequence[Production]) -> Production:
        at = len(self._options)
        chosen = self._ahead[at] if at < len(self._ahead) else options[0]
        self._options.append(options)
        self.made[path] = Decision(path, chosen)
        return chosen

    def following(self) -> list[Production] | None:
        """The choices of the next derivation: the last one that can, moves on. What failed before its end is passed
        over with all that begins like it."""
        taken = [d.chosen for d in self.made.values()]
        for i in reversed(range(len(taken))):
            options = self._options[i]
            at = options.index(taken[i]) + 1
            if at < len(options):
                return [*taken[:i], options[at]]
        return None


class _Continuous(Exception):
    """A `range` without a step."""


def grid_values(grid: Grid) -> list[Production] | None:
    """The values of a `range`; None where it is continuous.

    >>> grid_values(Grid(8, 32, 8, False)), grid_values(Grid(0.1, 0.5, None, True))
    ([8, 16, 24, 32], None)
    """
    if grid.step is None:
        return [grid.low] if grid.low == grid.high else None
    return [grid.low + i * grid.step for i in range(math.floor((grid.high - grid.low) / grid.step + 1e-9) + 1)]


class _Counter:
    """Counts the derivations of expressions."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.items = {i.name.text: i for i in space.syntax.items if isinstance(i, Def | Rule)}
        self.below: dict[str, Count] = {}
        """Those of each rule one level further down."""
        self.depth = 0
        self._definitions: dict[str, Count] = {}

    def total(self) -> Count:
        rules = [i for i in self.space.syntax.items if isinstance(i, Rule)]
        guards = [a.guard for r in rules for n in walk(r) if isinstance(n, Rule | Choose) for a in n.alternatives]
        self.below = {r.name.text: ENDLESS for r in rules}
        before: Any = None
        for self.depth in reversed(range(DEEPEST)):
            state = [self.is_open(g) for g in guards], self.below
            if state != before:
                self._definitions.clear()
                self.below = {r.name.text: self.choice(r.alternatives) for r in rules}
            before = state
        self.depth = -1
        self._definitions.clear()
        return _product(self.of(i.value) for i in self.space.syntax.items if isinstance(i, Bind | Let | Share))

    def choice(self, alternatives: Sequence[Alternative]) -> Count:
        found = NONE
        for a in alternatives:
            if (a.weight is None or a.weight.value > 0) and self.is_open(a.guard):
                found = found + self.of(a.body)
        return found

    def is_open(self, guard: Expr | None) -> bool:
        return guard is None or self.value(guard, True) is not False

    def of(self, node: Node) -> Count:
        if isinstance(node, Ref):
            item = self.items.get(node.name)
            if isinstance(item, Rule):
                return self.below[node.name]
            return self.definition(item) if item is not None else ONE
        if isinstance(node, Choose):
            return self.choice(node.alternatives)
        if isinstance(node, Range):
            values = self._values(node)
            return ENDLESS if values is None else Count.of(len(values))
        if isinstance(node, If):
            condition = self.value(node.condition, None)
            ways = ((node.consequent, condition is not False), (node.alternative, condition is not True))
            return self.of(node.condition) * max((self.of(n) for n, open_ in ways if open_), key=lambda c: c.log10)
        if isinstance(node, Repeat) and node.index is not None and node.arguments:
            body, found = self.of(node.body), NONE
            for times, derived in self.numbers(node.arguments[0]):
                found = found + derived * body**times
            return found
        if isinstance(node, Call) and isinstance(node.callee, Ref):
            return self.of(node.callee) * _product(map(self.of, (*node.arguments, *node.keywords)))
        return _product(map(self.of, children(node)))

    def definition(self, item: Def) -> Count:
        name = item.name.text
        if name not in self._definitions:
            self._definitions[name] = self.of(item.body)
        return self._definitions[name]

    def _values(self, node: Range) -> list[Production] | None:
        """The values of a `range`; None where they are not known, or too many for a list."""
        given = dict(zip(("low", "high"), node.arguments, strict=False)) | {k.name.text: k.value for k in node.keywords}
        low, high, step = (self.value(given[n], None) if n in given else None for n in ("low", "high", "step"))
        if low is None or high is None:
            return None
        if step is None and type(low) is type(high) is int:
            step = 1
        return grid_values(Grid(low, high, step, False))

    def numbers(self, node: Expr) -> list[tuple[int, Count]]:
        """The whole numbers that an expression can come to, each with the number of derivations that lead there."""
        rule = self.items.get(node.name) if isinstance(node, Ref) else node
        if isinstance(rule, Rule | Choose):
            return [n for a in rule.alternatives if self.is_open(a.guard) for n in self.numbers(a.body)]
        if isinstance(node, Range) and (values := self._values(node)) is not None:
            return [(int(v), ONE) for v in values]
        value = self.value(node, 1)
        return [(value if type(value) is int else 1, self.of(node))]

    def value(self, expr: Expr, unknown: Any) -> Any:
        """What an expression of the space's parameters and `depth` comes to; `unknown` where it has other names."""
        program = self._parameters
        try:
            return program.e.evaluate(expr, Env(program.env, {"depth": self.depth}), program.root)
        except CompileError:
            return unknown

    @cached_property
    def _parameters(self) -> Program:
        """The space without its items."""
        known = {f.name.text for f in self.space.syntax.formals}
        syntax = replace(self.space.syntax, kind="library", items=())
        program = Program(syntax, {k: v for k, v in (self.space.values or {}).items() if k in known}, None)
        program.check()
        return program


def _product(counts: Iterator[Count]) -> Count:
    found = ONE
    for one in counts:
        found = found * one
    return found


__all__ = ["ENDLESS", "Count", "Derivation", "count", "grid_values", "listing"]
