"""Tensors that come from no input: numbers written in the program, learned parameters and fixed buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from pydantic import PositiveInt, model_validator

from archc.ir.dims import Dim
from archc.ir.graph import GraphBuilder, Value
from archc.ir.init import ZEROS, Init
from archc.ir.op import BindError, Call, Dims, OpDef, Params, Weight, register
from archc.ir.types import FLOATS, INTEGERS, DType

Number = bool | int | float


class ConstantParams(Params):
    """`value` is a number, or nested tuples of numbers, all of one length per level.

    `dtype` defaults to what the numbers are: bool, i64, or f32 when one of them is a float. The numbers are converted
    to it, so that two equal constants are equal parameters.

    >>> ConstantParams(value=((1, 2.5), (3, 4)))
    ConstantParams(value=((1.0, 2.5), (3.0, 4.0)), dtype='f32')
    """

    value: Any
    dtype: DType | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        shape, flat = _flatten(self.value)
        dtype = self.dtype or _dtype(flat)
        numbers = [_convert(v, dtype) for v in flat]
        # dtype must tell equal parameters apart: 1 == 1.0 == True
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "value", _nest(numbers, shape))
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return _flatten(self.value)[0]


def _flatten(value: Any) -> tuple[tuple[int, ...], list[Number]]:
    """The shape of nested tuples (or lists) and their numbers in row-major order."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], tuple | list):
        lengths = {len(v) if isinstance(v, tuple | list) else -1 for v in level}
        if len(lengths) != 1:
            raise ValueError("the lists of a constant must be of one length at each level")
        shape.append(lengths.pop())
        level = [inner for v in level for inner in v]
    for v in level:
        if not isinstance(v, bool | int | float):
            raise ValueError(f"a constant is made of numbers, not {v!r}")
    return tuple(shape), level


def _nest(flat: list[Number], shape: tuple[int, ...]) -> Any:
    level: list[Any] = flat
    for length in reversed(shape):
        level = [tuple(level[i : i + length]) for i in range(0, len(level), length)] if length else [()]
    return level[0]


def _dtype(flat: list[Number]) -> DType:
    if flat and all(isinstance(v, bool) for v in flat):
        return "bool"
    return "i64" if flat and all(isinstance(v, int) for v in flat) else "f32"


def _convert(value: Number, dtype: str) -> Number:
    if dtype in FLOATS:
        return float(value)
    if dtype in INTEGERS:
        if value != value or int(value) != value:
            raise ValueError(f"{value} is not a whole number, as {dtype} needs")
        return int(value)
    return bool(value)


def _constant_line(call: Call[ConstantParams]) -> str:
    return f"-> :{call.params.dtype}[{', '.join(map(str, call.params.shape))}]"


CONSTANT = register(
    OpDef(
        name="constant",
        doc="A number, or a tensor written out as nested lists. Only the program knows what its axes mean: pinned.",
        line=_constant_line,
        params=ConstantParams,
        example="fn(x) { return x * constant([1.0, 2.0, 4.0]) }",
        example_inputs=("f32[N, 3]",),
        category="constant",
    )
)


def scalar(b: GraphBuilder, value: float, like: Value) -> Value:
    """A rank-0 constant of the dtype of `like`, for decompositions."""
    result = b(CONSTANT, value=value, dtype=like.type.dtype)
    assert isinstance(result, Value)
    return result


class ParameterParams(Params):
    """`shape` holds known sizes. PyTorch has no default for a bare parameter: here N(0, 0.02²)."""

    shape: tuple[PositiveInt, ...]
    init: str | None = None
    dtype: DType = "f32"


def _letters(call: Call[ParameterParams]) -> str:
    axes = ", ".join("1" if size == 1 else f"s{i}" for i, size in enumerate(call.params.shape))
    return f"; weight[{axes}] -> [{axes}]"


def _letter_sizes(call: Call[ParameterParams], dims: Dims) -> Dims:
    sizes: dict[str, Dim] = {f"s{i}": size for i, size in enumerate(call.params.shape) if size != 1}
    return sizes


def trained(op: str) -> Callable[[Call[Any], Dims], None]:
    """A check that the weight of `op`, whose dtype the program chooses, can be trained."""

    def check(call: Call[Any], dims: Dims) -> None:
        if call.params.dtype not in FLOATS:
            raise BindError(
                "E0304",
                f"`{op}` is trained, so it needs a float dtype",
                label=f"found {call.params.dtype}",
                blame="dtype",
                help="`buffer` holds numbers that are not trained",
            )

    return check


PARAMETER = register(
    OpDef(
        name="parameter",
        doc="A learned tensor, such as a class token. Its axes are free: what they meet decides.",
        line=_letters,
        params=ParameterParams,
        sizes=_letter_sizes,
        weights={"weight": Weight(Init("normal", 0.02), main=True)},
        check=trained("parameter"),
        example='fn(x) { return x + parameter([6, 1], init = "ones") }',
        category="constant",
    )
)

BUFFER = register(
    OpDef(
        name="buffer",
        doc="A tensor kept with the weights but not trained; zeros unless `init` or a weight file says otherwise.",
        line=_letters,
        params=ParameterParams,
        sizes=_letter_sizes,
        weights={"weight": Weight(ZEROS, main=True, trainable=False)},
        example='fn(x) { return x + buffer([8], init = "constant(0.5)") }',
        category="constant",
    )
)
