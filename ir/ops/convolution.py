"""Convolutions over one, two or three spatial axes, and the rearrangements that go with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from archc.ir.dims import Dim, floor_div
from archc.ir.dims import product as dim_product
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.init import Init, fan_in_uniform
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, Weight, register
from archc.ir.ops.constants import CONSTANT
from archc.ir.ops.elementwise import ADD, MUL
from archc.ir.ops.linear import MATMUL
from archc.ir.ops.pieces import CONCAT, PAD, SLICE
from archc.ir.ops.shape import EXPAND, PERMUTE, RESHAPE

PerAxis = PositiveInt | tuple[PositiveInt, ...]
PerAxisOr0 = NonNegativeInt | tuple[NonNegativeInt, ...]


class ConvGeometry(Params):
    """`padding` defaults to "same" for odd kernels, `dilation * (kernel - 1) // 2`, and to 0 for even ones.

    `causal` pads before the axis only, by `dilation * (kernel - 1)`: a position sees itself and what precedes it.
    """

    out: PositiveInt
    kernel: PerAxis
    stride: PerAxis = 1
    padding: PerAxisOr0 | None = None
    dilation: PerAxis = 1
    groups: PositiveInt = 1
    causal: bool = False
    bias: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.out % self.groups:
            raise ValueError(f"out = {self.out} is not divisible by groups = {self.groups}")
        if self.causal and self.padding is not None:
            raise ValueError("causal decides the padding: leave `padding` out")
        return self


class ConvParams(ConvGeometry):
    __doc__ = ConvGeometry.__doc__

    init: str | None = None


def per_axis(value: int | tuple[int, ...], rank: int, what: str) -> tuple[int, ...]:
    """One number for every spatial axis."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise BindError(
            "E0302", f"`{what}` needs {rank} numbers, one for each spatial axis", label=f"found {value}", blame=what
        )
    return value


def spatial(call: Call[Any], op: str, ranks: Sequence[int] = (3, 4, 5)) -> tuple[Dim, ...]:
    """The sizes of the spatial axes, those behind axis 1.

    Raises: BindError (E0302) when the operand's rank is none of `ranks`.
    """
    if call.rank not in ranks:
        layout = " or ".join(f"[N, C{', S' * (r - 2)}]" if len(ranks) > 1 else "[N, C, H, W]" for r in ranks)
        raise BindError(
            "E0302",
            f"`{op}` needs spatial axes behind the channels: {layout}",
            label=f"found {call.types[0]}, rank {call.rank}",
            operands=[0],
        )
    return call.types[0].shape[2:]


def conv_geometry(p: ConvGeometry, rank: int) -> list[tuple[int, int, int, tuple[int, int]]]:
    """(kernel, stride, dilation, (before, after)) for each spatial axis."""
    kernels, strides = per_axis(p.kernel, rank, "kernel"), per_axis(p.stride, rank, "stride")
    dilations = per_axis(p.dilation, rank, "dilation")
    given = None if p.padding is None else per_axis(p.padding, rank, "padding")
    rows = []
    for i, (k, s, dil) in enumerate(zip(kernels, strides, dilations, strict=True)):
        reach = dil * (k - 1)
        pad = given[i] if given is not None else reach // 2 if k % 2 else 0
        rows.append((k, s, dil, (reach, 0) if p.causal else (pad, pad)))
    return rows


