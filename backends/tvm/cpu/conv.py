"""Convolutions in channels-last layout: dense, grouped, depthwise; one, two or three spatial axes; transposed too.

A task takes some rows of the output, copies the input rows they need into a zero-padded scratch buffer that stays in
cache (nothing is copied where there is no padding), and covers them with register tiles of pixels x channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from archc.backends.tvm.cpu.emit import Emitter, as_int, ceil_div, index, product
from archc.backends.tvm.cpu.gemm import by_height, matmul_constant
from archc.backends.tvm.cpu.loops import Machine, divisor, over_vectors, unravel
from archc.backends.tvm.cpu.phases import Phases
from archc.backends.tvm.cpu.program import Evaluator, Program, Stage
from archc.backends.tvm.cpu.quantised import Codes, code_at, fit_halves, halves, matmul_codes, sources
from archc.backends.tvm.cpu.tile import PAGE, Epilogue, Tile, column_block

Expr = Any
Buffer = Any

_LINE = 16  # elements of a line of the cache
_SCRATCH = 1 << 16  # elements of padded input per task: a quarter of a 1 MiB second-level cache


@dataclass(frozen=True)
class Window:
    """How a convolution walks its input, per spatial axis.

    `spread` is the transposed convolution's stride: the input is read as if `spread - 1` zeros stood between
    neighbours.
    """

    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    spread: tuple[int, ...]

    @property
    def pads(self) -> bool:
        return any((*self.before, *self.after)) or any(s > 1 for s in self.spread)


def block_of(channels: int, machine: Machine) -> int:
    """Output channels per tile; few channels (a small group) take one narrow vector."""
    if channels >= machine.isa.lanes:
        return column_block(channels, machine.isa)
    return 1 << (channels - 1).bit_length()


def pack_filters(weight: np.ndarray, groups: int, block: int) -> np.ndarray:
    """[O, I, *k] as [groups, O / groups / block, *k, I, block], the last block of a group filled with zeros."""
    outputs, inputs, *kernel = weight.shape
    own = outputs // groups
    blocks = -(-own // block)
    grouped = weight.reshape(groups, own, inputs, *kernel)
    padded = np.pad(grouped, [(0, 0), (0, blocks * block - own)] + [(0, 0)] * (len(kernel) + 1))
    blocked = padded.reshape(groups, blocks, block, inputs, *kernel)
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(blocked, 3, -1), 2, -1))


def convolution(
    builder: relax.BlockBuilder, x: relax.Expr, weight: np.ndarray, window: Window, groups: int, machine: Machine
) -> relax.Expr:
    """x [n, *s, I] by a constant [O, I / groups, *k] to [n, *t, O]."""
    outputs, inputs, *kernel = weight.shape
    lanes = machine.isa.lanes
    plain = not window.pads and all(s == 1 for s in window.strides) and all(k == 1 for k in kernel) and groups == 1
    if plain and weight.dtype == np.int8:
        codes = weight.reshape(outputs, inputs).T
        return matmul_codes(builder, x, Codes(codes, np.ones((1, outputs), np.float32)), machine)
    if plain:
        return matmul_constant(builder, x, weight.reshape(outputs, inputs).T, machine)
    if groups == outputs and inputs == 1 and int(list(x.ty.shape)[-1]) == groups:
        packed = np.ascontiguousarray(np.moveaxis(weight[:, 0], 0, -1))
        name, own, block, half = "depthwise", outputs, outputs, False
    else:
        own = outputs // groups
        block = block_of(own, machine)
        half = weight.dtype == np.int8 and own > lanes and fit_halves(weight)
        block = -(-block // (2 * lanes)) * 2 * lanes if half else block
        packed = pack_filters(weight, groups, block)
        packed = halves(packed, lanes) if half else packed
        name = "conv"

    def equation(x: te.Tensor, packed: te.Tensor) -> te.Tensor:
        padded = padded_input(x, window)
        n, *spatial, _ = padded.shape
        extents = [
            (s - (k - 1) * d - 1) // stride + 1
            for s, k, d, stride in zip(spatial, kernel, window.dilation, window.strides, strict=True)
        ]
        taps = [te.reduce_axis((0, k), name="tap") for k in kernel]
        channel = [] if name == "depthwise" else [te.reduce_axis((0, inputs), name="channel")]

        def term(*at: Expr) -> Expr:
            batch, *place, o = at
            where = [p * s + t * d for p, s, t, d in zip(place, window.strides, taps, window.dilation, strict=True)]
            if name == "depthwise":
                filters = code_at(lambda c: packed[(*taps, c)], o, lanes, False)
                return te.sum(padded[(batch, *where, o)] * filters, axis=taps)
            group, inside = tirx.indexdiv(o, own), tirx.indexmod(o, own)
            column = (group, tirx.indexdiv(inside, block), *taps, *channel)
            source = padded[(batch, *where, group * inputs + channel[0])]
            filters = code_at(lambda c: packed[(*column, c)], tirx.indexmod(inside, block), lanes, half)
            return te.sum(source * filters, axis=[*taps, *channel])

        attributes = {"archc.kernel": name, "own": own, "half": int(half), **attributes_of(window)}
        return te.compute((n, *extents, outputs), term, name=name, attrs=attributes)

    return builder.call_te(equation, x, relax.const(packed), primfunc_name_hint=name, primfunc_attrs={"op_pattern": 4})


def attributes_of(window: Window) -> dict[str, list[int]]:
    return {"strides": list(window.strides), "dilation": list(window.dilation)}


def padded_input(x: te.Tensor, window: Window) -> te.Tensor:
    if not window.pads:
        return x
    n, *spatial, channels = x.shape
    sides = list(zip(spatial, window.before, window.after, window.spread, strict=True))
    shape = [(s - 1) * spread + 1 + lo + hi for s, lo, hi, spread in sides]

    def value(*at: Expr) -> Expr:
        batch, *place, c = at
        inside = []
        source = []
        for p, (extent, lo, hi, spread) in zip(place, sides, strict=True):
            moved = p - lo
            if lo:
                inside.append(p >= lo)
            if hi or spread > 1:
                inside.append(p < (extent - 1) * spread + 1 + lo)
            if spread > 1:
                inside.append(tirx.EQ(tirx.indexmod(moved, spread), index(0)))
                moved = tirx.indexdiv(moved, spread)
            source.append(moved)
        return tirx.if_then_else(tirx.all(*inside), x[(batch, *source, c)], tirx.const(0.0, x.dtype))

    return te.compute((n, *shape, channels), value, name="padded")


@dataclass(frozen=True)
class _Plan:
    """Rows of the first spatial axis per task, and the tile of pixels."""

    rows: int
    tile: tuple[int, int] | None  # (rows, pixels of a row); None: pixels counted through, whatever row they are in


def conv_kernel(program: Program, anchor: Stage, machine: Machine) -> tirx.PrimFunc:
    """The loops of `convolution`."""
    return _Kernel(program, anchor, machine).write()


class _Kernel:
    def __init__(self, program: Program, anchor: Stage, machine: Machine) -> None:
        self.program, self.anchor, self.machine, self.out = program, anchor, machine, Emitter()
        self.depthwise = anchor.attributes["archc.kernel"] == "depthwise"
        self.strides = [int(s) for s in anchor.attributes["strides"]]
        self.dilation = [int(d) for d in anchor.attributes["dilation"]]
        self.own = int(anchor.attributes["own"])
        self.source, self.packed = anchor.value.a.source, sources(anchor.value.b)[0]
        self.half = bool(int(anchor.attributes.get("half", 0)))
        self.batch, *self.outputs = [a.extent for a in anchor.axes[:-1]]
        facts = [[int(i) for i in anchor.attributes.get(name, ())] for name in ("taps", "phases", "zeros")]
        self.phases = [Phases.of(*at) for at in zip(*facts, strict=True)]
        self.phase: list[Expr] = []  # the one being computed
        self.extents = self.outputs
        if self.phases:  # the first is the longest
            self.extents = [ceil_div(e, p.stride) for e, p in zip(self.outputs, self.phases, strict=True)]
        self.channels = int(anchor.axes[-1].extent)
        rank = len(self.extents)
        shape = [int(d) for d in self.packed.shape]
        if self.depthwise:
            self.kernel = shape[:rank]
            self.groups, self.inputs = 1, 1
            self.lanes = (
                machine.isa.lanes if self.channels >= machine.isa.lanes else 1 << (self.channels.bit_length() - 1)
            )
            self.block = self.lanes
            self.blocks = self.channels // self.block
        else:
            self.groups, self.blocks, *taps, self.inputs, self.block = shape
            self.block *= 1 + self.half
            self.kernel = taps[-rank:]
            self.lanes = min(machine.isa.lanes, self.block)
        self.padded = next((s for s in program.stages if s.name == "padded"), None)
        self.evaluator = Evaluator(program, self.out)
        self.epilogue = Epilogue(program, self.out, anchor)
        self.most = 8 if self.depthwise else max(1, machine.isa.sums // (self.block // self.lanes))

    def write(self) -> tirx.PrimFunc:
        out = self.out
        plan = self._plan()
        chunks = ceil_div(self.extents[0], plan.rows)
        split = self._channel_tasks(chunks)
        with out.loop(product([self.batch, chunks, split]), "parallel", "task") as task:
            image, chunk, part = (out.bind("at", i) for i in unravel(task, [self.batch, chunks, split]))
            top = out.bind("top", chunk * plan.rows)
            source, first_row = self._input_rows(image, top, plan.rows)
            total = self.groups * self.blocks
            share = -(-total // split)
            count = share if total % share == 0 else tirx.min(index(share), total - part * share)
            with out.loop(product([p.stride for p in self.phases]), name="phase") as phase:
                self.phase = [out.bind("r", r) for r in unravel(phase, [p.stride for p in self.phases])]
                with out.loop(count, name="block") as own:
                    block = out.bind("block", part * share + own)
                    self._tiles(plan, source, image, top, first_row, block)
            if self.depthwise and self.channels % self.block:
                with out.when(tirx.EQ(part, index(split - 1))) if split > 1 else nullcontext():
                    self._last_channels(plan, source, image, top, first_row)
        return self.program.rewritten(out.finish())

    def _plan(self) -> _Plan:
        known = [as_int(e) for e in self.extents]
        row_elements = product([*self.source.shape[2:]])
        height = as_int(self.extents[0])
        size = as_int(row_elements)
        rows = max(1, _SCRATCH // max(1, size * self.strides[0])) if size is not None else 8
        if height is None:
            return _Plan(rows, None)
        rows = max(1, min(rows, height))
        batch = as_int(self.batch) or 1
        wanted = self.machine.threads if self.machine.threads > 1 else 1
        while rows > 2 and batch * -(-height // rows) < wanted:
            rows = -(-rows // 2)
        even = divisor(height, rows) if height else 1
        rows = even if 2 * even >= rows else rows
        if None in known or height % rows:
            return _Plan(rows, None)
        width = known[-1] if len(known) > 1 else rows
        lines = rows if len(known) == 2 else 1
        assert width is not None
        best = (0, 0, 0)
        for across in range(1, min(width, self.most) + 1):
            if width % across:
                continue
            for down in range(1, min(lines, self.most // across) + 1):
                if lines % down == 0 and (down * across, across) > best[:2]:
                    best = (down * across, across, down)
        return _Plan(rows, (best[2], best[1]) if 2 * best[0] >= self.most else None)

    def _channel_tasks(self, chunks: Expr) -> int:
        """Into how many parts to split the channels, where there are too few rows to share out."""
        tasks = as_int(product([self.batch, chunks]))
        if tasks is None or tasks >= self.machine.threads or tasks == 0:
            return 1
        return min(self.groups * self.blocks or 1, -(-self.machine.threads // tasks))

    def _input_rows(self, image: Expr, top: Expr, rows: int) -> tuple[Callable[[Sequence[Expr]], Expr], Expr]:
        """How to read the input at [row counted from the returned first one, *other axes, channel]."""
        out = self.out
        if self.padded is None:
            source = self.source
            return (lambda at: source[(image, *at)]), top * self.strides[0]
        stage = self.padded
        deep = (rows - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        deep += 1 if self.phases else 0  # some phases begin one row further down
        shape = [deep, *[a.extent for a in stage.axes[2:]]]
        # neighbouring pixels of the output read a page apart would share few places in the first-level cache
        crowded = int(shape[-1]) * self.strides[-1] % PAGE == 0
        scratch = out.scratch("rows", [*shape[:-1], shape[-1] + _LINE if crowded else shape[-1]], "float32")
        first = out.bind("first", top * self.strides[0])
        available = stage.axes[1].extent - first
        ragged = as_int(self.extents[0]) is None or int(self.extents[0]) % rows
        with out.loop(tirx.min(index(deep), available) if ragged else deep, name="row") as row:
            inner = shape[1:-1]
            with out.loop(product(inner), name="pixel") as pixel:
                place = unravel(pixel, inner) if inner else []

                def copy(c: Expr) -> None:
                    value = self.evaluator.stage(stage, [image, first + row, *place, index(c)])
                    out.store(scratch, [row, *place, c], value)

                over_vectors(out, shape[-1], self.machine.isa.lanes, copy)
        return (lambda at: scratch[tuple(at)]), index(0)

    def _tiles(self, plan: _Plan, source: Any, image: Expr, top: Expr, first_row: Expr, block: Expr) -> None:
        """Cover the task's pixels for one block of channels."""
        out = self.out
        group = out.bind("group", tirx.floordiv(block, index(self.blocks)))
        column = out.bind("column", tirx.floormod(block, index(self.blocks)))
        rest = self.own - (self.blocks - 1) * self.block
        for_block = _Channels(
            group=group,
            column=column,
            first=group * self.own + column * self.block,
            width=self.block,
            count=self.block if self.depthwise else rest,
            spare=None if self.depthwise or rest == self.block else self.own - column * self.block,
        )
        self._cover(plan, source, image, top, first_row, for_block)

    def _last_channels(self, plan: _Plan, source: Any, image: Expr, top: Expr, first_row: Expr) -> None:
        """Depthwise channels beyond the last whole vector, as narrower vectors."""
        done = self.blocks * self.block
        lanes = self.lanes
        left = self.channels - done
        while left:
            width = 1 << (left.bit_length() - 1)
            self.lanes = width
            channels = _Channels(index(0), index(0), index(done), width, width, None)
            self._cover(plan, source, image, top, first_row, channels)
            done, left = done + width, left - width
        self.lanes = lanes

    def _cover(self, plan: _Plan, source: Any, image: Expr, top: Expr, first_row: Expr, channels: _Channels) -> None:
        out = self.out
        rest = self.extents[1:]
        start = out.bind("start", (image * self.extents[0] + top) * product(rest))
        if plan.tile is not None:
            self._rectangles(plan, source, start, first_row, channels)
            return
        rows = plan.rows
        known = as_int(self.extents[0])
        even = known is not None and known % rows == 0
        pixels = product([rows if even else tirx.min(index(rows), self.extents[0] - top), *rest])
        number = as_int(pixels)
        if number == 0:
            return
        height = self._height(number)
        pixels = number if number is not None else out.bind("pixels", pixels)
        with out.loop(ceil_div(pixels, height), name="tile") as at:
            first = out.bind("pixel", at * height)

            def tile(height: int) -> None:
                exact = number is not None and number % height == 0
                places = []
                for p in range(height):
                    flat = first + p if exact else tirx.min(first + p, pixels - 1)
                    places.append([out.bind("p", i) for i in unravel(out.bind("flat", flat), [rows, *rest])])
                self._tile(
                    source, places, first_row, channels, lambda r: start + first + r,
                    lambda r: None if exact else first + r < pixels,
                )  # fmt: skip

            if number is not None:
                tile(height)
            else:
                by_height(out, pixels - first, height, tile)

    def _height(self, pixels: int | None) -> int:
        return -(-pixels // -(-pixels // self.most)) if pixels is not None else self.most

    def _rectangles(self, plan: _Plan, source: Any, start: Expr, first_row: Expr, channels: _Channels) -> None:
        """Tiles of whole pixel rectangles: every address is a constant away from the tile's first."""
        out = self.out
        assert plan.tile is not None
        down, across = plan.tile
        extents = [plan.rows, *[int(e) for e in self.extents[1:]]]
        *outer, width = extents
        middle = outer if len(outer) != 1 else []
        with out.loop(product(middle), name="line") as line:
            lead = unravel(line, middle) if middle else []
            with (
                out.loop(outer[0] // down if len(outer) == 1 else 1, name="down") as y,
                out.loop(width // across, name="across") as x,
            ):
                top, left = y * down, x * across
                places = []
                for r in range(down):
                    for c in range(across):
                        row = [top + r] if len(outer) == 1 else list(lead)
                        places.append([*row, left + c])
                base = start + (line if middle else top) * width + left
                place = partial(_in_rectangle, base, across, width)
                self._tile(source, places, first_row, channels, place, lambda r: None)

    def _tile(
        self,
        source: Any,
        places: Sequence[Sequence[Expr]],
        first_row: Expr,
        channels: _Channels,
        place: Callable[[Expr], Expr],
        valid: Callable[[Expr], Expr | None],
    ) -> None:
        out = self.out
        sums = Tile.zero(out, len(places), channels.width, self.lanes)
        counts: list[Expr] = self.kernel
        if self.phases:
            counts = [p.count(r) for p, r in zip(self.phases, self.phase, strict=True)]
            moves = [out.bind("move", p.shift(r)) for p, r in zip(self.phases, self.phase, strict=True)]
            places = [[q + move for q, move in zip(at, moves, strict=True)] for at in places]
            place, valid = self._spread(place, valid)

        def read(pixel: int, taps: Sequence[Expr], channel: Expr) -> Expr:
            at = [p * s + t * d for p, s, t, d in zip(places[pixel], self.strides, taps, self.dilation, strict=True)]
            return source([first_row + at[0], *at[1:], channel])

        if self.depthwise:
            for taps in itertools.product(*map(range, self.kernel)):
                self._depthwise_tap(sums, read, [index(t) for t in taps], channels.first)
        else:
            with out.loop(product(counts), name="tap") as tap, out.loop(self.inputs, name="k") as k:
                at = unravel(tap, counts)
                row = (channels.group, channels.column, *self.phase, *at, k)
                sums.accumulate(
                    out,
                    lambda r, c: (
                        read(r, at, channels.group * self.inputs + k)
                        * code_at(lambda place: self.packed[(*row, place)], c, self.machine.isa.lanes, self.half)
                    ),
                )
        self.epilogue.store(sums, place, valid, channels.first, channels.count, channels.spare)

    def _spread(
        self, place: Callable[[Expr], Expr], valid: Callable[[Expr], Expr | None]
    ) -> tuple[Callable[[Expr], Expr], Callable[[Expr], Expr | None]]:
        """`place` and `valid` of the output, from those that count the pixels of a phase."""

        def coordinates(row: Expr) -> list[Expr]:
            image, *at = unravel(place(row), [self.batch, *self.extents])
            return [image, *(q * p.stride + r for q, p, r in zip(at, self.phases, self.phase, strict=True))]

        def moved(row: Expr) -> Expr:
            flat, *rest = coordinates(row)
            for at, extent in zip(rest, self.outputs, strict=True):
                flat = flat * extent + at
            return flat

        def inside(row: Expr) -> Expr | None:
            known = valid(row)
            conditions = [] if known is None else [known]
            for at, extent, phases in zip(coordinates(row)[1:], self.outputs, self.phases, strict=True):
                number = as_int(extent)
                if number is None or number % phases.stride:
                    conditions.append(at < extent)
            return tirx.all(*conditions) if conditions else None

        return moved, inside

    def _depthwise_tap(self, sums: Tile, read: Callable[..., Expr], at: list[Expr], first: Expr) -> None:
        def term(r: int, c: Expr) -> Expr:
            return read(r, at, first + c) * self.packed[(*at, first + c)].astype("float32")

        sums.accumulate(self.out, term)


def _in_rectangle(base: Expr, across: int, width: int, pixel: Expr) -> Expr:
    """Where the output keeps one pixel of a rectangle that is `across` wide, in an image `width` wide."""
    return base + tirx.floordiv(index(pixel), index(across)) * width + tirx.floormod(index(pixel), index(across))


@dataclass(frozen=True)
class _Channels:
    """A block of output channels: its group, its place there, its first channel, and how many of `width` exist."""

    group: Expr
    column: Expr
    first: Expr
    width: int
    count: int
    spare: Expr | None
