"""The operators, one declaration each, in files by family. Importing this package fills the registry."""

from archc.ir.ops import activations, constants, convolution, elementwise, index, linear, pieces, reduce, shape

__all__ = ["activations", "constants", "convolution", "elementwise", "index", "linear", "pieces", "reduce", "shape"]
