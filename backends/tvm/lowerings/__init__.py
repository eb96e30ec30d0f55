"""How TVM spells each op, in files that mirror `ir/ops/`."""

from archc.backends.tvm.lowerings import (
    attention,
    convolution,
    elementwise,
    index,
    linear,
    norm,
    pool,
    reduce,
    scan,
    shape,
    structural,
)

__all__ = ["attention", "convolution", "elementwise", "index", "linear", "norm", "pool", "reduce", "shape"]
__all__ += ["scan", "structural"]
