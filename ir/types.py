"""Tensor types: a shape of dimensions and a dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from archc.ir.dims import Dim, product, substitute, symbols

DType = Literal["f64", "f32", "f16", "bf16", "i64", "i32", "i8", "bool"]
DTYPES: tuple[str, ...] = get_args(DType)
FLOATS = frozenset({"f64", "f32", "f16", "bf16"})
INTEGERS = frozenset({"i64", "i32", "i8"})
BYTES: Mapping[str, int] = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i8": 1, "bool": 1}
NUMPY_NAMES: Mapping[str, str] = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i8": "int8",
    "bool": "bool",
}
"""The names by which numpy, torch and TVM know our dtypes."""

ELSEWHERE: Mapping[str, str] = {name: dtype for dtype, name in NUMPY_NAMES.items() if name != dtype} | {
    "float": "f32", "half": "f16", "double": "f64", "long": "i64", "int": "i32", "short": "i32", "boolean": "bool",
    "fp64": "f64", "fp32": "f32", "fp16": "f16", "char": "i8",
}  # fmt: skip
"""What dtypes are called elsewhere, for suggestions."""

MAX_RANK = 32
"""Axes of a tensor: torch, numpy and files of weights take no more everywhere."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """`f32[N, 3, 32, 32]`: a dtype and a shape."""

    shape: tuple[Dim, ...]
    dtype: str = "f32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """The number of elements."""
        return product(self.shape)

    @property
    def bytes(self) -> Dim:
        """The number of bytes of the elements."""
        return self.size * BYTES[self.dtype]

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset().union(*(symbols(d) for d in self.shape))

    def substitute(self, values: Mapping[str, Dim]) -> TensorType:
        """The type with symbols replaced by dimensions."""
        return TensorType(tuple(substitute(d, values) for d in self.shape), self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
