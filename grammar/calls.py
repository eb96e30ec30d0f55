"""Binding the arguments of a call: an op's parameters, operands and weights; a definition's formals.

Which arguments are tensors, which are parameters and of what kind is the op's declaration alone; a new op needs nothing
here. Mistakes are E0204 (unknown argument), E0205 (a value of the wrong kind), E0206 (missing), E0207 (too many).
"""

from __future__ import annotations

import re
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from archc.grammar.syntax import Formal
from archc.grammar.values import (
    Bundle,
    Module,
    Poison,
    Tensor,
    describe,
    flatten,
    is_number,
    is_tensor,
    spell,
    tensors_of,
)
from archc.ir.diagnostics import CompileError, Diagnostic, Span, did_you_mean, fail, suggest
from archc.ir.dims import Dim, Expr
from archc.ir.op import OpDef, Params
from archc.ir.types import DTYPES, ELSEWHERE


@dataclass(frozen=True, slots=True)
class Argument:
    """The value of one argument, where it stands, and where its name does."""

    value: Any
    span: Span
    key: Span | None = None


@dataclass(frozen=True, slots=True)
class Arguments:
    """The evaluated arguments of one call at `span`."""

    positional: tuple[Argument, ...]
    keywords: Mapping[str, Argument]
    span: Span

    @property
    def has_tensors(self) -> bool:
        return any(is_tensor(v) for a in self for v in flatten((a.value,)))

    def __iter__(self) -> Iterator[Argument]:
        yield from self.positional
        yield from self.keywords.values()


@dataclass(frozen=True, slots=True)
class OpArguments:
    """An op's arguments by what they are for. With a tied weight, parameters are checked when that is known."""

    params: Params | None
    operands: tuple[Any, ...] = ()
    named_operands: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Argument] = field(default_factory=dict)
    regions: Mapping[str, Argument] = field(default_factory=dict)
    name: str | None = None
    name_span: Span | None = None
    unchecked: Mapping[str, Argument] = field(default_factory=dict)

    @property
    def places(self) -> Mapping[str, Span]:
        """Where each parameter's argument stands."""
        return {name: argument.span for name, argument in self.unchecked.items()}


def operand_name(declared: str) -> str:
    """`mask?`, `*xs`, `k=q` -> `mask`, `xs`, `k`."""
    return declared.removeprefix("*").removesuffix("?").partition("=")[0]


def bind_op(op: OpDef[Any], arguments: Arguments, is_weight: Any = lambda value: False) -> OpArguments:
    """Sort the arguments of a call of `op`. `is_weight` tells the values that stand for a shared weight.

    Tensors are operands. Other positional arguments fill the regions, then the parameters (those without a default
    first), and what is left over is a number where the op expects a tensor: `add(x, 1)`.
    """
    fields = positional_order(op)
    regions = region_names(op)
    operand_names = [operand_name(o) for o in op.operand_names]
    tied = [role for role, weight in op.weights.items() if weight.tied]
    params: dict[str, Argument] = {}
    operands: list[Any] = []
    named: dict[str, Any] = {}
    weights: dict[str, Argument] = {}
    bodies: dict[str, Argument] = {}
    name: str | None = None
    name_span: Span | None = None

    free = (f for f in fields if f not in arguments.keywords)
    free_regions = (r for r in regions if r not in arguments.keywords)
    for argument in arguments.positional:
        value = argument.value
        if (found := _operands(value)) is not None:
            operands += found
        elif is_weight(value) and tied:
            weights[tied.pop(0)] = argument
        elif (region := next(free_regions, None)) is not None:
            bodies[region] = argument
        elif (target := next(free, None)) is not None:
            params[target] = argument
        elif (
            (is_number(value) or isinstance(value, bool)) and operand_names and not (fields and len(operand_names) == 1)
        ):
            operands.append(value)
        else:
            raise _too_many(op, fields, argument, arguments)
    for key, argument in arguments.keywords.items():
        value = argument.value
        if key in op.weights and (is_weight(value) or (isinstance(value, str) and key not in fields)):
            weights[key] = argument
        elif key in op.weights and isinstance(value, str):
            weights[key] = argument  # `bias = "encoder.bias"` names a weight; `bias = true` is the parameter
        elif key in regions:
            bodies[key] = argument
        elif key == "state" and op.name == "scan":
            named["states"] = value
        elif key in fields:
            params[key] = argument
        elif key in operand_names:
            if value is None:
                continue
            if tensors_of(value) is None and not is_number(value):
                raise wrong_value(op.name, key, "a tensor", argument)
            named[key] = value
        elif key == "name":
            if not isinstance(value, str):
                raise wrong_value(op.name, key, "a text", argument)
            name, name_span = value, argument.span
        else:
            allowed = [*regions, *fields, *operand_names, "name"]
            raise _unknown(op.name, key, allowed, argument)
    for role in weights:  # giving a bias says that there is one, where there would be none
        for switch in (op.weights[role].when, role):
            if switch not in fields:
                continue
            kind = written_fields(op.params)[switch].annotation
            if kind is bool or (kind == bool | None and not _has_weight(op, role, params)):
                params.setdefault(switch, Argument(True, arguments.span))
    late = any(weight.tied for weight in op.weights.values())
    checked = None if late else validate(op, params, arguments.span)
    return OpArguments(checked, tuple(operands), named, weights, bodies, name, name_span, params)


