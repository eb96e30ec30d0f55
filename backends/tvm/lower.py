"""Our IR to Relax, directly.

Each op has a short function in `backends/tvm/lowerings/` that spells it with Relax operators; an op without one is
decomposed first. Weights become constants; symbolic dimensions become TIR variables; regions are lowered in place, on
the values that their op gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401 - tells numpy of bfloat16
import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import ir, relax, tirx

from archc.ir.diagnostics import fail
from archc.ir.dims import Dim, FloorDiv, Symbol, linear_in, symbol, symbols
from archc.ir.graph import Graph, Node, Value
from archc.ir.op import OpDef
from archc.ir.types import NUMPY_NAMES, TensorType

Expr = Any  # a Relax expression
op = relax.op


@dataclass(slots=True)
class TvmNode:
    """One node while it is lowered: its arguments as Relax expressions, and what lowerings write with."""

    node: Node
    lowerer: Lowerer
    args: tuple[Expr, ...]

    @property
    def p(self) -> Any:
        """The op's parameters."""
        return self.node.params

    @property
    def x(self) -> Expr:
        """The first operand."""
        return self.args[0]

    @property
    def type(self) -> TensorType:
        """The type of the first result."""
        return self.node.outputs[0].type

    @property
    def dtype(self) -> str:
        """The dtype of the first result, as Relax knows it."""
        return NUMPY_NAMES[self.type.dtype]

    def weight(self, role: str) -> Expr | None:
        """A weight as a constant, or None when the node has none of that role."""
        parameter = self.node.weights.get(role)
        return None if parameter is None else self.lowerer.constant(self.lowerer.weights[parameter.name])

    def array(self, role: str) -> NDArray[Any] | None:
        """A weight as an array, for lowerings that rearrange it while compiling."""
        parameter = self.node.weights.get(role)
        return None if parameter is None else self.lowerer.weights[parameter.name]

    def const(self, value: Any, dtype: str | None = None) -> Expr:
        """A constant of the result's dtype (or `dtype`)."""
        return self.lowerer.constant(np.asarray(value).astype(dtype or self.dtype))

    def emit(self, expr: Expr) -> Expr:
        """Name an expression, so that it is computed once."""
        return self.lowerer.bb.emit(expr)

    def shape(self, dims: Sequence[Dim]) -> list[Any]:
        return [self.lowerer.dim(d) for d in dims]

    def piece(self, x: Expr, axis: int, start: Dim, stop: Dim, step: int = 1) -> Expr:
        """The elements from `start` to `stop - 1` of an axis, counted from 0; all of them are there.

        What sizes must be for that is checked before each call (`archc.ir.needs`). TVM is told, for otherwise it clamps
        open bounds by conditions, and Relax has no types for conditions in a size.
        """
        return op.strided_slice(x, [axis], self.shape([start]), self.shape([stop]), [step], assume_inbound=True)

    def size(self, dim: Dim, dtype: str | None = None) -> Expr:
        """A dimension as a tensor of rank 0."""
        if isinstance(dim, int):
            return self.const(dim, dtype)
        start, stop = self.shape([dim, dim + 1])
        number = self.emit(op.reshape(self.emit(op.arange(start, stop, dtype="int64")), []))
        return number if dtype == "int64" else self.emit(op.astype(number, dtype or self.dtype))

    def arange(self, size: Dim, axis: int = 0, rank: int = 1) -> Expr:
        """0, 1, 2, … (i64) along one axis of a tensor of size 1 elsewhere."""
        shape = [1] * rank
        shape[axis] = -1
        if isinstance(size, int):
            return self.const(np.arange(size).reshape(shape), "int64")
        places = self.emit(op.arange(0, self.lowerer.dim(size), dtype="int64"))
        return places if rank == 1 else self.emit(op.reshape(places, shape))

    def isnan(self, x: Expr) -> Expr:
        """Where x is NaN. By way of a number, for TVM takes `x != x` for false and `not (x >= -inf)` for `x < -inf`."""
        dtype = str(x.ty.dtype)
        ordered = self.emit(op.greater_equal(x, self.const(float("-inf"), dtype)))
        number = self.emit(op.where(ordered, self.const(0, "int8"), self.const(1, "int8")))
        return op.equal(number, self.const(1, "int8"))


