"""What can be said of a program before it is elaborated: every name means something, no definition needs itself, and
arguments that are written out fit their ops. This looks at unused definitions, templates and spaces, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from archc.grammar.calls import Argument, Arguments, bind_op, check_keywords
from archc.grammar.constructs import CONSTRUCTS
from archc.grammar.emit import find_op
from archc.grammar.requirements import QUANTITIES
from archc.grammar.scope import owners
from archc.grammar.syntax import (
    Bind,
    Boolean,
    Call,
    Choose,
    Def,
    Fn,
    Formal,
    Let,
    List,
    Negate,
    Node,
    NoneLiteral,
    Number,
    Port,
    Program,
    Ref,
    Repeat,
    Require,
    Rest,
    Rule,
    Share,
    String,
    children,
    walk,
)
from archc.grammar.unknown import unknown_name
from archc.ir.diagnostics import CompileError, Diagnostic, DiagnosticSink, Note, fail
from archc.ir.op import REGISTRY, OpDef

_REGION_SYMBOL = re.compile(r"(Rows|Kept)\d*")
MEASURED = (*QUANTITIES, "latency_ms", "cpu", "cuda")
"""Names that a `require` may use besides the program's own."""
MOST_NAMED = 12
"""Definitions of a circle, or places of a name that means nothing, that are named."""