def _has_weight(op: OpDef[Any], role: str, given: Mapping[str, Argument]) -> bool:
    """Would a call with these parameters have the weight?"""
    when = op.weights[role].when
    try:
        return when is None or bool(getattr(op.params(**{key: a.value for key, a in given.items()}), when))
    except ValidationError:  # told where the parameters are checked
        return False


def positional_order(op: OpDef[Any]) -> list[str]:
    """The parameters that a program may write, in the order of positional arguments: the required ones first."""
    fields = written_fields(op.params)
    hidden = {name for name in region_names(op) if name in fields}  # those say which regions there are
    return sorted((name for name in fields if name not in hidden), key=lambda name: not fields[name].is_required())


def written_fields(params: Any) -> dict[str, FieldInfo]:
    """The fields of a schema by the name that programs use: `from`, where Python has `from_`."""
    return _written_fields(params)


@cache
def _written_fields(params: Hashable) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = params.model_fields  # type: ignore[attr-defined]
    return {info.alias or name: info for name, info in fields.items()}


def region_names(op: OpDef[Any]) -> list[str]:
    return [name.removeprefix("*").removesuffix("?") for name in op.regions]


def _operands(value: Any) -> tuple[Any, ...] | None:
    """Tensors fed by one positional argument; a list of tensors feeds each."""
    found = tensors_of(value)
    if found is None and isinstance(value, tuple) and value and all(isinstance(v, Tensor | Poison) for v in value):
        return value
    return found


def _too_many(op: OpDef[Any], fields: Sequence[str], argument: Argument, arguments: Arguments) -> CompileError:
    needs = f"`{op.name}` takes {_listed(fields)}" if fields else f"`{op.name}` takes no arguments"
    if isinstance(argument.value, Module):
        return wrong_value(op.name, None, "a tensor", argument)
    help = hint(argument.value)
    given = [a.value for a in arguments.positional if tensors_of(a.value) is None]
    listed = len(fields) == 1 and in_words(_annotation(op.params, fields[0])).startswith("a list")
    if listed and len(given) < 9 and all(map(is_number, given)):
        help = f"a list stands in brackets: `{op.name}({spell(tuple(given))})`"
    return fail(
        "E0207",
        f"too many arguments: {needs}",
        argument.span,
        label=f"{describe(argument.value)} is left over",
        help=help,
    )


def _unknown(what: str, key: str, allowed: Sequence[str], argument: Argument) -> CompileError:
    return fail(
        "E0204",
        f"`{what}` has no argument `{key}`",
        argument.key or argument.span,
        label="not one of its arguments",
        help=did_you_mean(key, allowed) or f"it takes {_listed(allowed)}",
    )


def hint(value: Any) -> str | None:
    """Where a value that does not fit here would."""
    from archc.grammar.modules import SharedWeight

    if not isinstance(value, SharedWeight):
        return None
    return f"a weight of a share is given for that of an op: `linear(4, weight = {value.shared.name}.{value.role})`"


