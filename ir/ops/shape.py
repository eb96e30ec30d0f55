"""Views: the same elements in another shape or another order of axes. None of them does arithmetic.

The ops that cut and join tensors stand in `pieces` and can be had from here too.

An axis that is merged or cut stays a *product of factors* wherever the sizes align, so that `[c, h, w]` flattened is
`c.h.w`, and permuting channels before `flatten` is permuting blocks of columns behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from archc.ir.dims import Dim, exact_div, product
from archc.ir.graph import GraphBuilder, Node, Value
from archc.ir.op import BindError, Bound, Call, NoParams, OpDef, Params, counted, register
from archc.ir.ops.pieces import CONCAT, PAD, SELECT, SLICE, SPLIT, AxisParams
from archc.ir.ops.reduce import axis_letters
from archc.ir.types import DType, TensorType

__all__ = ["CAST", "CONCAT", "EXPAND", "FLATTEN", "FLIP", "IDENTITY", "PAD", "PERMUTE", "RESHAPE", "SELECT", "SLICE"]
__all__ += ["SPLIT", "SQUEEZE", "STACK", "TRANSPOSE", "UNFLATTEN", "UNSQUEEZE"]

IDENTITY: OpDef[NoParams] = register(
    OpDef(
        name="identity",
        doc="`x` itself.",
        line="x[*b] -> [*b]",
        example="identity",
        category="shape",
    )
)


class CastParams(Params):
    dtype: DType


CAST = register(
    OpDef(
        name="cast",
        doc="`x` in another dtype; floats are cut towards zero when they become integers, and are true unless 0.",
        line=lambda call: f"x:any[*b] -> :{call.params.dtype}[*b]",
        params=CastParams,
        operands=("x",),
        elementwise=True,
        example='cast("f64")',
        category="shape",
    )
)


class ReshapeParams(Params):
    """One size may be -1: it is what remains."""

    shape: tuple[Dim, ...]


Factors = tuple[list[list[str]], list[list[str]], dict[str, Dim]]


def aligned_factors(before: Sequence[Dim], after: Sequence[Dim]) -> Factors:
    """The factors that each axis of two shapes of one size is made of, outermost first, and the factors' sizes.

    Where one size divides the other, the larger axis is cut; axes between two places where the shapes agree again but
    that divide each other nowhere are pinned.

    >>> aligned_factors((6, 4), (2, 12))
    ([['f0', 'f1'], ['f2']], [['f0'], ['f1', 'f2']], {'f0': 2, 'f1': 3, 'f2': 4})
    >>> aligned_factors((3, 4), (2, 6))
    ([['f0!'], ['f1!']], [['f2!'], ['f3!']], {'f0': 3, 'f1': 4, 'f2': 2, 'f3': 6})
    """
    left: list[list[str]] = [[] for _ in before]
    right: list[list[str]] = [[] for _ in after]
    sizes: dict[str, Dim] = {}

    def factor(size: Dim, pin: str = "") -> str:
        name = f"f{len(sizes)}"
        sizes[name] = size
        return name + pin

    a, b = list(before), list(after)  # what of each axis is still to be matched
    i = j = 0
    while i < len(a) or j < len(b):
        if i < len(a) and a[i] == 1:
            i += 1
        elif j < len(b) and b[j] == 1:
            j += 1
        elif (common := _common(a[i], b[j])) is not None:
            name = factor(common)
            left[i].append(name)
            right[j].append(name)
            a[i], b[j] = exact_div(a[i], common) or 0, exact_div(b[j], common) or 0
        else:
            stop_i, stop_j = _meeting(a, b, i, j)
            for k in range(i, stop_i):
                left[k].append(factor(a[k], "!"))
            for k in range(j, stop_j):
                right[k].append(factor(b[k], "!"))
            i, j = stop_i, stop_j
    return left, right, sizes


def _common(a: Dim, b: Dim) -> Dim | None:
    """The one of two sizes that divides the other."""
    if a == 0 or b == 0:
        return None
    return b if exact_div(a, b) is not None else a if exact_div(b, a) is not None else None


def _meeting(a: Sequence[Dim], b: Sequence[Dim], i: int, j: int) -> tuple[int, int]:
    """The ends of the shortest stretches of two shapes that hold equally many elements."""
    if 0 not in (*a[i:], *b[j:]):
        for stop_i in range(i + 1, len(a)):
            for stop_j in range(j + 1, len(b)):
                if product(a[i:stop_i]) == product(b[j:stop_j]):
                    return stop_i, stop_j
    return len(a), len(b)


def full_shape(call: Call[ReshapeParams]) -> tuple[Dim, ...]:
    """The shape a reshape makes, with -1 replaced by what remains.

    Raises: BindError when the numbers of elements differ (E0301) or do not divide (E0305).
    """
    (x,), shape = call.types, call.params.shape
    if shape.count(-1) > 1:
        label = f"{_list(shape)} has several -1"
        raise BindError("E0301", "a reshape infers one size only", label=label, blame="shape")
    known = product(s for s in shape if s != -1)
    if -1 in shape:
        rest = exact_div(x.size, known)
        if rest is None:
            raise BindError(
                "E0305",
                f"`reshape` needs a number of elements divisible by {known}",
                label=f"{x} has {x.size}",
                blame="shape",
                operands=[0],
            )
        return tuple(rest if s == -1 else s for s in shape)
    if known != x.size:
        raise BindError(
            "E0301",
            f"`reshape` to {_list(shape)} needs {known} elements",
            label=f"{x} has {x.size}",
            blame="shape",
            operands=[0],
            help="one size may be -1: it is what remains",
        )
    return shape


def _list(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _axes(factors: list[list[str]]) -> str:
    return ", ".join(".".join(f) or "1" for f in factors)


def _reshape_line(call: Call[ReshapeParams]) -> str:
    left, right, _ = aligned_factors(call.types[0].shape, full_shape(call))
    return f"x[{_axes(left)}] -> [{_axes(right)}]"


RESHAPE = register(
    OpDef(
        name="reshape",
        doc="The elements in row-major order in another shape. Factors that both shapes share stay free axes.",
        line=_reshape_line,
        params=ReshapeParams,
        spelled=lambda call, bound: {"shape": full_shape(call)},
        operands=("x",),
        sizes=lambda call, dims: aligned_factors(call.types[0].shape, full_shape(call))[2],
        example="reshape([-1, 2, 3, 8])",
        category="shape",
    )
)


def _as_reshape(b: GraphBuilder, node: Node) -> Sequence[Value]:
    return [b(RESHAPE, node.inputs[0], shape=node.output.type.shape)]


class FlattenParams(Params):
    """The axes `from` … `to`, both included, become one. PyTorch calls them start_dim and end_dim."""

    model_config = ConfigDict(populate_by_name=True)

    from_: int = Field(default=1, alias="from")
    to: int = -1


def _flatten_line(call: Call[FlattenParams]) -> str:
    letters = axis_letters(call.rank)
    first, last = call.axis(call.params.from_, blame="from"), call.axis(call.params.to, blame="to")
    if first > last:
        label = f"found {first} and {last}"
        raise BindError("E0306", "`flatten` needs `from` not behind `to`", label=label, blame="from")
    merged = [*letters[:first], ".".join(letters[first : last + 1]), *letters[last + 1 :]]
    return f"x[{', '.join(letters)}] -> [{', '.join(merged)}]"


FLATTEN = register(
    OpDef(
        name="flatten",
        doc="Several neighbouring axes as one: everything but the batch axis unless said otherwise.",
        line=_flatten_line,
        params=FlattenParams,
        spelled=counted("from_", "to"),
        operands=("x",),
        decompose=_as_reshape,
        example="flatten",
        category="shape",
    )
)


class UnflattenParams(Params):
    """One size may be -1: it is what remains."""

    axis: int
    sizes: tuple[Dim, ...] = Field(min_length=1)


def _unflatten_line(call: Call[UnflattenParams]) -> str:
    letters = axis_letters(call.rank)
    axis = call.axis(call.params.axis)
    sizes, size = call.params.sizes, call.types[0].shape[axis]
    if sizes.count(-1) > 1:
        label = f"{_list(sizes)} has several -1"
        raise BindError("E0301", "`unflatten` infers one size only", label=label, blame="sizes")
    known = product(s for s in sizes if s != -1)
    if exact_div(size, known) is None or (-1 not in sizes and size != known):
        verb, code = ("divisible by", "E0305") if -1 in sizes else ("of size", "E0301")
        raise BindError(
            code,
            f"`unflatten` to {_list(sizes)} needs axis {call.params.axis} {verb} {known}",
            label=f"found {size} in {call.types[0]}",
            blame="sizes",
            operands=[0],
        )
    parts = [f"u{i}" for i in range(len(sizes))]
    cut = [*letters[:axis], *parts, *letters[axis + 1 :]]
    letters[axis] = ".".join(parts)
    return f"x[{', '.join(letters)}] -> [{', '.join(cut)}]"


def _unflattened(call: Call[UnflattenParams], bound: Bound) -> Mapping[str, Any]:
    axis = call.axis(call.params.axis)
    return {"axis": axis, "sizes": bound.results[0].shape[axis : axis + len(call.params.sizes)]}


UNFLATTEN = register(
    OpDef(
        name="unflatten",
        doc="One axis as several, whose product it is.",
        line=_unflatten_line,
        params=UnflattenParams,
        spelled=_unflattened,
        operands=("x",),
        sizes=lambda call, dims: {f"u{i}": s for i, s in enumerate(call.params.sizes) if s != -1},
        decompose=_as_reshape,
        example="unflatten(1, [2, -1])",
        category="shape",
    )
)


class PermuteParams(Params):
    order: tuple[int, ...]


def _permute_line(call: Call[PermuteParams]) -> str:
    letters = axis_letters(call.rank)
    if len(call.params.order) != call.rank:
        raise BindError(
            "E0306",
            f"`permute` needs each of the {call.rank} axes once",
            label=f"{_list(call.params.order)} for {call.types[0]}",
            blame="order",
            operands=[0],
        )
    order = [call.axis(a, blame="order") for a in call.params.order]
    call.axes(call.params.order, blame="order")
    return f"x[{', '.join(letters)}] -> [{', '.join(letters[a] for a in order)}]"


PERMUTE = register(
    OpDef(
        name="permute",
        doc="The axes in another order: axis `i` of the result is axis `order[i]` of `x`.",
        line=_permute_line,
        params=PermuteParams,
        spelled=lambda call, bound: {"order": tuple(call.axis(a) for a in call.params.order)},
        operands=("x",),
        example="permute([0, 2, 1])",
        category="shape",
    )
)


class TransposeParams(Params):
    a: int
    b: int


def swapped(rank: int, a: int, b: int) -> list[int]:
    """The order of axes with two exchanged."""
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return order


def _transpose_line(call: Call[TransposeParams]) -> str:
    letters = axis_letters(call.rank)
    order = swapped(call.rank, call.axis(call.params.a, blame="a"), call.axis(call.params.b, blame="b"))
    return f"x[{', '.join(letters)}] -> [{', '.join(letters[a] for a in order)}]"


def _as_permute(b: GraphBuilder, node: Node) -> Sequence[Value]:
    call: Call[TransposeParams] = node.call
    order = swapped(call.rank, call.axis(call.params.a, blame="a"), call.axis(call.params.b, blame="b"))
    return [b(PERMUTE, node.inputs[0], order=tuple(order))]


TRANSPOSE = register(
    OpDef(
        name="transpose",
        doc="Two axes exchanged.",
        line=_transpose_line,
        params=TransposeParams,
        spelled=lambda call, bound: dict(
            zip("ab", sorted((call.axis(call.params.a), call.axis(call.params.b))), strict=True)
        ),
        operands=("x",),
        decompose=_as_permute,
        example="transpose(1, 2)",
        category="shape",
    )
)


class FlipParams(Params):
    axis: int


def _flip_line(call: Call[FlipParams]) -> str:
    letters = axis_letters(call.rank)
    letters[call.axis(call.params.axis)] += "!~"
    return f"x[{', '.join(letters)}] -> [{', '.join(letters)}]"


FLIP = register(
    OpDef(
        name="flip",
        doc="The elements along `axis` in reverse order; the axis is pinned.",
        line=_flip_line,
        params=FlipParams,
        spelled=counted("axis"),
        operands=("x",),
        example="flip(1)",
        category="shape",
    )
)


class ExpandParams(Params):
    """-1 keeps a size; sizes in front make new axes."""

    shape: tuple[Dim, ...]


def _expanded(call: Call[ExpandParams]) -> tuple[str, dict[str, Dim]]:
    """The line, and the sizes of the axes that are made."""
    x, shape = call.types[0], call.params.shape
    new = len(shape) - x.rank
    if new < 0 or -1 in shape[:new]:
        raise BindError(
            "E0302",
            "`expand` needs a size for each axis; -1 keeps one that is there",
            label=f"{x} to {_list(shape)}",
            blame="shape",
            operands=[0],
        )
    letters = axis_letters(len(shape))
    before, after, sizes = [], [], dict[str, Dim]()
    for i, (letter, size) in enumerate(zip(letters, shape, strict=True)):
        own = x.shape[i - new] if i >= new else None
        if own is not None:
            before.append("1" if own == 1 else letter)
        after.append("1" if (size == 1 or size == -1) and own in (1, None) else letter)
        if own in (1, None) and after[-1] == letter:
            sizes[letter] = size
        elif own is not None and size != -1 and size != own:
            raise BindError(
                "E0301",
                f"`expand` needs size 1 or {size} on axis {i - new}",
                label=f"found {own} in {x}",
                blame="shape",
                operands=[0],
            )
    return f"x[{', '.join(before)}] -> [{', '.join(after)}]", sizes


EXPAND = register(
    OpDef(
        name="expand",
        doc="Copies along axes of size 1, and along new axes in front.",
        line=lambda call: _expanded(call)[0],
        params=ExpandParams,
        spelled=lambda call, bound: {"shape": bound.results[0].shape},
        operands=("x",),
        sizes=lambda call, dims: _expanded(call)[1],
        example="expand([2, -1, -1, -1])",
        category="shape",
    )
)


class SqueezeParams(Params):
    axis: int | tuple[int, ...]


def _squeeze_line(call: Call[SqueezeParams]) -> str:
    gone = call.axes(call.params.axis)
    letters = axis_letters(call.rank)
    before = ["1" if i in gone else letter for i, letter in enumerate(letters)]
    return f"x[{', '.join(before)}] -> [{', '.join(letter for i, letter in enumerate(letters) if i not in gone)}]"


def _new_axes(call: Call[SqueezeParams]) -> tuple[int, ...]:
    wanted = (call.params.axis,) if isinstance(call.params.axis, int) else call.params.axis
    wide = Call(NoParams(), (TensorType((1,) * (call.rank + len(wanted))),))  # axes count in the result
    return wide.axes(wanted)


def _unsqueeze_line(call: Call[SqueezeParams]) -> str:
    new = _new_axes(call)
    rank, letters = call.rank + len(new), iter(axis_letters(call.rank))
    after = ["1" if i in new else next(letters) for i in range(rank)]
    return f"x[{', '.join(axis_letters(call.rank))}] -> [{', '.join(after)}]"


SQUEEZE = register(
    OpDef(
        name="squeeze",
        doc="Axes of size 1 taken away; another size is an error.",
        line=_squeeze_line,
        params=SqueezeParams,
        spelled=lambda call, bound: {"axis": call.axes(call.params.axis)},
        operands=("x",),
        decompose=_as_reshape,
        example="squeeze(1)",
        example_inputs=("f32[N, 1, 8]",),
        category="shape",
    )
)
UNSQUEEZE = register(
    OpDef(
        name="unsqueeze",
        doc="New axes of size 1; they stand at `axis` in the result.",
        line=_unsqueeze_line,
        params=SqueezeParams,
        spelled=lambda call, bound: {"axis": _new_axes(call)},
        operands=("x",),
        decompose=_as_reshape,
        example="unsqueeze(1)",
        category="shape",
    )
)


def _stack_line(call: Call[AxisParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis, extra=1)
    operands = " ".join(f"operand{i}[{', '.join(letters)}]" for i in range(len(call.types)))
    return f"{operands} -> [{', '.join([*letters[:axis], 'count!', *letters[axis:]])}]"


def _stack(b: GraphBuilder, node: Node) -> Sequence[Value]:
    call: Call[AxisParams] = node.call
    axis = call.axis(call.params.axis, extra=1)
    return [b(CONCAT, *(b(UNSQUEEZE, x, axis=axis) for x in node.inputs), axis=axis)]


STACK = register(
    OpDef(
        name="stack",
        doc="Tensors of one shape along a new axis, which is pinned: its entries are different tensors.",
        line=_stack_line,
        params=AxisParams,
        spelled=counted("axis", extra=1),
        operands=("*xs",),
        sizes=lambda call, dims: {"count": len(call.types)},
        decompose=_stack,
        example="stack(axis = 1)",
        example_inputs=("f32[N, 6]", "f32[N, 6]"),
        category="shape",
    )
)
