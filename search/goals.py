"""What a search is after: objectives, and constraints that a candidate must meet.

>>> goal = parse_objective("latency_ms:min@cpu")
>>> goal.name, goal.larger_is_better, goal.target, str(goal)
('latency_ms', False, 'cpu', 'latency_ms:min@cpu')
>>> limit = parse_constraint("params < 500k")
>>> limit.holds({"params": 4e5}), limit.holds({"params": 6e5})
(True, False)
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from archc.ir.diagnostics import fail
from archc.search.records import Record, Result

_OBJECTIVE = re.compile(r"(?P<name>[a-z]\w*)(:(?P<way>max|min))?(@(?P<target>.+))?")
_CONSTRAINT = re.compile(
    r"(?P<name>[a-z]\w*)(@(?P<target>[\w:.+-]+))?\s*(?P<operator><=|<|>=|>)\s*"
    r"(?P<bound>[\d.]+(e[+-]?\d+)?)(?P<unit>[kKMG]?)"
)
_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Objective(Record):
    """One quantity that is to be large or small; `target` is where it is measured, when that matters."""

    name: str
    larger_is_better: bool
    target: str | None = None

    @property
    def key(self) -> str:
        """Its name among the values of a result."""
        return self.name if self.target is None else f"{self.name}@{self.target}"

    def __str__(self) -> str:
        way = "max" if self.larger_is_better else "min"
        return f"{self.name}:{way}" + (f"@{self.target}" if self.target else "")


class Constraint(Record):
    """A bound on a quantity. What does not meet it is infeasible."""

    name: str
    operator: Literal["<", "<=", ">", ">="]
    bound: float
    target: str | None = None

    @property
    def key(self) -> str:
        return self.name if self.target is None else f"{self.name}@{self.target}"

    def holds(self, values: Mapping[str, float]) -> bool:
        return _COMPARE[self.operator](values[self.key], self.bound)

    def __str__(self) -> str:
        return f"{self.key} {self.operator} {self.bound:g}"


class Goals(Record):
    """The objectives, the first of which decides where one is needed, and the constraints."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    def losses(self, result: Result) -> tuple[float, ...]:
        """The objectives' values, each turned so that less is better; infinite for what is infeasible or not known."""
        if result.status == "infeasible":
            return (float("inf"),) * len(self.objectives)
        found = [(-1 if o.larger_is_better else 1) * result.values.get(o.key, float("nan")) for o in self.objectives]
        return tuple(float("inf") if math.isnan(value) else value for value in found)


def parse_objective(text: str) -> Objective:
    """`NAME[:max|min][@TARGET]`. Raises: CompileError (E0710)."""
    found = _OBJECTIVE.fullmatch(text.strip())
    if found is None:
        raise fail("E0710", f"`{text}` is no objective", help="write `accuracy:max`, or `latency_ms:min@cpu`")
    way = found["way"] or ("max" if found["name"] == "accuracy" else "min")
    return Objective(name=found["name"], larger_is_better=way == "max", target=found["target"])


def parse_constraint(text: str) -> Constraint:
    """`NAME[@TARGET] < BOUND`, with `k`, `M`, `G` for thousands. Raises: CompileError (E0710)."""
    found = _CONSTRAINT.fullmatch(text.strip())
    if found is None:
        raise fail("E0710", f"`{text}` is no constraint", help="write `params < 500k`, or `latency_ms@cpu < 2`")
    bound = float(found["bound"]) * _UNITS[found["unit"]]
    return Constraint(name=found["name"], operator=found["operator"], bound=bound, target=found["target"])


def parse_goals(objectives: Sequence[str], constraints: Sequence[str] = ()) -> Goals:
    return Goals(
        objectives=tuple(map(parse_objective, objectives)), constraints=tuple(map(parse_constraint, constraints))
    )
