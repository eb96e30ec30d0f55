"""Arithmetic and comparisons, element by element, broadcasting as NumPy does where a size is literally 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from pydantic import model_validator

from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.op import BindError, Call, Dims, NoParams, OpDef, Params, register
from archc.ir.types import FLOATS


def broadcast_line(call: Call[Any], result: str = "", operands: Sequence[str] = "abcdefgh") -> str:
    """The signature of an elementwise op on the call's operands: axes aligned at the end, size 1 broadcasts.

    `operands` are their names, each with its dtype rule if it has one (`mask:bool`); `result` is the result's dtype
    rule.

    >>> from archc.ir.types import TensorType
    >>> broadcast_line(Call(NoParams(), (TensorType((2, 3)), TensorType((1,)))), "bool")
    'a[d0, d1] b[1] -> :bool[d0, d1]'
    """
    rank = max(t.rank for t in call.types)
    names: list[str] = []
    for i in range(rank):
        sizes = [t.shape[i - rank] for t in call.types if t.rank >= rank - i]
        names.append("1" if all(s == 1 for s in sizes) else f"d{i}")
        wide = list(dict.fromkeys(s for s in sizes if s != 1))
        if len(wide) > 1:
            raise BindError(
                "E0301",
                "elementwise operands need equal shapes (only a size of literally 1 broadcasts)",
                label=" vs ".join(str(t) for t in call.types),
                operands=range(len(call.types)),
                help=f"axis {i - rank} is {' and '.join(map(str, wide))}",
            )
    tensors = []
    for name, t in zip(operands, call.types, strict=False):
        own = names[rank - t.rank :]
        axes = ["1" if size == 1 else letter for size, letter in zip(t.shape, own, strict=True)]
        tensors.append(f"{name}[{', '.join(axes)}]")
    return f"{' '.join(tensors)} -> {':' if result else ''}{result}[{', '.join(names)}]"


def numeric(op: str) -> Callable[[Call[Any], Dims], None]:
    """A check that no operand of `op` is bool: PyTorch's arithmetic on bool is rarely what is meant."""

    def check(call: Call[Any], dims: Dims) -> None:
        for i, t in enumerate(call.types):
            if t.dtype == "bool":
                raise BindError(
                    "E0304",
                    f"`{op}` needs numbers",
                    label=f"found {t}",
                    operands=[i],
                    help='convert it: `-> cast("f32")`',
                )

    return check


def _binary(
    name: str,
    doc: str,
    *,
    dtype: str = "",
    result: str = "",
    bools: bool = False,
    commutative: bool = False,
    flops: int = 1,
    example: str = "",
    inputs: tuple[str, ...] = ("f32[N, 6, 8]", "f32[6, 1]"),
    category: str = "arithmetic",
) -> OpDef[NoParams]:
    operands = [f"{letter}:{dtype}" if dtype else letter for letter in "ab"]
    return register(
        OpDef(
            name=name,
            doc=doc,
            line=lambda call: broadcast_line(call, result, operands),
            operands=("a", "b"),
            check=None if bools else numeric(name),
            flops=flops,
            commutative=commutative,
            elementwise=True,
            example=example or name,
            example_inputs=inputs,
            category=category,
        )
    )


ADD = _binary("add", "`a + b`.", commutative=True)
SUB = _binary("sub", "`a - b`.")
MUL = _binary("mul", "`a * b`.", commutative=True)
DIV = _binary(
    "div",
    "`a / b`, of floats. Integers must be cast first: whether to round is then said in the program.",
    dtype="float",
)
POW = _binary("pow", "`a` to the power of `b`, of floats.", dtype="float", flops=10)
MINIMUM = _binary("minimum", "The smaller of `a` and `b`; NaN where either is NaN.", commutative=True)
MAXIMUM = _binary("maximum", "The larger of `a` and `b`; NaN where either is NaN.", commutative=True)


def _comparison(name: str, doc: str, *, bools: bool = False, commutative: bool = False) -> OpDef[NoParams]:
    return _binary(name, doc, result="bool", bools=bools, commutative=commutative, category="comparison")


EQ = _comparison("eq", "`a == b`, a bool tensor; NaN equals nothing.", bools=True, commutative=True)
NE = _comparison("ne", "`a != b`, a bool tensor; NaN differs from everything.", bools=True, commutative=True)
LT = _comparison("lt", "`a < b`, a bool tensor.")
LE = _comparison("le", "`a <= b`, a bool tensor.")
GT = _comparison("gt", "`a > b`, a bool tensor.")
GE = _comparison("ge", "`a >= b`, a bool tensor.")


