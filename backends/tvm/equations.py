"""Tensor equations that Relax has no operator for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tvm import ir, te, tirx

from archc.backends.tvm.cpu.emit import Emitter

Expr = Any

APART = {"op_pattern": 8}
"""Attributes of a kernel that is not to be fused: TVM would move it to before the size of its result is known, or knows
nothing of what is in it.
"""


def rank(x: te.Tensor, largest: bool, floats: bool) -> te.Tensor:
    """The place of each element of the last axis in sorted order; the first of equals comes first, NaN is largest."""
    j = te.reduce_axis((0, x.shape[-1]), name="other")

    def place(*at: Expr) -> Expr:
        own, other = x(*at), x(*at[:-1], j)
        ahead = other > own if largest else other < own
        equal = tirx.EQ(other, own)
        if floats:
            low = tirx.const(float("-inf"), x.dtype)
            own_nan, other_nan = _no(own >= low), _no(other >= low)
            first, second = (other_nan, own_nan) if largest else (own_nan, other_nan)
            # a comparison with NaN is false, so `ahead` needs no guard
            ahead = tirx.any(ahead, tirx.all(first, _no(second)))
            equal = tirx.any(equal, tirx.all(own_nan, other_nan))
        return te.sum(_number(tirx.any(ahead, tirx.all(equal, j < at[-1])), "int64"), axis=[j])

    return te.compute(x.shape, place, name="rank")


def _no(condition: Expr) -> Expr:
    """`not`, out of sight of TVM's rewriting, which is wrong for NaN."""
    return tirx.EQ(_number(condition, "int8"), tirx.const(0, "int8"))


def _number(condition: Expr, dtype: str) -> Expr:
    return tirx.Select(condition, tirx.const(1, dtype), tirx.const(0, dtype))


def where_rank(rank: te.Tensor, k: int) -> te.Tensor:
    """The index of the element of each rank below k."""
    i = te.reduce_axis((0, rank.shape[-1]), name="i")

    def index(*at: Expr) -> Expr:
        hit = tirx.EQ(rank(*at[:-1], i), at[-1])
        return te.sum(tirx.Select(hit, i, tirx.IntImm("int64", 0)), axis=[i])

    return te.compute((*rank.shape[:-1], tirx.IntImm("int64", k)), index, name="index")


# Rows that go where the network decides


def route(
    index: te.Tensor, destinations: int, capacity: float | None = None, most: Expr | None = None
) -> list[te.Tensor]:
    """Sort rows by destination, in their order: `index` [R, k] holds where each row goes, -1 for nowhere.

    Returns order [R k] (the rows that go to destination 0, then those to 1, …; the rest undefined), counts
    [destinations], starts [destinations + 1], and slot [R, k]: the place of each entry of `index` in `order`, -1 for
    none. A destination takes at most ceil(capacity R k / destinations) rows. With `most`, at least the number of all
    that go somewhere, order has that length and is followed by group [most], the destination of each place; what is
    left over points to row 0 and the last destination.
    """
    rows, k = index.shape
    length = rows * k if most is None else most

    def write(ins: Any, outs: Any) -> Any:
        (index,), (order, counts, starts, slot, *group) = ins, outs
        out = Emitter()
        zero, one = tirx.IntImm("int64", 0), tirx.IntImm("int64", 1)
        with out.loop(destinations, name="d") as d:
            out.store(counts, [d], zero)
        with out.loop(rows, name="r") as r, out.loop(k, name="j") as j:
            where = out.bind("where", index[r, j])
            out.store(slot, [r, j], tirx.IntImm("int64", -1))
            with out.when(where >= 0):
                taken = out.bind("taken", counts[where])
                fits: Any = tirx.const(True, "bool")
                if capacity is not None:
                    limit = tirx.const(capacity, "float64") * tirx.Cast("float64", rows) * tirx.Cast("float64", k)
                    fits = tirx.Cast("float64", taken) < limit / tirx.const(float(destinations), "float64")
                with out.when(fits):
                    out.store(slot, [r, j], taken)
                    out.store(counts, [where], taken + one)
        out.store(starts, [0], zero)
        with out.loop(destinations, name="d") as d:
            out.store(starts, [d + 1], starts[d] + counts[d])
        with out.loop(rows, name="r") as r, out.loop(k, name="j") as j, out.when(slot[r, j] >= 0):
            where = out.bind("where", index[r, j])
            place = out.bind("place", starts[where] + slot[r, j])
            out.store(order, [place], r)
            out.store(slot, [r, j], place)
            if group:
                out.store(group[0], [place], where)
        if group:
            done = out.bind("done", starts[destinations])
            with out.loop(length - done, name="rest") as rest:
                out.store(order, [done + rest], zero)
                out.store(group[0], [done + rest], tirx.IntImm("int64", destinations - 1))
        return out.finish()

    sizes = [(tirx.IntImm("int64", d),) for d in (destinations, destinations + 1)]
    shapes = [(length,), *sizes, (rows, k)] + ([] if most is None else [(length,)])
    return list(te.extern(shapes, [index], write, name="route", dtype=["int64"] * len(shapes)))


