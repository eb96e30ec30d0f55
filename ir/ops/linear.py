"""Linear maps: weights that meet the last axis, look-up tables, and products of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import PositiveInt, model_validator

from archc.ir.dims import Dim
from archc.ir.dims import product as dim_product
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.init import Init, fan_in_uniform
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, Weight, register
from archc.ir.ops.constants import PARAMETER, scalar, trained
from archc.ir.ops.elementwise import ADD, MUL
from archc.ir.types import DType, TensorType


def fan_in(p: Any, shape: tuple[int, ...], dims: Dims) -> Init:
    """PyTorch's default for a layer that reads the letter `i`: U(-1/sqrt(i), 1/sqrt(i)), for weight and bias."""
    i = dims["i"]
    assert isinstance(i, int)
    return fan_in_uniform(i)


def parameter_value(b: GraphBuilder, node: Node, role: str) -> Value:
    """A weight of `node` as a tensor, for decompositions."""
    parameter = node.weights[role]
    value: Value = b(PARAMETER, shape=parameter.shape, dtype=parameter.type.dtype, weights={"weight": parameter})
    return value


class LinearParams(Params):
    out: PositiveInt
    bias: bool = True
    init: str | None = None


LINEAR = register(
    OpDef(
        name="linear",
        doc="`y = x Wᵀ + b` on the last axis.",
        line="x:float[*b, i]; weight[out, i] bias[out] -> [*b, out]",
        params=LinearParams,
        weights={"weight": Weight(fan_in, main=True), "bias": Weight(fan_in, when="bias")},
        flops="contraction",
        example="linear(4)",
        category="linear",
    )
)


class TiedLinearParams(Params):
    """`out` is the number of rows of the shared table; it is filled in from the `share` that the call names."""

    out: PositiveInt


def _decompose_tied_linear(b: GraphBuilder, node: Node) -> Sequence[Value]:
    return [b(LINEAR, *node.operands, out=node.call.params.out, bias=False, weights=node.weights)]


TIED_LINEAR = register(
    OpDef(
        name="tied_linear",
        doc="`y = x Wᵀ` with the table of a shared `embedding` (or the weight of a shared `linear`) as W.",
        line="x:float[*b, i]; weight[out, i] -> [*b, out]",
        params=TiedLinearParams,
        weights={"weight": Weight(fan_in, tied=True)},
        flops="contraction",
        decompose=_decompose_tied_linear,
        category="linear",
        paper="Press and Wolf 2016, arXiv:1608.05859",
    )
)


class BilinearParams(Params):
    out: PositiveInt
    bias: bool = True
    init: str | None = None


def _decompose_bilinear(b: GraphBuilder, node: Node) -> Sequence[Value]:
    x, y = node.operands
    result = b(EINSUM, x, parameter_value(b, node, "weight"), y, equation="...i,oij,...j->...o")
    return [b(ADD, result, parameter_value(b, node, "bias")) if "bias" in node.weights else result]


BILINEAR = register(
    OpDef(
        name="bilinear",
        doc="`y_o = xᵀ W_o z + b_o` on the last axes of two tensors.",
        line="x:float[*b, i] z[*b, j]; weight[out, i, j] bias[out] -> [*b, out]",
        params=BilinearParams,
        weights={"weight": Weight(fan_in, main=True), "bias": Weight(fan_in, when="bias")},
        flops="contraction",
        decompose=_decompose_bilinear,
        example="fn(x) { return bilinear(4)(x, x) }",
        category="linear",
    )
)


class EmbeddingParams(Params):
    count: PositiveInt
    dim: PositiveInt
    dtype: DType = "f32"
    init: str | None = None


EMBEDDING = register(
    OpDef(
        name="embedding",
        doc="A row of a table for each index; an index out of range is an error.",
        line="ids:int[*b]; weight[count!, dim] -> [*b, dim]",
        params=EmbeddingParams,
        check=trained("embedding"),
        weights={"weight": Weight(Init("normal", 1.0), main=True)},
        example="embedding(10, 4)",
        example_inputs=("i64[N, 5]",),
        category="linear",
    )
)


class MatmulParams(Params):
    """`scaled` divides by the square root of the length of the axis summed over."""

    scaled: bool = False


def _matmul_line(call: Call[MatmulParams]) -> str:
    a, b = call.types
    for i, t in enumerate(call.types):
        if t.rank < 2:
            raise BindError(
                "E0302",
                "`matmul` needs matrices: rank 2 or more",
                label=f"found {t}",
                operands=[i],
                help="give it a second axis with `unflatten` or `reshape`, or write an `einsum`",
            )
    rank = max(a.rank, b.rank) - 2
    names = [f"b{i}" for i in range(rank)]

    def batch(t: TensorType) -> list[str]:
        lead = t.shape[:-2]
        return ["1" if size == 1 else name for size, name in zip(lead, names[rank - len(lead) :], strict=True)]

    left, right = batch(a), batch(b)
    wide = {*left, *right}
    result = [name if name in wide else "1" for name in names]
    tensors = ([*left, "m", "k"], [*right, "k", "p"], [*result, "m", "p"])
    one, two, product = (", ".join(axes) for axes in tensors)
    return f"a:float[{one}] b[{two}] -> [{product}]"


