"""How rows go through experts, gates and exits, over many batches.

A module notes it in `aux` (see `ArchModule.forward_with_aux`): `stat/NODE.open`, `.left`, `.entropy` are numbers,
`stat/NODE.load` has one for each expert. `stat/NODE….rows` tells how many rows such a number is a mean of, where that
is not the batch: behind an exit there are fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREFIX, ROWS = "stat/", ".rows"
Stats = dict[str, float | list[float]]
"""Means by `NODE.what`; of `NODE.load` one for each expert."""


class Statistics:
    """Means of what modules note, each batch weighed by its rows.

    >>> statistics = Statistics()
    >>> statistics.add({"stat/skip.open": torch.tensor(0.5), "loss/skip.cost": torch.tensor(1.0)}, rows=2)
    >>> statistics.add({"stat/skip.open": torch.tensor(1.0)}, rows=6)
    >>> statistics.means()
    {'skip.open': 0.875}
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, aux: Mapping[str, Tensor], rows: int) -> None:
        """Count a batch in. Nothing is read back from a device, so nothing waits for it."""
        for key, value in aux.items():
            if not key.startswith(PREFIX) or key.endswith(ROWS):
                continue
            name = key.removeprefix(PREFIX)
            weight = aux.get(key + ROWS, torch.tensor(float(rows))).double()
            total, count = self._sums.get(name, (torch.zeros((), dtype=torch.float64), weight.new_zeros(())))
            self._sums[name] = value.detach().double() * weight + total, count + weight

    def means(self) -> Stats:
        return {name: (total / count).tolist() for name, (total, count) in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """What has been counted, as plain data, for a checkpoint."""
        return {name: [total.tolist(), count.tolist()] for name, (total, count) in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises ValueError or TypeError when it is something else."""
        self._sums = {}
        for name, (total, count) in state.items():
            self._sums[name] = torch.tensor(total, dtype=torch.float64), torch.tensor(count, dtype=torch.float64)


def summary(stats: Mapping[str, Any]) -> dict[str, float]:
    """The mean over nodes of each kind of number.

    >>> summary({"a.open": 0.5, "b.open": 1.0, "moe.load": [0.5, 0.5], "moe.entropy": 0.9})
    {'gates open': 0.75, 'router entropy': 0.9}
    """
    words = {"open": "gates open", "left": "left early", "entropy": "router entropy"}
    found: dict[str, list[float]] = {}
    for name, value in stats.items():
        what = words.get(name.rpartition(".")[2])
        if what is not None:
            found.setdefault(what, []).append(value)
    return {what: sum(values) / len(values) for what, values in found.items()}