@dataclass(slots=True)
class Resolver:
    """Looks at one file and tells `sink`. `known` are its top-level names; `uses` says which of them each definition
    mentions, `unknown` what was said of names that mean nothing, `recursive` whether a definition needs itself."""

    syntax: Program
    known: Mapping[str, Any]
    sink: DiagnosticSink
    check_arguments: bool = False
    recursive: bool = False
    uses: dict[str, list[Ref]] = field(default_factory=dict)
    unknown: dict[str, Diagnostic] = field(default_factory=dict)

    def run(self) -> None:
        for item in self.syntax.items:
            name = item.name.text if isinstance(item, Def | Share | Rule) else ""
            self._current = self.uses.setdefault(name, [])
            if isinstance(item, Def | Rule):
                self._definition(item)
            elif isinstance(item, Share | Let | Bind):
                self._expression(item.value, frozenset())
            elif isinstance(item, Require):
                self._expression(item.condition, frozenset(MEASURED))
            elif isinstance(item, Port):
                for dim in item.type.dims:
                    self._expression(dim, frozenset(), dimension=True)
        for formal in self.syntax.formals:
            if formal.default is not None:
                self._expression(formal.default, frozenset())
        self._recursion()

    _current: list[Ref] = field(default_factory=list)

    def _definition(self, item: Def | Rule) -> None:
        local = {f.name.text for f in item.formals or ()}
        if item.signature is not None:
            for shape in item.signature.inputs:
                local |= {n.name for n in walk(shape) if isinstance(n, Ref) and n.name[:1].isupper()}
                local |= {n.name.text for n in walk(shape) if isinstance(n, Rest)}
        names = frozenset(local)
        for formal in item.formals or ():
            self._default(formal, names)
        if isinstance(item, Def):
            if item.signature is not None:
                for shape in item.signature.outputs:
                    self._expression(shape, names, dimension=True)
            self._expression(item.body, names)
            return
        for alternative in item.alternatives:
            self._expression(alternative.body, names)
            if alternative.guard is not None:
                self._expression(alternative.guard, names | {"depth", *QUANTITIES})

    def _default(self, formal: Formal, names: frozenset[str]) -> None:
        if formal.default is not None:
            self._expression(formal.default, names)

    def _expression(self, root: Node, names: frozenset[str], dimension: bool = False) -> None:
        """Check all names of an expression, of a shape if `dimension`. No recursion: a stack of nodes, each with the
        local names around it."""
        pending: list[tuple[Node, frozenset[str]]] = [(root, names)]
        while pending:
            node, local = pending.pop()
            if isinstance(node, Ref):
                self._ref(node, local, dimension)
            elif isinstance(node, Fn):
                pending += self._body(node, local)
            elif isinstance(node, Repeat):
                inner = local | {node.index.text} if node.index is not None else local
                pending += [(child, local) for child in (*node.arguments, *node.keywords)]
                pending.append((node.body, inner))
            else:
                if self.check_arguments and isinstance(node, Call):
                    self._call(node, local)
                pending += [(child, local) for child in reversed(tuple(children(node)))]

    def _body(self, node: Fn, local: frozenset[str]) -> Iterator[tuple[Node, frozenset[str]]]:
        names = local | {p.text for p in node.parameters}
        for statement in node.statements:
            if isinstance(statement, Require):
                yield statement.condition, names | set(MEASURED)
                continue
            yield statement.value, names
            names |= {n.text for n in (statement.names if isinstance(statement, Let) else (statement.name,))}
        for result in node.results:
            yield result, names

    def _ref(self, ref: Ref, local: frozenset[str], dimension: bool) -> None:
        name = ref.name
        if name in local:
            return
        if name in self.known:
            self._current.append(ref)
            return
        if name in CONSTRUCTS or name in REGISTRY or _REGION_SYMBOL.fullmatch(name):
            return
        if any(owner in local or owner in self.known for owner in owners(name)) or find_op(name) is not None:
            return
        if name in self.unknown:
            self.unknown[name] = self.sink.again(self.unknown[name], ref.span, MOST_NAMED)
            return
        known = (*local, *self.known, *(() if dimension else (*CONSTRUCTS, *REGISTRY)))  # no op stands in a shape
        (self.unknown[name],) = unknown_name(name, ref.span, known, dimension).diagnostics
        self.sink.add(self.unknown[name])

    # Recursion

    def _recursion(self) -> None:
        """Definitions that need themselves. (Rules may: each mention is a draw.)"""
        items = {i.name.text: i for i in self.syntax.items if isinstance(i, Def | Share)}
        state: dict[str, int] = {}  # 1: being looked at, 2: done
        for start in items:
            path: dict[str, None] = {}
            pending: list[tuple[str, Iterator[Ref]]] = []

            def enter(
                name: str, path: dict[str, None] = path, pending: list[tuple[str, Iterator[Ref]]] = pending
            ) -> None:
                state[name] = 1
                path[name] = None
                pending.append((name, iter(self.uses[name])))

            if start not in state:
                enter(start)
            while pending:
                name, uses = pending[-1]
                used = next((r for r in uses if r.name in items and state.get(r.name) != 2), None)
                if used is None:
                    state[name] = 2
                    path.popitem()
                    pending.pop()
                elif used.name in path:
                    around = list(path)
                    self._circle(items[used.name], used, [*around[around.index(used.name) :], used.name])
                else:
                    enter(used.name)

    def _circle(self, item: Def | Share, use: Ref, names: list[str]) -> None:
        self.recursive = True
        if len(names) > MOST_NAMED:
            names = [*names[: MOST_NAMED // 2], "…", *names[-MOST_NAMED // 2 :]]
        through = " -> ".join(f"`{n}`" for n in names)
        word = "def" if isinstance(item, Def) else "share"
        error = fail(
            "E0203",
            f"`{word} {item.name.text}` needs itself",
            use.span,
            label=through if len(names) > 2 else "here",
            notes=[Note("defined here", item.name.span)],
            help="repetition is written `repeat(n) { … }`",
        )
        self.sink.add(*error.diagnostics)

    # Arguments

    def _call(self, call: Call, local: frozenset[str]) -> None:
        """Check a call of an op whose arguments are written out, or choices of such."""
        if not isinstance(call.callee, Ref) or call.callee.name in local or call.callee.name in self.known:
            return
        op = REGISTRY.get(call.callee.name)
        if op is None or op.regions or any(w.tied for w in op.weights.values()):
            return
        options = [list(_written(a)) for a in (*call.arguments, *(k.value for k in call.keywords))]
        if not all(options):
            named = zip(call.keywords, options[len(call.arguments) :], strict=True)
            known = {k.name.text: values[0] if values else None for k, values in named}
            self.sink.add(*check_keywords(op, known, {k.name.text: k.name.span for k in call.keywords}, call.span))
            return
        for chosen in _one_at_a_time(options):
            try:
                self._bind(op, call, chosen)
            except CompileError as error:
                self.sink.add(*error.diagnostics)

    def _bind(self, op: OpDef[Any], call: Call, values: list[Argument]) -> None:
        count = len(call.arguments)
        named = zip(call.keywords, values[count:], strict=True)
        keywords = {k.name.text: replace(v, key=k.name.span) for k, v in named}
        bind_op(op, Arguments(tuple(values[:count]), keywords, call.span))


def _written(node: Node) -> Iterator[Argument]:
    """The values that an argument can have, where they are written out."""
    if isinstance(node, Choose):
        for alternative in node.alternatives:
            yield from _written(alternative.body)
    elif isinstance(node, Number | String | Boolean):
        yield Argument(node.value, node.span)
    elif isinstance(node, NoneLiteral):
        yield Argument(None, node.span)
    elif isinstance(node, Negate) and isinstance(node.operand, Number):
        yield Argument(-node.operand.value, node.span)
    elif isinstance(node, List):
        items = [list(_written(item)) for item in node.items]
        if all(len(item) == 1 for item in items):
            yield Argument(tuple(item[0].value for item in items), node.span)


def _one_at_a_time(options: list[list[Argument]]) -> Iterable[list[Argument]]:
    """Every value of every argument once, the others at their first."""
    yield [values[0] for values in options]
    for i, values in enumerate(options):
        for value in values[1:]:
            yield [value if i == j else other[0] for j, other in enumerate(options)]
