"""Lexical environments: what a name means where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from archc.grammar.syntax import Def, Formal, Rule
from archc.ir.diagnostics import Span, did_you_mean, fail


@dataclass(slots=True, eq=False)
class Env:
    """Names of one block, and the block around it. A value is anything of `values.py`, or one of the entries below."""

    parent: Env | None = None
    names: dict[str, Any] = field(default_factory=dict)

    def look_up(self, name: str) -> Any:
        """The meaning of `name`, or `MISSING`."""
        env: Env | None = self
        while env is not None:
            if name in env.names:
                return env.names[name]
            env = env.parent
        return MISSING

    def all_names(self) -> Iterator[str]:
        env: Env | None = self
        while env is not None:
            yield from env.names
            env = env.parent


class _Missing:
    __slots__ = ()


MISSING = _Missing()


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A `let` or output that is bound further down."""

    name: str
    span: Span


@dataclass(slots=True, eq=False)
class Definition:
    """A `def` with the environment of its file. `memo` holds the templates that it has made, by arguments."""

    syntax: Def
    env: Env
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.syntax.name.text

    @property
    def formals(self) -> tuple[Formal, ...]:
        return self.syntax.formals or ()


@dataclass(frozen=True, slots=True, eq=False)
class RuleEntry:
    """A `rule` of a space."""

    syntax: Rule
    env: Env


def owners(name: str) -> Iterator[str]:
    """What stands before each dot of a name, or before each of the first hundred.

    >>> list(owners("encoder.conv.weight"))
    ['encoder', 'encoder.conv']
    """
    return (name[: dot.start()] for dot in islice(re.finditer(r"\.", name), 100))


def close_name(name: str, known: Iterable[str]) -> str | None:
    """`did you mean …?`; not for single letters, which are close to every other.

    >>> close_name("linaer", ["linear"]), close_name("self_attention", ["attention", "add"]), close_name("x", ["y"])
    ('did you mean `linear`?', 'did you mean `attention`?', None)
    """
    names = list(known)
    if len(name) == 1 or (close := did_you_mean(name, names)) is not None:
        return close if len(name) > 1 else None
    within = max((k for k in names if len(k) > 3 and k in name), key=len, default=None)
    longer = [k for k in names if k.startswith(f"{name}_")]
    found = within or (longer[0] if len(longer) == 1 else None)
    return f"did you mean `{found}`?" if found else None


PARAMETER_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
}
ParameterType = Literal["int", "float", "bool", "str"]
_WORDS = {"int": "a whole number", "float": "a number", "bool": "`true` or `false`", "str": "a text"}


def check_parameter(formal: Formal, value: Any, span: Span | None, describe: str, default: Any = MISSING) -> None:
    """Check a value against a formal's declared type, or the type of its default value where it declares none.

    Raises: CompileError (E0205) when it does not fit; (E0211) when the declared type is unknown.
    """
    if formal.type is not None:
        kind = formal.type.text
        if kind not in PARAMETER_TYPES:
            known = ", ".join(f"`{t}`" for t in PARAMETER_TYPES)
            help = did_you_mean(kind, PARAMETER_TYPES) or f"the types are {known}"
            raise fail("E0211", f"unknown parameter type `{kind}`", formal.type.span, help=help)
        if value is None and default is None:
            return
    else:
        kind = next((k for k, t in _BY_DEFAULT if type(default) is t), "")
        if not kind:
            return
    wanted = PARAMETER_TYPES[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise fail("E0205", f"parameter `{formal.name.text}` needs {_WORDS[kind]}", span, label=f"found {describe}")


_BY_DEFAULT: tuple[tuple[str, type], ...] = (("bool", bool), ("int", int), ("float", float), ("str", str))
