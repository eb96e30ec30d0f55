"""The modules that expressions make: calls of ops, sequences, `fn`s, definitions, shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from archc.grammar.calls import Arguments, OpArguments, bind_op, bundle_of, operand_name
from archc.grammar.naming import Scope
from archc.grammar.scope import Definition, Env
from archc.grammar.syntax import Fn
from archc.grammar.values import POISON, Module, Place, Poison, Result, Tensor, tensors_of
from archc.ir.diagnostics import CompileError, Diagnostic, Note, Span, fail
from archc.ir.op import OpDef

if TYPE_CHECKING:
    from archc.grammar.counting import Counter
    from archc.grammar.elaborate import Elaborator


@dataclass(frozen=True, slots=True, eq=False)
class OpRef(Module):
    """An op by name alone: `relu`. As a module it has the parameters that are its defaults."""

    op: OpDef[Any]
    span: Span

    @property
    def title(self) -> str:
        return self.op.name

    def called(self, arguments: Arguments) -> OpCall:
        bound = bind_op(self.op, arguments, lambda value: isinstance(value, Shared | SharedWeight))
        return OpCall(self.op, bound, arguments.span)

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        if self.op.name == "identity" and len(inputs) == 1:
            return inputs[0]  # mentioned, not called: nothing to do, and no node for it
        return self.called(Arguments((), {}, self.span)).apply(e, inputs, at, span)

    def count(self, c: Counter) -> int:
        return 1


@dataclass(frozen=True, slots=True, eq=False)
class OpCall(Module):
    """An op with its arguments, waiting for the tensors that it still lacks."""

    op: OpDef[Any]
    bound: OpArguments
    span: Span

    @property
    def title(self) -> str:
        return self.op.name

    @property
    def is_complete(self) -> bool:
        """Are all tensors that the op demands given?"""
        given = len(self.bound.operands)
        for declared in self.op.operand_names:
            name = operand_name(declared)
            if name in self.bound.named_operands or declared.endswith("?") or "=" in declared:
                continue
            given -= 1
            if given < 0:
                return False
        return True

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        if self.op.regions:
            from archc.grammar.regions import apply_structural

            return apply_structural(e, self, inputs, at)
        operands = self.operands(inputs)
        return e.emit(self, [e.operand(o, operands, self.span, at) for o in operands], at)

    def operands(self, inputs: Sequence[Any]) -> list[Any]:
        """The op's operands: what is fed comes first, then what the call gave by position, then by name.

        Raises: CompileError (E0303) when there are too many or too few.
        """
        given = [*inputs, *self.bound.operands]
        declared = self.op.operand_names
        result: list[Any] = []
        taken: dict[str, Any] = {}
        for position, spec in enumerate(declared):
            name = operand_name(spec)
            _, _, like = spec.partition("=")
            if spec.startswith("*"):
                keep = sum(not s.endswith("?") and "=" not in s for s in declared[position + 1 :])
                count = len(given) - keep
                if count < 1:
                    raise self._wrong_count(len(inputs))
                result += given[:count]
                given = given[count:]
                continue
            if name in self.bound.named_operands:
                value = self.bound.named_operands[name]
            elif given:
                value = given.pop(0)
            elif like:
                value = taken[like]
            elif spec.endswith("?"):
                continue
            else:
                raise self._wrong_count(len(inputs))
            taken[name] = value
            result.append(value)
        if given:
            raise self._wrong_count(len(inputs))
        return result

    def _wrong_count(self, fed: int) -> Exception:
        declared = self.op.operand_names
        several = any(n.startswith("*") for n in declared)
        count = "no tensors" if not declared else "tensors" if several else _tensors(len(declared))
        names = "".join(f", `{n}`" for n in declared)
        found = fed + len(self.bound.operands) + len(self.bound.named_operands)
        help = "the first state is given by `state`: `state = [[8]]` is zeros, of 8 channels" if found == 1 else None
        help = help if self.op.name == "scan" else None
        if fed > len(declared) > 0:
            help = "of several tensors one is taken by `[0]`; all are named by `let a, b = …`"
        return fail("E0303", f"`{self.op.name}` takes {count}{names}", self.span, label=f"{found} given", help=help)

    def count(self, c: Counter) -> int:
        return 1 + sum(c.count(v) for a in self.bound.regions.values() for v in _modules(a.value))


def _modules(value: Any) -> list[Module]:
    if isinstance(value, Module):
        return [value]
    return [m for v in value for m in _modules(v)] if isinstance(value, tuple) else []


@dataclass(frozen=True, slots=True, eq=False)
class Sequence_(Module):
    """`a -> b -> c` between modules."""

    stages: tuple[Module, ...]
    span: Span

    @property
    def title(self) -> str:
        return " -> ".join(s.title for s in self.stages[:3]) + (" -> …" if len(self.stages) > 3 else "")

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        value: Any = inputs if self.stages else bundle_of(inputs)
        for stage in self.stages:
            value = e.apply(stage, value, at, span)
        return value  # type: ignore[no-any-return]

    def count(self, c: Counter) -> int:
        return sum(c.count(s) for s in self.stages)


@dataclass(frozen=True, slots=True, eq=False)
class Partial(Module):
    """A module that has been given its last tensors: `x -> up(8)(skip)`."""

    module: Module
    given: tuple[Tensor, ...]
    span: Span

    @property
    def title(self) -> str:
        return self.module.title

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        return e.apply(self.module, (*inputs, *self.given), at, span)

    def count(self, c: Counter) -> int:
        return c.count(self.module)


@dataclass(frozen=True, slots=True, eq=False)
class Function(Module):
    """`fn(x, y) { …; return … }` with the names around it."""

    syntax: Fn
    env: Env
    span: Span

    @property
    def title(self) -> str:
        return f"fn({', '.join(p.text for p in self.syntax.parameters)})"

    @property
    def arity(self) -> int:
        return len(self.syntax.parameters)

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        if len(inputs) != self.arity:
            raise fail(
                "E0332",
                f"this `fn` takes {_tensors(self.arity)}",
                span,
                label=f"{_tensors(len(inputs))} given",
                notes=[Note("the `fn`", self.span)] if self.span != span else (),
            )
        return e.run(self, inputs, at)

    def count(self, c: Counter) -> int:
        return c.count_body(self)


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"


@dataclass(frozen=True, slots=True, eq=False)
class DefRef(Module):
    """A definition by name alone. As a module it is called without arguments."""

    definition: Definition
    span: Span

    @property
    def title(self) -> str:
        return self.definition.name

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        module = e.call_definition(self.definition, Arguments((), {}, self.span), at)
        return e.apply(e.need_module(module, self.span), inputs, at, span)

    def count(self, c: Counter) -> int:
        return c.count_definition(self)


@dataclass(frozen=True, slots=True, eq=False)
class Scoped(Module):
    """What a use of a definition stands for: its body, in a scope of the definition's name."""

    definition: Definition
    body: Module
    name: str | None
    span: Span

    @property
    def title(self) -> str:
        return self.definition.name

    def scope(self, outer: Scope) -> Scope:
        if self.name is None:
            return outer.definition(self.definition.name)
        return outer.fixed(self.name) if self.name else outer.transparent()

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        return self.apply_in(self.scope(at.scope), e, inputs, at, span)

    def apply_in(self, scope: Scope, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        try:
            return e.apply(self.body, inputs, at.named(scope).used(self.span), span)
        except CompileError as error:
            raise seen_from(error, self.span) from None

    def count(self, c: Counter) -> int:
        return c.count(self.body)


@dataclass(slots=True, eq=False)
class Shared(Module):
    """`share name = module`: one set of weights for all applications."""

    name: str
    module: Module
    span: Span
    scope: Scope
    uses: int = 0
    path: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        return self.name

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        path, weights = self.paths()
        if self.uses:
            path = f"{path}@{self.uses}"
        self.uses += 1
        module = self.module
        scope = self.scope.share(path, weights, single=isinstance(module, OpCall))
        try:
            if isinstance(module, Scoped):
                return module.apply_in(scope, e, inputs, at.used(span), span)
            return e.apply(module, inputs, at.named(scope).used(span), span)
        except CompileError as error:
            raise seen_from(error, span) from None

    def paths(self) -> tuple[str, str]:
        """The names of the first use, and the one of the weights."""
        if self.path is None:
            bound = self.module.bound if isinstance(self.module, OpCall) else OpArguments(None)
            self.path = self.scope.node(self.name, bound.name, bound.name_span or self.span)
        return self.path

    def count(self, c: Counter) -> int:
        return c.count(self.module)


@dataclass(frozen=True, slots=True, eq=False)
class SharedWeight:
    """`table.weight`: one weight of a share."""

    shared: Shared
    role: str

    def __str__(self) -> str:
        return f"the weight `{self.shared.name}.{self.role}`"


def feed(value: Any) -> tuple[Tensor, ...] | Poison:
    """The tensors of a value that feeds a module."""
    found = tensors_of(value)
    assert found is not None, value
    if any(v is POISON for v in found):
        return POISON
    return found  # type: ignore[return-value]


def seen_from(error: CompileError, use: Span) -> CompileError:
    """The error with a note on the use of the definition that it happened in."""
    note = Note(USED, use)
    return CompileError(
        *(d if d.span == use or note in d.notes else replace(d, notes=(*d.notes, note)) for d in error.diagnostics),
        exit_code=error.exit_code,
    )


def with_few_uses(diagnostic: Diagnostic) -> Diagnostic:
    """Of a long chain of uses, the innermost ones and the outermost."""
    uses = [n for n in diagnostic.notes if n.message == USED]
    if len(uses) <= 8:
        return diagnostic
    others = tuple(n for n in diagnostic.notes if n.message != USED)
    between = Note(f"{len(uses) - 7} more uses are between these and the outermost")
    return replace(diagnostic, notes=(*others, *uses[:6], between, uses[-1]))


USED = "used here"
