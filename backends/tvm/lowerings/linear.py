"""Linear maps, look-up tables and products."""

from __future__ import annotations

from typing import Any

from tvm import relax

from archc.backends.tvm.lower import TvmNode, lowering
from archc.backends.tvm.lowerings.bounds import look_up
from archc.ir.dims import Dim, product
from archc.ir.ops.linear import EINSUM, EMBEDDING, LINEAR, MATMUL, parse_equation

op = relax.op


@lowering(LINEAR)
def _linear(n: TvmNode) -> Any:
    weight = n.array("weight")
    assert weight is not None
    y = n.emit(op.matmul(n.x, n.const(weight.T)))
    bias = n.weight("bias")
    return y if bias is None else op.add(y, bias)


@lowering(EMBEDDING)
def _embedding(n: TvmNode) -> Any:
    table = n.weight("weight")
    return look_up(n, 0, n.p.count, lambda index: op.take(table, index, 0, mode="clip"))


@lowering(MATMUL)
def _matmul(n: TvmNode) -> Any:
    y = op.matmul(*n.args)
    if not n.p.scaled:
        return y
    k = n.node.inputs[0].type.shape[-1]
    if isinstance(k, int):
        return op.multiply(n.emit(y), n.const(k**-0.5))
    return op.divide(n.emit(y), n.emit(op.sqrt(n.size(k))))


@lowering(EINSUM)
def _einsum(n: TvmNode) -> Any:
    """From left to right, two operands at a time, each step a matrix product or, where nothing is summed, a product."""
    terms, result = parse_equation(n.p.equation)
    operands = [_spelled(n, i, term) for i, term in enumerate(terms)]
    wanted = _letters(result, operands)
    x, letters = _diagonal(n, *operands[0])
    for i, operand in enumerate(operands[1:], start=1):
        later = {a for _, own, _ in operands[i + 1 :] for a in own} | set(wanted)
        x, letters = _pair(n, (x, letters), _diagonal(n, *operand), later)
    x, letters = _summed(n, x, letters, set(wanted))
    order = [list(letters).index(a) for a in wanted]
    return x if order == sorted(order) else op.permute_dims(x, order)


Sizes = dict[str, Dim]  # letter -> size, in the order of the axes


def _spelled(n: TvmNode, index: int, term: str) -> tuple[Any, list[str], list[Dim]]:
    """An operand, its letters (`...` as digits counted from the end) and its sizes."""
    shape = list(n.node.inputs[index].type.shape)
    before, dots, after = term.partition("...")
    hidden = len(shape) - len(before) - len(after)
    rest = [str(i) for i in reversed(range(hidden))] if dots else []
    return n.args[index], [*before, *rest, *after], shape


def _letters(result: str, operands: list[tuple[Any, list[str], list[Dim]]]) -> list[str]:
    before, dots, after = result.partition("...")
    rest = sorted({a for _, own, _ in operands for a in own if a.isdigit()}, key=int, reverse=True)
    return [*before, *(rest if dots else []), *after]


def _diagonal(n: TvmNode, x: Any, letters: list[str], shape: list[Dim]) -> tuple[Any, Sizes]:
    """A letter that stands twice in one operand: its diagonal."""
    while len(set(letters)) < len(letters):
        a = next(i for i, letter in enumerate(letters) if letter in letters[i + 1 :])
        b = letters.index(letters[a], a + 1)
        rank = len(letters)
        same = op.equal(n.arange(shape[a], a, rank), n.arange(shape[b], b, rank))
        dtype = str(x.ty.dtype)
        x = n.emit(op.sum(n.emit(op.where(n.emit(same), x, n.const(0, dtype))), [b]))
        del letters[b], shape[b]
    return x, dict(zip(letters, shape, strict=True))


def _summed(n: TvmNode, x: Any, letters: Sizes, kept: set[str]) -> tuple[Any, Sizes]:
    axes = [i for i, a in enumerate(letters) if a not in kept]
    if not axes:
        return x, letters
    return n.emit(op.sum(x, axes)), {a: s for a, s in letters.items() if a in kept}


def _pair(n: TvmNode, left: tuple[Any, Sizes], right: tuple[Any, Sizes], later: set[str]) -> tuple[Any, Sizes]:
    x, a = _summed(n, *left, later | set(right[1]))
    y, b = _summed(n, *right, later | set(left[1]))
    batch = [letter for letter in a if letter in b and letter in later]
    inner = [letter for letter in a if letter in b and letter not in later]
    rows, columns = [s for s in a if s not in b], [s for s in b if s not in a]
    sizes = {**a, **b}
    if not inner:
        joined = [*batch, *rows, *columns]
        parts = [_aligned(n, v, own, joined) for v, own in ((x, a), (y, b))]
        return n.emit(op.multiply(*parts)), {letter: sizes[letter] for letter in joined}

    def matrix(value: Any, own: Sizes, first: list[str], second: list[str]) -> Any:
        value = _permuted(n, value, own, [*batch, *first, *second])
        shape = [*(sizes[s] for s in batch), product(sizes[s] for s in first), product(sizes[s] for s in second)]
        same = len(first) == len(second) == 1
        return value if same else n.emit(op.reshape(value, n.shape(shape)))

    y_columns = [s for s in b if s in columns]
    z = n.emit(op.matmul(matrix(x, a, rows, inner), matrix(y, b, inner, y_columns)))
    made = [*batch, *rows, *y_columns]
    if not len(rows) == len(y_columns) == 1:
        z = n.emit(op.reshape(z, n.shape([sizes[s] for s in made])))
    return z, {letter: sizes[letter] for letter in made}


def _permuted(n: TvmNode, x: Any, letters: Sizes, wanted: list[str]) -> Any:
    order = [list(letters).index(s) for s in wanted]
    return x if order == sorted(order) else n.emit(op.permute_dims(x, order))


def _aligned(n: TvmNode, x: Any, letters: Sizes, wanted: list[str]) -> Any:
    """x with its axes in the order of `wanted`, of size 1 where it has none."""
    x = _permuted(n, x, letters, [s for s in wanted if s in letters])
    if len(letters) == len(wanted):
        return x
    return n.emit(op.reshape(x, n.shape([letters.get(s, 1) for s in wanted])))
