"""Structural equality of networks: node by node, in order, names and sharing included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archc.ir.dims import Dim, Expr, substitute, symbol, symbols
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.types import TensorType


def structurally_equal(a: Graph, b: Graph) -> str | None:
    """The first difference between two networks in words, or None when there is none.

    Compared are ports, ops, parameters (one that is left open equals what the op spells it out as), operands, names of
    nodes and weights, types, initial values, which weights are shared, and regions. Not compared are spans, the names
    of values and of symbols (but they must differ and recur alike), and the order in which a node lists its captures: a
    capture is the outer value that it stands for.

    >>> from archc.ir.types import TensorType
    >>> a, b = Graph("a"), Graph("b")
    >>> _ = a.add_input("x", TensorType((2,))), b.add_input("x", TensorType((3,)))
    >>> structurally_equal(a, b)
    'input x: f32[2] and f32[3]'
    """
    try:
        comparison = _Comparison()
        comparison.need(len(a.inputs) == len(b.inputs), f"{len(a.inputs)} and {len(b.inputs)} inputs")
        for x, y in zip(a.inputs, b.inputs, strict=True):
            comparison.need(x.name == y.name, f"inputs are named {x.name} and {y.name}")
            comparison.types(f"input {x.name}", x.type, y.type)
            comparison.values[x] = y
        comparison.need(a.output_names == b.output_names, f"outputs are named {a.output_names} and {b.output_names}")
        comparison.graphs("the network", a, b)
    except _Difference as found:
        return str(found)
    return None


class _Difference(Exception):
    pass


class _Comparison:
    def __init__(self) -> None:
        self.values: dict[Value, Value] = {}
        self.symbols: dict[str, Dim] = {}
        self.parameters: dict[Parameter, Parameter] = {}
        self.found: dict[Parameter, Parameter] = {}  # the other way round: two may not become one

    def need(self, holds: bool, difference: str) -> None:
        if not holds:
            raise _Difference(difference)

    def graphs(self, what: str, a: Graph, b: Graph) -> None:
        for m, n in zip(a.nodes, b.nodes, strict=False):
            self.nodes(m, n)
        self.need(len(a.nodes) == len(b.nodes), f"{what}: {len(a.nodes)} and {len(b.nodes)} nodes")
        self.operands(f"the results of {what}", a.outputs, b.outputs)

    def operands(self, what: str, a: Sequence[Value], b: Sequence[Value]) -> None:
        self.need(len(a) == len(b), f"{what}: {len(a)} and {len(b)} values")
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            self.need(self.values.get(x, x) is self.origin(y), f"{what}: value {i} is {x} and {y}")

    def origin(self, value: Value) -> Value:
        return self.values.get(value, value)

    def nodes(self, a: Node, b: Node) -> None:
        self.need(a.name == b.name, f"nodes are named {a.name} and {b.name}")
        self.need(a.op is b.op, f"{a.name}: {a.op.name} and {b.op.name}")
        for name in type(a.params).model_fields:
            x, y = getattr(a.params, name), getattr(b.params, name)
            if (x is None) is not (y is None):  # left open here and spelled out there: the same where the op says so
                x, y = _spelled(a, name, x), _spelled(b, name, y)
            self.need(self.same(x, y), f"{a.name}: {name} is {x!r} and {y!r}")
        self.operands(f"the operands of {a.name}", a.operands, b.operands)
        self.need(a.weights.keys() == b.weights.keys(), f"{a.name}: weights {[*a.weights]} and {[*b.weights]}")
        for role in a.weights:
            self.weights(f"{role} of {a.name}", a.weights[role], b.weights[role])
        self.need(len(a.regions) == len(b.regions), f"{a.name}: {len(a.regions)} and {len(b.regions)} regions")
        for r, s in zip(a.regions, b.regions, strict=True):
            self.regions(a, b, r, s)
        self.need(len(a.outputs) == len(b.outputs), f"{a.name}: {len(a.outputs)} and {len(b.outputs)} results")
        for x, y in zip(a.outputs, b.outputs, strict=True):
            self.types(f"a result of {a.name}", x.type, y.type)
            self.values[x] = y

    def regions(self, a: Node, b: Node, r: Graph, s: Graph) -> None:
        what = f"{r.name} of {a.name}"
        formals = r.inputs[: len(r.inputs) - a.captures], s.inputs[: len(s.inputs) - b.captures]
        self.need(len(formals[0]) == len(formals[1]), f"{what}: {len(formals[0])} and {len(formals[1])} inputs")
        outside = dict(self.symbols)  # a region's own symbols may be called as those of the region beside it
        for x, y in zip(*formals, strict=True):
            self.types(f"an input of {what}", x.type, y.type)
            self.values[x] = y
        for x, outer in zip(r.inputs[len(formals[0]) :], a.captured, strict=True):
            self.values[x] = self.values[outer]
        for y, outer in zip(s.inputs[len(formals[1]) :], b.captured, strict=True):
            self.values[y] = self.origin(outer)
        self.graphs(what, r, s)
        self.symbols = outside

    def weights(self, what: str, a: Parameter, b: Parameter) -> None:
        known, back = self.parameters.setdefault(a, b), self.found.setdefault(b, a)
        self.need(known is b and back is a, f"{what}: {a.name} and {b.name} are not shared alike")
        self.need(a.name == b.name, f"{what} is named {a.name} and {b.name}")
        self.types(what, a.type, b.type)
        self.need(a.trainable == b.trainable, f"{what}: trained, and not trained")
        self.need(a.init == b.init, f"{what} starts as {a.init} and {b.init}")

    def types(self, what: str, a: TensorType, b: TensorType) -> None:
        same = a.dtype == b.dtype and a.rank == b.rank and all(map(self.dims, a.shape, b.shape))
        self.need(same, f"{what}: {a} and {b}")

    def dims(self, a: Dim, b: Dim) -> bool:
        """Equal up to the names of symbols; a symbol that stands alone tells its partner."""
        if isinstance(a, Expr) and isinstance(b, Expr):
            (x, *more), (y, *others) = symbols(a), symbols(b)
            new = x not in self.symbols and symbol(y) not in self.symbols.values()
            if not more and not others and new and a == symbol(x) and b == symbol(y):
                self.symbols[x] = symbol(y)
        return substitute(a, self.symbols) == b if isinstance(a, Expr) else type(a) is type(b) and a == b

    def same(self, a: Any, b: Any) -> bool:
        if isinstance(a, tuple):
            return isinstance(b, tuple) and len(a) == len(b) and all(map(self.same, a, b))
        if isinstance(a, Expr):
            return isinstance(b, Expr) and substitute(a, self.symbols) == b
        return type(a) is type(b) and (a == b or (a != a and b != b))


__all__ = ["structurally_equal"]


def _spelled(node: Node, name: str, value: Any) -> Any:
    """A parameter as its op spells it out, or the value that it has."""
    return node.op.spelled(node.call, node.bound).get(name, value) if node.op.spelled is not None else value
