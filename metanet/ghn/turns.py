"""The eight ways to turn a plane: mirrors of its two axes, and their exchange, as numbers that multiply.

A turn is (t, u, v): exchange the axes if t, then mirror the first if u and the second if v. Turn number 4t + 2u + v. A
tensor that has passed a `flip` and a `permute` is turned by their product, whatever stands between them; so ops tell
each other a vector of 8 numbers, one for each turn (an element of the group's algebra), and multiply it by their own.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def product(a: int, b: int) -> int:
    """The turn that is first b, then a.

    >>> product(4, 4), product(4, 1), product(2, 4)
    (0, 6, 6)
    """
    t, u, v = a >> 2, a >> 1 & 1, a & 1
    after = (b >> 1 & 1, b & 1)
    first, second = after[::-1] if t else after
    return (t ^ b >> 2) << 2 | (u ^ first) << 1 | v ^ second


@lru_cache(maxsize=1)
def products() -> Tensor:
    """[8, 8, 8]: 1 where the first, after the second, is the third."""
    table = torch.zeros(8, 8, 8)
    for a in range(8):
        for b in range(8):
            table[a, b, product(a, b)] = 1.0
    return table


@lru_cache(maxsize=1)
def identity() -> Tensor:
    """[8]: not turned."""
    return torch.eye(8)[0]


def turned(grid: Tensor, turn: Tensor) -> Tensor:
    """Coefficients [p, K, K, R] of products of cosines, as combinations of their eight turns by [p, 8]. To mirror an
    axis changes the signs of its odd cosines."""
    size = grid.shape[1]
    plain, exchanged = (turn[:, k : k + 4] @ _signs(size) for k in (0, 4))
    shape = (-1, size, size, 1)
    return grid * plain.view(shape) + grid.transpose(1, 2) * exchanged.view(shape)


@lru_cache(maxsize=8)
def _signs(size: int) -> Tensor:
    """[4, size²]: the signs under no mirror, that of the second axis, of the first, of both."""
    signs, ones = 1.0 - 2.0 * (torch.arange(size) % 2), torch.ones(size)
    return torch.stack([torch.outer(a, b).flatten() for a in (ones, signs) for b in (ones, signs)])
