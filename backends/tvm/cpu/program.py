"""A fused TIR function read as a list of tensor equations, and their evaluation at any index.

Relax hands us one function per fused group: a chain of blocks, each either `out[i, j] = f(inputs)` or a reduction
`out[i] = out[i] ⊕ f(inputs)`. `parse` reads that into a `Program`; an `Evaluator` answers "what is `out` at these
indices" as one expression, with every pointwise stage substituted into its reader. The kernels then write whatever
loops they like, and an epilogue (bias, residual, activation) costs them nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx

from archc.backends.tvm.cpu import mathfn
from archc.backends.tvm.cpu.emit import Emitter, index

Expr = Any
Buffer = Any
Var = Any
Read = Callable[[Sequence[Expr]], Expr]

_OPAQUE = 8
WRITTEN = "archc.written"
"""The attribute of a function whose loops and buffers are ours."""
_LOWERED = (ir.Var, ir.TensorLoad, ir.Call, tirx.Max, tirx.Min, tirx.Select)
_COMBINERS = {tirx.Add: "add", tirx.Mul: "mul", tirx.Max: "max", tirx.Min: "min", tirx.And: "and", tirx.Or: "or"}


def key(node: Any) -> int:
    """Identity of a TVM object (two Python wrappers may hold the same one)."""
    return int(node.__chandle__())


def is_float(value: Expr) -> bool:
    return str(value.ty.dtype).startswith(("float", "bfloat"))


_StructuralMutate = tvm_ffi.get_global_func("ffi.StructuralMutate")


@functools.cache
def _type_index(kind: type) -> int:
    return int(tvm_ffi.core.TypeSchema.from_annotation(kind).origin_type_index)


def mutate(expression: Expr, kinds: Sequence[type], rewrite: Callable[[Expr, Any], Expr]) -> Expr:
    """`tvm_ffi.structural_mutate` for callbacks of two arguments, without its question of how many they take: that
    takes 0.1 ms for each kind at each call, half of the time to write a kernel.
    """
    return _StructuralMutate(expression, [(_type_index(kind), rewrite, False) for kind in kinds])


def substitute(expression: Expr, values: dict[Var, Expr]) -> Expr:
    """`expression` with variables replaced."""
    bound = {key(var): index(value) for var, value in values.items()}
    return tvm_ffi.structural_map(expression, (ir.Var, lambda v: bound.get(key(v), v)))


_EXPENSIVE = ("tirx.exp", "tirx.erf", "tirx.tanh", "tirx.sigmoid", "tirx.log", "tirx.pow")


def is_expensive(value: Expr) -> bool:
    """Whether an expression holds a function that takes tens of instructions."""
    names: list[str] = []
    tvm_ffi.structural_walk(value, (ir.Call, lambda c: names.append(c.op.name if isinstance(c.op, ir.Op) else "")))
    return any(name in _EXPENSIVE for name in names)


@dataclass(frozen=True)
class Axis:
    var: Var
    extent: Expr


@dataclass(frozen=True)
class Stage:
    """One equation: `buffer[axes] = value`, or with `combiner`, the reduction of `value` over `reduced`."""

    name: str
    buffer: Buffer
    axes: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    value: Expr
    combiner: str | None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """The equations of one function, in order; the last one's buffer is its output."""

    function: tirx.PrimFunc
    stages: tuple[Stage, ...]

    @property
    def output(self) -> Stage:
        return self.stages[-1]

    @property
    def anchor(self) -> Stage | None:
        """The stage that a special kernel was asked to compute, if one was."""
        marked = [s for s in self.stages if "archc.kernel" in s.attributes]
        assert len(marked) <= 1, f"two special kernels fused into one function: {[s.name for s in marked]}"
        return marked[0] if marked else None

    def rewritten(self, body: tirx.Stmt) -> tirx.PrimFunc:
        """The same signature around a new body; opaque, so that TVM's build fuses nothing more into it."""
        root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
        attributes = {"op_pattern": _OPAQUE, "tirx.noalias": True, "s_tir": True, WRITTEN: True}
        return self.function.with_body(root).with_attr(attributes)


def parse(function: tirx.PrimFunc) -> Program | None:
    """Read a function; None where it is not a chain of tensor equations with one output (a sort, a scan, a scatter)."""
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize):
        return None
    body = root.block.body
    stages = []
    for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        stage = _stage(statement)
        if stage is None:
            return None
        stages.append(stage)
    parameters = {key(p) for p in function.params}
    written = [s for s in stages if key(s.buffer) in parameters]
    if len(written) != 1 or written[0] is not stages[-1] or any(not _is_buffer(p) for p in function.params):
        return None
    return Program(function, tuple(stages))


def _is_buffer(parameter: Var) -> bool:
    return isinstance(parameter.ty, tirx.BufferType)


