"""The one-line declaration of an op: how the axes of its operands, weights and results relate.

    x[n, groups.i, *s!]; weight[groups.o, i, *kernel!] bias[groups.o] -> [n, groups.o, *window!]

Operands stand before `;`, weights behind it, results after `->`. In brackets, a repeated letter is one axis: its sizes
must agree and its permutations act jointly. `g.i` is a product (outer, inner), `c + d` a sum (concatenation), `*b` any
number of axes, `3` a fixed size, and `!` pins an axis: its order means something to the op. `~` marks an axis that
survives although the op looks across it (softmax, the axes of a norm): it may be permuted as a whole, but nothing else
may be permuted differently for each of its elements. A letter that is also a field of the op's parameters has the
field's value as its size. A dtype may stand before the bracket: operands and results without one share one dtype;
`float` demands that the shared dtype is a float; `int` is any integer dtype and `any` any dtype of its own; `bool`,
`i64`, … are themselves.

From this line follow shape inference and its messages, contraction FLOPs, the axis classes and the parameter graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Letter:
    """One axis variable, local to the op."""

    name: str
    pinned: bool = False
    mixed: bool = False

    def __str__(self) -> str:
        return self.name + "!" * self.pinned + "~" * self.mixed


@dataclass(frozen=True, slots=True)
class Rest:
    """Any number of axes under one name."""

    name: str
    pinned: bool = False
    mixed: bool = False

    def __str__(self) -> str:
        return "*" + self.name + "!" * self.pinned + "~" * self.mixed


@dataclass(frozen=True, slots=True)
class Size:
    """An axis of a fixed size; 1 has no structure, a larger one is pinned."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Product:
    """An axis that is the row-major product of factors, outermost first."""

    factors: tuple[Axis, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.factors))


@dataclass(frozen=True, slots=True)
class Sum:
    """An axis that is the concatenation of parts. A part is a letter, a size or a product."""

    parts: tuple[Axis, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


Axis = Letter | Rest | Size | Product | Sum


@dataclass(frozen=True, slots=True)
class Tensor:
    """The pattern of one operand, weight or result: `ids:int[*b]`."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.name}{':' + self.dtype if self.dtype else ''}[{', '.join(map(str, self.axes))}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed line."""

    operands: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    results: tuple[Tensor, ...]

    def __str__(self) -> str:
        left = " ".join(map(str, self.operands))
        weights = "; " + " ".join(map(str, self.weights)) if self.weights else ""
        return f"{left}{weights} -> {' '.join(map(str, self.results))}".strip()

    @property
    def letters(self) -> frozenset[str]:
        """The letters of the line, rests apart."""
        tensors = self.operands + self.weights + self.results
        return frozenset(a.name for t in tensors for axis in t.axes for a in atoms(axis) if isinstance(a, Letter))


def atoms(axis: Axis) -> Iterator[Letter | Rest | Size]:
    """The letters, rests and sizes of an axis, outermost (or first) first."""
    if isinstance(axis, Product | Sum):
        for inner in axis.factors if isinstance(axis, Product) else axis.parts:
            yield from atoms(inner)
    else:
        yield axis


_TENSOR = re.compile(r"\s*,?\s*([A-Za-z_]\w*)?(?::(\w+))?\[([^\]]*)\]")
_ATOM = re.compile(r"(\*)?(?:([A-Za-z_]\w*)|(\d+))(!)?(~)?$")


@lru_cache(maxsize=8192)
def parse_signature(line: str) -> Signature:
    """Parse a line; a malformed one is our own mistake (`AssertionError`).

    >>> print(parse_signature("x[*b, i]; weight[out, i] bias[out] -> [*b, out]"))
    x[*b, i]; weight[out, i] bias[out] -> [*b, out]
    """
    left, arrow, right = line.partition("->")
    assert arrow, f"no `->` in signature: {line}"
    operands, _, weights = left.partition(";")
    return Signature(_tensors(operands), _tensors(weights), _tensors(right))


def _tensors(text: str) -> tuple[Tensor, ...]:
    found, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TENSOR.match(text, position)
        assert match, f"malformed signature at: {text[position:]}"
        name, dtype, axes = match.groups()
        found.append(Tensor(name or "", dtype or "", tuple(_axis(a) for a in axes.split(",") if a.strip())))
        position = match.end()
    return tuple(found)


def _axis(text: str) -> Axis:
    parts = tuple(_product(p) for p in text.split("+"))
    return parts[0] if len(parts) == 1 else Sum(parts)


def _product(text: str) -> Axis:
    factors = tuple(_atom(f) for f in text.split("."))
    return factors[0] if len(factors) == 1 else Product(factors)


def _atom(text: str) -> Axis:
    match = _ATOM.match(text.strip())
    assert match, f"malformed axis: {text!r}"
    star, name, number, pin, mixed = match.groups()
    if number:
        return Size(int(number))
    return (Rest if star else Letter)(name, bool(pin), bool(mixed))
