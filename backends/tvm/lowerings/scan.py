"""Loops of any length: divide and conquer, so that the depth of calls is the logarithm of the length.

scan(lo, hi, xs, states) = step(lo, xs, states)                          where one step is left
                         | scan(mid, hi, xs, scan(lo, mid, xs, states))  else, with the results joined

A GPU would have to be waited for at each branch. There a loop of a known, small length is as many calls of `step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from archc.backends.tvm.lower import Lowerer, TvmNode, lowering
from archc.ir.ops.structural import SCAN
from archc.ir.types import NUMPY_NAMES, TensorType

op = relax.op
_INDEX = relax.TensorType([], "int64")


@lowering(SCAN)
def _scan(n: TvmNode) -> Any:
    axis = n.p.axis % n.node.inputs[0].type.rank
    length = n.node.inputs[0].type.shape[axis]
    loop = _Loop(n, axis, f"scan{n.lowerer.fresh()}_{n.lowerer.name}")
    if n.lowerer.kind != "cpu":
        assert isinstance(length, int), "a length that is not known is refused before"
        return loop.unrolled(length)
    function = loop.any_length() if not isinstance(length, int) or length == 0 else loop.at_least_one()
    found = n.emit(relax.Call(function, [*loop.sizes(), n.const(0, "int64"), n.size(length, "int64"), *n.args]))
    results = [n.emit(relax.TupleGetItem(found, i)) for i in range(len(n.node.outputs))]
    types = [_type(n.lowerer, v.type) for v in n.node.outputs]
    return [n.lowerer.bb.match_cast(r, t) for r, t in zip(results, types, strict=True)]


@dataclass
class _Frame:
    """One function of a loop: its own variables for sizes, and its parameters."""

    lowerer: Lowerer
    sizes: list[Any]
    lo: Any
    hi: Any
    xs: Any
    states: list[Any]
    captured: list[Any]

    @property
    def parameters(self) -> list[Any]:
        return [*self.sizes, self.lo, self.hi, self.xs, *self.states, *self.captured]

    def call(self, function: Any, lo: Any, hi: Any, states: Sequence[Any]) -> Any:
        """Call a function of the loop on part of the steps."""
        return relax.Call(function, [*self.sizes, lo, hi, self.xs, *states, *self.captured])


class _Loop:
    def __init__(self, n: TvmNode, axis: int, name: str) -> None:
        self.n, self.axis, self.name, self.bb = n, axis, name, n.lowerer.bb
        self.count = len(n.node.operands) - 1

    def sizes(self) -> list[Any]:
        """What the functions need to be told of the network's sizes."""
        variables = self.n.lowerer.variables()
        return [relax.ShapeExpr(variables)] if variables else []

    def frame(self) -> _Frame:
        outer = self.n.lowerer
        lowerer = Lowerer(self.bb, outer.weights, outer.kind, f"{self.name}_", count=outer.fresh() * 1000)
        for name in outer.symbols:
            lowerer.bind(name)
        lowerer.whole = {dim: tirx.Var(variable.name, "int64") for dim, variable in outer.whole.items()}
        variables = lowerer.variables()
        sizes = [relax.Var("sizes", relax.ShapeType(variables))] if variables else []
        given = [relax.Var(f"a{i}", _type(lowerer, v.type)) for i, v in enumerate(self.n.node.inputs)]
        states, captured = given[1 : 1 + self.count], given[1 + self.count :]
        lo, hi = relax.Var("lo", _INDEX), relax.Var("hi", _INDEX)
        return _Frame(lowerer, sizes, lo, hi, given[0], states, captured)

    def result_type(self, f: _Frame) -> Any:
        """What each function returns: some of the results, then the states."""
        ys, *states = self.n.node.outputs
        some = relax.TensorType(dtype=NUMPY_NAMES[ys.type.dtype], ndim=ys.type.rank)
        return relax.TupleType([some, *(_type(f.lowerer, v.type) for v in states)])

    def unrolled(self, length: int) -> list[Any]:
        """The results of a loop without branches: a call for each step."""
        n, ys = self.n, self.n.node.outputs[0].type
        states = list(n.args[1 : 1 + self.count])
        if length == 0:
            return [self.bb.emit(op.zeros(n.shape(ys.shape), NUMPY_NAMES[ys.dtype])), *states]
        step, found = self.step(), []
        captured = n.args[1 + self.count :]
        one = [*ys.shape[: self.axis], 1, *ys.shape[self.axis + 1 :]]
        types = [_type(n.lowerer, t) for t in (TensorType(tuple(one), ys.dtype), *(v.type for v in n.node.outputs[1:]))]
        for t in range(length)[:: -1 if n.p.reverse else 1]:
            at = [n.const(i, "int64") for i in (t, t + 1)]
            results = n.emit(relax.Call(step, [*self.sizes(), *at, n.x, *states, *captured]))
            parts = [n.emit(relax.TupleGetItem(results, i)) for i in range(len(types))]
            y, *states = (self.bb.match_cast(p, type_) for p, type_ in zip(parts, types, strict=True))
            found.append(y)
        return [self._joined(found[:: -1 if n.p.reverse else 1]), *states]

    def _joined(self, parts: list[Any]) -> Any:
        """By eights, since one kernel looks for its place among all of its operands."""
        while len(parts) > 1:
            groups = [parts[i : i + 8] for i in range(0, len(parts), 8)]
            parts = [g[0] if len(g) == 1 else self.bb.emit(op.concat(g, axis=self.axis)) for g in groups]
        return parts[0]

    def at_least_one(self) -> Any:
        """scan(lo, hi, …) for lo < hi."""
        f = self.frame()
        empty = relax.Function.create_empty(f.parameters, self.result_type(f), True)
        scan = self.bb.add_func(empty, self.name)
        step, split = self.step(), self.split(scan)
        f = self.frame()
        with self.bb.function(f"{self.name}_either", f.parameters, private=True):
            left = self.bb.emit(op.subtract(f.hi, f.lo))
            last = self.bb.emit(op.less_equal(left, relax.const(1, "int64")))
            arms = [f.call(g, f.lo, f.hi, f.states) for g in (step, split)]
            either = self.bb.emit_func_output(self.bb.emit(relax.If(last, *arms)))
        self.bb.update_func(scan, self.bb.get()[either])
        return scan

    def any_length(self) -> Any:
        """The same for lo <= hi."""
        scan, nothing = self.at_least_one(), self.nothing()
        f = self.frame()
        with self.bb.function(f"{self.name}_any", f.parameters, private=True):
            none = self.bb.emit(op.less_equal(f.hi, f.lo))
            arms = [f.call(g, f.lo, f.hi, f.states) for g in (nothing, scan)]
            return self.bb.emit_func_output(self.bb.emit(relax.If(none, *arms)))

    def nothing(self) -> Any:
        f, ys = self.frame(), self.n.node.outputs[0].type
        shape = [f.lowerer.dim(d) for d in ys.shape]
        shape[self.axis] = 0
        with self.bb.function(f"{self.name}_nothing", f.parameters, private=True):
            with self.bb.dataflow():
                none = self.bb.emit(op.zeros(shape, NUMPY_NAMES[ys.dtype]))
                out = self.bb.emit_output(relax.Tuple([none, *f.states]))
            return self.bb.emit_func_output(out)

    def step(self) -> Any:
        f, (cell,) = self.frame(), self.n.node.regions
        with self.bb.function(f"{self.name}_step", f.parameters, private=True):
            with self.bb.dataflow():
                x = self.bb.emit(op.take(f.xs, f.lo, self.axis, mode="clip"))
                y, *states = f.lowerer.graph(cell, [x, *f.states, *f.captured])
                stacked = self.bb.emit(op.expand_dims(y, self.axis))
                out = self.bb.emit_output(relax.Tuple([stacked, *states]))
            return self.bb.emit_func_output(out)

    def split(self, scan: Any) -> Any:
        f, ys = self.frame(), self.n.node.outputs[0].type
        with self.bb.function(f"{self.name}_split", f.parameters, private=True):
            with self.bb.dataflow():
                both = self.bb.emit(op.add(f.lo, f.hi))
                mid = self.bb.emit(op.floor_divide(both, relax.const(2, "int64")))
                parts, states, halves = [], f.states, [(f.lo, mid), (mid, f.hi)]
                for lo, hi in halves[::-1] if self.n.p.reverse else halves:
                    found = self.bb.emit(f.call(scan, lo, hi, states))
                    some, *states = (self.bb.emit(relax.TupleGetItem(found, i)) for i in range(1 + self.count))
                    shape = [f.lowerer.dim(d) for d in ys.shape]
                    shape[self.axis] = f.lowerer.bind(f"steps{f.lowerer.fresh()}")
                    parts.append(self.bb.match_cast(some, relax.TensorType(shape, NUMPY_NAMES[ys.dtype])))
                joined = self.bb.emit(op.concat(parts[::-1] if self.n.p.reverse else parts, axis=self.axis))
                out = self.bb.emit_output(relax.Tuple([joined, *states]))
            return self.bb.emit_func_output(out)


def _type(lowerer: Lowerer, type_: TensorType) -> Any:
    return relax.TensorType([lowerer.dim(d) for d in type_.shape], NUMPY_NAMES[type_.dtype])
