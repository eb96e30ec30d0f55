"""Constant folding: an op on numbers of the program is computed once, now.

    a = constant(value=2.0)                     c = constant(value=1.4142135623730951)
    b = sqrt(a)                          →      return mul(x, c)
    return mul(x, b)

Floats are computed in float64 and rounded to their dtype after each op; for + - · / and sqrt that is what float32
arithmetic gives, since float64 has more than twice its digits. Results of more than `LIMIT` elements stay computed at
run time: a program is no place for tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from archc.ir.dims import known
from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.ops.constants import CONSTANT
from archc.ir.types import FLOATS, NUMPY_NAMES
from archc.passes.manager import Context, Pass
from archc.passes.rewrite import rewrite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

LIMIT = 4096
"""The most elements that a folded constant may have."""

_UFUNCS: Mapping[str, str] = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "div": "divide",
    "pow": "power",
    "minimum": "minimum",
    "maximum": "maximum",
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_not": "logical_not",
    "where": "where",
    "neg": "negative",
    "abs": "absolute",
    "square": "square",
    "exp": "exp",
    "expm1": "expm1",
    "log": "log",
    "log1p": "log1p",
    "sqrt": "sqrt",
    "reciprocal": "reciprocal",
    "sin": "sin",
    "cos": "cos",
    "tanh": "tanh",
    "floor": "floor",
    "ceil": "ceil",
}
"""Ops that NumPy has under another name, element by element."""


def _view(compute: Callable[[Array, tuple[int, ...]], Any]) -> Callable[[Node, Sequence[Array]], Any]:
    def run(node: Node, operands: Sequence[Array]) -> Any:
        shape = known(node.output.type.shape)
        assert shape is not None
        return compute(operands[0], shape)

    return run


def _cumsum(node: Node, operands: Sequence[Array]) -> Any:
    return operands[0].cumsum(axis=node.call.params.axis)


def _permute(node: Node, operands: Sequence[Array]) -> Any:
    return operands[0].transpose(node.call.params.order)


def _expand(x: Array, shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.broadcast_to(x, shape)


def _concat(node: Node, operands: Sequence[Array]) -> Any:
    import numpy as np

    return np.concatenate(operands, axis=node.call.params.axis)


_OTHERS: Mapping[str, Callable[[Node, Sequence[Array]], Any]] = {
    "reshape": _view(lambda x, shape: x.reshape(shape)),
    "expand": _view(_expand),
    "cast": lambda node, operands: operands[0],
    "cumsum": _cumsum,
    "permute": _permute,
    "concat": _concat,
}


def fold_constants(graph: Graph, context: Context) -> bool:
    """Fold every node whose operands are all constants, in order, so that chains fold in one go."""

    def rule(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
        compute = _computation(node)
        if compute is None or not node.operands:
            return None
        values = [_array(v) for v in node.operands]
        shape = known(node.output.type.shape)
        if any(v is None for v in values) or shape is None or _size(shape) > LIMIT:
            return None
        dtype = node.output.type.dtype
        result = compute([v for v in values if v is not None])
        return [b(CONSTANT, value=_rounded(result, dtype).tolist(), dtype=dtype)]

    return rewrite(graph, rule)


def _computation(node: Node) -> Callable[[Sequence[Array]], Any] | None:
    if node.op.name in _OTHERS:
        run = _OTHERS[node.op.name]
        return lambda operands: run(node, operands)
    if node.op.name in _UFUNCS:
        name = _UFUNCS[node.op.name]
        return lambda operands: _ufunc(name, operands)
    return None


def _ufunc(name: str, operands: Sequence[Array]) -> Any:
    import numpy as np

    with np.errstate(all="ignore"):  # inf and NaN are results like others
        return getattr(np, name)(*operands)


def _array(value: Value) -> Array | None:
    """The numbers of a constant, rounded to its dtype; floats as float64."""
    node = value.producer
    if node is None or node.op is not CONSTANT or value.type.dtype == "bf16":  # NumPy knows no bf16
        return None
    return _rounded(node.call.params.value, value.type.dtype)


def _rounded(value: Any, dtype: str) -> Array:
    import numpy as np

    with np.errstate(all="ignore"):
        array = np.asarray(value).astype(NUMPY_NAMES[dtype])
    return array.astype(np.float64) if dtype in FLOATS else array


def _size(shape: Sequence[int]) -> int:
    size = 1
    for s in shape:
        size *= s
    return size


FOLD_CONSTANTS = Pass("fold_constants", fold_constants)