Lower = Callable[[TvmNode], Any]
LOWERINGS: dict[str, Lower] = {}


def lowering(*ops: OpDef[Any]) -> Callable[[Lower], Lower]:
    """Register how TVM spells an op. The function returns one expression, or a list when the op has several results."""

    def add(function: Lower) -> Lower:
        for op in ops:
            assert op.name not in LOWERINGS, f"tvm: `{op.name}` already has a lowering"
            LOWERINGS[op.name] = function
        return function

    return add


def can_lower(op: OpDef[Any]) -> bool:
    import archc.backends.tvm.lowerings  # noqa: F401  (fills the table)

    return op.name in LOWERINGS


@dataclass(slots=True)
class Lowerer:
    """The state of lowering one network."""

    bb: relax.BlockBuilder
    weights: Mapping[str, NDArray[Any]]
    kind: str = "cpu"
    name: str = "main"
    symbols: dict[str, Any] = field(default_factory=dict)
    values: dict[Value, Expr] = field(default_factory=dict)
    bounds: dict[Value, int] = field(default_factory=dict)
    whole: dict[Dim, Any] = field(default_factory=dict)  # expressions that have a variable of their own
    count: int = 0

    def fresh(self) -> int:
        """A number that no call has given yet."""
        self.count += 1
        return self.count

    def constant(self, array: NDArray[Any]) -> Expr:
        # the dtype is spelled out: Relax makes every float64 that it is not told about a float32
        return relax.const(np.asarray(array, order="C"), str(array.dtype))

    def dim(self, dim: Dim) -> Any:
        """A dimension as Relax knows it: an int, or an int64 expression over the function's variables."""
        if isinstance(dim, int):
            return dim
        if dim in self.whole:
            return self.whole[dim]
        total: Any = 0
        for monomial, coefficient in dim.terms:
            piece: Any = tirx.IntImm("int64", coefficient)
            for atom in monomial:
                piece = piece * self._atom(atom)
            total = total + piece if isinstance(total, tirx.Expr) else piece
        return total

    def _atom(self, atom: Any) -> Any:
        if isinstance(atom, Symbol):
            return self.symbols[atom.name]
        a, b = self.dim(atom.numerator), self.dim(atom.denominator)
        return tirx.floordiv(a, b) if isinstance(atom, FloorDiv) else tirx.floormod(a, b)

    def bind(self, name: str) -> Any:
        """A fresh variable for a symbolic dimension."""
        self.symbols[name] = tirx.Var(name, "int64")
        return self.symbols[name]

    def variables(self) -> list[Any]:
        """Every variable that sizes are made of."""
        return [*self.symbols.values(), *self.whole.values()]

    def graph(self, graph: Graph, inputs: Sequence[Expr]) -> list[Expr]:
        """Lower a graph or region on given inputs; its own symbols must be bound."""
        self.values.update(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            self.node(node)
        return [self.values[v] for v in graph.outputs]

    def node(self, node: Node) -> None:
        lower = LOWERINGS.get(node.op.name)
        if lower is None:
            way = "fix the sizes that are open, with `--dim`" if node.op.decompose else "see `archc ops` for what has"
            raise fail("E0506", f"`{node.op.name}` has no TVM lowering", node.span, help=way)
        result = lower(TvmNode(node, self, tuple(self.values[v] for v in node.inputs)))
        results = result if isinstance(result, list) else [result]
        assert len(results) == len(node.outputs), f"{node} lowered to {len(results)} results"
        for value, expr in zip(node.outputs, results, strict=True):
            # a constant is not given a name: its readers want to see the number
            plain = isinstance(expr, relax.Var | ir.GenericConst)
            self.values[value] = expr if plain else self.bb.emit(expr)


def lower(
    graph: Graph, weights: Mapping[str, NDArray[Any]], kind: str = "cpu", bounds: Mapping[str, int] | None = None
) -> tvm.IRModule:
    """A Relax module whose function `main` takes the inputs in order and returns the outputs, flat.

    The graph holds only ops that have a lowering: see `archc.ir.decompose`. `weights` are arrays by parameter name;
    `kind` of target is "cpu" or "cuda"; `bounds` tell of inputs whose elements are checked, before each call, to be
    from 0 to bound - 1.

    Raises: CompileError E0507 when a symbol of an input cannot be had from a shape (`f32[T//2]` with no other `T`).
    """
    bb = relax.BlockBuilder()
    add_function(bb, "main", graph, weights, kind, bounds)
    return bb.get()


def add_function(
    bb: relax.BlockBuilder,
    name: str,
    graph: Graph,
    weights: Mapping[str, NDArray[Any]],
    kind: str = "cpu",
    bounds: Mapping[str, int] | None = None,
) -> None:
    """Lower a graph to a function of the module that `bb` builds; see `lower`."""
    import archc.backends.tvm.lowerings  # noqa: F401  (fills the table)

    checked = {v: bounds[v.name] for v in graph.inputs if bounds and v.name in bounds}
    lowerer = Lowerer(bb, weights, kind, name, bounds=checked)
    solutions = _solutions(graph)
    for size in graph.symbols():
        if size not in solutions:
            lowerer.bind(size)
    for dim in dict.fromkeys(d for v in graph.inputs for d in v.type.shape):
        if symbols(dim) & solutions.keys():  # any number at first: TVM learns sizes from axes that are variables
            lowerer.whole[dim] = tirx.Var(f"size{len(lowerer.whole)}", "int64")
    inputs = [
        relax.Var(v.name, relax.TensorType([lowerer.dim(d) for d in v.type.shape], NUMPY_NAMES[v.type.dtype]))
        for v in graph.inputs
    ]
    with bb.function(name, inputs):
        with bb.dataflow():
            for size, (factor, rest, dim) in solutions.items():
                value = tirx.floordiv(lowerer.dim(dim) - lowerer.dim(rest), tirx.IntImm("int64", factor))
                bb.match_cast(bb.emit(relax.ShapeExpr([value])), relax.ShapeType([lowerer.bind(size)]))
            outputs = [bb.emit_output(o) for o in lowerer.graph(graph, inputs)]
        bb.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))