def copy(x: te.Tensor) -> te.Tensor:
    """x again: kept apart from what made it, so that what reads it is too."""
    return te.compute(x.shape, lambda *at: x(*at), name="copy")


def checked(index: te.Tensor, size: Expr, words: str, *told: te.Tensor) -> te.Tensor:
    """index again, once each element has been found to be from 0 to size - 1; else the call fails with an IndexError.

    `told` is the tensor whose shape `size` comes from, where it is open.
    """

    def write(ins: Any, outs: Any) -> Any:
        out = Emitter()
        with ExitStack() as loops:
            at = [loops.enter_context(out.loop(extent, name="i")) for extent in index.shape]
            value = out.bind("value", tirx.Cast("int64", ins[0][tuple(at)]) if at else ins[0][()])
            inside = tirx.all(value >= 0, value < size)
            # the condition comes first, whatever the signature in Python says
            out.add(tirx.AssertStmt(inside, ir.StringImm("IndexError"), [ir.StringImm(words)]))
            out.store(outs[0], at, ins[0][tuple(at)])
        return out.finish()

    return te.extern([index.shape], [index, *told], write, name="checked", dtype=[index.dtype])


def stacked(index: te.Tensor, destinations: int, capacity: float | None) -> te.Tensor:
    """What `route` gives as slot where each destination takes all rows and their results are stacked: destination d's
    for row r stands at d R + r. Without `capacity`, or below it, each entry of `index` [R, k] has a place.
    """
    rows, k = index.shape
    none = tirx.IntImm("int64", -1)

    def place(r: Expr, j: Expr) -> Expr:
        return index(r, j) * rows + r

    if capacity is None:
        return te.compute((rows, k), lambda r, j: tirx.Select(index(r, j) >= 0, place(r, j), none), name="stacked")
    a, b = te.reduce_axis((0, rows), name="a"), te.reduce_axis((0, k), name="b")

    def taken(r: Expr, j: Expr) -> Expr:
        earlier = tirx.any(a < r, tirx.all(tirx.EQ(a, r), b < j))
        return te.sum(_number(tirx.all(earlier, tirx.EQ(index(a, b), index(r, j))), "int64"), axis=[a, b])

    before = te.compute((rows, k), taken, name="taken")
    limit = tirx.const(capacity, "float64") * tirx.Cast("float64", rows) * tirx.Cast("float64", k)

    def slot(r: Expr, j: Expr) -> Expr:
        fits = tirx.Cast("float64", before(r, j)) < limit / tirx.const(float(destinations), "float64")
        return tirx.Select(tirx.all(index(r, j) >= 0, fits), place(r, j), none)

    return te.compute((rows, k), slot, name="stacked")


def take_rows(x: te.Tensor, order: te.Tensor, starts: te.Tensor, destination: int, count: Expr) -> te.Tensor:
    """The `count` rows of x that `route` sends to a destination."""
    return te.compute((count, *x.shape[1:]), lambda i, *at: x(order(starts(destination) + i), *at), name="take_rows")


def takes_none(counts: te.Tensor, slot: te.Tensor) -> te.Tensor:
    """Whether no row goes to the only destination."""
    return te.compute((), lambda: counts(0) <= 0, name="takes_none")


def takes_any(counts: te.Tensor, destination: int) -> te.Tensor:
    """Whether a row goes to a destination."""
    return te.compute((), lambda: counts(destination) > 0, name="takes_any")


def takes_all(counts: te.Tensor, slot: te.Tensor) -> te.Tensor:
    """Whether all rows go to the only destination. `slot` tells how many there are."""
    return te.compute((), lambda: counts(0) >= slot.shape[0], name="takes_all")


