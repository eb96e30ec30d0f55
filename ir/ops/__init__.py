"""The operators, one declaration each, in files by family. Importing this package fills the registry."""

from archc.ir.ops import convolution, elementwise, linear

__all__ = ["convolution", "elementwise", "linear"]
