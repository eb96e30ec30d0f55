"""Rows that go their own ways: what a region runs on when only some of the samples or tokens reach it.

A GPU gets the dense form: each region on all rows, of whose results those that count are picked. That gives the same
numbers and saves nothing, but a GPU would have to be waited for to learn how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from archc.backends.tvm import equations
from archc.backends.tvm.equations import APART
from archc.backends.tvm.lower import Lowerer, TvmNode
from archc.backends.tvm.lowerings.rowwise import by_row
from archc.ir.diagnostics import CompileError
from archc.ir.dims import Dim, product, symbol, symbols
from archc.ir.graph import Graph
from archc.ir.ops.convolution import CONV, CONV_TRANSPOSE
from archc.ir.ops.shape import RESHAPE
from archc.ir.types import NUMPY_NAMES, TensorType

op = relax.op


def on_region(n: TvmNode, region: Graph, *formals: Any) -> list[Any]:
    """A region on given formals and what the node captures.

    Captures are copied by kernels of their own: fused with what made them, a kernel of the region would be moved to
    before the number of its rows is known.
    """
    copies = [
        n.lowerer.bb.emit_te(equations.copy, c, primfunc_name_hint="copy", primfunc_attrs=APART) for c in _captured(n)
    ]
    return n.lowerer.graph(region, [*formals, *copies])


def _captured(n: TvmNode) -> Sequence[Any]:
    return n.args[len(n.args) - n.node.captures :]


def bind_rows(n: TvmNode, region: Graph, axis: int, size: Any) -> None:
    """Let the symbol that a region counts its rows by stand for `size`."""
    name = row_symbol(region, axis)
    if name is not None:
        n.lowerer.symbols[name] = size


def row_symbol(region: Graph, axis: int = 0) -> str | None:
    dim = region.inputs[0].type.shape[axis]
    return next((name for name in symbols(dim) if str(dim) == name), None)


class Routes:
    """Rows sorted by where they go. `index` [R, k] (i64) is the destination of each row, -1 for none.

    slot [R, k]: where in the sorted list a row stands, -1 for nowhere. counts: how many rows each destination has.
    """

    slot: Any
    counts: list[Any]

    def __init__(self, n: TvmNode, index: Any, destinations: int, capacity: float | None = None) -> None:
        self.bb = n.lowerer.bb
        routed = self.bb.emit_te(
            lambda index: equations.route(index, destinations, capacity), index, primfunc_name_hint="route"
        )
        self._order, self.sizes, self._starts, self.slot = (n.emit(relax.TupleGetItem(routed, i)) for i in range(4))
        self.counts = _matched(self.bb, self.sizes, destinations, n.lowerer)

    def rows(self, x: Any, destination: int) -> Any:
        """The rows of x [R, …] that go to a destination, in order."""
        return _take(self.bb, x, self._order, self._starts, destination, self.counts[destination])


class AllRows(Routes):
    """The dense form: all rows go to each destination, and `slot` says which of the results count."""

    def __init__(self, n: TvmNode, index: Any, destinations: int, capacity: float | None = None) -> None:
        self.slot = n.lowerer.bb.emit_te(
            lambda index: equations.stacked(index, destinations, capacity), index, primfunc_name_hint="stacked"
        )
        self.counts = [index.ty.shape[0]] * destinations

    def rows(self, x: Any, destination: int) -> Any:
        return x


def _matched(bb: relax.BlockBuilder, counts: Any, destinations: int, lowerer: Lowerer) -> list[Any]:
    """The elements of `counts` as sizes."""
    sizes = [tirx.Var(f"rows{lowerer.fresh()}", "int64") for _ in range(destinations)]
    bb.match_cast(bb.emit(op.tensor_to_shape(counts)), relax.ShapeType(sizes))
    return sizes


def _take(bb: relax.BlockBuilder, x: Any, order: Any, starts: Any, destination: int, count: Any) -> Any:
    return bb.emit_te(
        lambda x, order, starts: equations.take_rows(x, order, starts, destination, count),
        x,
        order,
        starts,
        primfunc_name_hint="take_rows",
        primfunc_attrs=APART,
    )


# A region for some of the rows


def on_chosen(n: TvmNode, region: Graph, chosen: Any, otherwise: Any) -> Any:
    """region(x) for the samples of the node's operand that are `chosen` (bools, one for each), `otherwise` for the
    rest."""
    x = n.node.inputs[0].type
    if n.lowerer.kind == "cpu":
        return Part(n, region, x, n.type).run(chosen, n.x, otherwise)
    routes = AllRows(n, _destinations(n, chosen, x.shape[0]), 1)
    bind_rows(n, region, 0, routes.counts[0])
    (found,) = on_region(n, region, n.x)
    return _scatter(n.lowerer.bb, found, routes.slot, otherwise)


def on_chosen_tokens(n: TvmNode, body: Graph, chosen: Any) -> Any:
    """body(x) for the tokens of the node's operand [N, T, C] that are `chosen`, x for the others.

    A body in which tokens meet needs them all: there only the choice is made. So it is on a GPU.
    """
    x = n.type
    total, rows = (symbol(f"{name}{n.lowerer.fresh()}_") for name in ("Tokens", "Rows"))
    part = _on_rows(body, rows) if n.lowerer.kind == "cpu" and by_row(body, 2) else None
    if part is None:
        (found,) = on_region(n, body, n.x)
        return op.where(chosen, found, n.x)
    count = product(x.shape[:2])
    tokens = TensorType((count if isinstance(count, int) else total, *x.shape[2:]), x.dtype)
    flat = n.emit(op.reshape(n.x, n.shape([count, *x.shape[2:]])))
    if tokens.shape[0] is total:  # a variable of its own: kernels learn sizes from axes that are variables
        n.lowerer.bind(str(total))
        flat = n.lowerer.bb.match_cast(flat, relax.TensorType(n.shape(tokens.shape), n.dtype))
    found = Part(n, part, tokens, tokens).run(chosen, flat, flat)
    return op.reshape(found, n.shape(x.shape))


def _on_rows(body: Graph, rows: Dim) -> Graph | None:
    """A body on tokens [N, T, C] again, on rows [rows, C]: one sample of as many tokens. None for one whose parameters
    name N or T.
    """
    formal, *captured = body.inputs
    again = Graph(body.name, span=body.span)
    (*_, width), dtype = formal.type.shape, formal.type.dtype
    x = again.add_input(formal.name, TensorType((rows, width), dtype), formal.span)
    values = {v: again.add_input(v.name, v.type, v.span) for v in captured}
    values[formal] = again.add(RESHAPE, [x], RESHAPE.params(shape=(1, rows, width))).output
    for node in body.nodes:
        inputs = [values[v] for v in node.inputs]
        try:
            made = again.add(node.op, inputs, node.params, name=node.name, weights=node.weights, span=node.span)
        except CompileError:
            return None
        values.update(zip(node.outputs, made.outputs, strict=True))
    (result,) = body.outputs
    again.outputs = [again.add(RESHAPE, [values[result]], RESHAPE.params(shape=(rows, width))).output]
    return again


def _destinations(n: TvmNode, chosen: Any, count: Dim) -> Any:
    """[count, 1]: 0 for the rows that are chosen, -1 for the others."""
    flat = n.emit(op.reshape(chosen, n.shape([count, 1])))
    return n.emit(op.where(flat, n.const(0, "int64"), n.const(-1, "int64")))


def _scatter(bb: relax.BlockBuilder, found: Any, slot: Any, otherwise: Any) -> Any:
    return bb.emit_te(equations.scatter_rows, found, slot, otherwise, primfunc_name_hint="scatter_rows")


@dataclass
class _Scope:
    """A function of the module while it is written: its variables for the sizes of its caller."""

    lowerer: Lowerer
    sizes: list[Any]

    def variable(self, name: str, type_: TensorType, axes: Sequence[int] | None = None) -> Any:
        """A parameter; with `axes`, its axes in another order."""
        shape = [self.lowerer.dim(d) for d in type_.shape]
        return relax.Var(name, relax.TensorType([shape[a] for a in axes] if axes else shape, NUMPY_NAMES[type_.dtype]))


class Part:
    """A region as a function of its own, which is called where there is a row for it.

    Where no row is chosen nothing of it runs, and where all are, none is copied. Images are handed over with channels
    last: kernels of the region and those around it want them so, and permutes do not move through calls.
    """

    def __init__(
        self, n: TvmNode, region: Graph, operand: TensorType, made: TensorType, last: bool | None = None
    ) -> None:
        self.n, self.region, self.bb, self.operand, self.made = n, region, n.lowerer.bb, operand, made
        self.name = f"{n.node.op.name}{n.lowerer.fresh()}_{n.lowerer.name}"
        self.last = channels_last(region) if last is None else last

    def run(self, chosen: Any, x: Any, otherwise: Any) -> Any:
        """The region on the rows of x that are chosen, and `otherwise` in place of the others."""
        given = [self._permuted(x, self.operand, to_last)]
        given.append(given[0] if otherwise is x else self._permuted(otherwise, self.made, to_last))
        return (self.of_one if self.operand.shape[0] == 1 else self.of_many)(chosen, [*given, *_captured(self.n)])

    def of_one(self, chosen: Any, given: Sequence[Any]) -> Any:
        """For a batch of one: run the region, or do not."""
        n, body = self.n, self.body(1)
        s = self.scope()
        is_open = relax.Var("open", relax.TensorType([], "bool"))
        x, other, captured = self.variables(s)
        with self.bb.function(f"{self.name}_either", [*s.sizes, is_open, x, other, *captured], private=True):
            run = relax.Call(body, [*s.sizes, x, *captured])
            either = self.bb.emit_func_output(self.bb.emit(relax.If(is_open, run, other)))
        flat = n.emit(op.reshape(chosen, []))
        return self.called(either, [flat, *given])

    def of_many(self, chosen: Any, given: Sequence[Any]) -> Any:
        """For any batch: run the region on nothing, on everything, or on the rows that are chosen."""
        n, body = self.n, self.body(None)
        some = self.some(body)
        s = self.scope()
        x, other, captured = self.variables(s)
        route = self.route_variables(s)
        with self.bb.function(f"{self.name}_either", [*s.sizes, *route, x, other, *captured], private=True):
            _, counts, _, slot = route
            none, every = (
                self.bb.emit_te(test, counts, slot, primfunc_name_hint=test.__name__)
                for test in (equations.takes_none, equations.takes_all)
            )
            on_all = relax.Call(body, [*s.sizes, x, *captured])
            on_some = relax.Call(some, [*s.sizes, *route, x, other, *captured])
            rows = relax.If(every, on_all, on_some)
            either = self.bb.emit_func_output(self.bb.emit(relax.If(none, other, rows)))
        index = _destinations(n, chosen, self.operand.shape[0])
        routed = self.bb.emit_te(lambda index: equations.route(index, 1), index, primfunc_name_hint="route")
        return self.called(either, [*(n.emit(relax.TupleGetItem(routed, i)) for i in range(4)), *given])

    def of_destination(self, routes: Routes, destination: int, x: Any) -> Any:
        """For the rows of x that go to a destination: run the region, or give no rows. Channels of x are where the
        region wants them.
        """
        body, s = self.body(None), self.scope()
        some = relax.Var("some", relax.TensorType([], "bool"))
        rows, made, captured = self.variables(s)
        with self.bb.function(f"{self.name}_either", [*s.sizes, some, rows, *captured], private=True):
            on_some = relax.Call(body, [*s.sizes, rows, *captured])
            on_none = op.zeros([0, *list(made.ty.shape)[1:]], made.ty.dtype)
            either = self.bb.emit_func_output(self.bb.emit(relax.If(some, on_some, on_none)))
        is_some = self.bb.emit_te(
            lambda counts: equations.takes_any(counts, destination), routes.sizes, primfunc_name_hint="takes_any"
        )
        return self.called(either, [is_some, routes.rows(x, destination), *_captured(self.n)])

    def some(self, body: Any) -> Any:
        """The region on the rows that are chosen."""
        s = self.scope()
        x, other, captured = self.variables(s)
        route = order, counts, starts, slot = self.route_variables(s)
        with self.bb.function(f"{self.name}_some", [*s.sizes, *route, x, other, *captured], private=True):
            with self.bb.dataflow():
                (count,) = _matched(self.bb, counts, 1, s.lowerer)
                rows = _take(self.bb, x, order, starts, 0, count)
                found = self.bb.emit(relax.Call(body, [*s.sizes, rows, *captured]))
                shape = [count, *list(other.ty.shape)[1:]]
                found = self.bb.match_cast(found, relax.TensorType(shape, other.ty.dtype))
                result = self.bb.emit_output(_scatter(self.bb, found, slot, other))
            return self.bb.emit_func_output(result)

    def body(self, rows: int | None) -> Any:
        """The region on `rows` rows, any number where that is None."""
        s = self.scope()
        name = row_symbol(self.region)
        assert name is not None, f"{self.region.name} is not typed on rows"
        s.lowerer.symbols[name] = tirx.Var("rows", "int64") if rows is None else rows
        formal, *captured = self.region.inputs
        x = s.variable("x", formal.type, self._axes(formal.type))
        values = [s.variable(f"c{i}", v.type) for i, v in enumerate(captured)]
        with self.bb.function(f"{self.name}_body", [*s.sizes, x, *values], private=True):
            with self.bb.dataflow():
                first = self._permuted(x, formal.type, to_first)
                (found,) = s.lowerer.graph(self.region, [first, *values])
                result = self.bb.emit_output(self._permuted(found, self.region.outputs[0].type, to_last))
            return self.bb.emit_func_output(result)

    def scope(self) -> _Scope:
        outer, bb = self.n.lowerer, self.bb
        lowerer = Lowerer(bb, outer.weights, outer.kind, f"{self.name}_", count=outer.fresh() * 1000)
        for name, size in outer.symbols.items():
            if isinstance(size, int):
                lowerer.symbols[name] = size
            else:
                lowerer.bind(name)
        lowerer.whole = {dim: tirx.Var(variable.name, "int64") for dim, variable in outer.whole.items()}
        variables = _open(lowerer)
        return _Scope(lowerer, [relax.Var("sizes", relax.ShapeType(variables))] if variables else [])

    def variables(self, s: _Scope) -> tuple[Any, Any, list[Any]]:
        """Parameters for the operand, for what stands in for the region's result, and for captures."""
        x = s.variable("x", self.operand, self._axes(self.operand))
        other = s.variable("otherwise", self.made, self._axes(self.made))
        return x, other, [s.variable(f"c{i}", v.type) for i, v in enumerate(self.n.node.captured)]

    def route_variables(self, s: _Scope) -> list[Any]:
        rows = s.lowerer.dim(self.operand.shape[0])
        shapes = {"order": [rows], "counts": [1], "starts": [2], "slot": [rows, 1]}
        return [relax.Var(name, relax.TensorType(shape, "int64")) for name, shape in shapes.items()]

    def called(self, function: Any, arguments: Sequence[Any]) -> Any:
        lowerer = self.n.lowerer
        sizes = [relax.ShapeExpr(_open(lowerer))] if _open(lowerer) else []
        found = self.n.emit(relax.Call(function, [*sizes, *arguments]))
        type_ = _Scope(lowerer, []).variable("", self.made, self._axes(self.made)).ty
        return self._permuted(self.bb.match_cast(found, type_), self.made, to_first)

    def _axes(self, type_: TensorType) -> list[int] | None:
        return to_last(type_.rank) if self.last and type_.rank > 2 else None

    def _permuted(self, x: Any, type_: TensorType, order: Callable[[int], list[int]]) -> Any:
        return x if self._axes(type_) is None else self.bb.emit(op.permute_dims(x, order(type_.rank)))


def _open(lowerer: Lowerer) -> list[Any]:
    """The variables and expressions that a function has to be told."""
    return [size for size in lowerer.variables() if not isinstance(size, int)]


def to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def channels_last(region: Graph) -> bool:
    """Whether kernels of the region want axis 1, where channels are, to be the last one."""
    return any(node.op in (CONV, CONV_TRANSPOSE) or node.op.category == "pool" for node in region.walk())
