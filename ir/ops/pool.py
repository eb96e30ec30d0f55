"""Pooling over the axes behind the channel axis 1; one to three of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archc.ir.dims import Dim
from archc.ir.dims import product as dim_product
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, register
from archc.ir.ops.convolution import PerAxis, PerAxisOr0, mix_axes, per_axis, spatial, window
from archc.ir.ops.reduce import MAX, MEAN


class PoolParams(Params):
    """`stride` defaults to `kernel`; `ceil_mode` keeps a last window that hangs over the end."""

    kernel: PerAxis
    stride: PerAxis | None = None
    padding: PerAxisOr0 = 0
    ceil_mode: bool = False


class MaxPoolParams(PoolParams):
    dilation: PerAxis = 1


class AvgPoolParams(PoolParams):
    """`count_include_pad=false` divides by the elements that are really there."""

    count_include_pad: bool = True


def pool_geometry(p: PoolParams, rank: int) -> list[tuple[int, int, int, int]]:
    """(kernel, stride, padding, dilation) for each spatial axis."""
    kernels = per_axis(p.kernel, rank, "kernel")
    strides = kernels if p.stride is None else per_axis(p.stride, rank, "stride")
    dilations = per_axis(getattr(p, "dilation", 1), rank, "dilation")
    rows = list(zip(kernels, strides, per_axis(p.padding, rank, "padding"), dilations, strict=True))
    for kernel, _, padding, _ in rows:
        if 2 * padding > kernel:
            raise BindError(
                "E0311",
                "a pool's padding can be at most half of its kernel: a window would see padding alone",
                label=f"padding {padding} with kernel {kernel}",
                blame="padding",
            )
    return rows


def _sizes(op: str) -> Any:
    def rule(call: Call[PoolParams], dims: Dims) -> Dims:
        space = spatial(call, op)
        rows = pool_geometry(call.params, len(space))
        return {"window": tuple(_windows(op, call, size, *row) for size, row in zip(space, rows, strict=True))}

    return rule


def _windows(op: str, call: Call[PoolParams], size: Dim, kernel: int, stride: int, pad: int, dilation: int) -> Dim:
    count = window(size, kernel, stride, dilation, (pad, pad))
    if not call.params.ceil_mode or stride == 1:
        return count
    if not isinstance(size, int):
        raise BindError(
            "E0311",
            f"`{op}(ceil_mode = true)` needs a fixed size",
            label=f"found {call.types[0]}",
            blame="ceil_mode",
            operands=[0],
        )
    count = window(size + stride - 1, kernel, stride, dilation, (pad, pad))
    assert isinstance(count, int)
    # a window that would start in the padding behind the axis does not count
    return count - ((count - 1) * stride >= size + pad)


def _window_flops(call: Call[PoolParams], bound: Bound) -> Dim:
    return bound.results[0].size * dim_product(k for k, *_ in pool_geometry(call.params, call.rank - 2))


def _spelled(call: Call[Any], bound: Bound) -> Mapping[str, Any]:
    kernel, stride, padding, dilation = zip(*pool_geometry(call.params, call.rank - 2), strict=True)
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}


MAX_POOL = register(
    OpDef(
        name="max_pool",
        doc="The largest element of each window; padding never wins.",
        line="x:float[n, c, *s!] -> [n, c, *window!]",
        params=MaxPoolParams,
        spelled=_spelled,
        sizes=_sizes("max_pool"),
        flops=_window_flops,
        example="max_pool(3, stride = 2, padding = 1)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="pool",
    )
)
AVG_POOL = register(
    OpDef(
        name="avg_pool",
        doc="The mean of each window.",
        line="x:float[n, c, *s!] -> [n, c, *window!]",
        params=AvgPoolParams,
        spelled=_spelled,
        sizes=_sizes("avg_pool"),
        flops=_window_flops,
        example="avg_pool(2)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="pool",
    )
)


class AdaptiveAvgPoolParams(Params):
    """`size` of the result, for each spatial axis or for all."""

    size: PerAxis


def _adaptive_sizes(call: Call[AdaptiveAvgPoolParams], dims: Dims) -> Dims:
    space = spatial(call, "adaptive_avg_pool")
    sizes = per_axis(call.params.size, len(space), "size")
    for old, new in zip(space, sizes, strict=True):
        if new != 1 and not isinstance(old, int):
            raise BindError(
                "E0311",
                "`adaptive_avg_pool` needs a fixed size, or a result of size 1",
                label=f"found {old} in {call.types[0]}",
                blame="size",
                operands=[0],
            )
    return {"window": sizes}


def averaging_matrix(old: int, new: int) -> list[list[float]]:
    """[new, old]: row i averages the elements from floor(i·old/new) to ceil((i+1)·old/new).

    >>> averaging_matrix(3, 2)
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    rows = []
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        rows.append([1 / (stop - start) if start <= j < stop else 0.0 for j in range(old)])
    return rows


def _decompose_adaptive(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,) = node.operands
    space = x.type.shape[2:]
    sizes = per_axis(node.call.params.size, len(space), "size")
    if set(sizes) == {1}:
        return [b(GLOBAL_AVG_POOL, x, keepdim=True)]
    pairs = [(old, new) for old, new in zip(space, sizes, strict=True) if isinstance(old, int)]
    if len(pairs) < len(space):
        return ()
    if all(old % new == 0 for old, new in pairs):
        return [b(AVG_POOL, x, kernel=tuple(old // new for old, new in pairs))]
    return [mix_axes(b, x, [averaging_matrix(old, new) for old, new in pairs])]


ADAPTIVE_AVG_POOL = register(
    OpDef(
        name="adaptive_avg_pool",
        doc="Means over as many windows as the result has elements; they overlap where the sizes do not divide.",
        line="x:float[n, c, *s!] -> [n, c, *window!]",
        params=AdaptiveAvgPoolParams,
        spelled=lambda call, bound: {"size": per_axis(call.params.size, call.rank - 2, "size")},
        sizes=_adaptive_sizes,
        flops=lambda call, bound: call.types[0].size,
        decompose=_decompose_adaptive,
        example="adaptive_avg_pool(3)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="pool",
    )
)


class GlobalPoolParams(Params):
    """`keepdim` leaves the spatial axes with size 1."""

    keepdim: bool = False


def _global_line(call: Call[GlobalPoolParams]) -> str:
    space = spatial(call, "global pooling")
    return f"x:float[n, c, *s] -> [n, c{', 1' * len(space) * call.params.keepdim}]"


def _global_pool(name: str, doc: str, reduction: OpDef[Any], paper: str = "") -> OpDef[GlobalPoolParams]:
    def decompose(b: GraphBuilder, node: Node) -> Sequence[Value]:
        (x,) = node.operands
        return [b(reduction, x, axis=tuple(range(2, x.type.rank)), keepdim=node.call.params.keepdim)]

    return register(
        OpDef(
            name=name,
            doc=doc,
            line=_global_line,
            params=GlobalPoolParams,
            operands=("x",),
            flops=lambda call, bound: call.types[0].size,
            decompose=decompose,
            example=name,
            example_inputs=("f32[N, 6, 8, 8]",),
            category="pool",
            paper=paper,
        )
    )


GLOBAL_AVG_POOL = _global_pool(
    "global_avg_pool",
    "The mean of each channel: `[N, C, H, W]` becomes `[N, C]`.",
    MEAN,
    "Lin et al. 2013, arXiv:1312.4400",
)
GLOBAL_MAX_POOL = _global_pool(
    "global_max_pool", "The largest element of each channel: `[N, C, H, W]` becomes `[N, C]`.", MAX
)
