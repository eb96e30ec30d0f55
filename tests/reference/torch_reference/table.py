"""The table of references, and what they share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Params = Mapping[str, Any]
Weights = Mapping[str, Tensor]
Function = Callable[..., Any]

REFERENCE: dict[str, Function] = {}
"""Op name -> what it computes."""

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i8": torch.int8,
    "bool": torch.bool,
}


def reference(*names: str) -> Callable[[Function], Function]:
    """Enter the decorated function in `REFERENCE`."""

    def enter(function: Function) -> Function:
        for name in names:
            assert name not in REFERENCE, f"two references for {name}"
            REFERENCE[name] = function
        return function

    return enter


def first_nan(a: Tensor, b: Tensor, result: Tensor) -> Tensor:
    """`result`, but NaN where `a` or `b` is."""
    if not a.is_floating_point():
        return result
    return torch.where(a != a, a, torch.where(b != b, b, result))


def places(shape: Sequence[int]) -> itertools.product[tuple[int, ...]]:
    """Every index of a tensor of `shape`."""
    return itertools.product(*map(range, shape))
