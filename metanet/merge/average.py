"""Points of the line between two networks, and what they are worth on a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from archc.backends.weights import numpy_dtype
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.merge.network import wide

if TYPE_CHECKING:
    from archc.backends.torch.training import Task
    from archc.metanet.merge.repair import Repair

Array = Any  # a numpy array
Arrays = Mapping[str, Array]
Metrics = Mapping[str, float]


def average(networks: Sequence[Arrays], shares: Sequence[float]) -> dict[str, Array]:
    """The weighted mean of the weights, in float64; what is no float must be equal in all.

    Raises: CompileError E0842 for whole numbers (codes of quantised weights, tables) that differ.

    >>> average([{"w": np.zeros(2)}, {"w": np.ones(2)}], [0.75, 0.25])["w"].tolist()
    [0.25, 0.25]
    """
    arrays = [wide(w) for w in networks]
    found = {}
    for name, first in arrays[0].items():
        if first.dtype.kind == "f":
            found[name] = sum(share * w[name] for share, w in zip(shares, arrays, strict=True))
            continue
        if any(not np.array_equal(first, w[name]) for w in arrays[1:]):
            raise fail(
                "E0842",
                f"`{name}` cannot be averaged: it holds {first.dtype}, and the networks differ in it",
                help="merge the networks first and quantise then" if first.dtype.kind == "i" else None,
            )
        found[name] = first
    return found


def stored(graph: Graph, weights: Arrays) -> dict[str, Array]:
    """Weights in the dtypes of the network's parameters."""
    return {n: np.asarray(weights[n]).astype(numpy_dtype(p.type.dtype)) for n, p in graph.parameters().items()}


class Judge:
    """Metrics of weights of one network on a split of a task."""

    def __init__(self, graph: Graph, task: Task, split: str = "val") -> None:
        import torch

        from archc.backends.torch.module import to_torch
        from archc.backends.torch.training.evaluate import Feed, check_fit

        self.task, self.split = task, split
        self.module = to_torch(graph)
        self.feed = Feed(task, torch.device("cpu"))
        check_fit(self.module, task, self.feed)

    def __call__(self, weights: Arrays, split: str | None = None) -> dict[str, float]:
        import torch

        from archc.backends.torch.training import evaluate

        state = self.module.state_dict()
        for name, tensor in state.items():
            array = np.asarray(weights[name])
            array = array if array.dtype.kind in "iub" else array.astype(np.float32)
            tensor.copy_(torch.from_numpy(array).reshape(tensor.shape))
        return dict(evaluate(self.module, self.task, split or self.split, feed=self.feed).metrics)

    def inputs(self, graph: Graph, samples: int) -> dict[str, Array]:
        """The first training examples, as the network takes them."""
        import torch

        rows = torch.arange(min(samples, len(self.feed.split("train"))))
        given, _ = self.feed.batch("train", rows, None, None)
        return {value.name: x.numpy() for value, x in zip(graph.inputs, given, strict=True)}


@dataclass(frozen=True)
class Path:
    """Metrics at points of a line: `alphas` from 0 (A) to 1 (B)."""

    alphas: tuple[float, ...]
    metrics: tuple[Metrics, ...] = field(repr=False)

    def barrier(self, metric: str = "loss", larger_is_better: bool = False) -> float:
        """How much worse the worst point is than the straight line between the ends, at least 0.

        >>> Path((0.0, 0.5, 1.0), ({"loss": 1.0}, {"loss": 5.0}, {"loss": 2.0})).barrier()
        3.5
        """
        values = [m[metric] for m in self.metrics]
        line = [(1 - t) * values[0] + t * values[-1] for t in self.alphas]
        sign = -1 if larger_is_better else 1
        return max(0.0, *(sign * (v - l) for v, l in zip(values, line, strict=True)))


def walk(judge: Judge, a: Arrays, b: Arrays, alphas: Sequence[float], repair: Repair | None = None) -> Path:
    """Metrics along the line between two networks; with `repair`, each point inside it is repaired first."""

    def point(alpha: float) -> Metrics:
        merged: Arrays = average((a, b), (1 - alpha, alpha))
        return judge(repair(merged, (1 - alpha, alpha)).weights if repair and 0 < alpha < 1 else merged)

    return Path(tuple(alphas), tuple(point(t) for t in alphas))


def points_between(count: int) -> list[float]:
    """`count` points from 0 to 1.

    >>> points_between(3)
    [0.0, 0.5, 1.0]
    """
    return [i / (count - 1) for i in range(count)]
