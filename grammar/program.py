"""A whole program: its parameters, ports and statements, in order, into one graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from archc.grammar.calls import hint
from archc.grammar.elaborate import Elaborator
from archc.grammar.emit import find_op
from archc.grammar.imports import Importer
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.naming import Scope
from archc.grammar.resolve import Resolver
from archc.grammar.scope import (
    MISSING,
    Definition,
    Env,
    Pending,
    RuleEntry,
    check_parameter,
    close_name,
)
from archc.grammar.signatures import dtype_of, size_of
from archc.grammar.syntax import Bind, Def, Formal, Import, Let, Port, Ref, Require, Rest, Rule, Share, walk
from archc.grammar.syntax import Program as ProgramSyntax
from archc.grammar.values import POISON, Bundle, Frame, Module, Place, Poison, Tensor, describe, plain
from archc.ir.diagnostics import CompileError, Note, Span, TooManyMistakes, did_you_mean, fail
from archc.ir.dims import symbol
from archc.ir.graph import Graph, Value
from archc.ir.types import MAX_RANK, TensorType


class Program:
    """Elaborates one file. `values` are its parameters (`--set`), `dims` sizes of its symbols (`--dim`)."""

    def __init__(
        self,
        syntax: ProgramSyntax,
        values: Mapping[str, Any] | None = None,
        dims: Mapping[str, int] | None = None,
        limits: Limits = DEFAULT,
        elaborator: Elaborator | None = None,
    ) -> None:
        self.syntax, self.values = syntax, dict(values or {})
        self.dims = {name: plain(size) for name, size in (dims or {}).items()}
        self.e = elaborator or Elaborator(limits)
        self.importer = Importer(self.e.limits, chain=[os.path.realpath(syntax.file)])
        self.graph = Graph(syntax.name.text if syntax.name is not None else "main", span=syntax.span)
        self.frame = Frame(self.graph)
        self.root = Place(self.frame, Scope.root(self.e.names))
        self.env = Env()
        self.outputs: dict[str, tuple[Port, TensorType | Poison]] = {}
        self.requirements: list[Require] = []
        self.parameters_open = False
        self.is_resolved = False  # has a `Resolver` looked at this very syntax before?
        self.lost: frozenset[str] = frozenset()
        self.bound: dict[str, Span] = {}
        self.results: dict[str, tuple[Value, Span]] = {}

    def elaborate(self) -> Graph:
        """The graph.

        Raises: CompileError with every mistake found.
        """
        if self.syntax.kind != "arch":
            raise self._not_an_architecture()
        self.check()
        self.e.sink.finish()
        return self.graph

    def check(self, arguments: bool = False) -> None:
        """Find mistakes; what is left open (`parameters_open`, `choices_open`) is taken to be right. Nothing is said
        of the names that statements with syntax errors mention (`lost`).

        `arguments`: check those of calls in unused definitions, too.
        """
        with suppress(TooManyMistakes):
            self._check(arguments)

    def _check(self, arguments: bool) -> None:
        self._guarded(self._parameters)
        self._declare()
        self._symbols()
        for name in self.lost:
            if find_op(name) is None and isinstance(self.env.names.get(name, POISON), Pending | Poison):
                self.env.names[name] = POISON
        if not self.is_resolved:
            resolver = Resolver(self.syntax, self.env.names, self.e.sink, arguments)
            resolver.run()
            if resolver.recursive:
                return
        self._elaborate()

    def _elaborate(self) -> None:
        for item in self.syntax.items:
            if isinstance(item, Port):
                self._guarded(lambda item=item: self._port(item), item.name.text)
        self._check_dims()
        for item in self.syntax.items:
            if isinstance(item, Let | Share):
                self.e.statement(item, self.env, self.root)
            elif isinstance(item, Bind):
                self._bind(item)
            elif isinstance(item, Require):
                self.requirements.append(item)
        self._finish()
        complete = not self.e.sink.has_errors and len(self.results) == len(self.outputs)
        for requirement in self.requirements if complete else ():
            self._guarded(lambda item=requirement: self._require(item))

    def _not_an_architecture(self) -> CompileError:
        if self.syntax.kind == "space":
            return fail("E0701", "a space leaves choices open: it is no single architecture", self.syntax.span,
                        help="`archc sample` draws architectures from it")  # fmt: skip
        message = "this file has no `arch` line: it is a library, which other files import"
        return fail("E0219", message, self.syntax.span, help="begin the file with `arch name`")

    def _guarded(self, action: Any, *names: str) -> None:
        try:
            action()
        except CompileError as error:
            self.e.report(error, self.root)
            self.env.names.update(dict.fromkeys(names, POISON))

    # Parameters

    def _parameters(self) -> None:
        formals = self.syntax.formals
        for name in self.values.keys() - {f.name.text for f in formals}:
            known = [f.name.text for f in formals]
            help = did_you_mean(name, known) or (f"it has {', '.join(known)}" if known else "it has no parameters")
            self.e.sink.add(*fail("E0215", f"the program has no parameter `{name}`", help=help).diagnostics)
        for formal in formals:
            self._guarded(lambda formal=formal: self._parameter(formal), formal.name.text)

    def _parameter(self, formal: Formal) -> None:
        name = formal.name.text
        if name in self.env.names:
            raise fail("E0202", f"`{name}` is declared twice", formal.name.span)
        default = MISSING if formal.default is None else self.e.evaluate(formal.default, self.env, self.root)
        if name in self.values:
            value = read_value(self.values[name], formal, default)
            if isinstance(value, int) and not isinstance(value, bool) and _is_float(formal, default):
                value = float(value)
            check_parameter(formal, value, formal.name.span, describe(value), default)
        elif default is MISSING and self.parameters_open:
            value = POISON
        elif default is MISSING:
            raise fail("E0214", f"parameter `{name}` has no value", formal.span, label="it has no default",
                       help=f"give it one: `--set {name}=…`")  # fmt: skip
        else:
            value = default
            if formal.type is not None and value is not POISON:
                check_parameter(
                    formal, value, formal.default.span if formal.default else None, describe(value), default
                )
        self.env.names[name] = value

    # Declarations

    def _declare(self) -> None:
        """Make the names of all items known, whatever their order."""
        spans = {f.name.text: f.name.span for f in self.syntax.formals}
        declare(self.e, self.syntax, self.env, self.root, self.importer, spans)
        for item in self.syntax.items:
            for name in item.names if isinstance(item, Bind) else ():  # if it is no output, that is said once
                self.env.names.setdefault(name.text, Pending(name.text, name.span))

    def _symbols(self) -> None:
        """The dimensions that inputs name."""
        for port in self.syntax.items:
            if not isinstance(port, Port) or port.direction != "input":
                continue
            for node in walk(port.type):
                if isinstance(node, Ref) and node.name[:1].isupper() and node.name not in self.env.names:
                    fixed = self.dims.get(node.name)
                    self.env.names[node.name] = symbol(node.name) if fixed is None else fixed
                    self.frame.symbols[node.name] = symbol(node.name)

    def _port(self, port: Port) -> None:
        if port.direction == "output":
            self.outputs[port.name.text] = (port, POISON)  # bound or not, it is an output, even if its type is wrong
        type_ = self._type(port)
        name = port.name.text
        if port.direction == "output":
            self.outputs[name] = (port, type_)
        elif isinstance(type_, Poison):
            self.env.names[name] = POISON
        else:
            self.env.names[name] = Tensor(self.graph.add_input(name, type_, port.span), self.frame)

    def _type(self, port: Port) -> TensorType | Poison:
        dtype = dtype_of(port.type)
        if len(port.type.dims) > MAX_RANK:
            raise fail("E0316", f"a tensor has at most {MAX_RANK} axes", port.name.span,
                       label=f"`{port.name.text}` has {len(port.type.dims)}")  # fmt: skip
        shape = []
        for dim in port.type.dims:
            if isinstance(dim, Rest):
                raise fail("E0337", "a port has a known number of axes", dim.span, label="this stands for any number")
            value = self.e.evaluate(dim, self.env, self.root)
            if isinstance(value, Poison):
                return value
            shape.append(size_of(value, dim.span))
        return TensorType(tuple(shape), dtype or "f32")

    def _check_dims(self) -> None:
        declared = set(self.frame.symbols)
        for name in self.dims.keys() - declared - self.lost:
            help = did_you_mean(name, declared)
            self.e.sink.add(*fail("E0215", f"no input has a dimension `{name}`", help=help).diagnostics)
        for name in self.dims:
            self.frame.symbols.pop(name, None)

    # Outputs

    def _bind(self, item: Bind) -> None:
        try:
            for name in item.names:
                if name.text in self.bound:
                    raise fail("E0202", f"`{name.text}` is bound twice", name.span, label="the second time",
                               notes=[Note("the first time", self.bound[name.text])])  # fmt: skip
                if name.text in self.lost and name.text not in self.outputs:
                    continue
                if name.text not in self.outputs and not isinstance(self.env.look_up(name.text), Poison):
                    self.env.names.setdefault(name.text, POISON)
                    raise fail("E0217", f"`{name.text}` is no output", name.span,
                               help=close_name(name.text, self.outputs) or f"write `let {name.text} = …`, or declare "
                               f"`output {name.text}: …`")  # fmt: skip
            self.bound |= {name.text: name.span for name in item.names}
            first = next(iter(self.outputs), None)
            scope = self.root.scope
            if item.names[0].text != first:
                scope = scope.statement(item.names[0].text)
            value = self.e.evaluate(item.value, self.env, self.root.named(scope))
            if not isinstance(value, Tensor | Bundle | Poison):
                help = f"feed it a tensor: `x -> {value.title}`" if isinstance(value, Module) else hint(value)
                raise fail("E0331", "an output needs a tensor", item.value.span, label=f"found {describe(value)}",
                           help=help)  # fmt: skip
            self.e.bind(item.names, value, item.value.span, self.env)
            for name in item.names:
                self._check_output(name.text, item)
        except CompileError as error:
            self.e.report(error, self.root)
            self.env.names.update({name.text: POISON for name in item.names})

    def _check_output(self, name: str, item: Bind) -> None:
        value = self.env.names[name]
        if name not in self.outputs:
            return  # said before
        port, declared = self.outputs[name]
        if isinstance(value, Bundle):
            raise fail("E0332", f"output `{name}` is one tensor", item.value.span, label=f"found {describe(value)}",
                       help=f"name each of them: `let first, second = …`, then `{name} = first`")  # fmt: skip
        if isinstance(value, Poison):
            return
        self.results[name] = (value.value, item.value.span)
        if not isinstance(declared, Poison):
            self.e.expect(
                value,
                declared,
                lambda found: fail(
                    "E0340",
                    f"output `{name}` needs {declared}",
                    item.value.span,
                    label=f"this is {found}",
                    notes=[Note("declared here", port.type.span)],
                ),
            )

    def _finish(self) -> None:
        for name, (port, _) in self.outputs.items():
            if name in self.results:
                self.graph.outputs.append(self.results[name][0])
                self.graph.output_names.append(name)
            elif self.env.names.get(name) is not POISON and not self.lost:
                error = fail("E0216", f"output `{name}` is not bound", port.name.span, help=f"add a line `{name} = …`")
                self.e.sink.add(*error.diagnostics)
        if not self.outputs and self.syntax.kind != "library" and not self.e.sink.has_errors:
            self.e.sink.add(*fail("E0216", "the program has no output", self.syntax.span,
                                  help="declare one: `output y: f32[N, 10]`").diagnostics)  # fmt: skip

    def _require(self, item: Require) -> None:
        from archc.grammar.requirements import check_requirement

        check_requirement(self.e, item, self.graph, self.env, self.root)


def declare(
    e: Elaborator, syntax: ProgramSyntax, env: Env, at: Place, importer: Importer, spans: dict[str, Span]
) -> None:
    """Make the names of all items of a file known, whatever their order; `spans` holds those known before."""
    for item in syntax.items:
        found: dict[str, Any] = {}
        if isinstance(item, Import):
            try:
                found = imported(e, item, syntax.file, at, importer)
            except CompileError as error:
                e.report(error, at)
                found = {name.text: POISON for name in item.names or ()}
        places = dict.fromkeys(found, item.path.span) if isinstance(item, Import) else {}
        places |= {name.text: name.span for name in declared_names(item)}
        for text, span in places.items():
            if text in spans:
                twice = fail("E0202", f"`{text}` is declared twice", span, label="the second time",
                             notes=[Note("the first time", spans[text])])  # fmt: skip
                e.sink.add(*twice.diagnostics)
                continue
            spans[text] = span
            env.names[text] = (
                found.get(text, POISON) if isinstance(item, Import)
                else Definition(item, env) if isinstance(item, Def)
                else RuleEntry(item, env) if isinstance(item, Rule)
                else Pending(text, span)
            )  # fmt: skip


def imported(e: Elaborator, item: Import, importing: str, at: Place, importer: Importer) -> dict[str, Any]:
    """What an `import` brings: the named definitions, or everything that the file declares itself."""
    key, syntax = importer.find(item, importing)
    if syntax is not None:
        env = Env()
        importer.chain.append(key)
        declare(e, syntax, env, at, importer, {})
        importer.chain.pop()
        definitions = [i for i in syntax.items if not isinstance(i, Port | Bind | Require)]
        resolver = Resolver(replace(syntax, items=tuple(definitions)), env.names, e.sink)
        resolver.run()
        if resolver.recursive:
            env.names.update({i.name.text: POISON for i in syntax.items if isinstance(i, Def | Share)})
        for inner in syntax.items:
            if isinstance(inner, Let | Share):
                e.statement(inner, env, at)
            elif isinstance(inner, Port | Bind | Require):
                error = fail("E0219", "a library has definitions only", inner.span, label="this belongs into a program")
                e.report(error, at)
        importer.known[key] = syntax, env
    syntax, env = importer.known[key]
    own = [name.text for i in syntax.items if not isinstance(i, Import | Port) for name in declared_names(i)]
    found = {name: env.names[name] for name in own if name in env.names}
    if item.names is None:
        return found
    for name in item.names:
        if name.text not in found:
            raise fail("E0220", f"`{item.path.value}` has no `{name.text}`", name.span,
                       help=close_name(name.text, found) or f"it has {', '.join(found) or 'nothing'}")  # fmt: skip
    return {name.text: found[name.text] for name in item.names}


def _is_float(formal: Formal, default: Any) -> bool:
    return formal.type.text == "float" if formal.type is not None else isinstance(default, float)


def declared_names(item: Any) -> tuple[Any, ...]:
    """The names that an item of a program declares."""
    if isinstance(item, Def | Share | Rule | Port):
        return (item.name,)
    if isinstance(item, Let):
        return item.names
    if isinstance(item, Import):
        return item.names or ()
    return ()


def read_value(value: Any, formal: Formal, default: Any = MISSING) -> Any:
    """A value for a parameter; a text from the command line is read as what the parameter wants.

    >>> from archc.grammar.parser import parse
    >>> read_value("16", parse("arch a(width: int)").formals[0])
    16
    """
    kind = formal.type.text if formal.type is not None else ""
    wants_text = kind == "str" or (not kind and isinstance(default, str))
    if not isinstance(value, str) or wants_text:
        return plain(value)
    if value in ("true", "false"):
        return value == "true"
    if value == "none":
        return None
    for read in (int, float):
        try:
            return read(value.replace("_", "") if value[-1:] not in "kMG" else str(_suffixed(value)))
        except ValueError:
            continue
    return value


def _suffixed(value: str) -> int | float:
    number = float(value[:-1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[value[-1]]
    return int(number) if number.is_integer() else number


__all__ = ["Program", "declared_names", "read_value"]