def _solutions(graph: Graph) -> dict[str, tuple[int, Dim, Dim]]:
    """For each symbol that stands only inside expressions (factor, rest, dim): it is `(dim - rest) / factor`, of an
    axis of size `dim`. In an order in which they can be worked out. Whether they are whole is checked before each call.

    Raises: CompileError E0507 when there is one that no expression is linear in.
    """
    axes = list(dict.fromkeys(d for v in graph.inputs for d in v.type.shape))
    left = [s for s in graph.symbols() if symbol(s) not in axes]
    known, found = set(graph.symbols()) - set(left), dict[str, tuple[int, Dim, Dim]]()
    while left:
        steps = ((s, d, linear) for s in left for d in axes if (linear := linear_in(d, s)))
        name, dim, linear = next(((s, d, ab) for s, d, ab in steps if symbols(ab[1]) <= known), ("", 0, (0, 0)))
        if not name:
            raise fail(
                "E0507",
                f"the size `{left[0]}` cannot be read off an input",
                graph.inputs[0].span,
                label=f"it stands only inside expressions: {', '.join(str(v.type) for v in graph.inputs)}",
                help=f"give an input an axis that is just `{left[0]}`, or fix it: `--dim {left[0]}=…`",
            )
        found[name] = (*linear, dim)
        known.add(name)
        left.remove(name)
    return found
