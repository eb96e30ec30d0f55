"""Activation functions, softmax and dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.init import Init
from archc.ir.op import BindError, Call, NoParams, OpDef, Params, Weight, counted, register
from archc.ir.ops.constants import scalar
from archc.ir.ops.elementwise import ADD, CLAMP, DIV, MUL
from archc.ir.ops.reduce import axis_letters

Decompose = Callable[[GraphBuilder, Node], Sequence[Value]]


def _activation(
    name: str,
    doc: str,
    flops: int,
    *,
    params: type[Params] = NoParams,
    decompose: Decompose | None = None,
    example: str = "",
    paper: str = "",
) -> OpDef[Any]:
    return register(
        OpDef(
            name=name,
            doc=doc,
            line="x:float[*b] -> [*b]",
            params=params,
            flops=flops,
            decompose=decompose,
            elementwise=True,
            example=example or name,
            category="activation",
            paper=paper,
        )
    )


def _relu6(b: GraphBuilder, node: Node) -> Sequence[Value]:
    return [b(CLAMP, node.inputs[0], min=0.0, max=6.0)]


def _hardsigmoid(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,) = node.inputs
    shifted = b(CLAMP, b(ADD, x, scalar(b, 3.0, x)), min=0.0, max=6.0)
    return [b(DIV, shifted, scalar(b, 6.0, x))]


def _hardswish(b: GraphBuilder, node: Node) -> Sequence[Value]:
    return [b(MUL, node.inputs[0], b(HARDSIGMOID, node.inputs[0]))]


def _silu(b: GraphBuilder, node: Node) -> Sequence[Value]:
    return [b(MUL, node.inputs[0], b(SIGMOID, node.inputs[0]))]


def _mish(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,) = node.inputs
    return [b(MUL, x, b(TANH, b(SOFTPLUS, x)))]


class LeakyReluParams(Params):
    negative_slope: float = 0.01


class EluParams(Params):
    alpha: float = 1.0


class GeluParams(Params):
    """`"none"` is exact (erf), `"tanh"` the usual approximation."""

    approximate: Literal["none", "tanh"] = "none"


class SoftplusParams(Params):
    """Above `threshold` (of `beta * x`) the result is `x` itself."""

    beta: PositiveFloat = 1.0
    threshold: float = 20.0


RELU = _activation("relu", "`max(x, 0)`; NaN stays NaN.", 1)
RELU6 = _activation("relu6", "`min(max(x, 0), 6)`.", 2, decompose=_relu6)
LEAKY_RELU = _activation(
    "leaky_relu",
    "`x` above 0, else `negative_slope * x`.",
    2,
    params=LeakyReluParams,
    example="leaky_relu(0.2)",
)
ELU = _activation(
    "elu",
    "`x` above 0, else `alpha * (eˣ - 1)`.",
    11,
    params=EluParams,
    paper="Clevert et al. 2015, arXiv:1511.07289",
)
GELU = _activation(
    "gelu",
    "`x * Φ(x)` with the normal distribution function Φ.",
    12,
    params=GeluParams,
    example='gelu(approximate = "tanh")',
    paper="Hendrycks and Gimpel 2016, arXiv:1606.08415",
)
SIGMOID = _activation("sigmoid", "`1 / (1 + e⁻ˣ)`.", 12)
SILU = _activation(
    "silu",
    "`x * sigmoid(x)`, also called swish.",
    13,
    decompose=_silu,
    paper="Ramachandran et al. 2017, arXiv:1710.05941",
)
HARDSIGMOID = _activation("hardsigmoid", "`relu6(x + 3) / 6`.", 4, decompose=_hardsigmoid)
HARDSWISH = _activation(
    "hardswish",
    "`x * relu6(x + 3) / 6`.",
    5,
    decompose=_hardswish,
    paper="Howard et al. 2019, arXiv:1905.02244",
)
TANH = _activation("tanh", "The hyperbolic tangent.", 10)
SOFTPLUS = _activation(
    "softplus", "`log(1 + e^(beta * x)) / beta`.", 22, params=SoftplusParams, example="softplus(beta = 2)"
)
MISH = _activation("mish", "`x * tanh(softplus(x))`.", 33, decompose=_mish, paper="Misra 2019, arXiv:1908.08681")


class PReluParams(Params):
    """One slope for all, or one for each channel (axis 1)."""

    num_parameters: PositiveInt = 1
    init: str | None = None


def _prelu_line(call: Call[PReluParams]) -> str:
    if call.params.num_parameters == 1:
        return "x:float[*b]; weight[1] -> [*b]"
    return "x:float[n, num_parameters, *s]; weight[num_parameters] -> [n, num_parameters, *s]"


PRELU = register(
    OpDef(
        name="prelu",
        doc="`x` above 0, else `weight * x` with a learned slope: one, or `num_parameters` of them along axis 1.",
        line=_prelu_line,
        params=PReluParams,
        operands=("x",),
        weights={"weight": Weight(Init("constant", 0.25), main=True)},
        flops=2,
        example="prelu(6)",
        category="activation",
        paper="He et al. 2015, arXiv:1502.01852",
    )
)


class SoftmaxParams(Params):
    axis: int = -1


def _softmax_line(call: Call[SoftmaxParams]) -> str:
    """The axis survives, but each of its elements looks at all others: `~`."""
    if call.rank == 0:
        raise BindError("E0302", "a softmax needs an axis", label=f"found {call.types[0]}", operands=[0])
    letters = axis_letters(call.rank)
    letters[call.axis(call.params.axis)] += "~"
    axes = ", ".join(letters)
    return f"x:float[{axes}] -> [{axes}]"


SOFTMAX = register(
    OpDef(
        name="softmax",
        doc="`eˣ` divided by its sum along `axis`; permuting the axis permutes the result, so it stays free.",
        line=_softmax_line,
        params=SoftmaxParams,
        spelled=counted("axis"),
        operands=("x",),
        flops=14,
        example="softmax",
        category="activation",
    )
)
LOG_SOFTMAX = register(
    OpDef(
        name="log_softmax",
        doc="The logarithm of the softmax along `axis`, without overflow.",
        line=_softmax_line,
        params=SoftmaxParams,
        spelled=counted("axis"),
        operands=("x",),
        flops=14,
        example="log_softmax(axis = 1)",
        category="activation",
    )
)


class DropoutParams(Params):
    p: float = Field(default=0.5, ge=0, le=1)


DROPOUT = register(
    OpDef(
        name="dropout",
        doc="In training, zero with probability `p` and scaled by `1 / (1 - p)` otherwise; else nothing.",
        line="x:float[*b] -> [*b]",
        params=DropoutParams,
        training_only=True,
        example="dropout(0.1)",
        category="activation",
        paper="Srivastava et al. 2014, JMLR 15",
    )
)
