"""Elaboration: from syntax to a graph.

Two things happen, in this order, to every expression. It is *evaluated* to a value (`values.py`): a number, a tensor or
a module. A module is a template, plain immutable data, and costs nothing. When a module meets tensors it is *applied*:
that makes nodes, names and weights, in the place (`Place`) where it happens.

Shapes are inferred by the ops' signatures; no tensor is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from archc.grammar.arithmetic import TENSOR_COMPARISONS, TENSOR_OPS, calculate, compare
from archc.grammar.calls import Argument, Arguments, OpArguments, bind_formals, bundle_of, region_names
from archc.grammar.constructs import CONSTRUCTS, Construct, repeat
from archc.grammar.emit import Emitter, find_op
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.modules import (
    DefRef,
    Function,
    OpCall,
    OpRef,
    Partial,
    Scoped,
    Sequence_,
    Shared,
    SharedWeight,
    feed,
    seen_from,
    with_few_uses,
)
from archc.grammar.scope import MISSING, Definition, Env, Pending, RuleEntry, check_parameter, close_name
from archc.grammar.syntax import (
    Arithmetic,
    Boolean,
    Call,
    Choose,
    Compare,
    Expr,
    Fn,
    If,
    Index,
    Let,
    List,
    Logical,
    Name,
    Negate,
    NoneLiteral,
    Not,
    Number,
    Pipe,
    Range,
    Ref,
    Repeat,
    Require,
    Share,
    String,
    Tuple,
)
from archc.grammar.values import (
    POISON,
    Bundle,
    Module,
    Place,
    Poison,
    Result,
    Tensor,
    contains_poison,
    describe,
    flatten,
    is_number,
    is_tensor,
    tensors_of,
)
from archc.ir.diagnostics import CompileError, DiagnosticSink, Span, fail
from archc.ir.op import REGISTRY, OpDef

if TYPE_CHECKING:
    from archc.grammar.counting import Counter

MAX_DEPTH = 1500
"""Definitions, calls and brackets open inside one another once definitions are expanded."""

MAX_CALLS = 50_000
"""Calls of definitions with different arguments: numbers alone, which make no node, can expand without end, too."""
MAX_LIST = 1_000_000
"""Items of a list, those of its lists included."""


class Elaborator(Emitter):
    """Turns the expressions of one program into one graph. `Program` in `program.py` drives it."""

    memo_space = "made"

    def __init__(self, limits: Limits = DEFAULT) -> None:
        super().__init__(limits)
        self.sink = DiagnosticSink()
        self.is_open = False  # are choices and missing parameters left open, as `check` does?
        self._depth = 0
        self._calls = 0
        self._applying = False

    # Evaluation

    def evaluate(self, expr: Expr, env: Env, at: Place, wants_module: bool = False) -> Any:
        """The value of an expression.

        `wants_module`: a call that could be applied to the tensors among its arguments waits for more of them, as in
        `x -> concat(y, axis = 1)`.
        """
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise self._too_deep(expr.span)
            if isinstance(expr, Call):
                return self._call(expr, env, at, wants_module)
            return _EVALUATE[type(expr)](self, expr, env, at)
        finally:
            self._depth -= 1

    def _too_deep(self, span: Span) -> CompileError:
        return fail(
            "E0009",
            f"definitions, calls and brackets are more than {MAX_DEPTH} deep once the definitions are expanded",
            span,
            help="flatten the definitions: a sequence of any length is not deep",
        )

    def _literal(self, expr: Number | String | Boolean, env: Env, at: Place) -> Any:
        return expr.value

    def _none(self, expr: NoneLiteral, env: Env, at: Place) -> None:
        return None

    def _ref(self, expr: Ref, env: Env, at: Place) -> Any:
        value = self.meaning(expr, env, at)
        if isinstance(value, Definition):
            ref = DefRef(value, expr.span)
            return ref if value.formals else self.call_definition(value, Arguments((), {}, expr.span), at)
        if isinstance(value, OpDef):
            return OpRef(value, expr.span)
        if isinstance(value, Construct):
            raise fail("E0206", f"`{value.name}` needs its arguments", expr.span, label="not called here")
        return value

    def meaning(self, expr: Ref, env: Env, at: Place) -> Any:
        """What a name stands for, before it is called.

        Raises: CompileError, E0201 for an unknown name and E0213 for one that is bound further down.
        """
        found = env.look_up(expr.name)
        if found is MISSING:
            found = self._built_in(expr, env, at)
        if isinstance(found, Pending):
            raise _unbound(expr.name, expr.span)
        if isinstance(found, RuleEntry) and self.is_open:
            return POISON
        if isinstance(found, RuleEntry):
            raise fail("E0702", f"`{expr.name}` is a rule: it stands for a choice", expr.span, help=SAMPLE)
        return found

    def _built_in(self, expr: Ref, env: Env, at: Place) -> Any:
        name = expr.name
        found: Any
        for found in (CONSTRUCTS.get(name), REGISTRY.get(name), at.frame.visible.get(name)):
            if found is not None:
                return found
        found = self._shared_weight_named(expr, env) or find_op(name)
        if found is not None:
            return found
        raise unknown_name(expr, env, at.frame.visible)

    def _shared_weight_named(self, expr: Ref, env: Env) -> SharedWeight | Poison | None:
        """`table.weight`, or `encoder.conv.weight` for a share of several ops."""
        name = expr.name
        for at, character in enumerate(name):
            if character == ".":
                shared = env.look_up(name[:at])
                if isinstance(shared, Shared):
                    return SharedWeight(shared, name[at + 1 :])
                if isinstance(shared, Pending):
                    raise _unbound(shared.name, expr.span)
                if isinstance(shared, Poison):
                    return shared
        return None

    def _tuple(self, expr: Tuple, env: Env, at: Place) -> Any:
        items: list[Tensor | Poison] = []
        for item in expr.items:
            value = self.evaluate(item, env, at)
            found = tensors_of(value)
            if found is None:
                raise fail(
                    "E0331",
                    "`( , )` needs tensors, which feed a module together",
                    item.span,
                    label=f"found {describe(value)}",
                    help="a list is written with `[ ]`",
                )
            items += found
        return Bundle(tuple(items))

    def _list(self, expr: List, env: Env, at: Place) -> Any:
        items = tuple([self.evaluate(item, env, at) for item in expr.items])
        nested = any(isinstance(item, tuple) for item in items)
        if nested and sum(1 for _ in islice(flatten(items), MAX_LIST + 1)) > MAX_LIST:
            raise fail("E0009", f"a list has more than {MAX_LIST} items", expr.span)
        return items

    def _if(self, expr: If, env: Env, at: Place) -> Any:
        chosen: Expr = expr
        while isinstance(chosen, If):  # `else if` chains are as long as one likes
            condition = self.evaluate(chosen.condition, env, at)
            if condition is POISON:
                return POISON
            chosen = chosen.consequent if self._truth(condition, chosen.condition) else chosen.alternative
        return self.evaluate(chosen, env, at)

    def _truth(self, value: Any, expr: Expr) -> bool:
        if isinstance(value, bool):
            return value
        raise fail("E0334", "a condition needs to be `true` or `false`", expr.span, label=f"found {describe(value)}")

    def _not(self, expr: Not, env: Env, at: Place) -> Any:
        value = self.evaluate(expr.operand, env, at)
        return POISON if value is POISON else not self._truth(value, expr.operand)

    def _logical(self, expr: Logical, env: Env, at: Place) -> Any:
        decisive = expr.operator == "or"
        for operand in expr.operands:
            value = self.evaluate(operand, env, at)
            if value is POISON:
                return POISON
            if self._truth(value, operand) is decisive:
                return decisive
        return not decisive

    def _negate(self, expr: Negate, env: Env, at: Place) -> Any:
        value = self.evaluate(expr.operand, env, at)
        if is_tensor(value):
            return self._tensor_op("neg", (value,), expr.span, at)
        return POISON if value is POISON else calculate("-", 0, value, expr.span)

    def _arithmetic(self, expr: Arithmetic, env: Env, at: Place) -> Any:
        value = self.evaluate(expr.operands[0], env, at)
        for operator, operand in zip(expr.operators, expr.operands[1:], strict=True):
            right = self.evaluate(operand, env, at)
            if is_tensor(value) or is_tensor(right):
                name = TENSOR_OPS.get(operator)
                if name is None:
                    raise fail("E0334", f"`{operator}` is for numbers", expr.span, label="found a tensor")
                value = self._tensor_op(name, (value, right), expr.span, at)
            elif value is POISON or right is POISON:
                value = POISON
            elif isinstance(value, Module) or isinstance(right, Module):
                raise self._module_arithmetic(operator, value, right, expr.span)
            else:
                value = calculate(operator, value, right, expr.span)
        return value

    def _module_arithmetic(self, operator: str, a: Any, b: Any, span: Span) -> CompileError:
        return fail(
            "E0331",
            f"`{operator}` needs tensors or numbers",
            span,
            label=f"{describe(a)} and {describe(b)}",
            help="apply the module to a tensor first; `branch(a, b)` adds what two modules make of one tensor",
        )

    def _compare(self, expr: Compare, env: Env, at: Place) -> Any:
        a, b = self.evaluate(expr.left, env, at), self.evaluate(expr.right, env, at)
        if is_tensor(a) or is_tensor(b):
            return self._tensor_op(TENSOR_COMPARISONS[expr.operator], (a, b), expr.span, at)
        if a is POISON or b is POISON:
            return POISON
        return compare(expr.operator, a, b, expr.span)

    def _tensor_op(self, name: str, values: tuple[Any, ...], span: Span, at: Place) -> Any:
        for value in values:
            if isinstance(value, Module) or not (is_number(value) or tensors_of(value) is not None):
                raise fail("E0331", f"`{name}` needs tensors", span, label=f"found {describe(value)}")
        if any(contains_poison(v) for v in values):
            return POISON
        op = find_op(name)
        assert op is not None, f"the op `{name}` is not declared"
        return self.apply(OpCall(op, OpArguments(op.params(), values), span), (), at, span)

    def _index(self, expr: Index, env: Env, at: Place) -> Any:
        value, index = self.evaluate(expr.value, env, at), self.evaluate(expr.index, env, at)
        items = value.items if isinstance(value, Bundle) else value
        if items is POISON or index is POISON:
            return POISON
        if not isinstance(items, tuple) or type(index) is not int:
            help = "use `select(axis, index)` or `slice(axis, from, to)`" if isinstance(value, Tensor) else None
            raise fail("E0334", "`[ ]` takes one of a list or of several results", expr.span,
                       label=f"found {describe(value)}", help=help)  # fmt: skip
        if not -len(items) <= index < len(items):
            raise fail("E0334", f"there is no item {index}", expr.span, label=f"there are {len(items)}")
        return items[index]

    def _pipe(self, expr: Pipe, env: Env, at: Place) -> Any:
        first, *stages = expr.stages
        value = self.evaluate(first, env, at)
        waiting: list[Module] = [value] if isinstance(value, Module) else []
        if not waiting and value is not POISON and not is_tensor(value):
            raise fail(
                "E0331", "`->` needs a tensor or a module on its left", first.span, label=f"found {describe(value)}"
            )
        for stage in stages:
            module = self.evaluate(stage, env, at, wants_module=True)
            if module is POISON:
                value = POISON
                continue
            module = self.need_module(module, stage.span)
            if waiting:
                waiting.append(module)
            else:
                value = self.apply(module, value, at, stage.span)
        return Sequence_(tuple(waiting), expr.span) if waiting and value is not POISON else value

    def need_module(self, value: Any, span: Span) -> Module:
        """`value`, which has to be a module.

        Raises: CompileError (E0330) when it is not.
        """
        if isinstance(value, Module):
            return value
        help = "only the first of a `->` chain is a tensor; `(a, b) -> f` feeds two" if is_tensor(value) else None
        raise fail("E0330", "a module is needed here", span, label=f"found {describe(value)}", help=help)

    def _fn(self, expr: Fn, env: Env, at: Place) -> Function:
        return Function(expr, env, expr.span)

    def _repeat(self, expr: Repeat, env: Env, at: Place) -> Any:
        return repeat(self, expr, env, at)

    def _choice(self, expr: Choose | Range, env: Env, at: Place) -> Any:
        if self.is_open:
            return POISON
        word = "choose" if isinstance(expr, Choose) else "range"
        raise fail("E0702", f"`{word}` leaves a choice open, and an `arch` has none", expr.span, help=SAMPLE)

    # Calls

    def _call(self, expr: Call, env: Env, at: Place, wants_module: bool) -> Any:
        if isinstance(expr.callee, Ref):
            callee = self._callee(expr.callee, env, at)
        else:
            callee = self.evaluate(expr.callee, env, at, wants_module=True)
        if callee is POISON:
            return POISON
        if isinstance(callee, OpRef):
            callee = callee.op
        elif isinstance(callee, DefRef):
            callee = callee.definition
        arguments = self._arguments(expr, callee, env, at)
        if any(contains_poison(a.value) for a in arguments):
            return self._poisoned_call(callee, arguments, expr, at, wants_module)
        if isinstance(callee, OpDef):
            call = OpRef(callee, expr.span).called(arguments)
            ready = call.is_complete and not wants_module
            return self.apply(call, (), at, expr.span) if ready else call
        if isinstance(callee, Construct):
            return callee.make(self, arguments, at)
        if isinstance(callee, Definition) and (callee.syntax.formals is not None or not arguments.positional):
            return self.call_definition(callee, arguments, at)
        if isinstance(callee, Definition):
            callee = self.call_definition(callee, Arguments((), {}, expr.callee.span), at)
        return self._feed(callee, arguments, expr, at, wants_module)

    def _poisoned_call(self, callee: Any, arguments: Arguments, expr: Call, at: Place, wants_module: bool) -> Any:
        return POISON

    def _callee(self, expr: Ref, env: Env, at: Place) -> Any:
        """What a called name means. A tensor cannot be called: beside a port named `add`, `add(…)` is still the op."""
        found = env.look_up(expr.name)
        if isinstance(found, Tensor | Bundle | Pending) or is_number(found):
            return CONSTRUCTS.get(expr.name) or REGISTRY.get(expr.name) or self.meaning(expr, env, at)
        return self.meaning(expr, env, at)

    def _arguments(self, expr: Call, callee: Any, env: Env, at: Place) -> Arguments:
        bodies = region_names(callee) if isinstance(callee, OpDef) else ()
        arranges = isinstance(callee, Construct)
        positional = tuple(
            [Argument(self.evaluate(a, env, at, arranges or bool(bodies)), a.span) for a in expr.arguments]
        )
        keywords = {
            k.name.text: Argument(self.evaluate(k.value, env, at, arranges or k.name.text in bodies), k.value.span)
            for k in expr.keywords
        }
        return Arguments(positional, keywords, expr.span)

    def _feed(self, callee: Any, arguments: Arguments, expr: Call, at: Place, wants_module: bool) -> Any:
        """`module(a, b)`: apply it to tensors."""
        if not isinstance(callee, Module):
            raise fail("E0330", "only modules can be called", expr.callee.span, label=f"found {describe(callee)}")
        for key, argument in arguments.keywords.items():
            raise fail("E0204", f"`{callee.title}` has its arguments already: tensors are fed by position",
                       argument.span, label=f"`{key}`")  # fmt: skip
        inputs: list[Tensor] = []
        for argument in arguments.positional:
            found = tensors_of(argument.value)
            if found is None:
                raise fail("E0331", f"`{callee.title}` needs tensors here", argument.span,
                           label=f"found {describe(argument.value)}")  # fmt: skip
            inputs += found  # type: ignore[arg-type]  # poison was handled by the caller
        arity = _arity(callee)
        if wants_module or (arity is not None and len(inputs) < arity):
            return Partial(callee, tuple(inputs), expr.span)
        return self.apply(callee, tuple(inputs), at, expr.span)

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
        key = (self.memo_space, *[(n, _key(a.value)) for n, a in sorted(bound.items())])
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
        known = {(d.code, d.span, d.message) for d in self.sink.diagnostics}
        self.sink.add(*(with_few_uses(d) for d in error.diagnostics if (d.code, d.span, d.message) not in known))

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


SAMPLE = "draw an architecture from the space: `archc sample`"


def bound_names(statement: Let | Share | Require) -> tuple[Name, ...]:
    if isinstance(statement, Let):
        return statement.names
    return (statement.name,) if isinstance(statement, Share) else ()


def definition_scope(definition: Definition, name: str | None, at: Place) -> Place:
    """Where the body of a definition is evaluated: what it makes on the way is named below the definition."""
    if name is None:
        return at.named(at.scope.definition(definition.name))
    return at.named(at.scope.fixed(name) if name else at.scope.transparent())


def _unbound(name: str, span: Span) -> CompileError:
    help = "move this line behind the one that binds it"
    return fail("E0213", f"`{name}` is used before it is bound", span, label="not bound yet", help=help)


def unknown_name(expr: Ref, env: Env, symbols: Mapping[str, Any]) -> CompileError:
    """The error for a name that means nothing here (E0201)."""
    known: Iterator[str] = iter((*env.all_names(), *CONSTRUCTS, *REGISTRY, *symbols))
    help = close_name(expr.name, known)
    if expr.name.rstrip("0123456789") in ("Rows", "Kept"):
        help = f"`{expr.name}` can be named in a `fn` that is a region of `moe`, `skip` or `exit`"
    elif help is None and expr.name[:1].isupper():
        help = "a dimension is named in the type of an `input`, or in the signature of the `def`"
    return fail("E0201", f"unknown name `{expr.name}`", expr.span, label="not found here", help=help)


def _arity(module: Module) -> int | None:
    while isinstance(module, Scoped):
        module = module.body
    return module.arity if isinstance(module, Function) else None


def _key(value: Any) -> Any:
    """A value as a key: `1`, `1.0` and `true` differ."""
    return tuple([_key(v) for v in value]) if isinstance(value, tuple) else (type(value), value)


_EVALUATE: dict[type, Callable[[Elaborator, Any, Env, Place], Any]] = {
    Number: Elaborator._literal,
    String: Elaborator._literal,
    Boolean: Elaborator._literal,
    NoneLiteral: Elaborator._none,
    Ref: Elaborator._ref,
    Tuple: Elaborator._tuple,
    List: Elaborator._list,
    If: Elaborator._if,
    Not: Elaborator._not,
    Logical: Elaborator._logical,
    Negate: Elaborator._negate,
    Arithmetic: Elaborator._arithmetic,
    Compare: Elaborator._compare,
    Index: Elaborator._index,
    Pipe: Elaborator._pipe,
    Fn: Elaborator._fn,
    Repeat: Elaborator._repeat,
    Choose: Elaborator._choice,
    Range: Elaborator._choice,
}
