"""Tasks on short sequences of symbols: `dyck`, `listops`, `copy` and `induction`.

All are generated from a seed. No sequence stands on two sides, nor twice on one: what has been drawn before is drawn
again, and a task that has not so many different sequences says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator

from archc.backends.preprocessing import Array, Preprocessing
from archc.backends.torch.training.datasets import SPLITS, array_digest
from archc.backends.torch.training.recipe import counter_rng
from archc.backends.torch.training.tasks import CLASSIFICATION, ArraySplit, Task, TaskConfig, TaskKind
from archc.ir.diagnostics import fail
from archc.ir.types import TensorType

Example = tuple[list[int], int | list[int]]
Draw = Callable[[np.random.Generator], Example]
"""A sequence of symbols, and its label; or one label for each symbol."""

PATIENCE = 50
"""Draws in a row that bring nothing new, before there is nothing new."""


class SequenceConfig(TaskConfig):
    """Numbers of sequences, and the seed that decides them."""

    seed: int = 0
    train: int = Field(4000, ge=10, le=1_000_000)
    val: int = Field(1000, ge=10, le=1_000_000)
    test: int = Field(1000, ge=10, le=1_000_000)


class DyckConfig(SequenceConfig):
    length: int = Field(24, ge=4, le=1024, multiple_of=2, description="symbols of a sequence")
    kinds: int = Field(2, ge=1, le=16, description="of brackets")


class ListopsConfig(SequenceConfig):
    length: int = Field(32, ge=8, le=1024, description="symbols of the longest sequence; shorter ones are padded")
    depth: int = Field(3, ge=1, le=8, description="lists within lists")


class CopyConfig(SequenceConfig):
    length: int = Field(16, ge=2, le=1024, description="symbols of a sequence")
    symbols: int = Field(8, ge=2, le=256, description="different ones")
    lag: int = Field(5, ge=1, description="places by which they are moved")

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.lag >= self.length:
            raise ValueError("`lag` is smaller than `length`, or nothing is moved")
        return self


class InductionConfig(SequenceConfig):
    length: int = Field(16, ge=4, le=1024, description="symbols of a sequence")
    symbols: int = Field(8, ge=3, le=256, description="different ones")


def balanced(symbols: list[int], kinds: int) -> bool:
    """Whether every bracket is closed by one of its kind, in order; k opens, k + kinds closes.

    >>> balanced([0, 1, 3, 2], 2), balanced([0, 1, 2, 3], 2), balanced([2, 0], 2)
    (True, False, False)
    """
    stack: list[int] = []
    for symbol in symbols:
        if symbol < kinds:
            stack.append(symbol)
        elif not stack or stack.pop() != symbol - kinds:
            return False
    return not stack


def draw_dyck(config: DyckConfig, rng: np.random.Generator) -> Example:
    """A balanced sequence; half of the time two of its brackets are exchanged so that it is not: counts do not tell."""
    stack: list[int] = []
    symbols: list[int] = []
    while len(symbols) < config.length:
        left = config.length - len(symbols)
        if not stack or (len(stack) < left and rng.random() < 0.5):
            stack.append(int(rng.integers(config.kinds)))
            symbols.append(stack[-1])
        else:
            symbols.append(stack.pop() + config.kinds)
    if rng.random() < 0.5:
        return symbols, 1
    while balanced(symbols, config.kinds):
        a, b = rng.choice(config.length, 2, replace=False)
        symbols[a], symbols[b] = symbols[b], symbols[a]
    return symbols, 0


_OPERATORS = ("min", "max", "first", "sum")
_CLOSE, _PAD = 14, 15


def listops_value(symbols: list[int]) -> int:
    """What an expression comes to. 0–9 are digits, 10–13 open `min`, `max`, `first`, and `sum` modulo 10, 14 closes.

    >>> listops_value([11, 3, 10, 7, 5, 14, 4, 14])     # (max 3 (min 7 5) 4)
    5
    """
    stack: list[list[int]] = [[]]
    for symbol in symbols:
        if symbol < 10:
            stack[-1].append(symbol)
        elif symbol < _CLOSE:
            stack.append([symbol])
        elif symbol == _CLOSE:
            operator, *values = stack.pop()
            results = (min(values), max(values), values[0], sum(values) % 10)
            stack[-1].append(results[operator - 10])
    (value,) = stack[0]
    return value


def draw_listops(config: ListopsConfig, rng: np.random.Generator) -> Example:
    """An expression that fits, and its value."""

    def expression(depth: int) -> list[int]:
        if depth == 0 or (depth < config.depth and rng.random() < 0.6):
            return [int(rng.integers(10))]
        inner = [symbol for _ in range(rng.integers(2, 5)) for symbol in expression(depth - 1)]
        return [10 + int(rng.integers(len(_OPERATORS))), *inner, _CLOSE]

    while len(symbols := expression(config.depth)) > config.length:
        pass
    return symbols + [_PAD] * (config.length - len(symbols)), listops_value(symbols)


def draw_copy(config: CopyConfig, rng: np.random.Generator) -> Example:
    """Any symbols; the labels are the same, moved on in a circle."""
    symbols = rng.integers(config.symbols, size=config.length)
    return symbols.tolist(), np.roll(symbols, config.lag).tolist()


def draw_induction(config: InductionConfig, rng: np.random.Generator) -> Example:
    """The last symbol stands once before; the label is what followed it there."""
    cue = int(rng.integers(config.symbols))
    others = [s for s in range(config.symbols) if s != cue]
    symbols = rng.choice(others, config.length)
    place = int(rng.integers(config.length - 2))
    symbols[[place, -1]] = cue
    return symbols.tolist(), int(symbols[place + 1])


def _task(name: str, config: SequenceConfig, draw: Draw, labels: int, length: int, each: bool = False) -> Task:
    rng = counter_rng(config.seed, "compose", 3)
    sizes = {"train": config.train, "val": config.val, "test": config.test}
    seen: set[tuple[int, ...]] = set()
    found: dict[str, tuple[Array, Array]] = {}
    for split, size in sizes.items():
        sequences: list[list[int]] = []
        targets: list[int | list[int]] = []
        failures = 0
        while len(sequences) < size:
            symbols, target = draw(rng)
            if tuple(symbols) in seen:
                failures += 1
                if failures > PATIENCE:
                    raise fail(
                        "E0614",
                        f"task `{name}` has too few different sequences",
                        label=f"found {len(seen)}, needed {sum(sizes.values())}",
                        help="make them longer, or ask for fewer with `train`, `val` and `test`",
                    )
                continue
            failures = 0
            seen.add(tuple(symbols))
            sequences.append(symbols)
            targets.append(target)
        found[split] = np.array(sequences, np.int64), np.array(targets, np.int64)
    return Task(
        name,
        config,
        (TensorType((length,), "i64"),),
        TensorType((length, labels) if each else (labels,), "f32"),
        CLASSIFICATION,
        {split: ArraySplit(tuple(map(torch.from_numpy, x[:1])), torch.from_numpy(x[1])) for split, x in found.items()},
        array_digest(*(array for split in SPLITS for array in found[split])),
        Preprocessing(labels=tuple(map(str, range(labels)))),
    )


def dyck(config: DyckConfig) -> Task:
    """Is a sequence of brackets well nested?

    >>> task = dyck(DyckConfig(train=100, val=20, test=20))
    >>> str(task.inputs[0]), str(task.output), [len(split) for split in task.splits.values()]
    ('i64[24]', 'f32[2]', [100, 20, 20])
    """
    return _task("dyck", config, partial(draw_dyck, config), 2, config.length)


def listops(config: ListopsConfig) -> Task:
    """What does a nested expression of `min`, `max`, `first` and `sum` modulo 10 come to?

    After ListOps (Nangia & Bowman 2018, arXiv:1804.06028), smaller, and with `first` in the place of the median.
    """
    return _task("listops", config, partial(draw_listops, config), 10, config.length)


def copy(config: CopyConfig) -> Task:
    """What stood `lag` places before, in a circle, for every place of a sequence?"""
    return _task("copy", config, partial(draw_copy, config), config.symbols, config.length, each=True)


def induction(config: InductionConfig) -> Task:
    """What followed the last symbol when it stood there before? After the induction heads of Olsson et al. 2022
    (arXiv:2209.11895)."""
    return _task("induction", config, partial(draw_induction, config), config.symbols, config.length)


KINDS = (
    TaskKind("dyck", DyckConfig, dyck, "is a sequence of brackets well nested? 2 classes"),
    TaskKind("listops", ListopsConfig, listops, "the value of a nested expression of digits, 10 classes"),
    TaskKind("copy", CopyConfig, copy, "what stood `lag` places before, for every place of a sequence"),
    TaskKind("induction", InductionConfig, induction, "what followed the last symbol when it stood there before"),
)