def wrong_value(what: str, key: str | None, needed: str, argument: Argument, help: str | None = None) -> CompileError:
    """The error for an argument of the wrong kind (E0205)."""
    subject = f"`{key}` of `{what}`" if key else f"`{what}`"
    return fail(
        "E0205",
        f"{subject} needs {needed}",
        argument.span,
        label=f"found {describe(argument.value)}",
        help=help or hint(argument.value),
    )


def written_call(op: OpDef[Any]) -> str:
    """How a call is written: `conv(out, kernel, stride = 1, …)`."""
    fields = written_fields(op.params)
    words = [r.replace("*", "").replace("?", " = none") for r in op.regions]
    words += [n if fields[n].is_required() else f"{n} = {spell(fields[n].default)}" for n in positional_order(op)]
    return f"{op.name}({', '.join(words)})" if words else op.name


def missing(what: str, names: Sequence[str], span: Span, call: str) -> CompileError:
    """The error for arguments that a call lacks (E0206); `call` is how it is written."""
    return fail(
        "E0206", f"`{what}` needs {_listed(names)}", span, label="not given here", help=f"it is called `{call}`"
    )


def validate(op: OpDef[Any], given: Mapping[str, Argument], span: Span) -> Params:
    """The op's parameters, checked by its schema; a mistake points at the argument."""
    try:
        checked: Params = op.params(**{key: argument.value for key, argument in given.items()})
        return checked
    except ValidationError as error:
        raise CompileError(*_translated(op, given, error, span)) from None


def check_keywords(
    op: OpDef[Any], keywords: Mapping[str, Argument | None], keys: Mapping[str, Span], call: Span
) -> list[Diagnostic]:
    """Mistakes among keyword arguments of which only some values are known (else None); `keys` are their names."""
    allowed = [
        *region_names(op),
        *positional_order(op),
        *map(operand_name, op.operand_names),
        *op.weights,
        "name",
        "state",
    ]
    unknown = [key for key in keywords if key not in allowed]
    if unknown:
        return list(_unknown(op.name, unknown[0], allowed[:-1], Argument(None, keys[unknown[0]])).diagnostics)
    known = {
        k: a for k, a in keywords.items() if a is not None and k in written_fields(op.params) and k not in op.weights
    }
    try:
        op.params(**{key: argument.value for key, argument in known.items()})
    except ValidationError as error:
        found = _translated(op, known, error, call)
        return [d for d in found if d.span in {a.span for a in known.values()}]
    return []


def _translated(op: OpDef[Any], given: Mapping[str, Argument], error: ValidationError, span: Span) -> list[Diagnostic]:
    absent = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing" and len(e["loc"]) == 1]
    found: dict[str, Diagnostic] = {}
    if absent:
        found[""] = missing(op.name, absent, span, written_call(op)).diagnostics[0]
    for e in error.errors():
        key = str(e["loc"][0]) if e["loc"] else ""
        if key in found or (e["type"] == "missing" and len(e["loc"]) == 1):
            continue
        argument = given.get(key)
        if argument is None:  # a rule about several arguments together: the last that it names, or the only one
            message = e["msg"].removeprefix("Value error, ")
            named = [k for k in given if re.search(rf"\b{re.escape(k)}\b", message)]
            blamed = max(named, key=lambda k: message.rindex(k)) if named else next(iter(given), "")
            place = given[blamed].span if blamed and (named or len(given) == 1) else span
            label = f"found {describe(given[blamed].value)}" if place != span else "here"
            found.setdefault(key, fail("E0205", f"`{op.name}`: {message}", place, label=label).diagnostics[0])
            continue
        if e["type"] in ("value_error", "assertion_error"):
            needed, help = e["msg"].removeprefix("Value error, "), None
            error_ = fail("E0205", f"`{key}` of `{op.name}`: {needed}", argument.span, label=describe(argument.value))
            found[key] = error_.diagnostics[0]
            continue
        annotation = _annotation(op.params, key)
        choices = [c for c in _literals(annotation) if isinstance(c, str)]
        value = argument.value
        if set(DTYPES) <= set(choices) and isinstance(value, str):
            value = ELSEWHERE.get(value, value)
        close = suggest(value, choices) if isinstance(value, str) and choices else None
        help = f'did you mean "{close}"?' if close else None
        words = in_words(annotation)
        if words.startswith("a list") and is_number(value):
            help = f"a list stands in brackets: `[{spell(value)}]`"
        found[key] = wrong_value(op.name, key, words, argument, help).diagnostics[0]
    return list(found.values())


