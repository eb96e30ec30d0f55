"""The axes that operators declare, held against what the operators do.

A free letter of a signature claims that the op commutes with every permutation of that axis, applied wherever the
letter stands. A letter without `~` claims more: beside each of its elements, another free letter may be permuted
differently, if every tensor that has the other one has it too. Both claims are tried on the references in f64. And a
pinned letter must be one that cannot be permuted: a pin that nothing needs hides a symmetry.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import Case
from harness import Step, all_cases, build, difference, inputs, run_reference, weights
from torch import Tensor

from archc.ir.dims import substitute
from archc.ir.op import REGISTRY
from archc.ir.signature import Axis, Letter, Product, Rest, Signature, Size, Sum, parse_signature
from archc.ir.signature import Tensor as Pattern

Order = list[int]
Part = tuple[str, ...]
"""The factors of an axis, outermost first."""
Move = Callable[[Tensor, list[list[Part]]], Tensor]

OPS = sorted(op.name for op in REGISTRY.values() if not op.regions and op.name not in ("identity", "constant"))


@dataclass
class Letters:
    """The letters of one application: sizes, and what their marks say. `*s` becomes `s0`, `s1`, … under its name."""

    sizes: dict[str, int]
    pinned: set[str]
    mixed: set[str]

    @classmethod
    def of(cls, signature: Signature, step: Step) -> Letters:
        found = cls({}, set(), set())
        for name, size in step.node.bound.dims.items():
            rest = isinstance(size, tuple)
            for i, dim in enumerate(size if isinstance(size, tuple) else (size,)):
                value = substitute(dim, step.sizes)
                assert isinstance(value, int)
                found.sizes[f"{name}#{i}" if rest else name] = value
        for tensor in signature.operands + signature.weights + signature.results:
            for axis in tensor.axes:
                for atom in found.atoms(axis):
                    for name in found.expand(atom):
                        found.pinned |= {name} if atom.pinned else set()
                        found.mixed |= {name} if atom.mixed else set()
        return found

    def atoms(self, axis: Axis) -> Iterator[Letter | Rest]:
        inner = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else ()
        for part in inner:
            yield from self.atoms(part)
        if isinstance(axis, Letter | Rest):
            yield axis

    def expand(self, atom: Letter | Rest) -> list[str]:
        return [n for n in self.sizes if n.startswith(atom.name + "#")] if isinstance(atom, Rest) else [atom.name]

    def axes(self, pattern: Pattern) -> list[list[Part]]:
        """For each axis its parts (one, unless it is a sum)."""
        found: list[list[Part]] = []
        for axis in pattern.axes:
            if isinstance(axis, Rest):
                found += [[(name,)] for name in self.expand(axis)]
            else:
                found.append([self._part(p) for p in (axis.parts if isinstance(axis, Sum) else (axis,))])
        return found

    def _part(self, axis: Axis) -> Part:
        if isinstance(axis, Product):
            return tuple(itertools.chain(*(self._part(f) for f in axis.factors)))
        if isinstance(axis, Size):
            self.sizes[f"={axis.value}"] = axis.value
            return (f"={axis.value}",)
        assert isinstance(axis, Letter)
        return (axis.name,)

    def free(self) -> list[str]:
        return [n for n, size in self.sizes.items() if size > 1 and n not in self.pinned and n[0] != "="]


def permuted(x: Tensor, axes: list[list[Part]], orders: Mapping[str, Order], sizes: Mapping[str, int]) -> Tensor:
    """`x` with the letters of `orders` permuted, wherever they stand."""
    for i, parts in enumerate(axes):
        index: list[int] = []
        for part in parts:
            grid = np.arange(math.prod(sizes[f] for f in part)).reshape([sizes[f] for f in part])
            for k, factor in enumerate(part):
                grid = grid.take(orders.get(factor, range(sizes[factor])), axis=k)
            index += [len(index) + int(j) for j in grid.flat]
        x = x.index_select(i, torch.tensor(index, dtype=torch.int64))
    return x


def permuted_inside(
    x: Tensor, axes: list[list[Part]], outer: str, inner: str, orders: Sequence[Order], sizes: Mapping[str, int]
) -> Tensor:
    """`x` with `inner` permuted by `orders[i]` beside element i of `outer`."""
    names = [name for parts in axes for name in (parts[0] if len(parts) == 1 else ("+",))]
    if inner not in names:
        return x
    shape = [n for i, parts in enumerate(axes) for n in _grid(parts, x.shape[i], sizes)]
    grid = x.reshape(shape).movedim((names.index(outer), names.index(inner)), (0, 1))
    grid = torch.stack([plane[order] for plane, order in zip(grid, orders, strict=True)])
    return grid.movedim((0, 1), (names.index(outer), names.index(inner))).reshape(x.shape)


def _grid(parts: list[Part], size: int, sizes: Mapping[str, int]) -> list[int]:
    return [sizes[f] for f in parts[0]] if len(parts) == 1 else [size]


def shuffled(rng: np.random.Generator, size: int) -> Order:
    """A permutation that moves something."""
    order = rng.permutation(size)
    while (order == np.arange(size)).all():
        order = rng.permutation(size)
    return [int(i) for i in order]


def steps_of(op: str) -> Iterator[tuple[Case, Step]]:
    for case in all_cases():
        if case.op != op:
            continue
        steps: list[Step] = []
        sizes = case.sizes[0]
        run_reference(build(case), inputs(case, sizes, "f64"), weights(case, "f64"), "f64", steps=steps)
        yield from ((case, step) for step in steps if step.node.op.name == op)


@dataclass
class Claims:
    """What a signature says of one application, and whether it is so."""

    step: Step
    letters: Letters
    operands: list[list[list[Part]]]
    own: dict[str, list[list[Part]]]
    results: list[list[list[Part]]]

    @classmethod
    def of(cls, step: Step, signature: Signature) -> Claims:
        letters = Letters.of(signature, step)
        own = {t.name: letters.axes(t) for t in signature.weights if t.name in step.weights}
        operands, results = ([letters.axes(t) for t in tensors] for tensors in (signature.operands, signature.results))
        return cls(step, letters, operands, own, results)

    def broken_by(self, move: Move) -> str:
        """How the results of moved operands differ from the moved results; empty where they do not."""
        step = self.step
        moved = step.compute(
            [move(x, axes) for x, axes in zip(step.operands, self.operands, strict=True)],
            {role: move(x, self.own[role]) for role, x in step.weights.items()},
        )
        needed = [move(x, axes) for x, axes in zip(step.results, self.results, strict=True)]
        return next((w for a, b in zip(moved, needed, strict=True) if (w := difference(a, b, "f64"))), "")

    def broken_by_permuting(self, name: str) -> str:
        orders = {name: shuffled(np.random.default_rng(0), self.letters.sizes[name])}
        return self.broken_by(lambda x, axes: permuted(x, axes, orders, self.letters.sizes))


def violations(step: Step, signature: Signature) -> Iterator[str]:
    """What the signature claims of this application and does not hold."""
    claims = Claims.of(step, signature)
    letters, rng = claims.letters, np.random.default_rng(0)
    everywhere = [*claims.operands, *claims.own.values(), *claims.results]

    for name in letters.free():
        if wrong := claims.broken_by_permuting(name):
            yield f"`{name}` is free: {wrong}"
    for inner in letters.free():
        for outer in sorted(letters.sizes.keys() - letters.mixed - {inner}):
            beside = [_stands(axes, inner, outer) for axes in everywhere]
            if letters.sizes[outer] < 2 or outer[0] == "=" or not any(beside) or None in beside:
                continue
            many = [shuffled(rng, letters.sizes[inner]) for _ in range(letters.sizes[outer])]
            if wrong := claims.broken_by(
                lambda x, axes, o=outer, i=inner, m=many: permuted_inside(x, axes, o, i, m, letters.sizes)
            ):
                yield f"`{inner}` may differ beside each `{outer}`: {wrong}"


def _stands(axes: list[list[Part]], inner: str, outer: str) -> bool | None:
    """Whether a tensor has `inner`, with `outer` beside it; None when that can be said of neither."""
    names = [name for parts in axes for part in parts for name in part]
    if inner not in names:
        return False
    summed = {name for parts in axes if len(parts) > 1 for part in parts for name in part}
    return None if {inner, outer} & summed or names.count(outer) != 1 or names.count(inner) != 1 else True


@pytest.mark.parametrize("op", OPS)
def test_ops_keep_what_their_axes_claim(op: str) -> None:
    for case, step in steps_of(op):
        for wrong in violations(step, step.node.bound.signature):
            pytest.fail(f"{case}, {step.node.bound.signature}: {wrong}")


def needless(steps: Iterable[tuple[Step, Signature]]) -> set[tuple[str, str]]:
    """(signature, letter) of the pins that no application with that signature needs."""
    loose: dict[tuple[str, str], bool] = {}
    for step, signature in steps:
        claims = Claims.of(step, signature)
        for name in claims.letters.pinned:
            if claims.letters.sizes.get(name, 1) > 1 and name[0] != "=":
                key = (str(signature), name)
                loose[key] = loose.get(key, True) and not claims.broken_by_permuting(name)
    return {key for key, is_loose in loose.items() if is_loose}


@pytest.mark.parametrize("op", OPS)
def test_pins_are_needed(op: str) -> None:
    found = needless((step, step.node.bound.signature) for _, step in steps_of(op))
    assert found == set()


def test_a_needless_pin_is_noticed() -> None:
    """Negative control: a sum pins what it sums, and nothing else."""
    _, step = next(steps_of("softmax"))
    line = str(step.node.bound.signature)
    assert needless([(step, parse_signature(line))]) == set()
    pinned = line.replace("d0", "d0!")
    assert needless([(step, parse_signature(pinned))]) == {(pinned, "d0")}


WRONG = [
    ("cumsum", "x[d0, d1, d2] -> [d0, d1, d2]", "`d1` is free"),
    ("cumsum", "x[d0, d1!, d2] -> [d0, d1!, d2]", "`d0` may differ beside each `d1`"),
    ("flip", "x[d0, d1, d2] -> [d0, d1, d2]", "`d1` is free"),
    ("softmax", "x:float[d0, d1, d2] -> [d0, d1, d2]", "may differ beside each `d2`"),
    ("slice", "x[d0, before + kept + after, d2] -> [d0, kept, d2]", ""),
    ("linear", "x:float[*b, i]; weight[out, i] bias[out] -> [*b, out]", ""),
]


@pytest.mark.parametrize(("op", "line", "expected"), WRONG)
def test_a_wrong_claim_is_noticed(op: str, line: str, expected: str) -> None:
    """Negative control: signatures that say too much; the last two are right."""
    _, step = next(steps_of(op))
    found = list(violations(step, parse_signature(line)))
    assert bool(found) == bool(expected)
    assert expected in "".join(found)