def _decompose_matmul(b: GraphBuilder, node: Node) -> Sequence[Value]:
    x, y = node.operands
    k = x.type.shape[-1]
    if not node.call.params.scaled or not isinstance(k, int):
        return ()
    product = b(MATMUL, x, y)
    return [b(MUL, product, scalar(b, k**-0.5, product))]


MATMUL = register(
    OpDef(
        name="matmul",
        doc="The matrix product of the last two axes; axes before them broadcast where one is literally 1.",
        line=_matmul_line,
        params=MatmulParams,
        operands=("a", "b"),
        flops="contraction",
        decompose=_decompose_matmul,
        example="fn(x) { return matmul(x, x -> transpose(1, 2), scaled = true) }",
        category="linear",
    )
)


class EinsumParams(Params):
    """`equation` as in NumPy and PyTorch, with its result written out: `"bij,bjk->bik"`, `"...i,oi->...o"`."""

    equation: str

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        parse_equation(self.equation)
        return self


def parse_equation(equation: str) -> tuple[tuple[str, ...], str]:
    """The operands' letters and the result's; `...` stays in place.

    >>> parse_equation("b i j, b j -> b i")
    (('bij', 'bj'), 'bi')

    Raises: ValueError when the equation is malformed.
    """
    text = equation.replace(" ", "")
    left, arrow, result = text.partition("->")
    if not arrow:
        raise ValueError('an equation needs its result written out: "ij,jk->ik"')
    operands = tuple(left.split(","))
    for term in (*operands, result):
        bare = term.replace("...", "", 1)
        if not ((bare.isascii() and bare.isalpha()) or not bare):
            raise ValueError(f"{term!r} should be letters, with `...` at most once, in {equation!r}")
    letters = set("".join(operands).replace(".", ""))
    bare = result.replace("...", "", 1)
    unknown = sorted(set(bare) - letters)
    if unknown:
        raise ValueError(f"`{unknown[0]}` of the result is in no operand of {equation!r}")
    if len(set(bare)) != len(bare):
        raise ValueError(f"a letter stands twice in the result of {equation!r}")
    if any("..." in term for term in operands) != ("..." in result):
        raise ValueError(f"`...` should stand in the operands and in the result of {equation!r}, or in neither")
    return operands, result


def _einsum_line(call: Call[EinsumParams]) -> str:
    operands, result = parse_equation(call.params.equation)
    if len(operands) != len(call.types):
        raise BindError(
            "E0303",
            f'`einsum("{call.params.equation}")` takes {len(operands)} tensor{"s" * (len(operands) != 1)}',
            label=f"found {len(call.types)}",
        )

    def axes(term: str) -> str:
        before, dots, after = term.partition("...")
        return ", ".join([*before, *(["*rest"] if dots else []), *after])

    tensors = " ".join(f"x{i}[{axes(term)}]" for i, term in enumerate(operands))
    return f"{tensors} -> [{axes(result)}]"


def _einsum_flops(call: Call[EinsumParams], bound: Bound) -> Dim:
    """A product of several operands is counted from left to right, as it is computed."""
    operands, result = parse_equation(call.params.equation)

    def size(letters: set[str]) -> Dim:
        found = [bound.dims["rest" if a == "." else a] for a in sorted(letters)]
        return dim_product(dim_product(s) if isinstance(s, tuple) else s for s in found)

    if len(operands) == 1:
        return size(set(operands[0])) if set(operands[0]) != set(result) else 0
    total: Dim = 0
    so_far = set(operands[0])
    for i, term in enumerate(operands[1:], start=1):
        later = set("".join(operands[i + 1 :])) | set(result)
        # a letter that only one of the two has, and nothing later needs, is summed before the product
        mine, other = so_far & (set(term) | later), set(term) & (so_far | later)
        total = total + 2 * size(mine | other)
        so_far = (mine | other) & later
    return total


EINSUM = register(
    OpDef(
        name="einsum",
        doc="A sum of products of tensors, by their axes' letters: every letter that the result lacks is summed over.",
        line=_einsum_line,
        params=EinsumParams,
        operands=("*xs",),
        flops=_einsum_flops,
        example='fn(x) { return einsum("ntc,nuc->ntu")(x, x) }',
        category="linear",
    )
)
