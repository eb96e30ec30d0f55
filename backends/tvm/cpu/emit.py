"""A small writer of TIR statements: Python context managers in, one `PrimFunc` out.

Kernels are written as the loops they become, e.g. a vector add::

    out = Emitter()
    with out.loop(n // 16, "parallel") as i:
        with out.loop(16, "vectorized") as j:
            out.store(c, [i * 16 + j], a[i * 16 + j] + b[i * 16 + j])
    body = out.finish()

Schedules were tried first; they need divisible extents, and where they do not find them they quietly leave loops that
LLVM cannot keep in registers. Writing the loops makes every tail explicit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import sym, tirx

Expr = Any  # a tirx expression, or a Python number that TVM converts
Buffer = Any
Var = Any

_KINDS = {"serial": 0, "parallel": 1, "vectorized": 2, "unrolled": 3}
INDEX = "int64"


def index(value: Expr) -> Expr:
    """`value` as an int64 expression."""
    if isinstance(value, int):
        return tirx.IntImm(INDEX, value)
    return value if str(value.ty.dtype) == INDEX else tirx.Cast(INDEX, value)


def as_int(value: Expr) -> int | None:
    """The value of a constant extent, or None where it is known only at run time."""
    if isinstance(value, int):
        return value
    return int(value.value) if isinstance(value, tirx.IntImm) else None


def simplify(value: Expr) -> Expr:
    """Fold constants and cancel terms of an index expression."""
    return value if isinstance(value, int) else sym.Analyzer().simplify(value)


def ceil_div(value: Expr, by: int) -> Expr:
    """How many blocks of `by` cover `value`."""
    number = as_int(value)
    if number is not None:
        return -(-number // by)
    return tirx.floordiv(value + (by - 1), by)


def product(extents: Sequence[Expr]) -> Expr:
    """The product of extents, an int where all are."""
    total: Expr = 1
    for extent in extents:
        number = as_int(extent)
        total = total * (extent if number is None else number)
    return total


class Emitter:
    """Collects statements; blocks nest with `with`."""

    def __init__(self) -> None:
        self._blocks: list[list[tirx.Stmt]] = [[]]
        self._regions: list[_Region] = [_Region(self._blocks[0])]
        self._lane: tuple[Expr, int, list[tirx.Stmt]] | None = None  # of the vector loop that is open, and its outside

    def finish(self) -> tirx.Stmt:
        """The statement written so far."""
        assert len(self._blocks) == 1, "a block is still open"
        return _sequence(self._blocks[0])

    def add(self, statement: tirx.Stmt) -> None:
        self._blocks[-1].append(statement)

    def store(self, buffer: Buffer, indices: Sequence[Expr], value: Expr) -> None:
        self.add(tirx.BufferStore(buffer, value, [index(i) for i in indices]))

    def bind(self, name: str, value: Expr) -> Var:
        """Name a value, so that it is computed once."""
        if isinstance(value, int):
            value = index(value)
        var = tirx.Var(name, str(value.ty.dtype))
        self.add(tirx.Bind(var, value))
        return var

    def keep(self, name: str, value: Expr) -> Expr:
        """`bind` by way of a local buffer, one element for each lane of the vector loop around it, which LLVM keeps in
        registers. TVM's analysis follows a name into its value, and takes minutes for an exponential in a logarithm.
        """
        if self._lane is None:
            buffer, at = self.local(name, [1], str(value.ty.dtype)), index(0)
        else:
            at, lanes, outside = self._lane
            buffer = tirx.decl_buffer([index(lanes)], str(value.ty.dtype), name, scope="local")
            outside.append(tirx.AllocBuffer(buffer))
        self.store(buffer, [at], value)
        return tirx.BufferLoad(buffer, [at])

    def local(self, name: str, shape: Sequence[int], dtype: str) -> Buffer:
        """A buffer small enough for LLVM to keep in registers or on the stack."""
        return self._allocate(name, shape, dtype, "local")

    def scratch(self, name: str, shape: Sequence[Expr], dtype: str) -> Buffer:
        """A buffer in memory; inside a parallel loop each task has its own."""
        return self._allocate(name, shape, dtype, "global")

    def _allocate(self, name: str, shape: Sequence[Expr], dtype: str, scope: str) -> Buffer:
        buffer = tirx.decl_buffer([index(d) for d in shape], dtype, name, scope=scope)
        self.add(tirx.AllocBuffer(buffer))
        return buffer

    def view(self, buffer: Buffer, shape: Sequence[Expr]) -> Buffer:
        """The same memory (compact, row major) under another shape.

        The alias is declared at the start of the parallel loop around it: the closure that TVM makes of such a loop
        captures parameters, not their aliases.
        """
        region = self._regions[-1]
        place = (buffer.__chandle__(), tuple(str(d) for d in shape))
        if place not in region.views:
            alias = tirx.decl_buffer([index(d) for d in shape], buffer.dtype, f"{buffer.name}_view")
            region.block.insert(_after_allocation(region.block, buffer), tirx.DeclBuffer(alias, data=buffer.data))
            region.views[place] = alias
        return region.views[place]

    @contextmanager
    def loop(self, extent: Expr, kind: str = "serial", name: str = "i") -> Iterator[Expr]:
        """A loop over `range(extent)`; one of a single turn leaves no loop behind."""
        if as_int(extent) == 1:
            yield index(0)
            return
        var = tirx.Var(name, INDEX)
        self._blocks.append([])
        if kind == "parallel":
            self._regions.append(_Region(self._blocks[-1]))
        around, extent_known = self._lane, as_int(extent)
        if kind == "vectorized" and extent_known is not None:
            self._lane = (var, extent_known, self._blocks[-2])
        yield var
        self._lane = around
        if kind == "parallel":
            self._regions.pop()
        body = _sequence(self._blocks.pop())
        self.add(tirx.For(var, index(0), index(extent), _KINDS[kind], body))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Statements that run where `condition` holds."""
        self._blocks.append([])
        yield
        body = _sequence(self._blocks.pop())
        self.add(tirx.IfThenElse(condition, body, None))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The other branch of the `when` just before."""
        before = self._blocks[-1].pop()
        assert isinstance(before, tirx.IfThenElse)
        assert before.else_case is None
        self._blocks.append([])
        yield
        body = _sequence(self._blocks.pop())
        self.add(tirx.IfThenElse(before.condition, before.then_case, body))


@dataclass
class _Region:
    """The body of a parallel loop, or of the function."""

    block: list[tirx.Stmt]
    views: dict[Any, Buffer] = field(default_factory=dict)


def _sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    if not statements:
        return tirx.Evaluate(index(0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _after_allocation(block: list[tirx.Stmt], buffer: Buffer) -> int:
    for place, statement in enumerate(block):
        if isinstance(statement, tirx.AllocBuffer) and statement.buffer.same_as(buffer):
            return place + 1
    return 0
