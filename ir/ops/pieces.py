"""Putting tensors together and taking pieces of them: concat, split, slice, select, pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt

from archc.ir.dims import Dim, exact_div, total
from archc.ir.op import BindError, Call, Dims, OpDef, Params, counted, register
from archc.ir.ops.reduce import axis_letters
from archc.ir.types import FLOATS


class AxisParams(Params):
    axis: int


def _tensor(letters: Sequence[str], axis: int, there: str, name: str = "") -> str:
    """A tensor pattern with the axis at `axis` replaced: `x[d0, there, d2]`."""
    return f"{name}[{', '.join([*letters[:axis], there, *letters[axis + 1 :]])}]"


def _concat_line(call: Call[AxisParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    parts = [f"x{i}" for i in range(len(call.types))]
    operands = " ".join(_tensor(letters, axis, part, f"operand{i}") for i, part in enumerate(parts))
    return f"{operands} -> {_tensor(letters, axis, ' + '.join(parts))}"


CONCAT = register(
    OpDef(
        name="concat",
        doc="Tensors one behind the other along `axis`; the other axes agree.",
        line=_concat_line,
        params=AxisParams,
        spelled=counted("axis"),
        operands=("*xs",),
        example="concat(axis = 1)",
        example_inputs=("f32[N, 6, 8]", "f32[N, 2, 8]"),
        category="shape",
    )
)


class SplitParams(Params):
    """`parts` is the number of equal parts, or the list of their sizes."""

    parts: PositiveInt | tuple[Dim, ...]
    axis: int


def split_sizes(call: Call[SplitParams]) -> tuple[Dim, ...]:
    """The sizes of the parts.

    Raises: BindError when they are not whole (E0305) or do not add up (E0301).
    """
    parts, size = call.params.parts, call.types[0].shape[call.axis(call.params.axis)]
    if isinstance(parts, int):
        each = exact_div(size, parts)
        if each is None:
            raise BindError(
                "E0305",
                f"`split` needs axis {call.params.axis} divisible by {parts}",
                label=f"found {size} in {call.types[0]}",
                blame="parts",
                operands=[0],
                help="a list gives the parts' sizes: `split([1, 2], axis = 1)`",
            )
        return (each,) * parts
    if not parts or total(parts) != size:
        raise BindError(
            "E0301",
            f"`split` needs sizes that add up to {size}",
            label=f"{' + '.join(map(str, parts)) or 'none'} is {total(parts)}",
            blame="parts",
            operands=[0],
        )
    return parts


def _split_line(call: Call[SplitParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    parts = [f"x{i}" for i in range(len(split_sizes(call)))]
    results = " ".join(_tensor(letters, axis, part) for part in parts)
    return f"{_tensor(letters, axis, ' + '.join(parts), 'x')} -> {results}"


SPLIT = register(
    OpDef(
        name="split",
        doc="The parts of `x` along `axis`, as so many results: equal ones (a number) or of given sizes (a list).",
        line=_split_line,
        params=SplitParams,
        spelled=lambda call, bound: {"parts": split_sizes(call), "axis": call.axis(call.params.axis)},
        operands=("x",),
        sizes=lambda call, dims: {f"x{i}": size for i, size in enumerate(split_sizes(call))},
        example="fn(x) { let a, b = split(x, 2, axis = 1) return a * b }",
        category="shape",
    )
)


class SliceParams(Params):
    """Indices `from`, `from + step`, … before `to` (default: the end); negative ones count from the end.

    Bounds beyond the axis are an error, where Python would clamp: a clamped size cannot be told of a symbol.
    """

    model_config = ConfigDict(populate_by_name=True)

    axis: int
    from_: int = Field(default=0, alias="from")
    to: int | None = None
    step: PositiveInt = 1


def slice_bounds(call: Call[SliceParams]) -> tuple[Dim, Dim]:
    """(start, stop) counted from 0.

    Raises: BindError (E0312) when they lie outside the axis or in the wrong order.
    """
    p, size = call.params, call.types[0].shape[call.axis(call.params.axis)]
    start: Dim = p.from_ if p.from_ >= 0 else size + p.from_
    stop: Dim = size if p.to is None else p.to if p.to >= 0 else size + p.to
    outside = ((start, 0, "from"), (size, start, "from"), (stop, 0, "to"), (size, stop, "to"))
    checks = [(*check, f"bounds within its size {size}") for check in outside]
    for later, earlier, blame, needed in (*checks, (stop, start, "to", "`to` not to lie before `from`")):
        gap = later - earlier
        if isinstance(gap, int) and gap < 0:
            raise BindError(
                "E0312",
                f"`slice` of axis {p.axis} needs {needed}",
                label=f"found from {start} to {stop} in {call.types[0]}",
                blame=blame if blame == "from" or p.to is not None else "from",
                operands=[0],
            )
    return start, stop


def _slice_line(call: Call[SliceParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    if call.params.step != 1:  # a stride mixes what is kept with what is not
        return f"{_tensor(letters, axis, 'all!', 'x')} -> {_tensor(letters, axis, 'kept!')}"
    start, stop = slice_bounds(call)
    parts = ["before"] * (start != 0) + ["kept"] + ["after"] * (call.types[0].shape[axis] != stop)
    return f"{_tensor(letters, axis, ' + '.join(parts), 'x')} -> {_tensor(letters, axis, 'kept')}"


def _slice_sizes(call: Call[SliceParams], dims: Dims) -> Dims:
    start, stop = slice_bounds(call)
    step = call.params.step
    kept = (stop - start + step - 1) // step
    if step != 1:
        return {"kept": kept}
    size = call.types[0].shape[call.axis(call.params.axis)]
    sizes: dict[str, Dim] = {"before": start, "kept": kept, "after": size - stop}
    return {name: value for name, value in sizes.items() if value != 0 or name == "kept"}


SLICE = register(
    OpDef(
        name="slice",
        doc="The elements `from` … `to - 1` of one axis, every `step`-th of them (then the axis is pinned).",
        line=_slice_line,
        params=SliceParams,
        spelled=lambda call, bound: {"from_": slice_bounds(call), "to": None, "axis": call.axis(call.params.axis)},
        operands=("x",),
        sizes=_slice_sizes,
        example="slice(1, from = 1, to = -1)",
        category="shape",
    )
)


class SelectParams(Params):
    axis: int
    index: int


def selected(call: Call[SelectParams]) -> Dim:
    """The index counted from 0.

    Raises: BindError (E0312) when it lies outside the axis.
    """
    p, size = call.params, call.types[0].shape[call.axis(call.params.axis)]
    if isinstance(size, int) and not -size <= p.index < size:
        raise BindError(
            "E0312",
            f"`select` of axis {p.axis} needs an index within its size {size}",
            label=f"found {p.index} for {call.types[0]}",
            blame="index",
            operands=[0],
        )
    return p.index if p.index >= 0 else size + p.index


def _select_line(call: Call[SelectParams]) -> str:
    letters, axis = axis_letters(call.rank), call.axis(call.params.axis)
    selected(call)
    return f"{_tensor(letters, axis, 'all!', 'x')} -> [{', '.join(letters[:axis] + letters[axis + 1 :])}]"


SELECT = register(
    OpDef(
        name="select",
        doc="What stands at `index` along `axis`; the axis disappears, and is pinned, for the index names a place.",
        line=_select_line,
        params=SelectParams,
        spelled=lambda call, bound: {"index": selected(call), "axis": call.axis(call.params.axis)},
        operands=("x",),
        example="select(1, -1)",
        category="shape",
    )
)


class PadParams(Params):
    """`widths` as PyTorch has them: (before, after) of the last axis, then of the last but one, and so on."""

    widths: tuple[NonNegativeInt, ...]
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant"
    value: float = 0.0


def pad_widths(call: Call[PadParams]) -> list[tuple[int, int]]:
    """(before, after) of each axis, in the order of the axes."""
    flat = call.params.widths
    if not flat or len(flat) % 2 or len(flat) > 2 * call.rank:
        raise BindError(
            "E0302",
            f"`pad` needs two widths for each padded axis, at most {2 * call.rank} in all",
            label=f"found {len(flat)} for {call.types[0]}",
            blame="widths",
            operands=[0],
        )
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    return [(0, 0)] * (call.rank - len(pairs)) + pairs[::-1]


def _pad_line(call: Call[PadParams]) -> str:
    before, after = [], []
    for letter, (left, right) in zip(axis_letters(call.rank), pad_widths(call), strict=True):
        if call.params.mode == "constant":  # padding is one value, so its places may be exchanged
            before.append(letter)
            after.append(" + ".join([f"{letter}l"] * (left > 0) + [letter] + [f"{letter}r"] * (right > 0)))
        else:
            before.append(letter + "!" * (left + right > 0))
            after.append(f"{letter}p!" if left + right else letter)
    return f"x[{', '.join(before)}] -> [{', '.join(after)}]"


def _pad_sizes(call: Call[PadParams], dims: Dims) -> Dims:
    sizes: dict[str, Dim] = {}
    for letter, size, (left, right) in zip(axis_letters(call.rank), call.types[0].shape, pad_widths(call), strict=True):
        if call.params.mode != "constant":
            sizes |= {f"{letter}p": size + left + right} if left + right else {}
        else:
            sizes |= {name: width for name, width in ((f"{letter}l", left), (f"{letter}r", right)) if width}
    return sizes


def _pad_check(call: Call[PadParams], dims: Dims) -> None:
    p, (x,) = call.params, call.types
    if x.dtype not in FLOATS and not p.value.is_integer():
        raise BindError(
            "E0304", f"`pad` of {x.dtype} needs a whole value", label=f"found {p.value:g}", blame="value", operands=[0]
        )
    if p.mode == "constant":
        return
    padded = len(p.widths) // 2
    if padded > 3 or not padded < x.rank <= padded + 2:
        raise BindError(
            "E0302",
            f'`pad(mode = "{p.mode}")` of {padded} axes needs rank {padded + 1} or {padded + 2}, and at most 3 of them',
            label=f"found {x}, rank {x.rank}",
            operands=[0],
        )
    for size, widths in zip(x.shape, pad_widths(call), strict=True):
        least = {"reflect": max(widths) + 1, "circular": max(widths), "replicate": 1}[p.mode]
        if isinstance(size, int) and size < least and any(widths):
            raise BindError(
                "E0312",
                f'`pad(mode = "{p.mode}")` by {max(widths)} needs an axis of at least {least}',
                label=f"found {size} in {x}",
                blame="widths",
                operands=[0],
            )


PAD = register(
    OpDef(
        name="pad",
        doc="`x` with a border: of one value, or mirrored (`reflect`), repeated (`replicate`) or wrapped (`circular`).",
        line=_pad_line,
        params=PadParams,
        spelled=lambda call, bound: {"widths": tuple(pad_widths(call))},
        operands=("x",),
        sizes=_pad_sizes,
        check=_pad_check,
        example="pad([1, 2], value = -1)",
        category="shape",
    )
)
