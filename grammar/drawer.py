"""An elaborator that draws where an `arch` would have one value.

A mention of a rule, a `choose` or a `range` is a choice; `choices.py` keeps the books. A choice of modules waits for
the tensor that it is fed with, so that what does not fit is found at once; a choice of values is made where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from archc.grammar.calls import Argument, Arguments, bind_formals
from archc.grammar.choices import Choices, Grid
from archc.grammar.constructs import Construct, formals_of
from archc.grammar.elaborate import Elaborator
from archc.grammar.limits import Limits
from archc.grammar.modules import seen_from
from archc.grammar.naming import Names, Scope
from archc.grammar.requirements import measure
from archc.grammar.scope import MISSING, Definition, Env, Pending, RuleEntry
from archc.grammar.signatures import Signed
from archc.grammar.syntax import (
    Alternative,
    Call,
    Choose,
    Def,
    Expr,
    Fn,
    Formal,
    If,
    Name,
    Node,
    Pipe,
    Range,
    Ref,
    Repeat,
    Signature,
    walk,
)
from archc.grammar.values import Bundle, Frame, Module, Place, Result, Tensor, describe, is_number
from archc.ir.diagnostics import CompileError, Span, fail
from archc.ir.graph import Graph

if TYPE_CHECKING:
    from archc.grammar.counting import Counter
    from archc.grammar.program import Program

RANGE = formals_of(low=..., high=..., step=None, log=None)


@dataclass(slots=True)
class _Inside:
    """The production being drawn: its path, the rules open around what it mentions, the mentions counted in it."""

    path: str = ""
    depth: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def child(self, name: str) -> str:
        """The path of the next mention of that name."""
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
        return e.choose(self, inputs, at)

    def fed(self, e: Elaborator, body: Expr, inputs: tuple[Tensor, ...], at: Place) -> Result:
        """The results of feeding `inputs` to a production."""
        if self.signature is None:
            value = e.evaluate(body, self.env, at, wants_module=True)
            return e.apply(e.need_module(value, body.span, body), inputs, at, body.span)
        syntax = Def(Name(self.name, self.span), None, self.signature, body, body.span)
        return e.apply(Signed(Definition(syntax, self.env), self.env), inputs, at, body.span)

    def count(self, c: Counter) -> int:
        return 1


class Unfit(Exception):
    """The first mistake of an attempt: nothing is worth finding behind it."""

    def __init__(self, error: CompileError) -> None:
        super().__init__(str(error))
        self.error = error


class Drawer(Elaborator):
    """Elaborates the space `program`, which is to be set, with `choices` for what it leaves open."""

    program: Program

    def __init__(self, limits: Limits, choices: Choices) -> None:
        super().__init__(limits)
        self.choices = choices
        self._inside = _Inside()
        self._nowhere = Place(Frame(Graph("")), Scope.root(Names()))

    def report(self, error: CompileError, at: Place) -> None:
        for use in at.trace:
            error = seen_from(error, use)
        raise Unfit(error)

    def count(self, module: Module) -> int:
        """Not known before the choices are made; the limit is met where nodes are."""
        return 0

    def call_definition(self, definition: Definition, arguments: Arguments, at: Place) -> Any:
        """Fresh at every use: what it mentions is drawn again."""
        definition.memo.clear()
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
            return self._mention_rule(rule, self._bound(formals, bound, rule.env, at), at, arguments.span)

        return Construct(expr.name, "a rule with arguments", formals, called)

    def _bound(self, formals: Sequence[Formal], given: dict[str, Argument], env: Env, at: Place) -> Env:
        inner = Env(env)
        for formal in formals:
            name = formal.name.text
            if name in given:
                inner.names[name] = given[name].value
            elif formal.default is not None:
                inner.names[name] = self.evaluate(formal.default, inner, at)
        return inner

    def _mention_rule(self, rule: RuleEntry, env: Env, at: Place, span: Span) -> Any:
        syntax, inside = rule.syntax, self._inside
        path = inside.child(syntax.name.text)
        return self._mention(
            Choice(syntax.name.text, path, syntax.alternatives, env, inside.depth, True, syntax.signature, span), at
        )

    def choice(self, expr: Choose | Range, env: Env, at: Place) -> Any:
        if isinstance(expr, Range):
            return self._range(expr, env, at)
        inside = self._inside
        path = inside.child("choose")
        return self._mention(Choice("choose", path, expr.alternatives, env, inside.depth, False, None, expr.span), at)

    def _mention(self, choice: Choice, at: Place) -> Any:
        if all(makes_module(a.body, choice.env) for a in choice.alternatives):
            return choice
        return self.inside(choice, lambda body: self.evaluate(body, choice.env, at, wants_module=True))

    def choose(self, choice: Choice, inputs: tuple[Tensor, ...], at: Place) -> Result:
        """Make a choice of modules, and apply it."""
        return self.feed(choice, lambda body: choice.fed(self, body, inputs, at), at)

    def feed(self, choice: Choice, action: Callable[[Expr], Result], at: Place) -> Result:
        """The results of a choice of modules: those of the production that is chosen."""
        return self.inside(choice, action)  # type: ignore[no-any-return]

    def inside(self, choice: Choice, action: Callable[[Expr], Any]) -> Any:
        """Make a choice, and do something with its production, inside it."""
        return self.within(choice, self.choices.among(choice.path, self.open(choice)), action)

    def within(self, choice: Choice, number: int, action: Callable[[Expr], Any]) -> Any:
        """Do something with a production, inside the choice."""
        outer = self._inside
        self._inside = _Inside(f"{choice.path}:{number}/", choice.depth + choice.is_rule)
        try:
            return action(choice.alternatives[number].body)
        except CompileError as error:
            raise seen_from(error, choice.span) from None
        finally:
            self._inside = outer

    def open(self, choice: Choice) -> dict[int, float]:
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
        """Whether a guard holds: `depth` is that of the choice, other quantities those of what stands so far."""
        names = {n.name for n in walk(guard) if isinstance(n, Ref)} - {"depth"}
        known: dict[str, Any] = {**measure(self.program.graph, names), "depth": choice.depth}
        return self.truth_of(guard, Env(choice.env, known))

    def truth_of(self, condition: Expr, env: Env) -> bool:
        """Whether a condition holds that mentions no tensors."""
        return self._truth(self.evaluate(condition, env, self._nowhere), condition)

    def _range(self, expr: Range, env: Env, at: Place) -> int | float:
        positional = tuple([Argument(self.evaluate(a, env, at), a.span) for a in expr.arguments])
        keywords = {k.name.text: Argument(self.evaluate(k.value, env, at), k.value.span) for k in expr.keywords}
        bound = bind_formals("range", RANGE, Arguments(positional, keywords, expr.span), also=())
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
        return self.choices.number(self._inside.child("range"), Grid(low, high, step, log))


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
    return isinstance(found, Module) or found is MISSING  # an operator, or a word such as `residual`
