"""How TVM spells each op, in files that mirror `ir/ops/`."""

from archc.backends.tvm.lowerings import linear

__all__ = ["linear"]
