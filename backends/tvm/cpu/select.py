"""Choosing kernels: the pass that rewrites Relax operators to tensor equations of our own.

Channels-last comes for free along the way. A convolution computes [n, *s, c] and is followed by the permute back to
[n, c, *s]; whoever reads a value bound to such a permute takes what lies beneath it, works on that, and permutes its
own result instead. Permutes so move down the graph until they meet an operator that does not know them, or vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, relax, tirx

from archc.backends.tvm.cpu import conv, gemm, grouped, norms, pool, quantised, transposed
from archc.backends.tvm.cpu.emit import as_int
from archc.backends.tvm.cpu.loops import Machine

Expr = Any
Rule = Callable[["SelectKernels", relax.Call], "relax.Expr | None"]
op = relax.op

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how operators are rewritten; a rule that returns None leaves the operator to TVM's own equations."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[f"relax.{name}"] = function
        return function

    return register


@relax.expr_functor.mutator
class SelectKernels(relax.PyExprMutator):  # type: ignore[misc]  # tvm is untyped
    """Rewrites one function at a time; `run` does a module."""

    def __init__(self, module: ir.IRModule, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine

    def run(self, module: ir.IRModule) -> ir.IRModule:
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                self.builder_.update_func(name, self.visit_expr(function))
        return self.builder_.get()

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        return self.choose(call) if isinstance(call, relax.Call) and isinstance(call.op, ir.Op) else call

    def choose(self, call: relax.Call) -> relax.Expr:
        """The rewritten form of an operator whose operands are rewritten already."""
        call = self.builder_.normalize(call)
        folded = _fold(self, call)
        if folded is not None:
            return folded
        chosen = _RULES.get(call.op.name)
        result = chosen(self, call) if chosen else None
        return call if result is None else result

    def definition(self, value: relax.Expr) -> relax.Expr:
        """What a variable is bound to (through other names for it), or the value itself."""
        while isinstance(value, relax.Var):
            bound = self.lookup_binding(value)
            if isinstance(bound, relax.Call | ir.GenericConst):
                return bound
            if not isinstance(bound, relax.Var):
                return value
            value = bound
        return value

    def constant(self, value: relax.Expr) -> np.ndarray | None:
        """The array of a constant, or of a variable bound to one."""
        found = self.definition(value)
        return found.value.numpy() if isinstance(found, ir.GenericConst) else None

    def parts(self, value: relax.Expr) -> list[relax.Expr] | None:
        """The members of a tuple written out, else None."""
        if isinstance(value, relax.Var):
            value = self.lookup_binding(value)
        return list(value.fields) if isinstance(value, relax.Tuple) else None

    def emit(self, value: relax.Expr) -> relax.Var:
        return self.builder_.emit(self.builder_.normalize(value))

    def beneath(self, value: relax.Expr) -> relax.Expr | None:
        """The channels-last value that `value` is the channels-first permute of."""
        bound = self.definition(value)
        if _is(bound, "permute_dims") and _permutation(bound) == to_first(rank(bound)):
            return bound.args[0]
        return None

    def channels_last(self, value: relax.Expr) -> relax.Expr:
        """`value` [n, c, *s] as [n, *s, c]."""
        found = self.beneath(value)
        if found is not None:
            return found
        array = self.constant(value)
        if array is not None:
            return _constant(np.moveaxis(array, 1, -1))
        if all(as_int(d) == 1 for d in shape_of(value)[2:]):
            n, c, *spatial = shape_of(value)
            return self.emit(op.reshape(value, [n, *spatial, c]))
        return self.emit(op.permute_dims(value, to_last(rank(value))))

    def channels_first(self, value: relax.Expr) -> relax.Expr:
        """The permute that stands for `value` [n, *s, c] among channels-first neighbours."""
        return op.permute_dims(self.emit(value), to_first(len(self.builder_.normalize(value).ty.shape)))


def to_first(ndim: int) -> list[int]:
    return [0, ndim - 1, *range(1, ndim - 1)]


def to_last(ndim: int) -> list[int]:
    return [0, *range(2, ndim), 1]


def rank(value: relax.Expr) -> int:
    return len(value.ty.shape)


def _is(value: relax.Expr, name: str) -> bool:
    return isinstance(value, relax.Call) and isinstance(value.op, ir.Op) and value.op.name == f"relax.{name}"


def _permutation(call: relax.Call) -> list[int]:
    ndim = rank(call.args[0])
    axes = call.attrs.axes
    return list(reversed(range(ndim))) if axes is None else [int(a) % ndim for a in axes]


def _dtype(value: relax.Expr) -> str:
    return str(value.ty.dtype)


# Constants


_FOLDED: dict[str, Callable[..., Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.negative": np.negative,
    "relax.sqrt": np.sqrt,
    "relax.rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
}


def _constant(array: np.ndarray) -> relax.Expr:
    return relax.const(np.asarray(array, order="C"), str(array.dtype))


def _fold(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    """Weights are permuted and reshaped here, in numpy: TVM's own folding compiles and runs a kernel for each."""
    tensors = [a for a in call.args if not isinstance(a, relax.ShapeExpr | relax.Tuple)]
    arrays = [array for array in map(self.constant, tensors) if array is not None]
    if not tensors or len(call.args) > 2 or len(arrays) < len(tensors):
        return None
    if call.op.name == "relax.permute_dims":
        return _constant(arrays[0].transpose(_permutation(call)))
    if call.op.name in ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"):
        return _constant(arrays[0].reshape([int(d) for d in shape_of(call)]))
    if call.op.name in _FOLDED and len(tensors) == len(call.args) and _dtype(call).startswith("float"):
        value = _FOLDED[call.op.name](*arrays)
        return _constant(np.asarray(value, dtype=arrays[0].dtype))
    return None