def _logical(name: str, doc: str) -> OpDef[NoParams]:
    inputs = ("bool[N, 6, 8]", "bool[6, 1]")
    return _binary(
        name, doc, dtype="bool", result="bool", bools=True, commutative=True, inputs=inputs, category="comparison"
    )


LOGICAL_AND = _logical("logical_and", "`a and b`, of bool tensors.")
LOGICAL_OR = _logical("logical_or", "`a or b`, of bool tensors.")
LOGICAL_NOT: OpDef[NoParams] = register(
    OpDef(
        name="logical_not",
        doc="`not x`, of a bool tensor.",
        line="x:bool[*b] -> :bool[*b]",
        flops=1,
        elementwise=True,
        example="logical_not",
        example_inputs=("bool[N, 6]",),
        category="comparison",
    )
)

WHERE: OpDef[NoParams] = register(
    OpDef(
        name="where",
        doc="`a` where the bool `condition` holds, else `b`; all three broadcast.",
        line=lambda call: broadcast_line(call, operands=("condition:bool", "a", "b")),
        operands=("condition", "a", "b"),
        flops=1,
        elementwise=True,
        example="where",
        example_inputs=("bool[N, 6, 1]", "f32[N, 6, 8]", "f32[8]"),
        category="comparison",
    )
)


def _unary(
    name: str,
    doc: str,
    *,
    dtype: str = "float",
    flops: int = 1,
    decompose: Callable[[GraphBuilder, Node], Sequence[Value]] | None = None,
) -> OpDef[NoParams]:
    """`dtype=""` takes integers too."""
    return register(
        OpDef(
            name=name,
            doc=doc,
            line=f"x{':' + dtype if dtype else ''}[*b] -> [*b]",
            check=None if dtype else numeric(name),
            flops=flops,
            decompose=decompose,
            elementwise=True,
            example=name,
            category="arithmetic",
        )
    )


# Transcendental functions count 10 FLOPs an element: what a vectorised polynomial takes.
NEG = _unary("neg", "`-x`.", dtype="")
ABS = _unary("abs", "`|x|`.", dtype="")
SIGN = _unary("sign", "-1, 0 or 1 by the sign of `x`; 0 for NaN, as in PyTorch.", dtype="")
SQUARE = _unary("square", "`x * x`.", dtype="", decompose=lambda b, node: [b(MUL, node.inputs[0], node.inputs[0])])
EXP = _unary("exp", "`eˣ`.", flops=10)
EXPM1 = _unary("expm1", "`eˣ - 1`, precise near 0.", flops=10)
LOG = _unary("log", "The natural logarithm; NaN below 0, -inf at 0.", flops=10)
LOG1P = _unary("log1p", "`log(1 + x)`, precise near 0.", flops=10)
SQRT = _unary("sqrt", "The square root; NaN below 0.", flops=2)
RSQRT = _unary("rsqrt", "`1 / sqrt(x)`.", flops=3)
RECIPROCAL = _unary("reciprocal", "`1 / x`.")
SIN = _unary("sin", "The sine, of radians.", flops=10)
COS = _unary("cos", "The cosine, of radians.", flops=10)
ERF = _unary("erf", "The error function, `2/sqrt(π) · ∫₀ˣ exp(-t²) dt`.", flops=10)
FLOOR = _unary("floor", "The largest whole number that is not above `x`.")
CEIL = _unary("ceil", "The smallest whole number that is not below `x`.")


class ClampParams(Params):
    """Bounds, either may be absent. Where `min > max` the result is `max`, as in PyTorch."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("clamp needs `min`, `max` or both")
        return self


def _whole_bounds(call: Call[ClampParams], dims: Dims) -> None:
    numeric("clamp")(call, dims)
    bounds = [b for b in (call.params.min, call.params.max) if b is not None]
    if call.types[0].dtype not in FLOATS and any(not b.is_integer() for b in bounds):
        raise BindError(
            "E0304",
            "`clamp` of integers needs whole bounds",
            label=f"{call.types[0]} with {', '.join(f'{b:g}' for b in bounds)}",
            blame="min" if call.params.min in [b for b in bounds if not b.is_integer()] else "max",
            operands=[0],
            help='convert it: `-> cast("f32")`',
        )


CLAMP = register(
    OpDef(
        name="clamp",
        doc="`x` limited to `min` … `max`; NaN stays NaN.",
        line="x[*b] -> [*b]",
        params=ClampParams,
        check=_whole_bounds,
        flops=2,
        elementwise=True,
        example="clamp(min = -1, max = 1)",
        category="arithmetic",
    )
)
