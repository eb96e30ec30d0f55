"""Tensor equations that Relax has no operator for."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

Expr = Any


def rank(x: te.Tensor, largest: bool, floats: bool) -> te.Tensor:
    """The place of each element of the last axis in sorted order; the first of equals comes first, NaN is largest."""
    j = te.reduce_axis((0, x.shape[-1]), name="other")

    def place(*at: Expr) -> Expr:
        own, other = x(*at), x(*at[:-1], j)
        ahead = other > own if largest else other < own
        equal = tirx.EQ(other, own)
        if floats:
            own_nan, other_nan = tirx.isnan(own), tirx.isnan(other)
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
