"""Rows that go their own ways: what a region runs on when only some of the samples or tokens reach it.

A GPU gets the dense form: each region on all rows, of whose results those that count are picked. That gives the same
numbers and saves nothing, but a GPU would have to be waited for to learn how many rows there are.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx

from archc.backends.tvm import equations
from archc.backends.tvm.equations import APART
from archc.backends.tvm.lower import TvmNode
from archc.ir.dims import symbols
from archc.ir.graph import Graph

op = relax.op


def on_region(n: TvmNode, region: Graph, *formals: Any) -> list[Any]:
    """A region on given formals and what the node captures.

    Captures are copied by kernels of their own: fused with what made them, a kernel of the region would be moved to
    before the number of its rows is known.
    """
    captured = n.args[len(n.args) - n.node.captures :] if n.node.captures else ()
    copies = [
        n.lowerer.bb.emit_te(equations.copy, c, primfunc_name_hint="copy", primfunc_attrs=APART) for c in captured
    ]
    return n.lowerer.graph(region, [*formals, *copies])


def bind_rows(n: TvmNode, region: Graph, axis: int, size: Any) -> None:
    """Let the symbol that a region counts its rows by stand for `size`."""
    for name in symbols(region.inputs[0].type.shape[axis]):
        if str(region.inputs[0].type.shape[axis]) == name:
            n.lowerer.symbols[name] = size


class Routes:
    """Rows sorted by where they go. `index` [R, k] (i64) is the destination of each row, -1 for none.

    slot [R, k]: where in the sorted list a row stands, -1 for nowhere.
    """

    slot: Any
    counts: list[Any]

    def __init__(self, n: TvmNode, index: Any, destinations: int, capacity: float | None = None) -> None:
        self.n = n
        routed = n.lowerer.bb.emit_te(
            lambda index: equations.route(index, destinations, capacity), index, primfunc_name_hint="route"
        )
        self._order, counts, self._starts, self.slot = (n.emit(relax.TupleGetItem(routed, i)) for i in range(4))
        self.counts = [tirx.Var(f"rows{n.lowerer.fresh()}", "int64") for _ in range(destinations)]
        shape = n.emit(op.tensor_to_shape(counts))
        n.lowerer.bb.match_cast(shape, relax.ShapeType(self.counts))

    def rows(self, x: Any, destination: int) -> Any:
        """The rows of x [R, …] that go to a destination, in order."""
        count = self.counts[destination]
        return self.n.lowerer.bb.emit_te(
            lambda x, order, starts: equations.take_rows(x, order, starts, destination, count),
            x,
            self._order,
            self._starts,
            primfunc_name_hint="take_rows",
            primfunc_attrs=APART,
        )

    def otherwise(self, found: Any, x: Any) -> Any:
        """`found` for the rows that went somewhere, x for the others."""
        return self.n.lowerer.bb.emit_te(equations.scatter_rows, found, self.slot, x, primfunc_name_hint="scatter_rows")


class AllRows(Routes):
    """The dense form: all rows go to each destination, and `slot` says which of the results count."""

    def __init__(self, n: TvmNode, index: Any, destinations: int, capacity: float | None = None) -> None:
        self.n = n
        self.slot = n.lowerer.bb.emit_te(
            lambda index: equations.stacked(index, destinations, capacity), index, primfunc_name_hint="stacked"
        )
        self.counts = [index.ty.shape[0]] * destinations

    def rows(self, x: Any, destination: int) -> Any:
        return x


def routes_of(n: TvmNode, index: Any, destinations: int, capacity: float | None = None) -> Routes:
    return (Routes if n.lowerer.kind == "cpu" else AllRows)(n, index, destinations, capacity)