def _annotation(params: Any, key: str) -> Any:
    info = written_fields(params)[key]
    metadata = tuple(info.metadata)
    return Annotated[(info.annotation, *metadata)] if metadata else info.annotation


def _literals(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(c for inner in get_args(annotation) for c in _literals(inner))


def in_words(annotation: Any) -> str:
    """What a parameter's annotation admits.

    >>> from pydantic import PositiveInt
    >>> in_words(PositiveInt | tuple[PositiveInt, ...] | None)
    'a positive whole number, a list (each a positive whole number) or `none`'
    """
    if annotation is Any:
        return "a value"
    if annotation == Dim:
        return "a size"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = get_args(args[0]) if get_origin(args[0]) in (Union, types.UnionType) else ()
        if type(None) in inner:  # bounds are of what is not `none`
            given = " or ".join(in_words(a) for a in inner if a is not type(None))
            return f"{_bounded(given, args[1:])} or `none`"
        return _bounded(in_words(args[0]), args[1:])
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(in_words(a) for a in args if a is not Expr))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return " or ".join(spell(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list (each {in_words(args[0])})"
        return f"a list of {len(args)} ({', '.join(map(in_words, args))})"
    names = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "a text", Expr: "a dimension"}
    names |= {type(None): "`none`", tuple: "a list", Path: "a path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounded(words: str, metadata: Sequence[Any]) -> str:
    bounds = [b for m in metadata for b in (m if isinstance(m, annotated_types.GroupedMetadata) else (m,))]
    limits = []
    for bound in bounds:
        if isinstance(bound, annotated_types.Gt) and bound.gt == 0:
            words = words.replace("a ", "a positive ", 1)
        elif isinstance(bound, annotated_types.Gt):
            limits.append(f"above {bound.gt}")
        elif isinstance(bound, annotated_types.Ge):
            limits.append(f"at least {bound.ge}")
        elif isinstance(bound, annotated_types.Lt):
            limits.append(f"below {bound.lt}")
        elif isinstance(bound, annotated_types.Le):
            limits.append(f"at most {bound.le}")
    told = " and ".join(limits)
    return f"{words}{' of' * told.startswith('at')} {told}" if told else words


def bind_formals(
    what: str, formals: Sequence[Formal], arguments: Arguments, also: Sequence[str] = ("name",)
) -> dict[str, Argument]:
    """The arguments of a call of a definition by formal; those with defaults may be absent.

    Raises: CompileError for unknown (E0204), missing (E0206), doubled and surplus (E0207) arguments.
    """
    names = [f.name.text for f in formals]
    if len(arguments.positional) > len(names):
        left = arguments.positional[len(names)]
        takes = f"takes {_listed(names)}" if names else "takes no arguments"
        raise fail(
            "E0207", f"too many arguments: `{what}` {takes}", left.span, label=f"{describe(left.value)} is left over"
        )
    bound = dict(zip(names, arguments.positional, strict=False))
    for key, argument in arguments.keywords.items():
        if key in bound:
            raise fail("E0207", f"`{what}` is given `{key}` twice", argument.span, label="also given by position")
        if key in names:
            bound[key] = argument
        elif key not in also:
            raise _unknown(what, key, [*names, *also], argument)
    absent = [f.name.text for f in formals if f.default is None and f.name.text not in bound]
    if absent:
        words = [f.name.text if f.default is None else f"{f.name.text} = …" for f in formals]
        raise missing(what, absent, arguments.span, f"{what}({', '.join(words)})")
    return bound


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{n}`" for n in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}" if quoted else "nothing"


def bundle_of(items: Sequence[Tensor | Poison]) -> Any:
    """One tensor as itself, several as a bundle."""
    return items[0] if len(items) == 1 else Bundle(tuple(items))
