"""Choice points: an elaborator that draws where an `arch` would have one value.

A mention of a rule, a `choose` or a `range` is a *choice*. It has a path: the choices around it with their productions,
then its own name, numbered where the same production mentions it again.

    Body:1/Layer                the rule `Layer` in production 1 of the outermost `Body`
    Body:1/Layer:0/choose#1     the second `choose` inside production 0 of that

What is chosen depends on (key, path) alone: random numbers are a hash of both, so that a choice is the same in whatever
order and however often the rest is drawn. A choice of modules waits for the tensor that it is fed with; a choice of
values is made where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import shake_128
from typing import TYPE_CHECKING, Any, TypeAlias

from archc.grammar.calls import Argument, Arguments, bind_formals
from archc.grammar.constructs import CONSTRUCTS, Construct
from archc.grammar.elaborate import Elaborator
from archc.grammar.limits import Limits
from archc.grammar.modules import OpRef, seen_from
from archc.grammar.requirements import QUANTITIES, measure
from archc.grammar.scope import MISSING, Definition, Env, Pending, RuleEntry
from archc.grammar.signatures import Signed
from archc.grammar.syntax import (
    Alternative,
    Call,
    Choose,
    Def,
    Expr,
    Fn,
    If,
    Node,
    Pipe,
    Range,
    Ref,
    Repeat,
    Signature,
    walk,
)
from archc.grammar.values import Bundle, Module, Place, Result, Tensor, describe, is_number
from archc.ir.diagnostics import CompileError, Span, fail
from archc.ir.graph import Graph

if TYPE_CHECKING:
    from archc.grammar.counting import Counter

Production: TypeAlias = int | float
"""What a choice came to: the number of an alternative, or the value of a `range`."""

RANGE_TRIES = 8
"""Values of one `range` that are tried when its first does not fit."""
PATIENCE = 10
"""Failures in one production before the production itself is given up."""


def uniform(key: str, path: str, count: int) -> list[float]:
    """Numbers in (0, 1) that depend on their arguments alone.

    >>> uniform("0", "Body", 2) == uniform("0", "Body", 3)[:2], uniform("0", "Body", 1) == uniform("0", "Tail", 1)
    (True, False)
    """
    words = shake_128(f"{key}|{path}".encode()).digest(8 * count)
    return [(int.from_bytes(words[i : i + 8], "little") + 0.5) / 2**64 for i in range(0, 8 * count, 8)]


def race(weights: Mapping[int, float], key: str, path: str) -> list[int]:
    """The keys of `weights` in random order: each next one is drawn by weight from those that are left.

    Exponential clocks of these rates ring in that order (Efraimidis & Spirakis 2006).
    """
    clocks = uniform(key, path, 1 + max(weights, default=-1))
    return sorted(weights, key=lambda i: -math.log(clocks[i]) / weights[i])


@dataclass(slots=True)
class Decision:
    """A choice that was made: `option(k)` is what it falls back to after k failures, for k below `count`."""

    path: str
    count: int
    option: Callable[[int], Production]
    chosen: Production


@dataclass(slots=True)
class _Failure:
    """A failure, the decisions that led to it, and which of them has been varied how often since."""

    what: Any
    fallbacks: dict[str, int]
    decisions: list[Decision]
    cursor: int
    step: int = 1


@dataclass(slots=True)
class Choices:
    """The decisions of one draw, over all attempts. `given` holds those that are asked for, by path."""

    key: str
    given: Mapping[str, Production] = field(default_factory=dict)
    made: dict[str, Decision] = field(default_factory=dict)
    """Those of this attempt, in the order in which they were made."""
    _fallbacks: dict[str, int] = field(default_factory=dict)
    _failure: _Failure | None = None
    _failures: dict[str, int] = field(default_factory=dict)

    @property
    def trace(self) -> dict[str, Production]:
        return {path: decision.chosen for path, decision in self.made.items()}

    def among(self, path: str, weights: Mapping[int, float]) -> int:
        """One of the alternatives, by weight."""

        def order() -> tuple[int, Callable[[int], Production]]:
            first = self.given.get(path)
            ranked = race(weights, self.key, path)
            if first in weights:
                ranked = [int(first), *(i for i in ranked if i != first)]  # type: ignore[arg-type]
            return len(ranked), ranked.__getitem__

        return int(self._decide(path, order))

    def number(self, path: str, at: Callable[[float], int | float], low: float, high: float) -> int | float:
        """The number of a `range` at a random place between its ends."""

        def order() -> tuple[int, Callable[[int], Production]]:
            places = uniform(self.key, path, RANGE_TRIES)
            options = list(dict.fromkeys(map(at, places)))
            first = self.given.get(path)
            if first is not None and low <= first <= high:
                options = [first, *(o for o in options if o != first)]
            return len(options), options.__getitem__

        return self._decide(path, order)

    def _decide(self, path: str, order: Callable[[], tuple[int, Callable[[int], Production]]]) -> Production:
        if path not in self.made:
            count, option = order()
            self.made[path] = Decision(path, count, option, option(min(self._fallbacks.get(path, 0), count - 1)))
        return self.made[path].chosen

    def revise(self, what: Any, place: str | None) -> bool:
        """Change the nearest decision that may be to blame for a failure, and leave the others; False if none is left.

        `what` tells failures apart. A decision whose change leads to the very same failure had no part in it: it is put
        back as it was, and the one before it is tried. `place` is the path of the innermost choice in whose production
        it happened: when that has failed often, the choice falls back itself, and so outwards.
        """
        if self._failure is None or self._failure.what != what:
            self._failure = _Failure(what, self._fallbacks, list(self.made.values()), len(self.made) - 1)
        failure = self._failure
        self.made = {}
        return self._give_up(place, failure) or self._sweep(failure)

    def _give_up(self, place: str | None, failure: _Failure) -> bool:
        """Let a choice fall back whose production fails again and again, or the choice around it."""
        order = [d.path for d in failure.decisions]
        while place in order:
            self._failures[place] = self._failures.get(place, 0) + 1
            if self._failures[place] < PATIENCE:
                return False
            at = order.index(place)
            if self._fall_back(failure, at, 1):
                self._failures = {p: n for p, n in self._failures.items() if not p.startswith(place)}
                self._failure = None
                return True
            place = place.rpartition("/")[0].rpartition(":")[0]
        return False

    def _sweep(self, failure: _Failure) -> bool:
        while failure.decisions:
            if failure.cursor < 0:
                failure.step += 1
                failure.cursor = len(failure.decisions) - 1
                if all(failure.fallbacks.get(d.path, 0) + failure.step >= d.count for d in failure.decisions):
                    return False
            failure.cursor -= 1
            if self._fall_back(failure, failure.cursor + 1, failure.step):
                return True
        return False

    def _fall_back(self, failure: _Failure, at: int, step: int) -> bool:
        """Let one of the decisions take a later option; those made after it are made again."""
        decision = failure.decisions[at]
        fallback = failure.fallbacks.get(decision.path, 0) + step
        if fallback >= decision.count:
            return False
        kept = {d.path for d in failure.decisions[:at]}
        self._fallbacks = {p: k for p, k in failure.fallbacks.items() if p in kept} | {decision.path: fallback}
        return True


@dataclass(slots=True)
class _Inside:
    """The production being drawn: its path, the rules open around it, the mentions counted in it."""

    path: str = ""
    depth: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def child(self, name: str) -> str:
        count = self.counts.get(name, 0)
        self.counts[name] = count + 1
        return f"{self.path}{name}#{count}" if count else f"{self.path}{name}"


@dataclass(frozen=True, slots=True, eq=False)
class Choice(Module):
    """A choice of modules, made when it is first applied; applied again, it is the same."""

    name: str
    path: str
    alternatives: tuple[Alternative, ...]
    env: Env
    depth: int
    is_rule: bool
    signature: Signature | None
    span: Span

    @property
    def title(self) -> str:
        return self.name

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        assert isinstance(e, Drawer)
        return e.inside(self, lambda body: self._apply(body, e, inputs, at))

    def _apply(self, body: Expr, e: Elaborator, inputs: tuple[Tensor, ...], at: Place) -> Result:
        module: Module
        if self.signature is not None:
            syntax = Def(_Named(self.name), None, self.signature, body, body.span)  # type: ignore[arg-type]
            module = Signed(Definition(syntax, self.env), self.env)
        else:
            value = e.evaluate(body, self.env, at, wants_module=True)
            module = e.need_module(value, body.span, body)
        return e.apply(module, inputs, at, body.span)

    def count(self, c: Counter) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class _Named:
    text: str


class Unfit(Exception):
    """The first mistake of an attempt: nothing is worth finding behind it."""

    def __init__(self, error: CompileError) -> None:
        super().__init__(str(error))
        self.error = error


class Drawer(Elaborator):
    """Elaborates a space, drawing on the way. `bounds` are upper limits known before the end, by quantity."""

    def __init__(self, limits: Limits, choices: Choices) -> None:
        super().__init__(limits)
        self.choices = choices
        self.bounds: dict[str, tuple[float, CompileError]] = {}
        self.graph: Graph | None = None
        self.failed: str | None = None  # the innermost choice in whose production a mistake was made
        self._inside = _Inside()

    def report(self, error: CompileError, at: Place) -> None:
        for use in at.trace:
            error = seen_from(error, use)
        raise Unfit(error)

    def count(self, module: Module) -> int:
        self.counter.choices_open = True
        return super().count(module)

    def call_definition(self, definition: Definition, arguments: Arguments, at: Place) -> Any:
        """Fresh at every use: what it mentions is drawn again."""
        self.memo_space = object()  # type: ignore[assignment]  # nothing is found again under this
        return super().call_definition(definition, arguments, at)

    # Mentions

    def meaning(self, expr: Ref, env: Env, at: Place) -> Any:
        rule = env.look_up(expr.name)
        if not isinstance(rule, RuleEntry):
            return super().meaning(expr, env, at)
        formals = rule.syntax.formals
        if formals is None:
            return self._mention_rule(rule, rule.env, at, expr.span)

        def called(e: Elaborator, arguments: Arguments, at: Place) -> Any:
            bound = bind_formals(expr.name, formals, arguments, also=())
            inner = Env(rule.env)
            for formal in formals:
                given: Argument | None = bound.get(formal.name.text)
                default = formal.default
                inner.names[formal.name.text] = (
                    given.value if given is not None or default is None else self.evaluate(default, inner, at)
                )  # type: ignore[union-attr]
            return self._mention_rule(rule, inner, at, arguments.span)

        return Construct(expr.name, "a rule", formals, called)

    def _mention_rule(self, rule: RuleEntry, env: Env, at: Place, span: Span) -> Any:
        syntax = rule.syntax
        return self._mention(syntax.name.text, syntax.alternatives, env, at, span, True, syntax.signature)

    def choice(self, expr: Choose | Range, env: Env, at: Place) -> Any:
        if isinstance(expr, Range):
            return self._range(expr, env, at)
        return self._mention("choose", expr.alternatives, env, at, expr.span, False, None)

    def _mention(
        self,
        name: str,
        alternatives: tuple[Alternative, ...],
        env: Env,
        at: Place,
        span: Span,
        is_rule: bool,
        signature: Signature | None,
    ) -> Any:
        inside = self._inside
        choice = Choice(name, inside.child(name), alternatives, env, inside.depth, is_rule, signature, span)
        if all(makes_module(a.body, env) for a in alternatives):
            return choice
        return self.inside(choice, lambda body: self.evaluate(body, env, at, wants_module=True))

    def inside(self, choice: Choice, action: Callable[[Expr], Any]) -> Any:
        """Make a choice, and do something with its production, inside it."""
        number = self.choices.among(choice.path, self._open(choice))
        outer = self._inside
        self._inside = _Inside(f"{choice.path}:{number}/", choice.depth + choice.is_rule)
        try:
            return action(choice.alternatives[number].body)
        except (CompileError, Unfit) as error:
            self.failed = self.failed or choice.path
            raise seen_from(error, choice.span) if isinstance(error, CompileError) else error from None
        finally:
            self._inside = outer

    def _open(self, choice: Choice) -> dict[int, float]:
        """The weights of the alternatives that may be taken here.

        Raises: CompileError (E0706) when there is none.
        """
        weights: dict[int, float] = {}
        for i, alternative in enumerate(choice.alternatives):
            weight = 1.0 if alternative.weight is None else float(alternative.weight.value)
            if weight > 0 and (alternative.guard is None or self._allows(alternative.guard, choice)):
                weights[i] = weight
        if not weights:
            raise fail("E0706", f"no alternative of `{choice.name}` is open here", choice.span,
                       label=f"at depth {choice.depth}")  # fmt: skip
        return weights

    def _allows(self, guard: Expr, choice: Choice) -> bool:
        names = {n.name for n in walk(guard) if isinstance(n, Ref)}
        known: dict[str, Any] = {"depth": choice.depth}
        if self.graph is not None:
            known = measure(self.graph, names - {"depth"}) | known  # of what stands so far
        value = self.evaluate(guard, Env(choice.env, known), Place(None, None))  # type: ignore[arg-type]
        return self._truth(value, guard)

    def _range(self, expr: Range, env: Env, at: Place) -> int | float:
        positional = tuple([Argument(self.evaluate(a, env, at), a.span) for a in expr.arguments])
        keywords = {k.name.text: Argument(self.evaluate(k.value, env, at), k.value.span) for k in expr.keywords}
        bound = bind_formals("range", _RANGE.formals, Arguments(positional, keywords, expr.span), also=())
        for name in ("low", "high", "step"):
            if name in bound and not is_number(bound[name].value):
                raise fail("E0205", f"`range` needs a number for `{name}`", bound[name].span,
                           label=f"found {describe(bound[name].value)}")  # fmt: skip
        low, high = bound["low"].value, bound["high"].value
        log = "log" in bound and bound["log"].value is True
        step = bound["step"].value if "step" in bound else 1 if type(low) is type(high) is int else None
        if not low <= high or (log and low <= 0) or (step is not None and step <= 0):
            raise fail("E0205", "`range` needs its smaller end first, a step above 0, and ends above 0 when `log`",
                       expr.span)  # fmt: skip
        return self.choices.number(self._inside.child("range"), Grid(low, high, step, log), low, high)


@dataclass(frozen=True, slots=True)
class Grid:
    """`range`: from a place in (0, 1) to a number.

    >>> Grid(8, 32, 8, False)(0.99), Grid(1, 100, None, True)(0.5), Grid(1, 6, 1, False)(0.01)
    (32, 10.0, 1)
    """

    low: int | float
    high: int | float
    step: int | float | None
    log: bool

    def __call__(self, place: float) -> int | float:
        low, high, step = self.low, self.high, self.step
        if step is None:
            value = low * (high / low) ** place if self.log else low + (high - low) * place
            return min(max(float(f"{value:.4g}"), float(low)), float(high))
        count = math.floor((high - low) / step + 1e-9) + 1
        if self.log:  # grid points share the logarithmic scale from half a step below to half a step above
            first, last = max(low - step / 2, low / 2), low + (count - 0.5) * step
            number = round((first * (last / first) ** place - low) / step)
            return low + min(max(number, 0), count - 1) * step
        return low + min(int(place * count), count - 1) * step


def _formals(*names: str, **defaults: Any) -> Construct:
    from archc.grammar.constructs import _formals

    return Construct("range", "", _formals(**dict.fromkeys(names, ...), **defaults), lambda *_: None)


_RANGE = _formals("low", "high", step=None, log=None)


def makes_module(node: Node, env: Env, seen: frozenset[str] = frozenset()) -> bool:
    """Is an expression seen to be a module, before it is evaluated? Where it is not, it is drawn as a value, at once.

    `seen` are the definitions and rules that are looked into.
    """
    if isinstance(node, Fn | Repeat):
        return True
    if isinstance(node, If):
        return makes_module(node.consequent, env, seen) and makes_module(node.alternative, env, seen)
    if isinstance(node, Choose):
        return all(makes_module(a.body, env, seen) for a in node.alternatives)
    if isinstance(node, Pipe):
        first = node.stages[0]
        return not isinstance(first, Ref) or not isinstance(env.look_up(first.name), Tensor | Bundle | Pending)
    if isinstance(node, Call):
        if any(isinstance(a, Ref) and isinstance(env.look_up(a.name), Tensor | Bundle) for a in node.arguments):
            return False
        return makes_module(node.callee, env, seen)
    if not isinstance(node, Ref) or node.name == "copies":
        return False
    found = env.look_up(node.name)
    if isinstance(found, Definition | RuleEntry):
        if node.name in seen:
            return True
        bodies: Sequence[Node] = (
            (found.syntax.body,) if isinstance(found, Definition) else [a.body for a in found.syntax.alternatives]
        )
        return all(makes_module(b, found.env, seen | {node.name}) for b in bodies)
    return isinstance(found, Module | OpRef) or (found is MISSING and node.name not in _VALUES)


_VALUES = frozenset(QUANTITIES) | (frozenset({"copies"}) & CONSTRUCTS.keys())
