"""Evaluation of expressions: what each kind of syntax is worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from archc.grammar.arithmetic import TENSOR_COMPARISONS, TENSOR_OPS, calculate, compare
from archc.grammar.calls import Argument, Arguments, OpArguments, hint, region_names
from archc.grammar.constructs import CONSTRUCTS, Construct, repeat
from archc.grammar.emit import Emitter, find_op
from archc.grammar.limits import Limits
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
)
from archc.grammar.scope import MISSING, Definition, Env, Pending, RuleEntry, owners
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
    List,
    Logical,
    Negate,
    NoneLiteral,
    Not,
    Number,
    Pipe,
    Range,
    Ref,
    Repeat,
    String,
    Tuple,
)
from archc.grammar.unknown import unknown_name
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
    is_number,
    is_tensor,
    tensors_of,
)
from archc.ir.diagnostics import CompileError, Span, fail
from archc.ir.op import REGISTRY, OpDef

if TYPE_CHECKING:
    from archc.grammar.elaborate import Elaborator


MAX_DEPTH = 1500
"""Definitions, calls and brackets open inside one another once definitions are expanded."""

MAX_CALLS = 50_000
"""Calls of definitions with different arguments: numbers alone, which make no node, can expand without end, too."""
MAX_LIST = 100_000
"""Items of a list, those of its lists included, and tensors that are fed together."""
MAX_LISTS = 100
"""Lists inside one another."""


class Expressions(Emitter):
    """Evaluates; what a module does to tensors, and a definition with its arguments, is for `Elaborator` to say."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.choices_open = False  # are choices left open, as `check` does for a space?
        self._depth = 0
        self._nested: dict[int, tuple[Any, int, int]] = {}  # nested lists by id: the list itself, its items, its depth

    @property
    @abstractmethod
    def elaborator(self) -> Elaborator:
        """This, as what it is."""

    @abstractmethod
    def apply(self, module: Module, value: Any, at: Place, span: Span) -> Result:
        """Feed tensors to a module."""

    @abstractmethod
    def call_definition(self, definition: Definition, arguments: Arguments, at: Place) -> Any:
        """The value of a call of a `def`."""

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
        if isinstance(found, RuleEntry) and self.choices_open:
            return POISON
        if isinstance(found, RuleEntry):
            raise fail("E0702", f"`{expr.name}` is a rule: it stands for a choice", expr.span, help=CONCRETE)
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
        known = (*env.all_names(), *CONSTRUCTS, *REGISTRY, *at.frame.visible)
        raise unknown_name(name, expr.span, known)

    def _shared_weight_named(self, expr: Ref, env: Env) -> SharedWeight | Poison | None:
        """`table.weight`, or `encoder.conv.weight` for a share of several ops."""
        name = expr.name
        for owner in owners(name):
            shared = env.look_up(owner)
            if isinstance(shared, Shared):
                return SharedWeight(shared, name[len(owner) + 1 :])
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
            if len(items) > MAX_LIST:
                raise fail("E0009", f"more than {MAX_LIST} tensors are fed together", expr.span)
        return Bundle(tuple(items))

    def _list(self, expr: List, env: Env, at: Place) -> Any:
        items = tuple([self.evaluate(item, env, at) for item in expr.items])
        if any(isinstance(item, tuple) for item in items):
            inner = [self._nested.get(id(item), (item, len(item), 1)) for item in items if isinstance(item, tuple)]
            count = len(items) - len(inner) + sum(count for _, count, _ in inner)
            depth = 1 + max(depth for _, _, depth in inner)
            self._nested[id(items)] = items, count, depth
            if count > MAX_LIST or depth > MAX_LISTS:
                raise fail("E0009", f"a list has more than {MAX_LIST} items, or {MAX_LISTS} lists inside one another",
                           expr.span)  # fmt: skip
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
        help = "`where(x > 0, a, b)` chooses by data; `logical_and`, `logical_or` and `logical_not` are for tensors"
        raise fail("E0334", "a condition needs to be `true` or `false`", expr.span, label=f"found {describe(value)}",
                   help=help if is_tensor(value) else None)  # fmt: skip

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
        if isinstance(value, float):
            return -value  # 0 - 0.0 would lose the sign of -0.0
        return POISON if value is POISON else calculate("-", 0, value, expr.span)

    def _arithmetic(self, expr: Arithmetic, env: Env, at: Place) -> Any:
        value = self.evaluate(expr.operands[0], env, at)
        left, last = expr.operands[0].span, expr.operands[-1]
        for operator, operand in zip(expr.operators, expr.operands[1:], strict=True):
            right = self.evaluate(operand, env, at)
            end = operand.span.end_line, operand.span.end_column
            both = expr.span if operand is last else Span(expr.span.file, expr.span.line, expr.span.column, *end)
            sides = left, operand.span
            if is_tensor(value) or is_tensor(right):
                name = TENSOR_OPS.get(operator)
                if name is None:
                    raise fail("E0334", f"`{operator}` is for numbers", both, label="found a tensor")
                value = self._tensor_op(name, (value, right), both, at, sides)
            elif value is POISON or right is POISON:
                value = POISON
            elif isinstance(value, Module) or isinstance(right, Module):
                raise self._module_arithmetic(operator, value, right, both, sides)
            else:
                value = calculate(operator, value, right, both, sides)
            left = both
        return value

    def _module_arithmetic(self, operator: str, a: Any, b: Any, span: Span, sides: tuple[Span, Span]) -> CompileError:
        wrong = [(v, side) for v, side in zip((a, b), sides, strict=True) if isinstance(v, Module)]
        return fail(
            "E0331",
            f"`{operator}` needs tensors or numbers",
            span if len(wrong) > 1 else wrong[0][1],
            label=f"found {' and '.join(describe(v) for v, _ in wrong)}",
            help="apply the module to a tensor first; `branch(a, b)` adds what two modules make of one tensor",
        )

    def _compare(self, expr: Compare, env: Env, at: Place) -> Any:
        a, b = self.evaluate(expr.left, env, at), self.evaluate(expr.right, env, at)
        if is_tensor(a) or is_tensor(b):
            name, sides = TENSOR_COMPARISONS[expr.operator], (expr.left.span, expr.right.span)
            return self._tensor_op(name, (a, b), expr.span, at, sides)
        if a is POISON or b is POISON:
            return POISON
        return compare(expr.operator, a, b, expr.span)

    def _tensor_op(
        self, name: str, values: tuple[Any, ...], span: Span, at: Place, sides: tuple[Span, ...] = ()
    ) -> Any:
        for value, side in zip(values, sides or [span] * len(values), strict=True):
            if isinstance(value, Module) or not (is_number(value) or tensors_of(value) is not None):
                help = hint(value)
                if isinstance(value, Module):
                    help = f"`->` binds less tightly than `+` and its like: write `(x -> {value.title}) + …`"
                raise fail("E0331", f"`{name}` needs tensors", side, label=f"found {describe(value)}", help=help)
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
            wrong, place = (index, expr.index) if isinstance(items, tuple) else (value, expr.value)
            needs = (
                "`[ ]` needs a whole number" if wrong is index else "`[ ]` takes one of a list or of several results"
            )
            raise fail("E0334", f"`[ ]` {needs}", place.span, label=f"found {describe(wrong)}", help=help)
        if not -len(items) <= index < len(items):
            raise fail("E0334", f"there is no item {index}", expr.index.span, label=f"there are {len(items)}")
        return items[index]

    def _pipe(self, expr: Pipe, env: Env, at: Place) -> Any:
        first, *stages = expr.stages
        value = self.evaluate(first, env, at)
        waiting: list[Module] = [value] if isinstance(value, Module) else []
        if not waiting and value is not POISON and not is_tensor(value):
            raise fail("E0331", "`->` needs a tensor or a module on its left", first.span,
                       label=f"found {describe(value)}", help=hint(value))  # fmt: skip
        for stage in stages:
            module = self.evaluate(stage, env, at, wants_module=True)
            if module is POISON:
                value = POISON
                continue
            module = self.need_module(module, stage.span, stage)
            if waiting:
                waiting.append(module)
            else:
                value = self.apply(module, value, at, stage.span)
        return Sequence_(tuple(waiting), expr.span) if waiting and value is not POISON else value

    def need_module(self, value: Any, span: Span, expr: Expr | None = None) -> Module:
        """`value`, the value of `expr`, which has to be a module.

        Raises: CompileError (E0330) when it is not.
        """
        if isinstance(value, Module):
            return value
        help = "only the first of a `->` chain is a tensor; `(a, b) -> f` feeds two" if is_tensor(value) else None
        if isinstance(expr, Ref) and (expr.name in REGISTRY or expr.name in CONSTRUCTS):
            help = f"`{expr.name}` is a name of this program here: rename it, or call the operator, `{expr.name}(…)`"
        raise fail("E0330", "a module is needed here", span, label=f"found {describe(value)}", help=help)

    def _fn(self, expr: Fn, env: Env, at: Place) -> Function:
        return Function(expr, env, expr.span)

    def _repeat(self, expr: Repeat, env: Env, at: Place) -> Any:
        return repeat(self.elaborator, expr, env, at)

    def choice(self, expr: Choose | Range, env: Env, at: Place) -> Any:
        """The value of an inline choice: none in an `arch`. `choices.Drawer` draws it."""
        if self.choices_open:
            return POISON
        word = "choose" if isinstance(expr, Choose) else "range"
        raise fail("E0702", f"`{word}` leaves a choice open, and an `arch` has none", expr.span, help=CONCRETE)

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
            return callee.make(self.elaborator, arguments, at)
        if isinstance(callee, Definition) and (callee.syntax.formals is not None or not arguments.positional):
            return self.call_definition(callee, arguments, at)
        if isinstance(callee, Definition):
            callee = self.call_definition(callee, Arguments((), {}, expr.callee.span), at)
        return self._feed(callee, arguments, expr, at, wants_module)

    def _poisoned_call(self, callee: Any, arguments: Arguments, expr: Call, at: Place, wants_module: bool) -> Any:
        return POISON

    def _callee(self, expr: Ref, env: Env, at: Place) -> Any:
        """What a called name means. Only modules are: beside a port or number `add`, `add(…)` is still the op."""
        found = env.look_up(expr.name)
        if found is not MISSING and not isinstance(found, Module | Definition | RuleEntry | Poison):
            return CONSTRUCTS.get(expr.name) or REGISTRY.get(expr.name) or self.meaning(expr, env, at)
        return self.meaning(expr, env, at)

    def _arguments(self, expr: Call, callee: Any, env: Env, at: Place) -> Arguments:
        bodies = region_names(callee) if isinstance(callee, OpDef) else ()
        arranges = isinstance(callee, Construct)
        positional = tuple(
            [Argument(self.evaluate(a, env, at, arranges or bool(bodies)), a.span) for a in expr.arguments]
        )
        keywords = {
            k.name.text: Argument(
                self.evaluate(k.value, env, at, arranges or k.name.text in bodies), k.value.span, k.name.span
            )
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


CONCRETE = "an `arch` has one value here; a file with choices begins with `space`, and `archc sample` draws from it"


def _unbound(name: str, span: Span) -> CompileError:
    help = "move this line behind the one that binds it"
    return fail("E0213", f"`{name}` is used before it is bound", span, label="not bound yet", help=help)


def _arity(module: Module) -> int | None:
    while isinstance(module, Scoped):
        module = module.body
    return module.arity if isinstance(module, Function) else None


_EVALUATE: dict[type, Callable[[Expressions, Any, Env, Place], Any]] = {
    Number: Expressions._literal,
    String: Expressions._literal,
    Boolean: Expressions._literal,
    NoneLiteral: Expressions._none,
    Ref: Expressions._ref,
    Tuple: Expressions._tuple,
    List: Expressions._list,
    If: Expressions._if,
    Not: Expressions._not,
    Logical: Expressions._logical,
    Negate: Expressions._negate,
    Arithmetic: Expressions._arithmetic,
    Compare: Expressions._compare,
    Index: Expressions._index,
    Pipe: Expressions._pipe,
    Fn: Expressions._fn,
    Repeat: Expressions._repeat,
    Choose: lambda self, expr, env, at: self.choice(expr, env, at),
    Range: lambda self, expr, env, at: self.choice(expr, env, at),
}