# Permutes and reshapes


@rule("permute_dims")
def _permute(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    inner = self.definition(call.args[0])
    if not _is(inner, "permute_dims"):
        return None
    before, after = _permutation(inner), _permutation(call)
    axes = [before[a] for a in after]
    if axes == sorted(axes):
        return inner.args[0]
    return op.permute_dims(inner.args[0], axes)


@rule("reshape", "flatten", "squeeze")
def _reshape(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    """[n, c, 1, 1] and [n, 1, 1, c] hold the same elements in the same order."""
    if tvm_ffi.structural_equal(tvm_ffi.convert(shape_of(call)), tvm_ffi.convert(shape_of(call.args[0]))):
        return call.args[0]
    last = self.beneath(call.args[0])
    if last is None or any(as_int(d) != 1 for d in shape_of(last)[1:-1]):
        return None
    return op.reshape(last, shape_of(call))


# Matrix products


@rule("matmul")
def _matmul(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    a, b = call.args
    if {_dtype(a), _dtype(b), _dtype(call)} != {"float32"} or min(rank(a), rank(b)) < 2:
        return None
    weight = self.constant(b)
    if weight is not None and weight.ndim == 2:
        return gemm.matmul_constant(self.builder_, a, weight, self.machine)
    codes = quantised.codes_of(self, b)
    if codes is not None:
        return quantised.matmul_codes(self.builder_, a, codes, self.machine)
    a, a_axes = _through_permute(self, a)
    b, b_axes = _through_permute(self, b)
    return gemm.matmul(self.builder_, a, b, a_axes, b_axes)


def _through_permute(self: SelectKernels, value: relax.Expr) -> tuple[relax.Expr, list[int]]:
    bound = self.definition(value)
    if _is(bound, "permute_dims"):
        return bound.args[0], _permutation(bound)
    return value, list(range(rank(value)))


@rule("call_tir")
def _grouped(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    """The products of a mixture's experts."""
    function = self.builder_.get()[call.args[0]]
    if function.attrs is None or grouped.MARK not in function.attrs:
        return None
    x, starts, group, weight, *rest = call.args[1].fields
    array = self.constant(weight)
    assert array is not None, "an expert's weights are constants"
    return grouped.grouped_constant(self.builder_, x, starts, group, array, rest, self.machine)


# Convolutions


@rule("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _convolve(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    x, weight = call.args
    array = self.constant(weight)
    if array is None:
        array = quantised.filters_of(self, weight)
    if array is None or _dtype(call) != "float32" or _dtype(x) != "float32":
        return None
    attrs = call.attrs
    if not str(attrs.data_layout).startswith("NC") or not str(attrs.kernel_layout).startswith("OI"):
        return None
    ndim = rank(x) - 2
    padding = [int(p) for p in attrs.padding]
    window = conv.Window(
        strides=tuple(int(s) for s in attrs.strides),
        before=tuple(padding[:ndim]),
        after=tuple(padding[ndim:]),
        dilation=tuple(int(d) for d in attrs.dilation),
        spread=(1,) * ndim,
    )
    last = self.channels_last(x)
    return self.channels_first(conv.convolution(self.builder_, last, array, window, int(attrs.groups), self.machine))


@rule("nn.conv1d_transpose", "nn.conv2d_transpose", "nn.conv3d_transpose")
def _convolve_transposed(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    x, weight = call.args
    array = self.constant(weight)
    if array is None or _dtype(call) != "float32" or _dtype(x) != "float32":
        return None
    attrs = call.attrs
    if not str(attrs.data_layout).startswith("NC") or not str(attrs.kernel_layout).startswith("IO"):
        return None
    plain = transposed.as_convolution(array, attrs)
    if plain is None:
        return None
    last = self.channels_last(x)
    return self.channels_first(
        transposed.transposed_convolution(self.builder_, last, *plain, int(attrs.groups), self.machine)
    )


# Pools and reductions over space


def _pool_rule(kind: str) -> Rule:
    def apply(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
        last = self.beneath(call.args[0])
        if last is None or not str(call.attrs.layout).startswith("NC"):
            return None
        return self.channels_first(pool.pool(self.builder_, last, kind, shape_of(call)[2:], call.attrs))

    return apply


for _rank in (1, 2, 3):
    rule(f"nn.max_pool{_rank}d")(_pool_rule("max"))
    rule(f"nn.avg_pool{_rank}d")(_pool_rule("avg"))


@rule("mean", "sum", "max", "min")
def _reduce(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    last = self.beneath(call.args[0])
    if last is None or call.attrs.axis is None:
        return None
    ndim = rank(last)
    where = to_first(ndim)
    axes = [where[int(a) % ndim] for a in call.attrs.axis]
    function = getattr(op, call.op.name.removeprefix("relax."))
    if bool(call.attrs.keepdims):
        return self.channels_first(function(last, axis=axes, keepdims=True))
    left = [a for a in range(ndim) if a not in axes]  # in the order of `last`
    wanted = [a for a in where if a not in axes]
    reduced = function(last, axis=axes)
    return reduced if left == wanted else op.permute_dims(self.emit(reduced), [left.index(a) for a in wanted])


# Pointwise operators: the permute moves behind them

_UNARY = [
    "nn.relu",
    "nn.relu6",
    "nn.leakyrelu",
    "nn.gelu",
    "nn.gelu_tanh",
    "nn.silu",
    "nn.selu",
    "nn.softplus",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "tanh",
    "sigmoid",
    "erf",
    "abs",
    "negative",
    "square",
    "clip",
    "floor",
    "ceil",
    "round",
    "sin",
    "cos",
    "astype",
]
_BINARY = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "power",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "equal",
    "not_equal",
]


_POINTWISE = {f"relax.{name}" for name in (*_UNARY, *_BINARY)}


@rule(*_UNARY)
def _unary(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    last = self.beneath(call.args[0])
    if last is not None:
        return self.channels_first(relax.Call(call.op, [last, *call.args[1:]], call.attrs))
    return _before_reshape(self, call)


@rule(*_BINARY, "where")
def _binary(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    beneath = [self.beneath(a) for a in call.args]
    known = [b for b in beneath if b is not None]
    if not known:
        return _before_reshape(self, call)
    if rank(call) != rank(known[0]):
        return None
    arguments = [b if b is not None else _follow(self, a, rank(call)) for b, a in zip(beneath, call.args, strict=True)]
    if any(a is None for a in arguments):
        return None
    return self.channels_first(relax.Call(call.op, arguments, call.attrs))


def _before_reshape(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    """f(reshape(x)) as reshape(f(x)): then f is fused into the kernel that computes x."""
    x, *others = call.args
    reshaped = self.definition(x)
    if not _is(reshaped, "reshape"):
        return None
    inner = reshaped.args[0]
    source = self.definition(inner)
    if not (isinstance(source, relax.Call) and isinstance(source.op, ir.Op)):
        return None
    if source.op.name != "relax.call_tir" and source.op.name not in _POINTWISE:
        return None
    before, after = shape_of(inner), shape_of(reshaped)
    same_last = bool(before) and bool(after) and tvm_ffi.structural_equal(before[-1], after[-1])
    for other in others:
        array = self.constant(other)
        if array is None or not (array.size == 1 or (same_last and array.ndim == 1)):
            return None
    if not tvm_ffi.structural_equal(tvm_ffi.convert(shape_of(call)), tvm_ffi.convert(after)):
        return None
    moved = self.builder_.normalize(relax.Call(call.op, [inner, *others], call.attrs))
    if rank(moved) != rank(inner):
        return None
    return op.reshape(self.emit(moved), after)


def _follow(self: SelectKernels, value: relax.Expr, ndim: int) -> relax.Expr | None:
    """An operand that is broadcast against a channels-first value, in channels-last order."""
    own = rank(value)
    if own == 0:
        return value
    if own < ndim:
        array = self.constant(value)
        if array is not None:
            value = _constant(array.reshape((1,) * (ndim - own) + array.shape))
        else:
            value = self.emit(op.reshape(value, [1] * (ndim - own) + shape_of(value)))
    return self.channels_last(value)


@rule("concat")
def _concat(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    parts = self.parts(call.args[0])
    if parts is None or all(self.beneath(p) is None for p in parts):
        return None
    ndim = rank(parts[0])
    axis = to_last(ndim).index(int(call.attrs.axis) % ndim)
    return self.channels_first(op.concat([self.channels_last(p) for p in parts], axis))


@rule("nn.pad")
def _pad(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    last = self.beneath(call.args[0])
    if last is None or str(call.attrs.pad_mode) != "constant":
        return None
    width = [int(w) for w in call.attrs.pad_width]
    moved = [w for axis in to_last(rank(last)) for w in width[2 * axis : 2 * axis + 2]]
    return self.channels_first(op.nn.pad(last, moved, "constant", float(call.attrs.pad_value)))


# Normalisations


@rule("nn.softmax", "nn.log_softmax")
def _softmax(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    """TVM's equations for the last axis are what we want; another axis is moved there first."""
    ndim, axis = rank(call), int(call.attrs.axis) % rank(call)
    function = getattr(op.nn, call.op.name.removeprefix("relax.nn."))
    last = self.beneath(call.args[0])
    if last is not None and axis == 1:
        return self.channels_first(function(last, -1))
    if axis == ndim - 1:
        return None
    axes = [a for a in range(ndim) if a != axis] + [axis]
    moved = self.emit(function(self.emit(op.permute_dims(call.args[0], axes)), -1))
    return op.permute_dims(moved, [axes.index(a) for a in range(ndim)])


@rule("nn.layer_norm")
def _layer_norm(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    x, scale, shift = call.args
    attrs = call.attrs
    axes = [int(a) % rank(x) for a in attrs.axes]
    if axes != list(range(rank(x) - len(axes), rank(x))):
        return None
    return norms.layer_norm(
        self.builder_,
        x,
        scale if attrs.scale else None,
        shift if attrs.center else None,
        len(axes),
        float(attrs.epsilon),
    )


@rule("nn.rms_norm")
def _rms_norm(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    x, scale = call.args
    axes = [int(a) % rank(x) for a in call.attrs.axes]
    if axes != list(range(rank(x) - len(axes), rank(x))):
        return None
    return norms.layer_norm(self.builder_, x, scale, None, len(axes), float(call.attrs.epsilon), centre=False)


@rule("nn.group_norm")
def _group_norm(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    x, scale, shift = call.args
    attrs = call.attrs
    ndim = rank(x)
    channel = int(attrs.channel_axis) % ndim
    if channel != 1 or sorted(int(a) % ndim for a in attrs.axes) != list(range(2, ndim)):
        return None
    groups = int(attrs.num_groups)
    scale, shift = (scale if attrs.scale else None), (shift if attrs.center else None)
    last = self.beneath(x)
    if last is None:
        return norms.group_norm(self.builder_, x, scale, shift, groups, 1, float(attrs.epsilon))
    result = norms.group_norm(self.builder_, last, scale, shift, groups, ndim - 1, float(attrs.epsilon))
    return self.channels_first(result)


@rule("nn.batch_norm")
def _batch_norm(self: SelectKernels, call: relax.Call) -> relax.Expr | None:
    """At inference a batch norm is a factor and a sum per channel, which a convolution applies as it stores."""
    attrs = call.attrs
    arrays = [array for array in map(self.constant, call.args[1:]) if array is not None]
    if bool(attrs.training) or len(arrays) < 4:
        return None
    gamma, beta, mean, variance = arrays
    factor = (gamma if attrs.scale else 1) / np.sqrt(variance + float(attrs.epsilon))
    term = (beta if attrs.center else 0) - mean * factor
    ndim, axis = rank(call.args[0]), int(attrs.axis) % rank(call.args[0])
    shape = [-1 if i == axis else 1 for i in range(ndim)]
    factor, term = (_constant(a.reshape(shape).astype(gamma.dtype)) for a in (factor, term))
    scaled = self.choose(op.multiply(call.args[0], factor))
    shifted = self.choose(op.add(self.emit(scaled), term))
    return relax.Tuple([self.emit(shifted), call.args[3], call.args[4]])


def shape_of(value: relax.Expr) -> list[Expr]:
    return list(value.ty.shape)


__all__ = ["SelectKernels", "rule", "tirx"]