def _stage(statement: tirx.Stmt) -> Stage | None:
    loops = []
    while isinstance(statement, tirx.For):
        loops.append(statement)
        statement = statement.body
    if not isinstance(statement, s_tir.SBlockRealize) or not isinstance(statement.block.body, tirx.BufferStore):
        return None
    block, store = statement.block, statement.block.body
    if len(block.alloc_buffers) or len(block.match_buffers):
        return None
    iter_vars = block.iter_vars if loops else []  # a scalar's block has one dummy variable
    if loops and (
        len(loops) != len(iter_vars)
        or any(not v.same_as(loop.loop_var) for v, loop in zip(statement.iter_values, loops, strict=True))
    ):
        return None
    axes: list[Axis] = []
    reduced: list[Axis] = []
    for iter_var in iter_vars:
        axis = Axis(iter_var.var, iter_var.dom.extent)
        (axes if int(iter_var.iter_type) == tirx.IterVar.DataPar else reduced).append(axis)
    if len(store.indices) != len(axes):
        return None
    if any(not index.same_as(axis.var) for index, axis in zip(store.indices, axes, strict=True)):
        return None
    value, combiner = store.value, None
    if reduced:
        combiner = _COMBINERS.get(type(value))
        if combiner is None or not isinstance(value.a, ir.TensorLoad) or key(value.a.source) != key(store.buffer):
            return None
        value = value.b
    attributes = {str(k): v for k, v in block.annotations.items()}
    return Stage(block.name_hint, store.buffer, tuple(axes), tuple(reduced), value, combiner, attributes)


