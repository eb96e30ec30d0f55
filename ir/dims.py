"""Symbolic dimensions: integers, or polynomials over symbols and floor divisions.

A dimension is a plain `int` wherever it is known; only what depends on a symbol (`N`, `T`) is an `Expr`. An `Expr`
is kept in one normal form, so two dimensions are equal exactly when they compare equal:

>>> n = symbol("N")
>>> (n + 1) * 2 - n
N + 2
>>> (4 * n + 3) // 2
2*N + 1
>>> (n + 1) // 2
(N + 1)//2
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Symbol:
    """A dimension that is known only when the network runs, such as the batch `N`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """`numerator // denominator` where it cannot be simplified."""

    numerator: Expr
    denominator: Dim

    def __str__(self) -> str:
        return f"{_paren(self.numerator)}//{_paren(self.denominator)}"


@dataclass(frozen=True, slots=True)
class Mod:
    """`numerator % denominator` where it cannot be simplified."""

    numerator: Expr
    denominator: Dim

    def __str__(self) -> str:
        return f"{_paren(self.numerator)} % {_paren(self.denominator)}"


Atom = Symbol | FloorDiv | Mod
Monomial = tuple[Atom, ...]  # a product of atoms, sorted by spelling; () is the constant term


@dataclass(frozen=True, slots=True, repr=False)
class Expr:
    """A polynomial with integer coefficients over atoms; at least one term has an atom."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        total = dict(self.terms)
        for monomial, coefficient in _terms(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _normal(total)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _normal({m: -c for m, c in self.terms})

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        total: dict[Monomial, int] = {}
        for m, c in self.terms:
            for n, d in _terms(other):
                key = tuple(sorted(m + n, key=str))
                total[key] = total.get(key, 0) + c * d
        return _normal(total)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_div(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floor_div(other, self)

    def __rmod__(self, other: int) -> Dim:
        return _normal({(Mod(_expr(other), self),): 1})

    def __mod__(self, other: Dim) -> Dim:
        if exact_div(self, other) is not None:
            return 0
        return _normal({(Mod(self, other),): 1})

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in sorted(self.terms, key=lambda t: (not t[0], str(t[0]))):
            alone = abs(coefficient) == len(monomial) == 1
            factors = [str(a) if isinstance(a, Symbol) or alone else f"({a})" for a in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            piece = "*".join(factors)
            if not text:
                text = f"-{piece}" if coefficient < 0 else piece
            else:
                text += f" {'-' if coefficient < 0 else '+'} {piece}"
        return text

    __repr__ = __str__


Dim = int | Expr
"""A size: a non-negative integer, or an expression over symbols. (No forward reference: pydantic reads it too.)"""


def symbol(name: str) -> Expr:
    """The dimension named `name`."""
    return Expr((((Symbol(name),), 1),))


def floor_div(a: Dim, b: Dim) -> Dim:
    """`a // b`, simplified where that is exact for every value of the symbols.

    Raises: ZeroDivisionError when `b` is 0.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 0:
        raise ZeroDivisionError("division of a dimension by zero")
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int) and b > 0:
        whole = {m: c // b for m, c in _terms(a) if m and c % b == 0}
        rest = {m: c for m, c in _terms(a) if m not in whole}
        whole[()] = rest.get((), 0) // b  # (N + 3)//2 is (N + 1)//2 + 1
        rest[()] = rest.get((), 0) % b
        left = _normal(rest)
        if isinstance(left, int):
            return _normal(whole)
        return _normal(whole) + _normal({(FloorDiv(_expr(left), b),): 1})
    return _normal({(FloorDiv(_expr(a), b),): 1})


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """`a / b` when it is a whole number for every value of the symbols, else None.

    >>> exact_div(symbol("N") * 6, 3)
    2*N
    >>> exact_div(symbol("N"), 2) is None
    True
    """
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    divisor = _terms(b)
    if len(divisor) == 1:
        (monomial, coefficient), quotient = divisor[0], {}
        for m, c in _terms(a):
            left = _without(m, monomial)
            if left is None or c % coefficient:
                return None
            quotient[left] = c // coefficient
        return _normal(quotient)
    return 1 if a == b else _ratio(_terms(a), divisor)


def _ratio(a: tuple[tuple[Monomial, int], ...], b: tuple[tuple[Monomial, int], ...]) -> Dim | None:
    """`a / b` when `a` is one monomial times `b` (the common case of cancelled factors)."""
    if len(a) != len(b):
        return None
    for m, c in a:
        left = _without(m, b[0][0])
        if left is None or c % b[0][1]:
            continue
        candidate = _normal({left: c // b[0][1]})
        if candidate * _normal(dict(b)) == _normal(dict(a)):
            return candidate
    return None


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dimensions; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def total(dims: Iterable[Dim]) -> Dim:
    """The sum of dimensions; 0 for none."""
    result: Dim = 0
    for dim in dims:
        result = result + dim
    return result


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced.

    >>> substitute(symbol("T") * 2 + 1, {"T": 3})
    7
    """
    if isinstance(dim, int):
        return dim
    return total(c * product(_atom_value(a, values) for a in m) for m, c in dim.terms)


def _atom_value(atom: Atom, values: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, Symbol):
        return values.get(atom.name, symbol(atom.name))
    a, b = substitute(atom.numerator, values), substitute(atom.denominator, values)
    return floor_div(a, b) if isinstance(atom, FloorDiv) else a % b


def symbols(dim: Dim) -> frozenset[str]:
    """The names of the symbols that `dim` depends on."""
    return frozenset(_symbols(dim))


def _symbols(dim: Dim) -> Iterator[str]:
    if isinstance(dim, int):
        return
    for monomial, _ in dim.terms:
        for atom in monomial:
            if isinstance(atom, Symbol):
                yield atom.name
            else:
                yield from _symbols(atom.numerator)
                yield from _symbols(atom.denominator)


def linear_in(dim: Dim, name: str) -> tuple[int, Dim] | None:
    """(a, b) with `dim = a * symbol + b`, a a whole number and b without the symbol; None where it is not so.

    >>> linear_in(symbol("H") * 4 + symbol("N") + 1, "H")
    (4, N + 1)
    """
    alone = (Symbol(name),)
    factor = dict(_terms(dim)).get(alone, 0)
    rest = dim - factor * symbol(name)
    return (factor, rest) if factor and name not in symbols(rest) else None


def known(dims: Iterable[Dim]) -> tuple[int, ...] | None:
    """The dimensions as integers, or None when one of them is symbolic."""
    values = tuple(dims)
    return None if any(not isinstance(d, int) for d in values) else values  # type: ignore[return-value]


def lower_bound(dim: Dim) -> int | None:
    """The least value of `dim` when every symbol is at least 0, or None when that is not evident."""
    if isinstance(dim, int):
        return dim
    if any(c < 0 for m, c in dim.terms if m):
        return None
    return dict(dim.terms).get((), 0)


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Expr) else (((), dim),) if dim else ()


def _expr(dim: Dim) -> Expr:
    return dim if isinstance(dim, Expr) else Expr((((), dim),))


def _normal(terms: Mapping[Monomial, int]) -> Dim:
    kept = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: str(t[0])))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Expr(kept)


def _without(monomial: Monomial, factors: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in factors:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _paren(dim: Dim) -> str:
    text = str(dim)
    return text if text.isidentifier() or text.isdigit() else f"({text})"
