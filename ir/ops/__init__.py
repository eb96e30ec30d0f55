"""The operators, one declaration each, in files by family. Importing this package fills the registry."""

from archc.ir.ops import (
    activations,
    attention,
    constants,
    convolution,
    elementwise,
    index,
    kan,
    linear,
    norm,
    pieces,
    pool,
    quantised,
    reduce,
    shape,
    structural,
)

__all__ = [
    "activations",
    "attention",
    "constants",
    "convolution",
    "elementwise",
    "index",
    "kan",
    "linear",
    "norm",
    "pieces",
    "pool",
    "quantised",
    "reduce",
    "shape",
    "structural",
]
