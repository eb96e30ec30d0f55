"""How TVM spells each op, in files that mirror `ir/ops/`."""

from archc.backends.tvm.lowerings import elementwise, linear, shape

__all__ = ["elementwise", "linear", "shape"]
