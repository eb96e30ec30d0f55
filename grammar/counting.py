"""How many nodes a module would make, before it makes any.

A template is plain data, and equal uses of a definition are one object: so counting it costs as much as the source is
long, while expanding it may not end in this universe (`def a1 = a0 -> a0`, sixty times; `repeat(100000)` in itself).
The body of a `fn` is run on poison: its calls are found, and nothing is made. What depends on a shape counts as
nothing, and a `repeat` over an index counts its middle copy for all; what slips through meets the limit while it is
expanded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from archc.grammar.calls import Arguments
from archc.grammar.elaborate import Elaborator
from archc.grammar.modules import DefRef, Function, OpRef, Shared
from archc.grammar.naming import Names, Scope
from archc.grammar.scope import MISSING, Definition, Env
from archc.grammar.syntax import Call, Ref, walk
from archc.grammar.values import POISON, Frame, Module, Place, Result
from archc.ir.diagnostics import CompileError, Span
from archc.ir.graph import Graph
from archc.ir.op import OpDef

if TYPE_CHECKING:
    from archc.grammar.constructs import Repeated
    from archc.grammar.signatures import Signed


class Counter(Elaborator):
    """An elaborator that counts what it is asked to apply."""

    memo_space = "counted"

    def __init__(self, of: Elaborator) -> None:
        super().__init__(of.limits)
        self._counts: dict[Module, int] = {}
        self._total = 0
        self._nowhere = Place(Frame(Graph("")), Scope.root(Names()))

    def count(self, module: Module) -> int:
        """The number of nodes, at least 1: doing nothing takes time, too. Computed once for each template."""
        if module not in self._counts:
            self._counts[module] = max(1, module.count(self))
        return self._counts[module]

    def apply(self, module: Module, value: Any, at: Place, span: Span) -> Result:
        self._total += self.count(module)
        return POISON

    def report(self, error: CompileError, at: Place) -> None:
        """Mistakes are found by the real elaboration."""

    def _poisoned_call(self, callee: Any, arguments: Arguments, expr: Call, at: Place, wants_module: bool) -> Any:
        if isinstance(callee, Definition) and (callee.syntax.formals is not None or not arguments.positional):
            return self.call_definition(callee, arguments, at)
        if isinstance(callee, Definition):
            callee = self.call_definition(callee, Arguments((), {}, expr.span), at)
        if isinstance(callee, OpDef):
            callee = OpRef(callee, expr.span)
            if wants_module:
                return callee
        return self.apply(callee, POISON, at, expr.span) if isinstance(callee, Module) else POISON

    def _during(self, action: Callable[[], Any]) -> int:
        """What is counted while something is evaluated, with the module that it is worth in the end."""
        before, self._total = self._total, 0
        try:
            value = action()
            return self._total + (self.count(value) if isinstance(value, Module) else 0)
        except CompileError:
            return self._total
        finally:
            self._total = before

    def count_body(self, function: Function) -> int:
        def body() -> None:
            env = Env(function.env, {p.text: POISON for p in function.syntax.parameters})
            for statement in function.syntax.statements:
                self.statement(statement, env, self._nowhere)
            for result in function.syntax.results:
                try:
                    self.evaluate(result, env, self._nowhere)
                except CompileError:
                    continue

        return self._during(body)

    def count_definition(self, ref: DefRef) -> int:
        arguments = Arguments((), {}, ref.span)
        return self._during(lambda: self.call_definition(ref.definition, arguments, self._nowhere))

    def count_indexed(self, repeated: Repeated) -> int:
        return self._during(lambda: repeated.indexed(repeated.copies // 2, self._nowhere))

    def count_signed(self, signed: Signed) -> int:
        signature = signed.definition.syntax.signature
        assert signature is not None
        names = {n.name for t in signature.inputs for n in walk(t) if isinstance(n, Ref) and n.name[:1].isupper()}
        unknown = {name: POISON for name in names if signed.env.look_up(name) is MISSING}
        body = signed.definition.syntax.body
        return self._during(lambda: self.evaluate(body, Env(signed.env, dict(unknown)), self._nowhere, True))

    def share(self, statement: Any, env: Env, at: Place) -> Any:
        value = super().share(statement, env, at)
        return value.module if isinstance(value, Shared) else value
