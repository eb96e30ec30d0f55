"""Normalisations. Those with batch statistics keep running estimates for evaluation, as PyTorch does.

FLOPs are counted for evaluation, a mean as 1 for each element, a mean of squares as 2: layer norm is
1 (mean) + 1 (centre) + 2 (variance) + 1 (scale) + 2 (affine).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from archc.ir.dims import Dim, floor_div
from archc.ir.dims import product as dim_product
from archc.ir.graph import GraphBuilder, Node, Parameter, Value
from archc.ir.init import ONES, ZEROS
from archc.ir.op import BindError, Bound, Call, OpDef, Params, Weight, register
from archc.ir.ops.constants import scalar
from archc.ir.ops.elementwise import ADD, MUL, RSQRT, SQUARE, SUB
from archc.ir.ops.linear import parameter_value
from archc.ir.ops.reduce import MEAN
from archc.ir.ops.shape import RESHAPE


class NormParams(Params):
    """`eps` is added to the variance; `affine` learns a scale, and a shift unless `bias` is false."""

    eps: PositiveFloat = 1e-5
    affine: bool = True
    bias: bool = True

    @property
    def shift(self) -> bool:
        return self.affine and self.bias


SCALE_AND_SHIFT = {"weight": Weight(ONES, when="affine"), "bias": Weight(ZEROS, when="shift")}


def _flops(bare: int) -> Any:
    """`bare` operations an element, and one each for scale and shift."""

    def rule(call: Call[Any], bound: Bound) -> Dim:
        return bound.results[0].size * (bare + len(bound.weights.keys() & SCALE_AND_SHIFT.keys()))

    return rule


def _affine(b: GraphBuilder, node: Node, x: Value, trailing: int) -> Value:
    """x · weight + bias, with `trailing` axes behind that of the weights."""
    for op, role in ((MUL, "weight"), (ADD, "bias")):
        if role in node.weights:
            weight = parameter_value(b, node, role)
            if trailing:
                weight = b(RESHAPE, weight, shape=(*weight.type.shape, *[1] * trailing))
            x = b(op, x, weight)
    return x


class BatchNormParams(NormParams):
    """`momentum` is the share of the new batch in the running estimates."""

    momentum: float = 0.1


BATCH_NORM = register(
    OpDef(
        name="batch_norm",
        doc="Each channel (axis 1) to mean 0 and variance 1: over the batch in training, by running estimates else.",
        line="x:float[n~, c, *s~]; weight[c] bias[c] running_mean[c] running_var[c] -> [n, c, *s]",
        params=BatchNormParams,
        weights={
            **SCALE_AND_SHIFT,
            "running_mean": Weight(ZEROS, trainable=False),
            "running_var": Weight(ONES, trainable=False),
        },
        flops=_flops(2),
        example="batch_norm",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="norm",
        paper="Ioffe and Szegedy 2015, arXiv:1502.03167",
    )
)


def _decompose_layer_norm(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,) = node.operands
    centred = b(SUB, x, b(MEAN, x, axis=-1, keepdim=True))
    variance = b(MEAN, b(SQUARE, centred), axis=-1, keepdim=True)
    scale = b(RSQRT, b(ADD, variance, scalar(b, node.call.params.eps, x)))
    return [_affine(b, node, b(MUL, centred, scale), 0)]


LAYER_NORM = register(
    OpDef(
        name="layer_norm",
        doc="The last axis to mean 0 and variance 1.",
        line="x:float[*b, c~]; weight[c] bias[c] -> [*b, c]",
        params=NormParams,
        weights=SCALE_AND_SHIFT,
        flops=_flops(5),
        decompose=_decompose_layer_norm,
        example="layer_norm",
        category="norm",
        paper="Ba et al. 2016, arXiv:1607.06450",
    )
)


class GroupNormParams(NormParams):
    groups: PositiveInt


def _grouped(b: GraphBuilder, node: Node, groups: Dim) -> Sequence[Value]:
    """Group norm as a layer norm over all that one group holds."""
    (x,) = node.operands
    n, c, *space = x.type.shape
    rows = b(RESHAPE, x, shape=(n, groups, floor_div(c, groups) * dim_product(space)))
    normed = b(LAYER_NORM, rows, eps=node.call.params.eps, affine=False)
    return [_affine(b, node, b(RESHAPE, normed, shape=x.type.shape), len(space))]


GROUP_NORM = register(
    OpDef(
        name="group_norm",
        doc="The channels (axis 1) of each of `groups` groups, with all their positions, to mean 0 and variance 1.",
        line="x:float[n, groups.i~, *s~]; weight[groups.i] bias[groups.i] -> [n, groups.i, *s]",
        params=GroupNormParams,
        weights=SCALE_AND_SHIFT,
        flops=_flops(5),
        decompose=lambda b, node: _grouped(b, node, node.call.params.groups),
        example="group_norm(3)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="norm",
        paper="Wu and He 2018, arXiv:1803.08494",
    )
)


class InstanceNormParams(NormParams):
    """No scale and shift unless `affine` is true, as in PyTorch."""

    affine: bool = False


INSTANCE_NORM = register(
    OpDef(
        name="instance_norm",
        doc="Each channel (axis 1) of each sample to mean 0 and variance 1 over its positions.",
        line="x:float[n, c, *s~]; weight[c] bias[c] -> [n, c, *s]",
        params=InstanceNormParams,
        weights=SCALE_AND_SHIFT,
        flops=_flops(5),
        decompose=lambda b, node: _grouped(b, node, node.operands[0].type.shape[1]),
        example="instance_norm(affine = true)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="norm",
        paper="Ulyanov et al. 2016, arXiv:1607.08022",
    )
)


class RmsNormParams(Params):
    """PyTorch's default `eps` depends on the dtype; here it is 1e-6 for all."""

    eps: PositiveFloat = 1e-6
    affine: bool = True