class Evaluator:
    """Expressions of a program's stages.

    Values used more than once are named by statements that go to `out`, just before the statement that will hold the
    expression. (`Let` expressions would do, but TVM's common-subexpression pass lifts their variables out of them.)
    """

    def __init__(self, program: Program, out: Emitter) -> None:
        self._pointwise = {key(s.buffer): s for s in program.stages if s.combiner is None}
        self._registers: dict[int, Read] = {}
        self._operand: Callable[[Buffer, Sequence[Expr]], Expr] = tirx.BufferLoad
        self._out = out
        self._known: dict[Any, Expr] = {}
        self._trial: list[Expr] | None = None
        self._clamping = 0

    def define(self, buffer: Buffer, read: Read) -> None:
        """From now on loads of `buffer` are answered by `read(indices)`."""
        self._registers[key(buffer)] = read

    def define_value(self, buffer: Buffer, value: Expr) -> None:
        """From now on `buffer` is one value, whatever the indices."""
        self.define(buffer, lambda _: value)

    def define_copy(self, buffer: Buffer, copy: Buffer, lead: int = 0) -> None:
        """From now on `buffer` is read from `copy`, which has not its first `lead` axes."""
        self.define(buffer, lambda at: self.operand(copy, at[lead:] or [index(0)]))

    def operand(self, buffer: Buffer, indices: Sequence[Expr]) -> Expr:
        """A load of memory as seen by whoever writes the loops (see `reading`)."""
        return self._operand(buffer, indices)

    def aside(self) -> Evaluator:
        """The same evaluator writing to an emitter of its own, to look at what it would write."""
        other = copy(self)
        other._out = Emitter()
        return other

    def named(self) -> list[Expr]:
        """The values named so far, where nothing but names was written."""
        body = self._out.finish()
        binds = body.seq if isinstance(body, tirx.SeqStmt) else [body]
        return [bind.value for bind in binds if isinstance(bind, tirx.Bind | tirx.BufferStore)]

    @contextmanager
    def reading(self, operand: Callable[[Buffer, Sequence[Expr]], Expr]) -> Iterator[None]:
        """Within the block, loads of the function's own parameters are answered by `operand(buffer, indices)`."""
        before, self._operand = self._operand, operand
        yield
        self._operand = before

    def stage(self, stage: Stage, indices: Sequence[Expr], reduced: Sequence[Expr] = ()) -> Expr:
        """The value of `stage` (of one term of it, for a reduction) at these indices."""
        places = (*indices, *reduced)
        bound = {key(a.var): place for a, place in zip((*stage.axes, *stage.reduced), places, strict=True)}
        self._known = {}
        return self._lower(stage.value, bound)

    def combine(self, combiner: str, a: Expr, b: Expr) -> Expr:
        """One step of a reduction; `max` and `min` keep a NaN."""
        plain = {"add": lambda: a + b, "mul": lambda: a * b, "and": lambda: tirx.And(a, b), "or": lambda: tirx.Or(a, b)}
        if combiner in plain:
            return plain[combiner]()
        node = (tirx.Max if combiner == "max" else tirx.Min)(a, b)
        if not is_float(a):
            return node
        self._known = {}
        return (mathfn.maximum if combiner == "max" else mathfn.minimum)(a, b, self._bind)

    def _bind(self, value: Expr) -> Expr:
        """Name a value, so that it is computed once (not bools: TVM cannot bind a vector of them)."""
        if isinstance(value, ir.Var | tirx.IntImm | tirx.FloatImm) or str(value.ty.dtype) == "bool":
            return value
        if self._trial is not None:
            self._trial.append(value)
            return tirx.Var("t", str(value.ty.dtype))
        return self._out.bind("t", _unguarded(value))

    def _keep(self, value: Expr) -> Expr:
        """Name a value by way of a buffer: what TVM computes lane by lane cannot see the names of vectors."""
        if isinstance(value, tirx.IntImm | tirx.FloatImm):
            return value
        if self._trial is not None:
            self._trial.append(value)
            return tirx.Var("t", str(value.ty.dtype))
        return self._out.keep("t", _unguarded(value))

    def _lower(self, expression: Expr, bound: dict[int, Expr]) -> Expr:
        if isinstance(expression, tirx.IntImm | tirx.FloatImm):
            return expression
        if isinstance(expression, _LOWERED):
            return self._lower_node(expression, bound)
        return mutate(expression, _LOWERED, lambda e, _: self._lower_node(e, bound))

    def _lower_node(self, node: Expr, bound: dict[int, Expr]) -> Expr:
        if isinstance(node, ir.Var):
            return bound.get(key(node), node)
        if isinstance(node, ir.TensorLoad):
            return self._load(node.source, [self._lower(i, bound) for i in node.indices])
        if isinstance(node, tirx.Select):
            return tirx.Select(*(self._lower(e, bound) for e in (node.condition, node.true_value, node.false_value)))
        if isinstance(node, tirx.Max | tirx.Min):
            a, b = self._lower(node.a, bound), self._lower(node.b, bound)
            if not is_float(a):
                return type(node)(a, b)
            return (mathfn.maximum if isinstance(node, tirx.Max) else mathfn.minimum)(a, b, self._bind)
        name = node.op.name if isinstance(node.op, ir.Op) else ""
        if name == "prim.if_then_else":
            return self._guarded(node, bound)
        arguments = [self._lower(a, bound) for a in node.args]
        if mathfn.by_lane(node.op, str(node.ty.dtype)):
            arguments = [a if isinstance(a, ir.TensorLoad) else self._keep(a) for a in arguments]
        value = mathfn.expand(name, str(node.ty.dtype), arguments, self._bind)
        if value is None:
            value = ir.Call(node.op, arguments, node.attrs, node.ty_args, ret_ty=node.ty)
        return self._keep(value) if mathfn.by_lane(node.op, str(node.ty.dtype)) else value

    def _guarded(self, node: ir.Call, bound: dict[int, Expr]) -> Expr:
        """A guard over plain loads stays one; arms that compute do so always, from indices clamped into range."""
        condition = self._lower(node.args[0], bound)
        if self._trial is not None:  # a guard around this one wants to know of names: one look is enough
            return tirx.if_then_else(condition, *(self._lower(a, bound) for a in node.args[1:]))
        before, self._trial = self._trial, []
        arms = [self._lower(a, bound) for a in node.args[1:]]
        names, self._trial = self._trial, before
        if not names:
            return tirx.if_then_else(condition, *arms)
        self._clamping += 1
        arms = [self._lower(a, bound) for a in node.args[1:]]
        self._clamping -= 1
        return tirx.Select(condition, *arms)

    def _load(self, buffer: Buffer, indices: list[Expr]) -> Expr:
        read = self._registers.get(key(buffer))
        if read is not None:
            return read(indices)
        stage = self._pointwise.get(key(buffer))
        if stage is None and not indices:  # TVM cannot load a scalar in a vector loop, unless it is a vector of one
            return tirx.BufferLoad(self._out.view(buffer, [1]), [index(0)])
        if stage is None:
            return self._operand(buffer, clamped(buffer, indices) if self._clamping else indices)
        place = (key(buffer), tvm_ffi.StructuralKey(tvm_ffi.convert(indices)))
        if place in self._known:
            return self._known[place]
        bound = {key(a.var): index for a, index in zip(stage.axes, indices, strict=True)}
        value = self._lower(stage.value, bound)
        if self._trial is None and (is_expensive(stage.value) or isinstance(value, tirx.Select)):
            value = self._out.keep("t", _unguarded(value))
        else:
            value = self._bind(value)
        if self._trial is None:
            self._known[place] = value
        return value


def clamped(buffer: Buffer, indices: Sequence[Expr]) -> list[Expr]:
    """Indices moved into the buffer; a bare variable or constant is inside already."""
    return [
        i if isinstance(i, ir.Var | tirx.IntImm) else tirx.max(tirx.min(i, extent - 1), index(0))
        for i, extent in zip(indices, buffer.shape, strict=True)
    ]


def _unguarded(value: Expr) -> Expr:
    """`value` without guards: TVM makes a loop of its own of a named value whose guard varies along a vector, and so
    leaves the last lane's value to all."""

    def select(node: ir.Call, mutator: Any) -> Expr:
        if not (isinstance(node.op, ir.Op) and node.op.name == "prim.if_then_else"):
            return mutator.default_mutate(node)
        arms = [tvm_ffi.structural_map(a, (ir.TensorLoad, _clamped_load)) for a in node.args[1:]]
        return tirx.Select(*(mutator.mutate(e) for e in (node.args[0], *arms)))

    return mutate(value, (ir.Call,), select)


def _clamped_load(load: ir.TensorLoad) -> Expr:
    return tirx.BufferLoad(load.source, clamped(load.source, load.indices))
