"""Look-ups by index. An index names a place, so the axis that it indexes is pinned."""

from __future__ import annotations

from pydantic import PositiveInt

from archc.ir.op import BindError, Call, Dims, OpDef, Params, counted, register
from archc.ir.ops.elementwise import numeric
from archc.ir.ops.reduce import axis_letters, input_size
from archc.ir.types import DType


class GatherParams(Params):
    axis: int


def _gather_line(call: Call[GatherParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    x, index = letters.copy(), letters.copy()
    x[axis], index[axis] = "all!", "count"
    return f"x[{', '.join(x)}] index:int[{', '.join(index)}] -> [{', '.join(index)}]"


GATHER = register(
    OpDef(
        name="gather",
        doc="`result[i][j] = x[i][index[i][j]]` for `axis = 1`, and so on: one index for each element of the result. "
        "An index out of range, negative ones among them, is an error.",
        line=_gather_line,
        params=GatherParams,
        spelled=counted("axis"),
        operands=("x", "index"),
        example="gather(axis = 1)",
        example_inputs=("f32[N, 6, 8]", "i64[N, 3, 8]"),
        category="index",
    )
)


def _index_select_line(call: Call[GatherParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    x, result = letters.copy(), letters.copy()
    x[axis], result[axis] = "all!", "count"
    return f"x[{', '.join(x)}] index:int[count] -> [{', '.join(result)}]"


INDEX_SELECT = register(
    OpDef(
        name="index_select",
        doc="The slices of `x` along `axis` that a list of indices names; an index out of range is an error.",
        line=_index_select_line,
        params=GatherParams,
        spelled=counted("axis"),
        operands=("x", "index"),
        example="index_select(axis = 1)",
        example_inputs=("f32[N, 6, 8]", "i64[3]"),
        category="index",
    )
)


class TopKParams(Params):
    k: PositiveInt
    axis: int = -1
    largest: bool = True


def _top_k_line(call: Call[TopKParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    x, result = letters.copy(), letters.copy()
    x[axis], result[axis] = "all!", "k!"
    return f"x[{', '.join(x)}] -> [{', '.join(result)}] :i64[{', '.join(result)}]"


def _enough(call: Call[TopKParams], dims: Dims) -> None:
    numeric("top_k")(call, dims)
    size = dims["all"]
    if isinstance(size, int) and size < call.params.k:
        raise BindError(
            "E0312",
            f"`top_k` needs at least {call.params.k} elements on axis {call.params.axis}",
            label=f"found {size} in {call.types[0]}",
            blame="k",
            operands=[0],
        )


TOP_K = register(
    OpDef(
        name="top_k",
        doc="The `k` largest (or smallest) elements along `axis`, in order, and their indices (i64).",
        line=_top_k_line,
        params=TopKParams,
        spelled=counted("axis"),
        operands=("x",),
        check=_enough,
        flops=input_size,
        example="fn(x) { let values, indices = top_k(x, 2) return values }",
        category="index",
    )
)


class OneHotParams(Params):
    num_classes: PositiveInt
    dtype: DType = "i64"


ONE_HOT = register(
    OpDef(
        name="one_hot",
        doc="1 at the index and 0 elsewhere, along a new last axis; i64 as in PyTorch unless `dtype` says otherwise. "
        "An index that names no class gives 0 everywhere.",
        line=lambda call: f"ids:int[*b] -> :{call.params.dtype}[*b, num_classes!]",
        params=OneHotParams,
        operands=("ids",),
        example='one_hot(5, dtype = "f32")',
        example_inputs=("i64[N, 3]",),
        category="index",
    )
)
