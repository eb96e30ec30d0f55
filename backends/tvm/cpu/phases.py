"""A transposed convolution as several plain ones, none of which multiplies by zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

Expr = Any


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as `stride` plain ones along an axis, one for each remainder of the output's index.

    Of an input spread by the stride, output `p = stride * q + r` sees only every stride-th tap: those numbered
    `first(r) + stride * j`, of which tap j meets input `q + j + shift(r)`, counted from `before` zeros in front.
    """

    stride: int
    taps: int  # of the whole kernel
    zeros: int  # in front of the spread input
    most: int  # the largest number of taps that any phase has

    @classmethod
    def of(cls, taps: int, stride: int, zeros: int) -> Phases:
        return cls(stride, taps, zeros, -(-taps // stride))

    @property
    def before(self) -> int:
        """Zeros in front of the plain input."""
        return self.zeros // self.stride

    def first(self, r: Expr) -> Expr:
        return (self.zeros - r) % self.stride if isinstance(r, int) else tirx.floormod(self.zeros - r, self.stride)

    def shift(self, r: Expr) -> Expr:
        up = self.zeros % self.stride
        return int(r > up) if isinstance(r, int) else tirx.Cast("int64", r > up)

    def count(self, r: Expr) -> Expr:
        """How many taps phase r has."""
        if self.taps % self.stride == 0:
            return self.most
        return tirx.floordiv(self.taps - 1 - self.first(r), self.stride) + 1

    def after(self, zeros: int) -> int:
        """Zeros behind the plain input, where `zeros` stand behind the spread one."""
        beyond = (self.zeros + zeros - self.taps + 1) // self.stride  # the last q, counted from the last input
        lowest = int(max(self.shift(r) for r in range(self.stride)))
        return max(0, beyond + self.most - 1 + lowest - self.before)


def by_phase(weight: np.ndarray, phases: Sequence[Phases]) -> np.ndarray:
    """[O, I, *k] as [O, I, *phase, *tap]: each phase's taps, filled up with zeros.

    >>> by_phase(np.array([[[10, 11, 12]]]), [Phases.of(3, 2, zeros=1)]).tolist()
    [[[[11, 0], [10, 12]]]]
    """
    for axis, phase in enumerate(phases):
        width = phase.most * phase.stride
        padded = np.pad(weight, [(0, width - phase.taps if i == 2 + axis else 0) for i in range(weight.ndim)])
        taps = [[phase.first(r) + phase.stride * j for j in range(phase.most)] for r in range(phase.stride)]
        weight = np.take(padded, np.array(taps).reshape(-1), axis=2 + axis)
    sizes = [size for p in phases for size in (p.stride, p.most)]
    split = weight.reshape(*weight.shape[:2], *sizes)
    rank = len(phases)
    return split.transpose(0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 2 + 2 * rank, 2))