def _decompose_rms_norm(b: GraphBuilder, node: Node) -> Sequence[Value]:
    (x,) = node.operands
    mean_square = b(MEAN, b(SQUARE, x), axis=-1, keepdim=True)
    scale = b(RSQRT, b(ADD, mean_square, scalar(b, node.call.params.eps, x)))
    return [_affine(b, node, b(MUL, x, scale), 0)]


RMS_NORM = register(
    OpDef(
        name="rms_norm",
        doc="The last axis divided by its root mean square, times a learned gain.",
        line="x:float[*b, c~]; weight[c] -> [*b, c]",
        params=RmsNormParams,
        weights={"weight": Weight(ONES, when="affine")},
        flops=_flops(3),
        decompose=_decompose_rms_norm,
        example="rms_norm",
        category="norm",
        paper="Zhang and Sennrich 2019, arXiv:1910.07467",
    )
)


def _norm_line(call: Call[NormParams]) -> str:
    if call.rank not in (3, 4):
        raise BindError(
            "E0302",
            "`norm` is batch norm on rank 4 and layer norm on rank 3",
            label=f"found {call.types[0]}, rank {call.rank}",
            operands=[0],
            help="name the norm: `batch_norm`, `layer_norm`, …",
        )
    line = (BATCH_NORM if call.rank == 4 else LAYER_NORM).line
    assert isinstance(line, str)
    return line


def _decompose_norm(b: GraphBuilder, node: Node) -> Sequence[Value]:
    op: OpDef[Any] = BATCH_NORM if node.call.rank == 4 else LAYER_NORM
    weights: Mapping[str, Parameter] = node.weights
    return [b(op, *node.operands, **node.params.model_dump(), weights=weights)]


NORM = register(
    OpDef(
        name="norm",
        doc="einspace's norm: batch norm on `[N, C, H, W]`, layer norm on `[N, T, C]`.",
        line=_norm_line,
        params=NormParams,
        operands=("x",),
        weights=BATCH_NORM.weights,
        flops=lambda call, bound: _flops(2 if call.rank == 4 else 5)(call, bound),
        decompose=_decompose_norm,
        example="norm",
        category="norm",
        paper="einspace: Ericsson et al. 2024, arXiv:2405.20838",
    )
)
