"""What ops do to types: results, costs and labels, worked out once for each op, parameters and operand types.

Types are numbered (`Types`), so that looking up what a `linear(32)` makes of type 17 takes no longer than it takes to
look up a number in a dictionary. What is looked up was found by the op's own rules: there are no others here.

Costs may depend on symbols (`N`). They are added up as plain integers: a symbol stands for a power of a base that is
larger than any coefficient, and the coefficients are the digits of the sum (Kronecker substitution).

>>> scale = Scale(["N", "T"])
>>> scale.read(scale.write(symbol("N") * symbol("T") * 6 + 4) + scale.write(symbol("N") - 1))
6*N*T + N + 3
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from archc.ir.canonical import params_text
from archc.ir.cost import bound_flops
from archc.ir.diagnostics import Diagnostic, Span, fail
from archc.ir.dims import Dim, Symbol, product, symbol, total
from archc.ir.op import BindError, Bound, Call, OpDef, Params, bind_afresh
from archc.ir.ops.shape import IDENTITY
from archc.ir.types import TensorType

DIGIT = 96
"""Bits of a coefficient."""
POWERS = 8
"""Powers of one symbol, from 0."""


LARGE = 1 << 40
"""Sizes below this are sizes; above, there is a batch in it."""
OF_KIND = ("E0302", "E0303", "E0304", "E0306")
"""What is wrong with ranks, dtypes and numbers of operands or axes, whatever their sizes."""


class Scale:
    """Polynomials over symbols, as integers."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self.values = {name: 1 << DIGIT * POWERS**i for i, name in enumerate(symbols)}

    def write(self, dim: Dim) -> int | None:
        """The integer of a dimension; None for what is no polynomial over these symbols, or of too high a degree."""
        if isinstance(dim, int):
            return dim
        result = 0
        for monomial, coefficient in dim.terms:
            for atom in monomial:
                if not isinstance(atom, Symbol) or atom.name not in self.values or monomial.count(atom) >= POWERS:
                    return None
                coefficient *= self.values[atom.name]
            result += coefficient
        return result

    def read(self, number: int) -> Dim:
        """The dimension of an integer."""
        result: Dim = 0
        place, half, mask = 0, 1 << DIGIT - 1, (1 << DIGIT) - 1
        while number:
            digit = number & mask
            if digit >= half:  # a coefficient below 0
                digit -= mask + 1
            number = (number - digit) >> DIGIT
            if digit:
                powers = [place // POWERS**i % POWERS for i in range(len(self.symbols))]
                result = result + digit * product(
                    symbol(s) for s, count in zip(self.symbols, powers, strict=True) for _ in range(count)
                )
            place += 1
        return result

    def at_one(self, number: int) -> int:
        """The value where every symbol is 1, of a polynomial without coefficients below 0: the sum of its digits."""
        return number % ((1 << DIGIT) - 1)


class Types:
    """Numbers of tensor types.

    kinds   what a type has in common with others: the number of its dtype and rank
    plain   the type with the power of two in the place of the symbol of its first axis, that `batch` is; None where
            there are other symbols. Ops take much less time where sizes are integers
    """

    def __init__(self, batch: str, size: int) -> None:
        self.all: list[TensorType] = []
        self.kinds: list[int] = []
        self.plain: list[TensorType | None] = []
        self._batch, self._size = symbol(batch), size
        self._numbers: dict[tuple[tuple[Dim, ...], str], int] = {}
        self._kinds: dict[tuple[str, int], int] = {}

    def number(self, type_: TensorType) -> int:
        shape = type_.shape
        if shape and shape[0] == self._batch:
            shape = (self._size, *shape[1:])
        found = self._numbers.get((shape, type_.dtype))
        return self._add(shape, type_.dtype) if found is None else found

    def of_plain(self, types: Sequence[TensorType]) -> tuple[int, ...] | None:
        """The numbers of types with integers for all sizes; None where the batch's is not the first alone."""
        numbers = []
        for type_ in types:
            found = self._numbers.get((type_.shape, type_.dtype))
            if found is None:
                sizes = [d for d in type_.shape if isinstance(d, int)]
                if sizes[:1] != [self._size] or max(sizes[1:], default=0) >= LARGE:
                    return None
                found = self._add(type_.shape, type_.dtype)
            numbers.append(found)
        return tuple(numbers)

    def _add(self, shape: tuple[Dim, ...], dtype: str) -> int:
        found = self._numbers[shape, dtype] = len(self.all)
        plain = all(isinstance(d, int) for d in shape)
        self.plain.append(TensorType(shape, dtype) if plain else None)
        if shape and shape[0] == self._size:
            shape = (self._batch, *shape[1:])
        self.all.append(TensorType(shape, dtype))
        self.kinds.append(self._kinds.setdefault((dtype, len(shape)), len(self._kinds)))
        return found


@dataclass(slots=True)
class Applied:
    """An op on types: the numbers of its result types, its costs, and its digest for hashes."""

    results: tuple[int, ...]
    params: int
    flops: int
    activation_bytes: int
    nodes: int
    label: bytes | None


class Atom:
    """An op with its parameters. `known` has what came of it by operand types (a number, or a tuple of them): None
    where it does not fit."""

    __slots__ = ("known", "never", "op", "params")

    def __init__(self, op: OpDef[Any], params: Params) -> None:
        self.op, self.params = op, params
        self.known: dict[Any, Applied | None] = {}
        self.never: set[tuple[int, ...]] = set()
        """Kinds of operands that it fits none of."""

    @property
    def is_identity(self) -> bool:
        return self.op is IDENTITY


class Transfer:
    """The transfer functions of one space."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.scale = Scale(symbols)
        self.types = Types(symbols[0] if symbols else "", 1 << DIGIT)
        self._atoms: dict[Hashable, Atom] = {}
        self.inexact = False
        """Has an op been met whose costs are no polynomials? Then costs are those of the graph."""

    def atom(self, op: OpDef[Any], params: Params) -> Atom:
        key = (op, type(params), tuple([(type(v), v) for v in vars(params).values()]))
        if key not in self._atoms:
            self._atoms[key] = Atom(op, params)
        return self._atoms[key]

    def apply(self, atom: Atom, operands: tuple[int, ...]) -> Applied | None:
        """What comes of an op; None when it does not fit."""
        kinds = tuple([self.types.kinds[i] for i in operands])
        if kinds in atom.never:
            return None
        types = tuple([self.types.plain[i] for i in operands])
        try:
            found = None if None in types else self._plainly(atom, types)  # type: ignore[arg-type]
            return found or self._symbolically(atom, operands)
        except BindError as e:
            if e.code in OF_KIND:
                atom.never.add(kinds)
            return None

    def _plainly(self, atom: Atom, types: tuple[TensorType, ...]) -> Applied | None:
        """What comes of an op where the batch is a large number; None when that number is in more than first axes."""
        call = Call(atom.params, types)
        bound = bind_afresh(atom.op, call)
        results = self.types.of_plain(bound.results)
        params = sum([w.type.size for w in bound.weights.values() if w.trainable])
        flops = bound_flops(atom.op, call, bound)
        if results is None or not isinstance(flops, int) or not isinstance(params, int) or params >= LARGE:
            return None
        size = sum([t.bytes for t in bound.results])
        assert isinstance(size, int)
        return Applied(results, params, flops, size, 1, self.label(atom.op, call, bound))

    def _symbolically(self, atom: Atom, operands: tuple[int, ...]) -> Applied:
        call = Call(atom.params, tuple([self.types.all[i] for i in operands]))
        bound = bind_afresh(atom.op, call)
        return self.record(
            bound.results,
            params=sum(w.type.size for w in bound.weights.values() if w.trainable),  # type: ignore[misc]
            flops=bound_flops(atom.op, call, bound),
            nodes=1,
            label=self.label(atom.op, call, bound),
        )

    def mistake(self, atom: Atom, operands: tuple[int, ...], span: Span | None) -> Diagnostic:
        """Why an op does not fit."""
        try:
            bind_afresh(atom.op, Call(atom.params, tuple([self.types.all[i] for i in operands])))
        except BindError as e:
            return fail(e.code, e.message, span, label=e.label, help=e.help).diagnostics[0]
        raise AssertionError(f"{atom.op} fits")

    def record(
        self, results: Sequence[TensorType], *, params: int, flops: Dim, nodes: int, label: bytes | None
    ) -> Applied:
        written = self.scale.write(flops), self.scale.write(total(t.bytes for t in results))
        numbers = tuple([self.types.number(t) for t in results])
        self.inexact |= None in written
        return Applied(numbers, params, written[0] or 0, written[1] or 0, nodes, label)

    @cached_property
    def renamed(self) -> Mapping[str, Dim]:
        """Symbols as the canonical form names them."""
        return {name: symbol(f"s{i}") for i, name in enumerate(self.scale.symbols)}

    def label(self, op: OpDef[Any], call: Call[Any], bound: Bound) -> bytes:
        """A digest of what the canonical form says of a node: its op, its parameters, its weights."""
        weights = [f"{role}:{w.type}{w.trainable}" for role, w in sorted(bound.weights.items())]
        return digest(op.name.encode(), params_text(op, call, bound, self.renamed).encode(), *map(str.encode, weights))


def digest(*parts: bytes) -> bytes:
    """The digest of a sequence of byte strings."""
    return hashlib.blake2b(b"".join([b"%d:" % len(p) + p for p in parts]), digest_size=16).digest()
