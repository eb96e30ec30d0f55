"""The operator `star_relu`.

The module is imported when a program uses a name that archc does not know, and registers the operator. Shapes, dtypes,
weights, symmetry, cost and the reference page follow from the declaration. Since the operator decomposes into others,
every backend can run it: no lowering is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.init import Init
from archc.ir.op import OpDef, Params, Weight, register
from archc.ir.ops.activations import RELU
from archc.ir.ops.elementwise import ADD, MUL, SQUARE
from archc.ir.ops.linear import parameter_value


class StarReluParams(Params):
    bias: bool = True


def _decompose(b: GraphBuilder, node: Node) -> Sequence[Value]:
    y = b(MUL, b(SQUARE, b(RELU, node.operands[0])), parameter_value(b, node, "weight"))
    return [b(ADD, y, parameter_value(b, node, "bias")) if "bias" in node.weights else y]


STAR_RELU = register(
    OpDef(
        name="star_relu",
        doc="`s · relu(x)² + b` with one learned s and b, which start so that a normal x gives mean 0 and variance 1.",
        line="x:float[*b]; weight[1] bias[1] -> [*b]",
        params=StarReluParams,
        weights={
            "weight": Weight(Init("constant", 0.8944)),  # √(4/5), for E relu(x)⁴ - (E relu(x)²)² = 3/2 - 1/4
            "bias": Weight(Init("constant", -0.4472), when="bias"),
        },
        flops=4,
        decompose=_decompose,
        example="star_relu",
        category="activation",
        paper="Yu et al. 2022, MetaFormer Baselines for Vision, arXiv:2210.13452",
    )
)
