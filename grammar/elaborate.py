"""Elaboration: from syntax to a graph.

Two things happen, in this order, to every expression. It is *evaluated* to a value (`values.py`): a number, a tensor or
a module. A module is a template, plain immutable data, and costs nothing. When a module meets tensors it is *applied*:
that makes nodes, names and weights, in the place (`Place`) where it happens.

Shapes are inferred by the ops' signatures; no tensor is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from archc.grammar.calls import Argument, Arguments, OpArguments, bind_formals, bundle_of
from archc.grammar.emit import find_op
from archc.grammar.expressions import MAX_CALLS, MAX_DEPTH, Expressions
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.modules import (
    Function,
    OpCall,
    OpRef,
    Scoped,
    Shared,
    feed,
    seen_from,
    with_few_uses,
)
from archc.grammar.scope import MISSING, Definition, Env, check_parameter
from archc.grammar.syntax import (
    Let,
    Name,
    Require,
    Share,
)
from archc.grammar.values import (
    POISON,
    Bundle,
    Module,
    Place,
    Poison,
    Result,
    Tensor,
    describe,
    flatten,
    is_tensor,
    tensors_of,
)
from archc.ir.diagnostics import CompileError, DiagnosticSink, Span, fail
from archc.ir.types import TensorType

if TYPE_CHECKING:
    from archc.grammar.counting import Counter


class Elaborator(Expressions):
    """Turns the expressions of one program into one graph. `Program` in `program.py` drives it."""

    memo_space = "made"

    def __init__(self, limits: Limits = DEFAULT) -> None:
        super().__init__(limits)
        self.sink = DiagnosticSink(stops=True)
        self._calls = 0
        self._applying = False

    @property
    def elaborator(self) -> Elaborator:
        return self

    def call_definition(self, definition: Definition, arguments: Arguments, at: Place) -> Any:
        """The value of a call of a `def`; evaluated once for equal arguments, as a template is plain data."""
        bound = bind_formals(definition.name, definition.formals, arguments)
        name = None
        if "name" in arguments.keywords and "name" not in bound:
            name = arguments.keywords["name"].value
            if not isinstance(name, str):
                raise fail(
                    "E0205", "`name` needs a text", arguments.keywords["name"].span, label=f"found {describe(name)}"
                )
        value: Any
        key = (self.memo_space, *[(n, value_key(a.value)) for n, a in sorted(bound.items())])
        value = definition.memo.get(key, MISSING)
        outer = definition_scope(definition, name, at)
        if value is MISSING:
            self._calls += 1
            if self._calls > MAX_CALLS:
                raise fail("E0009", f"the program calls its definitions in more than {MAX_CALLS} ways", arguments.span)
            before = self.nodes
            try:
                value = self._body(definition, bound, outer.used(arguments.span))
            except CompileError as error:
                raise seen_from(error, arguments.span) from None
            if self.nodes == before and not any(is_tensor(v) for a in bound.values() for v in flatten((a.value,))):
                definition.memo[key] = value
        return Scoped(definition, value, name, arguments.span) if isinstance(value, Module) else value

    def _body(self, definition: Definition, bound: Mapping[str, Argument], at: Place) -> Any:
        env = Env(definition.env)
        for formal in definition.formals:
            given = bound.get(formal.name.text)
            default: Any = MISSING
            if formal.default is not None:
                default = self.evaluate(formal.default, env, at) if given is None or formal.type is None else None
            value = default if given is None else given.value
            if given is not None and formal.type is not None:
                check_parameter(formal, value, given.span, describe(value))
            env.names[formal.name.text] = value
        if definition.syntax.signature is not None:
            from archc.grammar.signatures import Signed

            return Signed(definition, env)
        return self.evaluate(definition.syntax.body, env, at)

    # Application

    def apply(self, module: Module, value: Any, at: Place, span: Span) -> Result:
        """Feed tensors (a tensor, a bundle or a tuple of tensors) to a module."""
        inputs = value if isinstance(value, tuple) else feed(value)
        if isinstance(inputs, Poison):
            return POISON
        outermost = not self._applying
        if outermost and not isinstance(module, OpCall):
            total = self.nodes + self.count(module)
            if total > self.limits.nodes:
                raise self.limits.exceeded("nodes", total, span)
        self._depth += 1
        self._applying = True
        try:
            if self._depth > MAX_DEPTH:
                raise self._too_deep(span)
            return module.apply(self, inputs, at, span)
        finally:
            self._depth -= 1
            self._applying = not outermost

    def run(self, function: Function, inputs: Sequence[Tensor], at: Place) -> Result:
        """The body of a `fn` on its tensors."""
        env = Env(function.env, dict(zip([p.text for p in function.syntax.parameters], inputs, strict=True)))
        for statement in function.syntax.statements:
            self.statement(statement, env, at)
        results: list[Tensor | Poison] = []
        for expr in function.syntax.results:
            value = self.evaluate(expr, env, at)
            found = tensors_of(value)
            if found is None:
                raise fail("E0331", "`return` needs tensors", expr.span, label=f"found {describe(value)}")
            results += found
        return bundle_of(results)  # type: ignore[no-any-return]

    def statement(self, statement: Let | Share | Require, env: Env, at: Place) -> None:
        """Carry out a statement. Its mistakes are noted, and what it binds is poison then."""
        try:
            if isinstance(statement, Let):
                self.let(statement, env, at)
            elif isinstance(statement, Share):
                env.names[statement.name.text] = self.share(statement, env, at)
            else:
                self.require(statement, env, at)
        except CompileError as error:
            self.report(error, at)
            env.names.update({name.text: POISON for name in bound_names(statement)})

    def report(self, error: CompileError, at: Place) -> None:
        """Note an error, once for each place and message, with the uses that led to it."""
        for use in at.trace:
            error = seen_from(error, use)
        self.sink.add(*(with_few_uses(d) for d in error.diagnostics))

    def let(self, statement: Let, env: Env, at: Place) -> None:
        inside = at.named(at.scope.statement(statement.names[0].text))
        value = self.evaluate(statement.value, env, inside)
        self.bind(statement.names, value, statement.value.span, env)

    def bind(self, names: Sequence[Any], value: Any, span: Span, env: Env) -> None:
        """Give names to a value, or to each of several."""
        if isinstance(value, Module):
            raise fail(
                "E0208",
                "`let` binds a tensor or a number",
                span,
                label=f"found {describe(value)}",
                help=f"write `def {names[0].text} = …` for fresh weights at each use, "
                f"`share {names[0].text} = …` for one set",
            )
        if len(names) == 1:
            env.names[names[0].text] = value
            return
        items = value.items if isinstance(value, Bundle) else value
        if items is POISON:
            items = (POISON,) * len(names)
        if not isinstance(items, tuple) or len(items) != len(names):
            found = f"found {len(items)}" if isinstance(items, tuple) else f"found {describe(value)}"
            raise fail("E0332", f"{len(names)} values are needed for {len(names)} names", span, label=found)
        for name, item in zip(names, items, strict=True):
            if isinstance(item, Module):
                self.bind([name], item, span, env)
            env.names[name.text] = item

    def share(self, statement: Share, env: Env, at: Place) -> Any:
        value = self.evaluate(statement.value, env, at, wants_module=True)
        if value is POISON:
            return POISON
        if isinstance(value, OpRef):
            value = value.called(Arguments((), {}, value.span))
        if not isinstance(value, Module):
            raise fail("E0330", "`share` needs a module", statement.value.span, label=f"found {describe(value)}",
                       help="a tensor or a number is bound by `let`")  # fmt: skip
        return Shared(statement.name.text, value, statement.name.span, at.scope)

    def require(self, statement: Require, env: Env, at: Place) -> None:
        value = self.evaluate(statement.condition, env, at)
        if value is POISON or self._truth(value, statement.condition):
            return
        raise fail("E0336", "a requirement is not met", statement.condition.span)

    def expect(self, tensor: Tensor, type_: TensorType, wrong: Callable[[TensorType], CompileError]) -> None:
        """Demand that a tensor has a type.

        Raises: CompileError, which `wrong` makes of the type that it has.
        """
        if tensor.value.type != type_:
            raise wrong(tensor.value.type)

    # Nodes

    def join(self, name: str, tensors: Sequence[Tensor | Poison], span: Span, at: Place, **params: Any) -> Result:
        """Apply an op that a construct brings along, such as the addition of a `residual`."""
        if any(t is POISON for t in tensors):
            return POISON
        op = find_op(name)
        assert op is not None, f"the op `{name}` is not declared"
        return self.apply(OpCall(op, OpArguments(op.params(**params), tuple(tensors)), span), (), at, span)

    # Counting, for modules: see counting.py

    @cached_property
    def counter(self) -> Counter:
        from archc.grammar.counting import Counter

        return Counter(self)

    def count(self, module: Module) -> int:
        """How many nodes a module makes at least."""
        return self.counter.count(module)


def bound_names(statement: Let | Share | Require) -> tuple[Name, ...]:
    if isinstance(statement, Let):
        return statement.names
    return (statement.name,) if isinstance(statement, Share) else ()


def definition_scope(definition: Definition, name: str | None, at: Place) -> Place:
    """Where the body of a definition is evaluated: what it makes on the way is named below the definition."""
    if name is None:
        return at.named(at.scope.definition(definition.name))
    return at.named(at.scope.fixed(name) if name else at.scope.transparent())


def value_key(value: Any) -> Any:
    """A value as a key: `1`, `1.0` and `true` differ, and so do `0.0` and `-0.0`."""
    if isinstance(value, tuple):
        return tuple([value_key(v) for v in value])
    return (float, value.hex()) if isinstance(value, float) else (type(value), value)
