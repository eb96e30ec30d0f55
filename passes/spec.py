"""Passes as text: `moe(experts = 8, top_k = 2)`. Read by the language's own parser, checked like an operator's call.

Values are those of the language: numbers, `true`, `none`, texts, lists. A bare word is a text (`router = sigmoid`):
quotes inside quotes are a nuisance in a shell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from archc.grammar import syntax as s
from archc.grammar.calls import Argument, Arguments, bind_op
from archc.grammar.parser import parse
from archc.ir.diagnostics import CompileError, Diagnostic, Span, did_you_mean, fail
from archc.ir.op import OpDef
from archc.passes.catalogue import PASSES, TRANSFORMS, find_transform, installed
from archc.passes.manager import Pass
from archc.passes.transform import Options, Transform, as_pass
from archc.passes.where import Where, parse_term

FILE = "--pass "
"""What spans of a spec name as their file, before the spec itself: so that a message can show it."""
_AT = re.compile(r"(\s*\w+\s*(?:\(.*\))?)\s+at\s+(\S.*)", re.DOTALL)


def parse_pass(text: str, at: Sequence[str] | str = ()) -> Pass:
    """The pass that a spec describes. Where it is to act, `at` says, or the spec itself: `glu at layers 4..8`.

    Raises: CompileError E0401 for a name that there is not, E01xx, E0204–E0207 for options that are wrong.

    >>> parse_pass("fold_batch_norm").name
    'fold_batch_norm'
    """
    call, terms = _place(text, at)
    name, arguments = _call(call)
    if (transform := find_transform(name)) is not None:
        for term in terms:
            parse_term(term)  # a selection that cannot be read is told first
        return as_pass(transform, bind_options(transform, arguments), Where(terms), text)
    if name not in PASSES:
        known = [*TRANSFORMS, *installed(), *PASSES]
        help = did_you_mean(name, known) or "`archc passes` lists them"
        raise fail("E0401", f"there is no pass `{name}`", help=help)
    if [*arguments]:
        raise fail("E0207", f"`{name}` takes no arguments", next(iter(arguments)).span)
    return PASSES[name]


def _place(text: str, at: Sequence[str] | str) -> tuple[str, tuple[str, ...]]:
    """A spec apart from its own selection, and the terms of that, or else of `at`."""
    split = _AT.fullmatch(text)
    given = (at,) if isinstance(at, str) else tuple(at)
    return (split[1], (split[2],)) if split else (text, given)


def parse_transform(text: str) -> tuple[Transform[Any], Options]:
    """The transform and options of a spec; raises what `parse_pass` raises, E0401 for a pass that is none."""
    name, arguments = _call(_place(text, ())[0])
    transform = find_transform(name)
    if transform is None:
        raise fail("E0401", f"there is no transform `{name}`", help=did_you_mean(name, TRANSFORMS))
    return transform, bind_options(transform, arguments)


def bind_options(transform: Transform[Any], arguments: Arguments) -> Options:
    """Options from the arguments of a call."""
    bound = bind_op(as_op(transform), arguments)
    if bound.name is not None:
        raise fail("E0204", f"`{transform.name}` has no argument `name`", bound.name_span)
    assert isinstance(bound.params, Options)
    return bound.params


def as_op(transform: Transform[Any]) -> OpDef[Any]:
    """What the language's checks of arguments take for an operator: a transform's name and options."""
    return OpDef(transform.name, transform.doc, lambda call: "", transform.options)


def _call(text: str) -> tuple[str, Arguments]:
    """The name and the arguments of a spec."""
    file = FILE + text
    try:
        program = parse("spec =\n" + text, file)
        (bind,) = program.items
        assert isinstance(bind, s.Bind)
        node = bind.value
        if isinstance(node, s.Ref):
            return node.name, Arguments((), {}, node.span)
        if not isinstance(node, s.Call) or not isinstance(node.callee, s.Ref):
            raise fail("E0405", "a pass is called like an operator", node.span, help="as `moe(experts = 8, top_k = 2)`")
        positional = tuple(Argument(_value(a), a.span) for a in node.arguments)
        keywords = {k.name.text: Argument(_value(k.value), k.value.span, k.name.span) for k in node.keywords}
        return node.callee.name, _up(Arguments(positional, keywords, node.span))
    except (CompileError, ValueError, AssertionError) as e:
        if isinstance(e, CompileError):
            raise CompileError(*map(_moved, e.diagnostics), exit_code=e.exit_code) from None
        raise fail("E0405", f"`{text}` is no pass", help="as `moe(experts = 8, top_k = 2)`") from None


def _value(node: s.Expr) -> Any:
    if isinstance(node, s.Number | s.String | s.Boolean):
        return node.value
    if isinstance(node, s.NoneLiteral):
        return None
    if isinstance(node, s.Ref):
        return node.name
    if isinstance(node, s.List):
        return tuple(_value(item) for item in node.items)
    if isinstance(node, s.Negate) and isinstance(node.operand, s.Number):
        return -node.operand.value
    raise fail("E0405", "an option of a pass needs a number, a word, a text or a list", node.span)


def _moved(d: Diagnostic) -> Diagnostic:
    """The spec begins on the second line of what was parsed."""
    notes = tuple(replace(n, span=_above(n.span)) for n in d.notes)
    return replace(d, span=_above(d.span), notes=notes)


def _above(span: Span | None) -> Span | None:
    return span and replace(span, line=max(1, span.line - 1), end_line=max(1, span.end_line - 1))


def _up(arguments: Arguments) -> Arguments:
    def up(a: Argument) -> Argument:
        span = _above(a.span)
        assert span is not None
        return Argument(a.value, span, _above(a.key))

    span = _above(arguments.span)
    assert span is not None
    return Arguments(tuple(map(up, arguments.positional)), {k: up(a) for k, a in arguments.keywords.items()}, span)