def window(size: Dim, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> Dim:
    """How many windows fit on a padded axis.

    Raises: BindError (E0308) when none does.
    """
    count = floor_div(size + sum(pads) - dilation * (kernel - 1) - 1, stride) + 1
    if isinstance(count, int) and count < 1:
        raise BindError(
            "E0308",
            "a window larger than the axis leaves nothing of it",
            label=f"an axis of size {size}, {sum(pads)} of padding, a window of {dilation * (kernel - 1) + 1}",
            blame="kernel",
            operands=[0],
            help="use a smaller kernel, padding, or fewer strides before",
        )
    return count


def _spelled(*names: str) -> Callable[[Call[Any], Bound], Mapping[str, Any]]:
    """A number for each spatial axis."""
    return lambda call, bound: {n: per_axis(getattr(call.params, n), call.rank - 2, n) for n in names}


def conv_spelled(call: Call[Any], bound: Bound) -> Mapping[str, Any]:
    rows = conv_geometry(call.params, call.rank - 2)
    return dict(zip(("kernel", "stride", "dilation", "padding"), zip(*rows, strict=True), strict=True))


def _im2col_spelled(call: Call[Im2colParams], bound: Bound) -> Mapping[str, Any]:
    kernel, stride, _, padding = zip(*im2col_geometry(call.params), strict=True)
    return {"kernel": kernel, "stride": stride, "padding": padding}


def conv_sizes(call: Call[Any], dims: Dims) -> Dims:
    space = spatial(call, "conv")
    rows = conv_geometry(call.params, len(space))
    return {
        "o": call.params.out // call.params.groups,
        "kernel": tuple(r[0] for r in rows),
        "window": tuple(window(size, *row) for size, row in zip(space, rows, strict=True)),
    }


def _fan_in(p: Any, shape: tuple[int, ...], dims: Dims) -> Init:
    """PyTorch's default for weight and bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), fan_in as it counts it."""
    fan, kernel = dims["o" if isinstance(p, ConvTransposeParams) else "i"], dims["kernel"]
    assert isinstance(fan, int)
    assert isinstance(kernel, tuple)
    return fan_in_uniform(fan * math.prod(k for k in kernel if isinstance(k, int)))


CONV = register(
    OpDef(
        name="conv",
        doc="Convolution (cross-correlation) over the axes behind the channel axis 1; one to three of them.",
        line="x:float[n, groups.i, *s!]; weight[groups.o, i, *kernel!] bias[groups.o] -> [n, groups.o, *window!]",
        params=ConvParams,
        spelled=conv_spelled,
        sizes=conv_sizes,
        weights={"weight": Weight(_fan_in, main=True), "bias": Weight(_fan_in, when="bias")},
        flops="contraction",
        example="conv(8, kernel = 3, groups = 2)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="convolution",
    )
)


class ConvTransposeParams(Params):
    """`output_padding` lengthens one side of the result; it must be smaller than the stride or the dilation."""

    out: PositiveInt
    kernel: PerAxis
    stride: PerAxis = 1
    padding: PerAxisOr0 = 0
    output_padding: PerAxisOr0 = 0
    dilation: PerAxis = 1
    groups: PositiveInt = 1
    bias: bool = True
    init: str | None = None

    @model_validator(mode="after")
    def _out_in_groups(self) -> Self:
        if self.out % self.groups:
            raise ValueError(f"out = {self.out} is not divisible by groups = {self.groups}")
        return self


def conv_transpose_geometry(p: ConvTransposeParams, rank: int) -> list[tuple[int, int, int, int, int]]:
    """(kernel, stride, padding, output_padding, dilation) for each spatial axis."""
    fields = ("kernel", "stride", "padding", "output_padding", "dilation")
    columns = [per_axis(getattr(p, name), rank, name) for name in fields]
    return list(zip(*columns, strict=True))


def _conv_transpose_sizes(call: Call[ConvTransposeParams], dims: Dims) -> Dims:
    space = spatial(call, "conv_transpose")
    rows = conv_transpose_geometry(call.params, len(space))
    for _, stride, _, extra, dilation in rows:
        if extra >= max(stride, dilation):
            raise BindError(
                "E0311",
                "`output_padding` of `conv_transpose` must be smaller than the stride or the dilation",
                label=f"found {extra} with stride {stride} and dilation {dilation}",
                blame="output_padding",
            )
    return {
        "o": call.params.out // call.params.groups,
        "kernel": tuple(r[0] for r in rows),
        "window": tuple(
            (size - 1) * s - 2 * pad + dil * (k - 1) + extra + 1
            for size, (k, s, pad, extra, dil) in zip(space, rows, strict=True)
        ),
    }


def _conv_transpose_flops(call: Call[ConvTransposeParams], bound: Bound) -> Dim:
    """Every input element meets the whole kernel of its group."""
    _, o, *kernel = bound.weights["weight"].type.shape
    return 2 * call.types[0].size * o * dim_product(kernel)


CONV_TRANSPOSE = register(
    OpDef(
        name="conv_transpose",
        doc="The transpose (gradient) of `conv`: each input element adds a weighted kernel to the result.",
        line="x:float[n, groups.i, *s!]; weight[groups.i, o, *kernel!] bias[groups.o] -> [n, groups.o, *window!]",
        params=ConvTransposeParams,
        spelled=_spelled("kernel", "stride", "padding", "output_padding", "dilation"),
        sizes=_conv_transpose_sizes,
        weights={"weight": Weight(_fan_in, main=True), "bias": Weight(_fan_in, when="bias")},
        flops=_conv_transpose_flops,
        example="conv_transpose(4, kernel = 3, stride = 2, padding = 1, output_padding = 1)",
        example_inputs=("f32[N, 6, 4, 4]",),
        category="convolution",
        paper="Zeiler et al. 2010, Deconvolutional Networks",
    )
)


class Im2colParams(Params):
    """`padding` as for `conv`: "same" for odd kernels, 0 for even ones."""

    kernel: PerAxis
    stride: PerAxis = 1
    padding: PerAxisOr0 | None = None


def im2col_geometry(p: Im2colParams) -> list[tuple[int, int, int, tuple[int, int]]]:
    """(kernel, stride, 1, (before, after)) for height and width."""
    return conv_geometry(ConvParams(out=1, kernel=p.kernel, stride=p.stride, padding=p.padding), 2)


def _im2col_sizes(call: Call[Im2colParams], dims: Dims) -> Dims:
    (h, w), (rows, columns) = spatial(call, "im2col", (4,)), im2col_geometry(call.params)
    return {"p": window(h, *rows), "q": window(w, *columns), "k": rows[0], "l": columns[0]}


def _windows(b: GraphBuilder, x: Value, axis: int, kernel: int, stride: int, count: Dim) -> Value:
    """[…, S, …] -> […, kernel, count, …]: for each position in the kernel, what the windows have there."""
    shape = x.type.shape
    pieces = []
    for i in range(kernel):
        piece = b(SLICE, x, axis=axis, from_=i, to=i - kernel + 1 or None, step=stride)
        pieces.append(b(RESHAPE, piece, shape=(*shape[:axis], 1, count, *shape[axis + 1 :])))
    result: Value = b(CONCAT, *pieces, axis=axis) if kernel > 1 else pieces[0]
    return result


def _decompose_im2col(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,) = node.operands
    (k, s, _, pad_h), (l, t, _, pad_w) = im2col_geometry(node.call.params)
    dims = node.bound.dims
    p, q = dims["p"], dims["q"]
    assert not isinstance(p, tuple)
    assert not isinstance(q, tuple)
    n, c, h, w = x.type.shape
    if (k, l) == (s, t) and (h, w) == (p * k, q * l) and not any((*pad_h, *pad_w)):  # patches: nothing overlaps
        x = b(PERMUTE, b(RESHAPE, x, shape=(n, c, p, k, q, l)), order=(0, 2, 4, 1, 3, 5))
        return [b(RESHAPE, x, shape=node.output.type.shape)]
    if any((*pad_h, *pad_w)):
        x = b(PAD, x, widths=(*pad_w, *pad_h))
    x = _windows(b, x, 2, k, s, p)  # [n, c, k, p, w]
    x = _windows(b, x, 4, l, t, q)  # [n, c, k, p, l, q]
    x = b(PERMUTE, x, order=(0, 3, 5, 1, 2, 4))
    return [b(RESHAPE, x, shape=node.output.type.shape)]


IM2COL = register(
    OpDef(
        name="im2col",
        doc="Every window of an image as a row: `[N, C, H, W]` becomes `[N, H'·W', C·kernel²]`.",
        line="x[n, c, h!, w!] -> [n, p!.q!, c.k!.l!]",
        params=Im2colParams,
        spelled=_im2col_spelled,
        sizes=_im2col_sizes,
        decompose=_decompose_im2col,
        example="im2col(kernel = 3, stride = 2)",
        example_inputs=("f32[N, 3, 8, 8]",),
        category="convolution",
        paper="einspace: Ericsson et al. 2024, arXiv:2405.20838",
    )
)


class Col2imParams(Params):
    """`h` and `w` are the height and width of the image; without them it is taken to be square."""

    h: PositiveInt | None = None
    w: PositiveInt | None = None


def _col2im_sizes(call: Call[Col2imParams], dims: Dims) -> Dims:
    if call.params.h is not None or call.params.w is not None:
        return {}
    rows = call.types[0].shape[1]
    side = math.isqrt(rows) if isinstance(rows, int) else 0
    if side * side != rows or not side:
        raise BindError(
            "E0311",
            "`col2im` needs a square number of rows, or the image's height",
            label=f"found {rows} rows in {call.types[0]}",
            blame="h",
            operands=[0],
            help="say `col2im(h = …)`",
        )
    return {"h": side}


def _decompose_col2im(b: GraphBuilder, node: Node) -> Sequence[Value]:
    rows = b(PERMUTE, node.operands[0], order=(0, 2, 1))
    return [b(RESHAPE, rows, shape=node.output.type.shape)]


COL2IM = register(
    OpDef(
        name="col2im",
        doc="Rows back to an image: `[N, H·W, C]` becomes `[N, C, H, W]`. Windows are not added up: see `im2col`.",
        line="x[n, h.w, c] -> [n, c, h, w]",
        params=Col2imParams,
        spelled=lambda call, bound: dict(zip("hw", bound.results[0].shape[2:], strict=True)),
        sizes=_col2im_sizes,
        decompose=_decompose_col2im,
        example="col2im",
        example_inputs=("f32[N, 16, 8]",),
        category="convolution",
        paper="einspace: Ericsson et al. 2024, arXiv:2405.20838",
    )
)


class PixelShuffleParams(Params):
    r: PositiveInt


def _decompose_pixel_shuffle(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,), r = node.operands, node.call.params.r
    n, c, h, w = x.type.shape
    apart = b(RESHAPE, x, shape=(n, floor_div(c, r * r), r, r, h, w))
    return [b(RESHAPE, b(PERMUTE, apart, order=(0, 1, 4, 2, 5, 3)), shape=node.output.type.shape)]


PIXEL_SHUFFLE = register(
    OpDef(
        name="pixel_shuffle",
        doc="Channels become resolution: `[N, C·r², H, W]` becomes `[N, C, H·r, W·r]`.",
        line="x[n, c.p.q, h, w] -> [n, c, h.p, w.q]",
        params=PixelShuffleParams,
        sizes=lambda call, dims: {"p": call.params.r, "q": call.params.r},
        decompose=_decompose_pixel_shuffle,
        example="pixel_shuffle(2)",
        example_inputs=("f32[N, 12, 4, 4]",),
        category="convolution",
        paper="Shi et al. 2016, arXiv:1609.05158",
    )
)


class UpsampleParams(Params):
    """`"bilinear"` interpolates along every spatial axis (one of them: linear). `align_corners` as in PyTorch."""

    factor: PerAxis
    mode: Literal["nearest", "bilinear"] = "nearest"
    align_corners: bool = False

    @model_validator(mode="after")
    def _corners(self) -> Self:
        if self.align_corners and self.mode == "nearest":
            raise ValueError('align_corners means something for mode = "bilinear" only')
        return self


def _upsample_line(call: Call[UpsampleParams]) -> str:
    if call.params.mode == "bilinear":
        return "x:float[n, c, *s!] -> [n, c, *window!]"
    axes = [f"s{i}" for i in range(len(spatial(call, "upsample")))]
    return f"x[n, c, {', '.join(axes)}] -> [n, c, {', '.join(f'{s}.f{s[1:]}' for s in axes)}]"


def _upsample_sizes(call: Call[UpsampleParams], dims: Dims) -> Dims:
    space = spatial(call, "upsample")
    factors = per_axis(call.params.factor, len(space), "factor")
    if call.params.mode == "bilinear":
        return {"window": tuple(s * f for s, f in zip(space, factors, strict=True))}
    return {f"f{i}": f for i, f in enumerate(factors)}


def _upsample_flops(call: Call[UpsampleParams], bound: Bound) -> Dim:
    """One interpolation between two values is three operations; k axes take 2ᵏ - 1 of them for each element."""
    if call.params.mode == "nearest":
        return 0
    return bound.results[0].size * int(3 * (2 ** (call.rank - 2) - 1))


def corner_matrix(size: int, factor: int) -> list[list[float]]:
    """[size * factor, size]: the weights of a linear interpolation that keeps the first and the last element.

    >>> corner_matrix(3, 1)
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rows, last = [], max(1, size * factor - 1)
    for i in range(size * factor):
        at = i * (size - 1) / last
        low = min(int(at), size - 1)
        row = [0.0] * size
        row[low] += 1 - (at - low)
        row[min(low + 1, size - 1)] += at - low
        rows.append(row)
    return rows


def _interpolated(b: GraphBuilder, x: Value, axis: int, factor: int) -> Value:
    """Linear interpolation along one axis: every element, its left and its right neighbour (at the ends itself) are
    mixed in `factor` phases. Any size, symbolic too."""
    if factor == 1:
        return x
    shape, size = x.type.shape, x.type.shape[axis]
    before, after = [x], [x]
    if size != 1:
        before = [b(SLICE, x, axis=axis, from_=0, to=1), b(SLICE, x, axis=axis, from_=0, to=-1)]
        after = [b(SLICE, x, axis=axis, from_=1), b(SLICE, x, axis=axis, from_=-1)]
    offsets = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
    weights = ([max(0.0, -o) for o in offsets], [1 - abs(o) for o in offsets], [max(0.0, o) for o in offsets])
    thin = (*shape[: axis + 1], 1, *shape[axis + 1 :])
    terms = []
    for pieces, weight in zip((before, [x], after), weights, strict=True):
        neighbour = b(CONCAT, *pieces, axis=axis) if len(pieces) > 1 else pieces[0]
        column = tuple(_nested(w, len(thin) - axis - 2) for w in weight)
        terms.append(b(MUL, b(RESHAPE, neighbour, shape=thin), b(CONSTANT, value=column, dtype=x.type.dtype)))
    total = b(ADD, b(ADD, terms[0], terms[1]), terms[2])
    result: Value = b(RESHAPE, total, shape=(*shape[:axis], size * factor, *shape[axis + 1 :]))
    return result


def _nested(value: float, depth: int) -> Any:
    """`value` in `depth` tuples of one element: a constant with so many axes of size 1."""
    nested: Any = value
    for _ in range(depth):
        nested = (nested,)
    return nested


def mix_axes(b: GraphBuilder, x: Value, matrices: Sequence[Sequence[Sequence[float]]]) -> Value:
    """Multiply each spatial axis of x by its matrix [new, old]."""
    for i, matrix in enumerate(matrices):
        axis, last = 2 + i, x.type.rank - 1
        swap = list(range(x.type.rank))
        swap[axis], swap[last] = last, axis
        weights = b(CONSTANT, value=tuple(zip(*matrix, strict=True)), dtype=x.type.dtype)  # [old, new]
        if axis == last:
            x = b(MATMUL, x, weights)
        else:
            x = b(PERMUTE, b(MATMUL, b(PERMUTE, x, order=tuple(swap)), weights), order=tuple(swap))
    return x


def _decompose_upsample(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,), p = node.operands, node.call.params
    space = x.type.shape[2:]
    factors = per_axis(p.factor, len(space), "factor")
    if p.mode == "nearest":
        thin: list[Dim] = [*x.type.shape[:2]]
        wide: list[Dim] = [*x.type.shape[:2]]
        for size, factor in zip(space, factors, strict=True):
            thin += [size, 1]
            wide += [size, factor]
        repeated = b(EXPAND, b(RESHAPE, x, shape=tuple(thin)), shape=tuple(wide))
        return [b(RESHAPE, repeated, shape=node.output.type.shape)]
    if not p.align_corners:
        for axis, factor in enumerate(factors, start=2):
            x = _interpolated(b, x, axis, factor)
        return [x]
    if not all(isinstance(s, int) for s in space):
        return ()
    pairs = zip(space, factors, strict=True)
    return [mix_axes(b, x, [corner_matrix(s, f) for s, f in pairs if isinstance(s, int)])]


UPSAMPLE = register(
    OpDef(
        name="upsample",
        doc="Enlarge the spatial axes by whole factors, repeating elements or interpolating between them.",
        line=_upsample_line,
        params=UpsampleParams,
        spelled=_spelled("factor"),
        operands=("x",),
        sizes=_upsample_sizes,
        flops=_upsample_flops,
        decompose=_decompose_upsample,
        example='upsample(2, mode = "bilinear")',
        example_inputs=("f32[N, 3, 4, 4]",),
        category="convolution",
    )
)
