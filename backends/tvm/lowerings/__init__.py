"""How TVM spells each op, in files that mirror `ir/ops/`."""

from archc.backends.tvm.lowerings import (
    attention,
    convolution,
    elementwise,
    index,
    linear,
    norm,
    pool,
    quantised,
    reduce,
    scan,
    shape,
    structural,
)

__all__ = ["attention", "convolution", "elementwise", "index", "linear", "norm", "pool", "quantised", "reduce", "shape"]
__all__ += ["scan", "structural"]
