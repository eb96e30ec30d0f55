"""Spaces: is every rule used, and does drawing from them end?

Drawing replaces a mention of a rule by one of its alternatives, which mentions rules again: a branching process. With
m_ij the expected number of mentions of rule j that one draw of rule i makes (copies counted, guards taken as open), it
ends with probability 1, after a finite expected number of draws, when the spectral radius of (m_ij) is below 1.
(Harris 1963, "The Theory of Branching Processes", chapter 2; subcritical stochastic grammars: Booth and Thompson 1973.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archc.grammar.syntax import (
    Alternative,
    Bind,
    Call,
    Choose,
    Def,
    If,
    Let,
    Node,
    Number,
    Program,
    Range,
    Ref,
    Repeat,
    Rule,
    Share,
    children,
)
from archc.ir.diagnostics import Diagnostic

Mentions = dict[str, float]


def lint_space(space: Program, values: Mapping[str, Any] | None = None) -> list[Diagnostic]:
    """Warnings: E0703 for a rule that nothing mentions, E0704 where drawing is expected to go on for ever."""
    analysis = _Analysis(space, values or {})
    rules = [item for item in space.items if isinstance(item, Rule)]
    reached = analysis.reachable()
    found = [
        Diagnostic("E0703", f"rule `{r.name.text}` is never used", r.name.span, severity="warning",
                   help="no output leads to it")
        for r in rules
        if r.name.text not in reached
    ]  # fmt: skip
    matrix = [[analysis.of_rule(r).get(other.name.text, 0.0) for other in rules] for r in rules]
    radius, worst = spectral_radius(matrix)
    if rules and radius >= 1 - 1e-9:
        rule = rules[worst]
        found.append(
            Diagnostic(
                "E0704",
                f"drawing from rule `{rule.name.text}` need not end: the spectral radius of the expected offspring is "
                f"{radius:.3g}, and should be below 1",
                rule.name.span,
                label=_growth([r.name.text for r in rules], matrix, worst),
                severity="warning",
                help="give more weight to alternatives that mention no rules",
            )
        )
    return found


def _growth(names: Sequence[str], matrix: Sequence[Sequence[float]], rule: int) -> str:
    """What one draw of a rule mentions that is the rule again, or leads back to it."""
    back = {rule}
    while True:
        more = {i for i, row in enumerate(matrix) if any(row[j] > 0 for j in back)} - back
        if not more:
            break
        back |= more
    mentions = [(name, times) for i, (name, times) in enumerate(zip(names, matrix[rule], strict=True))
                if times > 0 and i in back and i != rule]  # fmt: skip
    itself = f"itself {matrix[rule][rule]:.3g} times" if matrix[rule][rule] > 0 else ""
    if not mentions:
        return f"one draw mentions {itself} on average"
    others = ", ".join(f"`{name}` {times:.3g} times" for name, times in mentions)
    return f"one draw mentions {', '.join(filter(None, (itself, others)))} on average, and that leads back to it"


def spectral_radius(matrix: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The largest absolute eigenvalue of a non-negative matrix, and the index that contributes most to it.

    That is the largest product of the entries of the left and the right eigenvector: the sensitivity of the eigenvalue
    to the diagonal. Indices that only feed a growing part, or are only fed by it, contribute nothing.

    >>> spectral_radius([[0.5, 2.0], [0.0, 0.25]])
    (0.5, 0)
    """
    if not matrix:
        return 0.0, 0
    import numpy as np

    rows = np.asarray(matrix, dtype=np.float64)
    (values, right), (others, left) = np.linalg.eig(rows), np.linalg.eig(rows.T)
    largest = int(np.argmax(np.abs(values)))
    partner = int(np.argmin(np.abs(others - values[largest])))
    shares = np.abs(right[:, largest] * left[:, partner])
    return float(np.abs(values[largest])), int(np.argmax(shares))


class _Analysis:
    """Expected mentions of rules in expressions; definitions are looked through."""

    def __init__(self, space: Program, values: Mapping[str, Any]) -> None:
        self.space = space
        self.items = {item.name.text: item for item in space.items if isinstance(item, Def | Rule | Share)}
        self.numbers: dict[str, float] = {
            f.name.text: float(f.default.value) for f in space.formals if isinstance(f.default, Number)
        }
        self.numbers |= {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._definitions: dict[str, Mentions] = {}

    def of_rule(self, rule: Rule) -> Mentions:
        return self.choice(rule.alternatives)

    def choice(self, alternatives: Sequence[Alternative]) -> Mentions:
        weights = [float(a.weight.value) if a.weight is not None else 1.0 for a in alternatives]
        total = sum(weights) or 1.0
        mentions: Mentions = {}
        for alternative, weight in zip(alternatives, weights, strict=True):
            _add(mentions, self.of(alternative.body), weight / total)
        return mentions

    def of(self, node: Node) -> Mentions:
        """Expected mentions in an expression; its depth is that of its brackets."""
        mentions: Mentions = {}
        if isinstance(node, Ref):
            item = self.items.get(node.name)
            if isinstance(item, Rule):
                return {node.name: 1.0}
            return self.of_definition(node.name) if item is not None else {}
        if isinstance(node, Choose):
            return self.choice(node.alternatives)
        if isinstance(node, If):  # whichever makes more
            first, second = self.of(node.consequent), self.of(node.alternative)
            return {name: max(first.get(name, 0), second.get(name, 0)) for name in {*first, *second}}
        times = 1.0
        if isinstance(node, Repeat) and node.arguments:
            times = self.number(node.arguments[0])
        if isinstance(node, Call) and isinstance(node.callee, Ref):
            counted = [k.value for k in node.keywords if k.name.text == "n"] or node.arguments[:1]
            if node.callee.name in ("copies", "branch") and counted:
                times = self.number(counted[0])
        for child in children(node):
            _add(mentions, self.of(child), times)
        return mentions

    def of_definition(self, name: str) -> Mentions:
        if name not in self._definitions:
            self._definitions[name] = {}  # recursion is an error elsewhere
            item = self.items[name]
            body = item.body if isinstance(item, Def) else item.value if isinstance(item, Share) else None
            self._definitions[name] = self.of(body) if body is not None else {}
        return self._definitions[name]

    def number(self, node: Node) -> float:
        """The expected value of a count; 1 for what is no number, or is not known."""
        if isinstance(node, Number):
            return float(node.value)
        if isinstance(node, Ref):
            return self.numbers.get(node.name, 1.0)
        if isinstance(node, Choose):
            weights = [float(a.weight.value) if a.weight is not None else 1.0 for a in node.alternatives]
            values = [self.number(a.body) for a in node.alternatives]
            return sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) or 1.0)
        if isinstance(node, Range) and len(node.arguments) >= 2:
            return (self.number(node.arguments[0]) + self.number(node.arguments[1])) / 2
        return 1.0

    def reachable(self) -> set[str]:
        """The rules and definitions that the outputs lead to."""
        pending: list[Node] = [i.value for i in self.space.items if isinstance(i, Bind | Let)]
        found: set[str] = set()
        while pending:
            node = pending.pop()
            if isinstance(node, Ref) and node.name in self.items and node.name not in found:
                found.add(node.name)
                pending.append(self.items[node.name])
            pending += children(node)
        return found


def _add(total: Mentions, more: Mentions, times: float) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0.0) + times * count
