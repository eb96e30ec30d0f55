"""Reductions: sums, means and extremes along axes. A reduction does not see the order of what it reduces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from archc.ir.dims import Dim
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, counted, register
from archc.ir.ops.elementwise import numeric
from archc.ir.types import FLOATS


class ReduceParams(Params):
    """`axis` is one axis, several, or all when it is absent; `keepdim` leaves size 1 in their place."""

    axis: int | tuple[int, ...] | None = None
    keepdim: bool = False


class VarParams(ReduceParams):
    """`unbiased` divides by `n - 1` as PyTorch does unless told otherwise; normalisation layers want false."""

    unbiased: bool = True


def axis_letters(rank: int) -> list[str]:
    """A letter for each axis: `d0`, `d1`, …"""
    return [f"d{i}" for i in range(rank)]


def input_size(call: Call[Any], bound: Bound) -> Dim:
    """FLOPs of an op that looks once at each element of its first operand."""
    return call.types[0].size


def _reduced(call: Call[Any], axes: Sequence[int], dtype: str, result: str, pin: bool = False) -> str:
    letters = axis_letters(call.rank)
    kept = ["1" if i in axes else letter for i, letter in enumerate(letters) if i not in axes or call.params.keepdim]
    if pin:
        letters = [letter + "!" * (i in axes) for i, letter in enumerate(letters)]
    return f"x{dtype}[{', '.join(letters)}] -> {result}[{', '.join(kept)}]"


def _reduction(
    name: str,
    doc: str,
    *,
    dtype: str = "",
    result: Callable[[str], str] = lambda dtype: "",
    params: type[ReduceParams] = ReduceParams,
    check: Callable[[Call[Any], Dims], None] | None = None,
    flops: int = 1,
    decompose: Callable[[GraphBuilder, Node], Sequence[Value]] | None = None,
    example: str = "",
    example_inputs: tuple[str, ...] = ("f32[N, 6, 8]",),
) -> OpDef[ReduceParams]:
    return register(
        OpDef(
            name=name,
            doc=doc,
            line=lambda call: _reduced(
                call, call.axes(call.params.axis), dtype and ":" + dtype, result(call.types[0].dtype)
            ),
            params=params,
            operands=("x",),
            check=check,
            spelled=lambda call, bound: {"axis": call.axes(call.params.axis)},
            flops=lambda call, bound: flops * input_size(call, bound),
            decompose=decompose,
            example=example or f"{name}(1)",
            example_inputs=example_inputs,
            category="reduction",
        )
    )


def _promoted(dtype: str) -> str:
    return "" if dtype in FLOATS else ":i64"


def _not_empty(name: str) -> Callable[[Call[Any], Dims], None]:
    """An extreme of nothing has no value."""

    def check(call: Call[Any], dims: Dims) -> None:
        numeric(name)(call, dims)
        if any(call.types[0].shape[a] == 0 for a in call.axes(call.params.axis)):
            raise BindError("E0308", f"`{name}` of no elements", label=f"found {call.types[0]}", operands=[0])

    return check


SUM = _reduction("sum", "The sum along `axis`; of integers and bools in i64, as in PyTorch.", result=_promoted)
MEAN = _reduction("mean", "The mean along `axis`, of floats.", dtype="float")
MAX = _reduction("max", "The largest element along `axis` (the values alone: see `argmax`).", check=_not_empty("max"))
MIN = _reduction("min", "The smallest element along `axis` (the values alone: see `argmin`).", check=_not_empty("min"))
VAR = _reduction(
    "var",
    "The variance along `axis`; `unbiased` divides by n - 1.",
    dtype="float",
    params=VarParams,
    flops=4,
    example="var(1, unbiased = false)",
)


def _of_bools(name: str, doc: str) -> OpDef[ReduceParams]:
    return _reduction(name, doc, dtype="bool", result=lambda dtype: ":bool", example_inputs=("bool[N, 6]",))


ANY = _of_bools("any", "Whether one element along `axis` is true.")
ALL = _of_bools("all", "Whether every element along `axis` is true.")


class ArgParams(Params):
    axis: int
    keepdim: bool = False


class CumsumParams(Params):
    axis: int


def _argument(name: str, doc: str) -> OpDef[ArgParams]:
    return register(
        OpDef(
            name=name,
            doc=doc,
            line=lambda call: _reduced(call, [call.axis(call.params.axis)], "", ":i64", pin=True),
            params=ArgParams,
            spelled=counted("axis"),
            operands=("x",),
            check=_not_empty(name),
            flops=input_size,
            example=f"{name}(axis = 1)",
            category="reduction",
        )
    )


# An index names a place, so the axis is pinned.
ARGMAX = _argument("argmax", "The index (i64) of the largest element along `axis`; of the first among equals.")
ARGMIN = _argument("argmin", "The index (i64) of the smallest element along `axis`; of the first among equals.")


def _cumsum_line(call: Call[CumsumParams]) -> str:
    letters = axis_letters(call.rank)
    letters[call.axis(call.params.axis)] += "!~"
    axes = ", ".join(letters)
    return f"x[{axes}] -> {_promoted(call.types[0].dtype)}[{axes}]"


CUMSUM = register(
    OpDef(
        name="cumsum",
        doc="Running sums along `axis`, which is pinned: its order matters. Of integers in i64.",
        line=_cumsum_line,
        params=CumsumParams,
        spelled=counted("axis"),
        operands=("x",),
        flops=input_size,
        example="cumsum(axis = 1)",
        category="reduction",
    )
)
