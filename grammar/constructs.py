"""The words that arrange modules and make no node of their own: `residual`, `branch`, `sequential`, `routing`,
`computation`, `copies`, `repeat`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from archc.grammar.calls import Argument, Arguments, bind_formals, bundle_of, wrong_value
from archc.grammar.modules import OpCall, Scoped, Sequence_, Shared, feed
from archc.grammar.scope import Env
from archc.grammar.syntax import Formal, Name, NoneLiteral, Repeat
from archc.grammar.values import POISON, Module, Place, Poison, Result, Tensor, flatten, tensors_of
from archc.ir.diagnostics import CompileError, Span, fail

if TYPE_CHECKING:
    from archc.grammar.counting import Counter
    from archc.grammar.elaborate import Elaborator

_NOWHERE = Span("", 0, 0, 0, 0)


def formals_of(**defaults: Any) -> tuple[Formal, ...]:
    """Formals of a construct; `...` marks one without a default."""

    def default(value: Any) -> Any:
        return None if value is ... else NoneLiteral(_NOWHERE)  # the construct knows which

    return tuple(Formal(Name(n, _NOWHERE), None, default(v), _NOWHERE) for n, v in defaults.items())


@dataclass(frozen=True, slots=True, eq=False)
class Construct:
    """A built-in word that makes a value from its arguments; `formals` are its keyword arguments."""

    name: str
    doc: str
    formals: tuple[Formal, ...]
    build: Callable[[Elaborator, Arguments, Place], Any]
    variadic: bool = False

    def make(self, e: Elaborator, arguments: Arguments, at: Place) -> Any:
        return self.build(e, arguments, at)


@dataclass(frozen=True, slots=True, eq=False)
class Residual(Module):
    """`body(x) + shortcut(x)`."""

    body: Module
    shortcut: Module | None
    span: Span
    title = "residual"

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        if len(inputs) != 1:
            raise fail("E0332", "`residual` takes one tensor", self.span, label=f"{len(inputs)} given")
        result = e.apply(self.body, inputs, at, span)
        around: Result = inputs[0]
        if self.shortcut is not None:
            around = e.apply(self.shortcut, inputs, at.named(at.scope.statement("shortcut")), span)
        both = [_single(result, self.body, "residual"), _single(around, self, "residual")]
        try:
            return e.join("add", both, self.span, at)
        except CompileError as error:
            if self.shortcut is not None:
                raise
            told = "the body changes the shape of its input: give a `shortcut = …` that makes the same shape"
            raise CompileError(
                *(replace(d, help=f"{d.help}; {told}" if d.help else told) for d in error.diagnostics)
            ) from None

    def count(self, c: Counter) -> int:
        return c.count(self.body) + (c.count(self.shortcut) if self.shortcut is not None else 0) + 1


def _single(value: Result, module: Module, what: str) -> Tensor | Poison:
    found = tensors_of(value) or ()
    if len(found) != 1:
        raise fail("E0332", f"`{what}` needs one tensor from each part", module.span, label=f"this makes {len(found)}")
    return found[0]


def _residual(e: Elaborator, arguments: Arguments, at: Place) -> Any:
    bound = bind_formals("residual", _RESIDUAL, arguments, also=())
    body = e.need_module(bound["body"].value, bound["body"].span)
    shortcut = bound.get("shortcut")
    if shortcut is None or shortcut.value is None:
        return Residual(body, None, arguments.span)
    return Residual(body, e.need_module(shortcut.value, shortcut.span), arguments.span)


SPLITS = ("clone", "group")
MERGES = ("add", "mul", "matmul", "concat")


@dataclass(frozen=True, slots=True, eq=False)
class Branch(Module):
    """Several modules on one tensor (or on a part of it each), and one tensor from what they make.

    `axis` is where groups are cut and results joined: by default the channel axis, 1 from rank 4 on, else the last.
    """

    branches: tuple[Module, ...]
    split: str
    merge: str
    axis: int | None
    span: Span
    title = "branch"

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        if self.split == "group" and len(inputs) != 1:
            raise fail("E0332", '`branch(split = "group")` takes one tensor', self.span, label=f"{len(inputs)} given")
        axis = self.axis
        if axis is None:
            rank = inputs[0].rank if inputs else 1
            axis = 1 if rank >= 4 else rank - 1
        fed: Sequence[Any] = [inputs] * len(self.branches)
        if self.split == "group" and len(self.branches) > 1:
            groups = e.join("split", list(inputs), self.span, at, axis=axis, parts=len(self.branches))
            fed = tensors_of(groups) or ()
        results = [_single(e.apply(m, f, at, span), m, "branch") for m, f in zip(self.branches, fed, strict=True)]
        if len(results) == 1:
            return results[0]
        if self.merge == "concat":
            return e.join("concat", results, self.span, at, axis=axis)
        merged: Result = results[0]
        for result in results[1:]:
            merged = e.join(self.merge, [_single(merged, self, "branch"), result], self.span, at)
        return merged

    def count(self, c: Counter) -> int:
        return sum(c.count(m) for m in self.branches) + len(self.branches) - 1


def _branch(e: Elaborator, arguments: Arguments, at: Place) -> Any:
    keywords = dict(arguments.keywords)
    bind_formals("branch", _BRANCH, Arguments((), keywords, arguments.span), also=())
    parts = list(arguments.positional)
    count = 1
    if parts and type(parts[0].value) is int:
        count = _copies_asked(e, "branch", parts.pop(0))
    modules = tuple(
        [e.need_module(v, a.span) for a in parts for v in (a.value if isinstance(a.value, tuple) else (a.value,))]
    )
    if not modules or not count:
        raise fail("E0206", "`branch` needs at least one module", arguments.span)
    if len(modules) * count > e.limits.repeat:
        raise e.limits.exceeded("repeat", len(modules) * count, arguments.span)
    split = _one_of("branch", "split", keywords.get("split"), SPLITS, "clone")
    merge = _one_of("branch", "merge", keywords.get("merge"), MERGES, "add")
    axis = keywords["axis"].value if "axis" in keywords else None
    if axis is not None and type(axis) is not int:
        raise wrong_value("branch", "axis", "a whole number", keywords["axis"])
    return Branch(modules * count, split, merge, axis, arguments.span)


def _one_of(what: str, key: str, argument: Argument | None, choices: Sequence[str], default: str) -> str:
    if argument is None:
        return default
    if argument.value not in choices:
        from archc.ir.diagnostics import suggest

        close = suggest(argument.value, choices) if isinstance(argument.value, str) else None
        needed = " or ".join(f'"{c}"' for c in choices)
        raise wrong_value(what, key, needed, argument, f'did you mean "{close}"?' if close else None)
    return argument.value  # type: ignore[no-any-return]


def _sequential(e: Elaborator, arguments: Arguments, at: Place) -> Any:
    bind_formals("sequential", (), Arguments((), arguments.keywords, arguments.span), also=())
    stages = [e.need_module(v, a.span) for a in arguments.positional for v in flatten((a.value,))]
    return Sequence_(tuple(stages), arguments.span)


def _routing(e: Elaborator, arguments: Arguments, at: Place) -> Any:
    bound = bind_formals("routing", _ROUTING, arguments, also=())
    stages = [bound[f.name.text] for f in _ROUTING]
    return Sequence_(tuple([e.need_module(a.value, a.span) for a in stages]), arguments.span)


def _computation(e: Elaborator, arguments: Arguments, at: Place) -> Any:
    bound = bind_formals("computation", _COMPUTATION, arguments, also=())
    return e.need_module(bound["op"].value, bound["op"].span)


def _copies(e: Elaborator, arguments: Arguments, at: Place) -> Any:
    bound = bind_formals("copies", _COPIES, arguments, also=())
    return (e.need_module(bound["m"].value, bound["m"].span),) * _copies_asked(e, "copies", bound["n"])


def _copies_asked(e: Elaborator, what: str, argument: Argument) -> int:
    count = argument.value
    if type(count) is not int or count < 0:
        raise wrong_value(what, "n", "a whole number of at least 0", argument)
    if count > e.limits.repeat:
        raise e.limits.exceeded("repeat", count, argument.span)
    return count


@dataclass(frozen=True, slots=True, eq=False)
class Repeated(Module):
    """`repeat(count) { body }`: fresh copies in sequence. Where the body depends on the index, it is made for each."""

    copies: int
    body: Module | None
    indexed: Callable[[int, Place], Any]
    tied: bool
    span: Span
    title = "repeat"

    def apply(self, e: Elaborator, inputs: tuple[Tensor, ...], at: Place, span: Span) -> Result:
        value: Any = bundle_of(inputs)
        shared: Shared | None = None
        for i in range(self.copies):
            body = self.body
            if body is None:
                made = self.indexed(i, at)
                if isinstance(made, Poison):
                    return made
                body = e.need_module(made, self.span)
            if self.tied:
                if shared is None:
                    name = body.title if isinstance(body, Scoped | OpCall) else "repeat"
                    shared = Shared(name, body, self.span, at.scope)
                shared.module = body
                body = shared
            value = e.apply(body, feed(value), at, span)
        return value  # type: ignore[no-any-return]

    def count(self, c: Counter) -> int:
        return self.copies * (c.count(self.body) if self.body is not None else c.count_indexed(self))


def repeat(e: Elaborator, expr: Repeat, env: Env, at: Place) -> Any:
    """The value of `repeat(count, tied = false) as index { body }`."""
    positional = tuple([Argument(e.evaluate(a, env, at), a.span) for a in expr.arguments])
    keywords = {k.name.text: Argument(e.evaluate(k.value, env, at), k.value.span) for k in expr.keywords}
    bound = bind_formals("repeat", _REPEAT, Arguments(positional, keywords, expr.span), also=())
    if any(a.value is POISON for a in bound.values()):
        return POISON
    count = _copies_asked(e, "repeat", bound["n"])
    tied = bound["tied"].value if "tied" in bound else False
    if not isinstance(tied, bool):
        raise wrong_value("repeat", "tied", "`true` or `false`", bound["tied"])

    def body_at(index: int, place: Place) -> Any:
        inner = Env(env, {expr.index.text: index} if expr.index is not None else {})
        return e.evaluate(expr.body, inner, place, wants_module=True)

    body = None
    if expr.index is None:
        body = body_at(0, at)
        if body is POISON:
            return POISON
        body = e.need_module(body, expr.body.span)
    return Repeated(count, body, body_at, tied, expr.span)


_RESIDUAL = formals_of(body=..., shortcut=None)
_BRANCH = formals_of(split="clone", axis=None, merge="add")
_ROUTING = formals_of(pre=..., body=..., post=...)
_COMPUTATION = formals_of(op=...)
_COPIES = formals_of(n=..., m=...)
_REPEAT = formals_of(n=..., tied=False)

CONSTRUCTS: dict[str, Construct] = {
    c.name: c
    for c in (
        Construct("residual", "`body(x) + shortcut(x)`", _RESIDUAL, _residual),
        Construct("branch", "several modules on one tensor, merged", _BRANCH, _branch, variadic=True),
        Construct("sequential", "modules one behind the other", (), _sequential, variadic=True),
        Construct("routing", "`pre -> body -> post`", _ROUTING, _routing),
        Construct("computation", "one op", _COMPUTATION, _computation),
        Construct("copies", "a list of modules with fresh weights each", _COPIES, _copies),
    )
}
