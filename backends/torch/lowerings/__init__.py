"""How torch spells each op, in files by family as in `archc.ir.ops`. Importing this package fills the table."""

from archc.backends.torch.lowerings import attention, convolution, elementwise, linear, norm, shape, structural

__all__ = ["attention", "convolution", "elementwise", "linear", "norm", "shape", "structural"]
