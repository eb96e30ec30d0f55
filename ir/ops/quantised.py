"""Layers whose weights are small integers: `W = scale · q`, or `W = scale · (q - zero)`, the inputs staying floats.

`weight` holds the integers (codes), of 8 bits, or of 4 with two in a byte: the row (the weights of one output, flat) is
taken in pairs, the first in the low half of a byte, both in two's complement; a row of odd length ends in a zero.
`scale` has a number for each output, or for each run of `group` inputs of one. Neither is trained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from archc.ir.dims import Dim
from archc.ir.graph import Node
from archc.ir.init import ZEROS, Init, fan_in_uniform
from archc.ir.op import BindError, Bound, Call, Dims, OpDef, Params, Weight, register
from archc.ir.ops.convolution import ConvGeometry, conv_sizes, conv_spelled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Codes = NDArray[np.int8]

Bits = Literal[8, 4]
LARGEST = {8: 127, 4: 7}
"""The largest code; the smallest is its negative, and one less without symmetry."""


def pack(codes: Codes, bits: int) -> Codes:
    """Codes [rows, n] as they are stored: [rows, n], or two in a byte.

    >>> import numpy as np
    >>> pack(np.array([[1, -2, 3]], np.int8), 4).tolist()
    [[-31, 3]]
    """
    import numpy as np

    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0), (0, codes.shape[1] % 2)])
    return ((even[:, 0::2] & 15) | (even[:, 1::2] << 4)).astype(np.int8)


def unpack(stored: Codes, bits: int, columns: int) -> Codes:
    """The codes [rows, columns] of what `pack` made.

    >>> import numpy as np
    >>> unpack(np.array([[-31, 3]], np.int8), 4, 3).tolist()
    [[1, -2, 3]]
    """
    import numpy as np

    if bits == 8:
        return stored.reshape(len(stored), columns)
    pairs = np.stack([(stored << 4).astype(np.int8) >> 4, stored >> 4], axis=-1)
    return pairs.reshape(len(stored), -1)[:, :columns]


def _code_init(p: Any, shape: tuple[int, ...], dims: Dims) -> Init:
    """Any code (or any two)."""
    return Init("uniform", 127.0)


def _inputs(dims: Dims) -> int:
    """How many weights an output has."""
    i, kernel = dims["i"], dims.get("kernel", ())
    assert isinstance(i, int)
    assert isinstance(kernel, tuple)
    return i * math.prod(k for k in kernel if isinstance(k, int))


def _scale_init(p: Any, shape: tuple[int, ...], dims: Dims) -> Init:
    """So that weights are as large as PyTorch would draw them."""
    return Init("constant", 1 / math.sqrt(_inputs(dims) or 1) / LARGEST[p.bits])


def _bias_init(p: Any, shape: tuple[int, ...], dims: Dims) -> Init:
    return fan_in_uniform(_inputs(dims))


_WEIGHTS = {
    "weight": Weight(_code_init, trainable=False),
    "scale": Weight(_scale_init, trainable=False),
    "bias": Weight(_bias_init, when="bias"),
}


class QuantizedLinearParams(Params):
    """
    bits       of a weight
    group      as many inputs of an output have a scale of their own; without it all share one
    symmetric  without it codes have a zero of their own (a float), `W = scale · (q - zero)`
    """

    out: PositiveInt
    bits: Bits = 8
    group: PositiveInt | None = None
    symmetric: bool = True
    bias: bool = True

    @property
    def shifted(self) -> bool:
        return not self.symmetric


def _linear_line(call: Call[QuantizedLinearParams]) -> str:
    p = call.params
    pin = "!" if p.bits == 4 else ""
    runs = f"runs{pin}.group{pin}" if p.group else f"i{pin}"
    scales = f"[out, runs{pin}]" if p.group else "[out]"
    codes = "packed!" if p.bits == 4 else runs
    return f"x:float[*b, {runs}]; weight:i8[out, {codes}] scale{scales} zero{scales} bias[out] -> [*b, out]"


def _linear_sizes(call: Call[QuantizedLinearParams], dims: Dims) -> Dims:
    i = call.types[0].shape[-1]
    if not isinstance(i, int):
        message, label = "`quantized_linear` needs a fixed size for its weight", f"found {call.types[0]}"
        raise BindError("E0307", message, label=label, operands=[0], help="a weight's axes must be known numbers")
    return {"i": i, "packed": (i + 1) // 2}


def _linear_flops(call: Call[QuantizedLinearParams], bound: Bound) -> Dim:
    return 2 * bound.results[0].size * call.types[0].shape[-1]


QUANTIZED_LINEAR = register(
    OpDef(
        name="quantized_linear",
        doc="`y = x Wᵀ + b` with weights of 8 or 4 bits, `W = scale · q`.",
        line=_linear_line,
        params=QuantizedLinearParams,
        operands=("x",),
        sizes=_linear_sizes,
        weights=_WEIGHTS | {"zero": Weight(ZEROS, when="shifted", trainable=False)},
        flops=_linear_flops,
        example="quantized_linear(4, bits = 4, group = 2, symmetric = false)",
        category="linear",
        paper="Jacob et al. 2017, arXiv:1712.05877; groups: Dettmers et al. 2022, arXiv:2208.07339",
    )
)


class QuantizedConvParams(ConvGeometry):
    """As for `conv`; `bits` of a weight. Each output channel has a scale."""

    bits: Bits = 8


def _conv_line(call: Call[QuantizedConvParams]) -> str:
    pin, codes = ("!", "packed!") if call.params.bits == 4 else ("", "i, *kernel!")
    weights = f"weight:i8[groups.o, {codes}] scale[groups.o] bias[groups.o]"
    return f"x:float[n, groups.i{pin}, *s!]; {weights} -> [n, groups.o, *window!]"


def _conv_sizes(call: Call[QuantizedConvParams], dims: Dims) -> Dims:
    sizes = dict(conv_sizes(call, dims))
    if call.params.bits == 4:
        sizes["packed"] = (_inputs({**dims, **sizes}) + 1) // 2
    return sizes


def _conv_flops(call: Call[QuantizedConvParams], bound: Bound) -> Dim:
    return 2 * bound.results[0].size * _inputs(bound.dims)


QUANTIZED_CONV = register(
    OpDef(
        name="quantized_conv",
        doc="`conv` with weights of 8 or 4 bits, `W = scale · q`.",
        line=_conv_line,
        params=QuantizedConvParams,
        operands=("x",),
        spelled=conv_spelled,
        sizes=_conv_sizes,
        weights=_WEIGHTS,
        flops=_conv_flops,
        example="quantized_conv(8, kernel = 3, bits = 4)",
        example_inputs=("f32[N, 6, 8, 8]",),
        category="convolution",
        paper="Jacob et al. 2017, arXiv:1712.05877",
    )
)


def codes_shape(node: Node) -> tuple[int, ...]:
    """The shape of a quantised layer's weights: [out, inputs], or [out, inputs of a group, *kernel]."""
    out, dims = node.weights["scale"].shape[0], node.bound.dims
    i, kernel = dims["i"], dims.get("kernel", ())
    assert isinstance(i, int)
    assert isinstance(kernel, tuple)
    return (out, i, *(k for k in kernel if isinstance(k, int)))
