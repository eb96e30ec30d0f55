"""What a metanetwork calls things: ops, weight roles and attributes, each by name.

A vocabulary is three lists of names; a row of a table or a column of a matrix is found by its name, never by its place
in today's registry. A model keeps the vocabulary it was trained with in its card, and a network that says something it
has no word for is told so (E0810) instead of being read wrongly.

Attributes are encoded from the schema of each op's parameters, with no rule of its own for any op:

    stride = 2             "stride"                       signed logarithm, sign(v) · log2(1 + |v|)
    causal = true          "causal"                       1
    kernel = [3, 5]        "kernel[0]", "kernel[1]"       and "kernel#", how many there are
    mode = "reflect"       "mode=reflect"                 1
    scale = none           "scale=none"                   1
    axis = [1, 2]          "axis=1", "axis=2"             1 each
    order = [0, 2, 1]      "order[0]=0", "order[1]=2" …   1 each
    bias, spelled out
      as a word                "bias=else"                    1: a case that only the op tells apart
    equation = "bi,ij->bj" "equation[0][1]" …             which letter stands there, counted from 1 as they appear

Values are those that the op spells out (`OpDef.spelled`): axes count from 0, a number for each spatial axis, defaults
filled in, so that two ways to write one layer have one encoding. Of a tuple longer than `MAX_ITEMS` the last columns
hold mean and spread of all items (`"value~mean"`, `"value~std"`). `init` is not here: a parameter carries its own.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union

from archc.ir.diagnostics import fail
from archc.ir.dims import Expr, substitute, symbols
from archc.ir.graph import Node
from archc.ir.op import REGISTRY, OpDef

MAX_ITEMS = 6
"""Items of a tuple that have a column each."""

MAX_AXES = 8
"""Axes that have a column each."""

AXIS_FIELDS = frozenset({"axis", "a", "b"})
"""Fields that name axes: a column for each axis."""

NONE, INPUT, OUTPUT, FORMAL = "%none", "%input", "%output", "%formal"
"""What is no op: nothing (place 0, for filling), an input and an output of the network, an input of a region."""

Pairs = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ops, weight roles and attribute columns by name; `index` finds a name's place."""

    ops: tuple[str, ...]
    roles: tuple[str, ...]
    attributes: tuple[str, ...]
    places: Mapping[str, Mapping[str, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tables = {"ops": self.ops, "roles": self.roles, "attributes": self.attributes}
        object.__setattr__(self, "places", {t: {n: i for i, n in enumerate(names)} for t, names in tables.items()})

    def index(self, table: Literal["ops", "roles", "attributes"], name: str, node: Node | None = None) -> int:
        """The place of a name.

        Raises: CompileError (E0810) for a name that the vocabulary has not.
        """
        found = self.places[table].get(name)
        if found is None:
            raise unknown(table, name, node)
        return found

    def to_json(self) -> dict[str, list[str]]:
        """As a model's card keeps it."""
        return {"ops": list(self.ops), "roles": list(self.roles), "attributes": list(self.attributes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[str]]) -> Vocabulary:
        """The vocabulary of a card."""
        return cls(tuple(data["ops"]), tuple(data["roles"]), tuple(data["attributes"]))


def unknown(table: str, name: str, node: Node | None) -> Exception:
    """What a network says and a vocabulary has no word for (E0810)."""
    kind = {"ops": "op", "roles": "weight role", "attributes": "attribute"}[table]
    where = f" of `{node.name}`" if node is not None and node.name else ""
    return fail(
        "E0810",
        f"this metanetwork has no word for the {kind} `{name}`{where}",
        node.span if node is not None else None,
        label="it was trained before there was such a one, or without the plug-in that has it",
        help="train it again with networks that have it, or use another op",
    )


def vocabulary() -> Vocabulary:
    """The words for every op that is registered now, plug-ins' ops included, in the order of their names.

    >>> words = vocabulary()
    >>> words.ops[words.index("ops", "conv")], "kernel[1]" in words.attributes, "running_var" in words.roles
    ('conv', True, True)
    """
    import archc.ir.ops  # noqa: F401  (fills the registry)

    return _vocabulary(tuple(sorted(REGISTRY)))


@lru_cache(maxsize=8)
def _vocabulary(names: tuple[str, ...]) -> Vocabulary:
    ops = [REGISTRY[name] for name in names]
    roles = {role for op in ops for role in op.weights}
    columns = {column for op in ops for column in op_columns(op)}
    return Vocabulary((NONE, INPUT, OUTPUT, FORMAL, *names), tuple(sorted(roles)), tuple(sorted(columns)))


def op_columns(op: OpDef[Any]) -> Iterator[str]:
    """Every attribute column that an application of the op may fill, from the schema of its parameters."""
    for name, info in op.params.model_fields.items():
        if name != "init":
            yield from _columns(name, info.annotation, op.spelled is not None)


def _columns(name: str, annotation: Any, spelled: bool) -> Iterator[str]:
    kinds = set(_kinds(annotation))
    if name == "equation":
        yield from (f"equation[{k}][{j}]" for k in range(4) for j in range(MAX_AXES))
        return
    if name in AXIS_FIELDS:
        yield from (f"{name}={axis}" for axis in range(MAX_AXES))
    elif name == "order" and tuple in kinds:
        yield from (f"order[{i}]={j}" for i in range(MAX_AXES) for j in range(MAX_AXES))
    else:
        yield name
        if kinds & {tuple, Any}:
            yield from (f"{name}[{i}]" for i in range(MAX_ITEMS))
            yield from (f"{name}#", f"{name}~mean", f"{name}~std")
        elif spelled and int in kinds:  # a slice spells one bound out as both
            yield from (f"{name}#", f"{name}[0]", f"{name}[1]", f"{name}[2]")
    if type(None) in kinds or spelled:
        yield f"{name}=none"
    if spelled:
        yield f"{name}=else"
    yield from (f"{name}={kind}" for kind in kinds if isinstance(kind, str))


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types of an annotation; of a `Literal` of strings, its strings."""
    origin = typing.get_origin(annotation)
    if origin in (Union, UnionType):
        for part in typing.get_args(annotation):
            yield from _kinds(part)
    elif origin is typing.Annotated:
        yield from _kinds(typing.get_args(annotation)[0])
    elif origin is Literal:
        for value in typing.get_args(annotation):
            yield value if isinstance(value, str) else type(value)
    else:
        yield origin or annotation


def attributes(node: Node) -> Pairs:
    """The attributes of an application as (column, value), zeros left out.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a  input x: f32[N, 3, 8, 8]  output y: f32[N, 4, 8, 8]  y = x -> conv(4, kernel = 3)")
    >>> dict(attributes(net.nodes[0]))["kernel[1]"]
    2.0
    """
    if not type(node.params).model_fields:
        return ()
    if node.regions:
        return _attributes(node)
    key = (node.op, node.params, tuple(v.type for v in node.operands))
    found = _known.get(key)
    if found is None:
        if len(_known) > 65536:
            _known.clear()
        found = _known[key] = _attributes(node)
    return found


_known: dict[Any, Pairs] = {}


def _attributes(node: Node) -> Pairs:
    values = {name: getattr(node.params, name) for name in type(node.params).model_fields}
    if node.op.spelled is not None:
        spelled = node.op.spelled(node.call, node.bound)
        values |= {name: value for name, value in spelled.items() if name in values}
    for name, value in values.items():
        if isinstance(value, str) and not isinstance(getattr(node.params, name), str):
            values[name] = "else"  # the op's own word for a case that its schema has none for
    found = [pair for name, value in values.items() if name != "init" for pair in _encoded(name, value)]
    return tuple((column, value) for column, value in found if value != 0)


def _encoded(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if value is None:
        yield f"{name}=none", 1.0
    elif name in AXIS_FIELDS:
        yield from ((f"{name}={axis}", 1.0) for axis in ((value,) if isinstance(value, int) else value))
    elif name == "order" and isinstance(value, tuple):
        yield from ((f"order[{i}]={axis}", 1.0) for i, axis in enumerate(value))
    elif name == "equation":
        yield from _equation(value)
    elif isinstance(value, str):
        yield f"{name}={value}", 1.0
    elif isinstance(value, tuple | list):
        items = [number(v) for v in _flat(value)]
        yield f"{name}#", number(len(items))
        yield from ((f"{name}[{i}]", v) for i, v in enumerate(items[:MAX_ITEMS]))
        if len(items) > MAX_ITEMS:
            mean = sum(items) / len(items)
            yield f"{name}~mean", mean
            yield f"{name}~std", math.sqrt(sum((v - mean) ** 2 for v in items) / len(items))
    else:
        yield name, number(value)


def _flat(value: Any) -> Iterator[Any]:
    for item in value:
        if isinstance(item, tuple | list):
            yield from _flat(item)
        else:
            yield item


def _equation(text: str) -> Iterator[tuple[str, float]]:
    letters: dict[str, int] = {}
    for k, term in enumerate(text.replace(" ", "").replace("->", ",").split(",")):
        for j, letter in enumerate(term):
            yield f"equation[{k}][{j}]", float(letters.setdefault(letter, len(letters) + 1))


def number(value: Any) -> float:
    """Any number as a feature: `sign(v) · log2(1 + |v|)`, at most 64. A symbolic dimension counts 1 for each symbol.

    >>> number(3), number(-1), number(True), number(float("inf"))
    (2.0, -1.0, 1.0, 64.0)
    """
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, Expr):
        known = substitute(value, dict.fromkeys(symbols(value), 1))
        assert isinstance(known, int)
        value = known
    size = abs(float(value))
    return math.copysign(min(math.log2(1 + size), 64.0) if size < math.inf else 64.0, value) if size else 0.0
