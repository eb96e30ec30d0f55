"""Elements of axis classes that do nothing: whatever flows through the network, no reader gets anything from them.

An element is dead for a reader when the weights that read it are 0, or when what arrives is 0 on any input (a channel
whose batch norm has gain and bias 0, say, through relu and pools). It may go when it is dead for every reader. Where a
norm, a mean or a softmax looks along the axis nothing is dead: it counts the elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archc.ir.axes import AxisClass
from archc.ir.graph import Graph, Node, Value
from archc.ir.signature import Axis, Letter, Product, Sum
from archc.passes.importance import collected
from archc.passes.manager import Context
from archc.passes.units import Unit, roles
from archc.passes.widen import FUNCTIONS, READERS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]

ZERO_OF_ZERO = (
    "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "tanh", "hardswish", "dropout", "identity", "neg",
    "abs", "square", "sqrt", "sin", "sign", "erf", "expm1", "max_pool", "avg_pool", "adaptive_avg_pool",
    "global_avg_pool", "global_max_pool", "upsample", "permute", "transpose", "flatten", "squeeze", "unsqueeze",
    "concat",
)  # fmt: skip
"""Operators that make 0 of 0 and keep elements of an axis apart, as their line has it."""

SIDES = {"kv": (("out_weight",),), "r": (("out_weight",),), "e": (("out_weight",), ("v_weight", "v_bias")),
         "d": (("q_weight", "q_bias"), ("k_weight", "k_bias"))}  # fmt: skip
"""Of each letter inside `attention`: sets of weights of which one being 0 is enough."""


def dead(graph: Graph, unit: Unit, context: Context, zeros: Mapping[Value, tuple[Flags, ...]]) -> list[Flags]:
    """For each class of a unit which elements are dead, shape (sizes of what indexes it…, size). `zeros` is what
    `always_zero` found."""
    return [_dead(unit, c, context, zeros) for c in unit.classes]


def _dead(unit: Unit, c: AxisClass, context: Context, zeros: Mapping[Value, tuple[Flags, ...]]) -> Flags:
    import numpy as np

    result = _all(c)
    for node in unit.nodes:
        for letter, role in roles(node, unit.axes, c.leaf):
            if role in ("mixed", "reduced", "met"):
                return ~_all(c)
            if role == "read":
                result &= _unread(node, letter, unit, c, context) | _nothing_arrives(node, unit, c, zeros)
            if role == "inner":
                sides = SIDES.get(letter, ()) if node.op.name == "attention" else ()
                silent = [_all_zero(node, side, unit, c, context) for side in sides]
                result &= np.logical_or.reduce([~_all(c), *silent])
    return result


def _unread(node: Node, letter: str, unit: Unit, c: AxisClass, context: Context) -> Flags | bool:
    """The elements that this reader has weights 0 for."""
    if node.op.name not in READERS:
        return False
    names = [t.name for t in node.bound.signature.weights if any(letter in _letters(a) for a in t.axes)]
    return _all_zero(node, [n for n in names if n not in FUNCTIONS], unit, c, context)


def _letters(axis: Axis) -> set[str]:
    parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else ()
    return {axis.name} if isinstance(axis, Letter) else set().union(*map(_letters, parts))


def _all_zero(node: Node, names: Any, unit: Unit, c: AxisClass, context: Context) -> Flags:
    """The elements for which all of these weights are 0."""
    result = _all(c)
    for parameter in (node.weights[n] for n in names if n in node.weights):
        nonzero = (context.value(parameter) != 0).astype(float)
        result &= collected(unit.axes.parameters[parameter], nonzero, c) == 0
    return result


def _all(c: AxisClass) -> Flags:
    import numpy as np

    return np.ones((*(int(str(o.size)) for o in c.indexed_by), c.size), dtype=bool)


def _nothing_arrives(node: Node, unit: Unit, c: AxisClass, zeros: Mapping[Value, tuple[Flags, ...]]) -> Flags | bool:
    """The elements that are 0 whenever this reader reads them."""
    if node.op.name not in ("linear", "tied_linear", "conv", "conv_transpose") or node.operands[0] not in zeros:
        return False
    variables = unit.axes.values[node.operands[0]]
    result = _all(c)
    for var, flags in zip(variables, zeros[node.operands[0]], strict=True):
        if any(leaf is c.leaf for leaf in var.leaves()):
            if any(o not in var.leaves() for o in c.indexed_by):
                return False
            result &= collected([var], (~flags).astype(float), c) == 0
    return result


def always_zero(graph: Graph, context: Context) -> dict[Value, tuple[Flags, ...]]:
    """For each value of fixed axes, the places of each axis at which it is 0 on any input. Values of which nothing is
    known, and axes of symbolic size, are left out or all false. Regions are not looked into."""
    found: dict[Value, tuple[Flags, ...]] = {}
    for node in graph.nodes:
        if len(node.outputs) == 1 and (flags := _flags(node, context, found)) is not None:
            found[node.output] = flags
    return found


def _flags(node: Node, context: Context, known: Mapping[Value, tuple[Flags, ...]]) -> tuple[Flags, ...] | None:
    import numpy as np

    op, (y,) = node.op.name, node.outputs
    none = [np.zeros(d if isinstance(d, int) else 1, dtype=bool) for d in y.type.shape]
    if op in ("linear", "conv", "batch_norm", "layer_norm", "rms_norm", "group_norm") and "weight" in node.weights:
        weight = context.value(node.weights["weight"]) != 0
        silent = ~weight.reshape(len(weight), -1).any(axis=1)
        if "bias" in node.weights:
            silent &= context.value(node.weights["bias"]) == 0
        none[1 if op in ("conv", "batch_norm", "group_norm") else -1] = silent
        return tuple(none)
    inputs = [known.get(v) for v in node.operands]
    if op in ZERO_OF_ZERO and all(i is not None for i in inputs):
        return _carried(node, [i for i in inputs if i is not None], none)
    same = [i for v, i in zip(node.operands, inputs, strict=True) if i is not None and v.type.shape == y.type.shape]
    if op == "mul" and same:
        return tuple(np.logical_or.reduce(f) for f in zip(*same, strict=True))
    if op in ("add", "sub") and len(same) == 2:
        return tuple(np.logical_and.reduce(f) for f in zip(*same, strict=True))
    return None


def _carried(node: Node, inputs: list[tuple[Flags, ...]], none: list[Flags]) -> tuple[Flags, ...]:
    """The flags of the operands' letters on the axes of the result that are made of them."""
    import numpy as np

    if node.op.elementwise or node.op.name in ("identity", "dropout"):
        return inputs[0]
    signature = node.bound.signature
    letters: dict[str, Flags] = {}
    for tensor, flags in zip(signature.operands, inputs, strict=True):
        if any(not isinstance(a, Letter) for a in tensor.axes[:2]):
            return tuple(none)
        for axis, own in zip(tensor.axes, flags, strict=False):  # a rest stands last: space
            if isinstance(axis, Letter):
                letters[axis.name] = letters.get(axis.name, np.ones(len(own), dtype=bool)) & own
    made = []
    for axis, default in zip(signature.results[0].axes, none, strict=False):
        made.append(_joined(axis, letters, default))
    return (*made, *none[len(made) :])


def _joined(axis: Axis, letters: Mapping[str, Flags], default: Flags) -> Flags:
    import numpy as np

    parts = axis.factors if isinstance(axis, Product) else axis.parts if isinstance(axis, Sum) else (axis,)
    if not all(isinstance(p, Letter) and p.name in letters for p in parts):
        return default
    flags = [letters[p.name] for p in parts if isinstance(p, Letter)]
    if isinstance(axis, Sum):
        joined = np.concatenate(flags)
    else:
        joined = flags[0]
        for inner in flags[1:]:
            joined = np.logical_or.outer(joined, inner).ravel()
    return joined if len(joined) == len(default) else default


__all__ = ["always_zero", "dead"]
