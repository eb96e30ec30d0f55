"""Linear maps: weights that meet the last axis, look-up tables, and products of two tensors."""

from __future__ import annotations

from pydantic import PositiveInt

from archc.ir.init import ZEROS, Init, fan_in_uniform
from archc.ir.op import OpDef, Params, Weight, register
from archc.ir.types import DType


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
        weights={
            "weight": Weight(lambda p, shape: fan_in_uniform(shape[1]), main=True),
            "bias": Weight(ZEROS, when="bias"),
        },
        flops="contraction",
        example="linear(4)",
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
        doc="A row of a table for each index. An index out of range is an error in training and undefined in an artifact.",
        line="ids:int[*b]; weight[count!, dim] -> [*b, dim]",
        params=EmbeddingParams,
        weights={"weight": Weight(Init("normal", 1.0), main=True)},
        example="embedding(10, 4)",
        example_inputs=("i64[N, 5]",),
        category="linear",
    )
)