def grouped_linear(
    x: te.Tensor, starts: te.Tensor, group: te.Tensor, weight: te.Tensor, bias: te.Tensor, *order: te.Tensor
) -> te.Tensor:
    """[M, N]: row i of x [M, K] (row order[i] of x [R, K]) times weight[group[i]] of weight [E, K, N], plus a row of
    bias [E, N].

    Rows are in the order of their groups: group e has places starts[e] to starts[e + 1] - 1. A row behind the last has
    a sum of 0 here, and in kernels whatever memory held; nobody reads it.
    """

    def product(i: Expr, k: Expr, column: Expr) -> Expr:
        return weight(group(i), k, column)

    return grouped_sums(x, starts, group, (weight.shape[1], weight.shape[2]), product, bias, order)


def grouped_sums(
    x: te.Tensor,
    starts: te.Tensor,
    group: te.Tensor,
    sizes: tuple[Expr, Expr],
    weight: Callable[[Expr, Expr, Expr], Expr],
    bias: te.Tensor,
    order: Sequence[te.Tensor],
    **attributes: str,
) -> te.Tensor:
    """`grouped_linear` with `weight(i, k, column)` for weights in any layout; `attributes` mark the sums."""
    depth, columns = sizes
    inner = te.reduce_axis((0, depth), name="k")
    zero = tirx.const(0.0, x.dtype)

    def term(i: Expr, column: Expr) -> Expr:
        value = x(order[0](i) if order else i, inner)
        there = tirx.Select(i < starts(starts.shape[0] - 1), value, zero)
        return te.sum(there * weight(i, inner, column), axis=[inner])

    shape = (group.shape[0], columns)
    sums = te.compute(shape, term, name="grouped", attrs=attributes)
    return te.compute(shape, lambda i, column: sums(i, column) + bias(group(i), column), name="biased")


def scatter_rows(found: te.Tensor, slot: te.Tensor, x: te.Tensor) -> te.Tensor:
    """Row r of `found` in the place that slot [R, 1] says, or row r of x where it says none."""

    def row(r: Expr, *at: Expr) -> Expr:
        return tirx.if_then_else(slot(r, 0) >= 0, found(slot(r, 0), *at), x(r, *at))

    return te.compute(x.shape, row, name="scatter_rows")


def weigh_rows(found: te.Tensor, slot: te.Tensor, weights: te.Tensor) -> te.Tensor:
    """[R, …]: the sum over j of weights[r, j] times row slot[r, j] of `found`, where there is one."""
    zero = tirx.const(0.0, found.dtype)

    def row(r: Expr, *at: Expr) -> Expr:
        terms = [
            tirx.if_then_else(slot(r, j) >= 0, weights(r, j) * found(slot(r, j), *at), zero)
            for j in range(int(slot.shape[1]))
        ]
        return sum(terms[1:], terms[0])

    return te.compute((slot.shape[0], *found.shape[1:]), row, name="weigh_rows")


def count_before(keep: te.Tensor) -> te.Tensor:
    """[N, T]: how many of the tokens before each one are kept."""
    j = te.reduce_axis((0, keep.shape[1]), name="j")
    return te.compute(
        keep.shape,
        lambda n, t: te.sum(_number(tirx.all(j < t, keep(n, j)), "int64"), axis=[j]),
        name="count_before",
    )


def places(keep: te.Tensor, position: te.Tensor, count: Expr) -> te.Tensor:
    """[N, count]: the index of each token that is kept."""
    t = te.reduce_axis((0, keep.shape[1]), name="t")

    def index(n: Expr, i: Expr) -> Expr:
        hit = tirx.all(keep(n, t), tirx.EQ(position(n, t), i))
        return te.sum(tirx.Select(hit, t, tirx.IntImm("int64", 0)), axis=[t])

    return te.compute((keep.shape[0], count), index, name="places")


def take_each(x: te.Tensor, places: te.Tensor) -> te.Tensor:
    """[N, K, C]: the tokens of x [N, T, C] at places [N, K]."""
    return te.compute((*places.shape, x.shape[2]), lambda n, i, c: x(n, places(n, i), c), name="take_each")


def put_back(found: te.Tensor, keep: te.Tensor, position: te.Tensor, x: te.Tensor) -> te.Tensor:
    """x [N, T, C] with the tokens that are kept replaced by those of `found`."""
    return te.compute(
        x.shape,
        lambda n, t, c: tirx.if_then_else(keep(n, t), found(n, position(n, t), c), x(n, t, c)),
        name="put_back",
    )
