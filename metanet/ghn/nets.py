"""Running a net with weights from outside: what a hypernetwork is trained and judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from archc.backends.torch.module import ArchModule, to_torch
from archc.backends.torch.training.evaluate import Feed, check_fit, main_output
from archc.backends.torch.training.tasks import Task
from archc.ir.graph import Graph
from archc.metanet.ghn.subject import Subject, subject
from archc.metanet.vocabulary import Vocabulary

CALIBRATION_BATCHES, CALIBRATION_SIZE = 4, 128
"""Training examples from which the statistics of batch norms are taken."""

Predicted = Mapping[str, Tensor]


@dataclass(eq=False)
class Net:
    """A net to predict weights for. `subject` and `module` are made when they are asked for, once."""

    name: str
    graph: Graph = field(repr=False)
    words: Vocabulary = field(repr=False)

    @cached_property
    def subject(self) -> Subject:
        return subject(self.graph, self.words)

    @cached_property
    def module(self) -> ArchModule:
        """The net in torch, its weights to be given with every run."""
        zeros = {
            name: torch.zeros(p.shape) if p.trainable else torch.full(p.shape, p.init.a)
            for name, p in self.graph.parameters().items()
        }
        return to_torch(self.graph, zeros)

    @cached_property
    def trained(self) -> dict[str, str]:
        """Parameters that are predicted -> the attribute of the module that holds them."""
        paths = self.module.parameter_paths
        return {name: ".".join(paths[name]) for name, p in self.graph.parameters().items() if p.trainable}

    @cached_property
    def statistics(self) -> dict[str, str]:
        """Running means and variances -> the attribute that holds them."""
        paths = self.module.parameter_paths
        ends = (".running_mean", ".running_var")
        return {name: ".".join(paths[name]) for name in self.graph.parameters() if name.endswith(ends)}

    def run(self, weights: Predicted, inputs: tuple[Tensor, ...], statistics: Predicted | None = None) -> Tensor:
        """The output with these weights. In training mode a batch norm uses the batch; in evaluation `statistics`."""
        state = {path: weights[name] for name, path in self.trained.items()}
        if statistics is not None:
            state |= {path: statistics[name] for name, path in self.statistics.items()}
        outputs: Tensor | tuple[Tensor, ...] = functional_call(self.module, state, inputs)
        return main_output(outputs)


class Data:
    """A task's examples, prepared for nets. The batch of a number is always the same."""

    def __init__(self, task: Task, index: int = 0) -> None:
        self.task, self.index = task, index
        self.feed = Feed(task, torch.device("cpu"))
        self._whole: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

    def whole(self, split: str) -> tuple[tuple[Tensor, ...], Tensor]:
        if split not in self._whole:
            rows = torch.arange(len(self.feed.split(split)))
            self._whole[split] = self.feed.batch(split, rows, None, None)
        return self._whole[split]

    def batch(self, split: str, size: int, *address: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """`size` examples drawn by `address` (up to 4 numbers)."""
        inputs, targets = self.whole(split)
        rng = np.random.Generator(np.random.Philox(key=[77, self.index], counter=[*address, *[0] * (4 - len(address))]))
        rows = torch.from_numpy(rng.integers(0, len(targets), size))
        return tuple(x[rows] for x in inputs), targets[rows]

    def check(self, net: Net) -> None:
        """Raise E0615 or E0616 when a net is not one for this task."""
        check_fit(net.module, self.task, self.feed)


@torch.no_grad()
def calibrate(net: Net, weights: Predicted, data: Data) -> dict[str, Tensor]:
    """Running means and variances with these weights, as averages over training batches; exact however often a norm
    runs in a pass. A norm that nothing reaches keeps mean 0 and variance 1.

    A running estimate moves by a share of the way to what it sees. Two passes, begun at 0 and at 1, tell that share.
    """
    if not net.statistics:
        return {}
    net.module.train()
    sums: dict[str, Tensor] = {}
    share: dict[str, Tensor] = {}
    shapes = net.graph.parameters()
    for k in range(CALIBRATION_BATCHES):
        inputs, _ = data.batch("train", CALIBRATION_SIZE, 1, k)
        seen = _moved(net, weights, inputs, 0.0)
        if k == 0:
            other = _moved(net, weights, inputs, 1.0)
            share = {name: 1.0 - (other[name] - seen[name]) for name in seen}
        for name, value in seen.items():
            sums[name] = sums.get(name, torch.zeros(shapes[name].shape)) + value / CALIBRATION_BATCHES
    initial = {name: 0.0 if name.endswith("mean") else 1.0 for name in sums}
    return {
        name: torch.where(share[name] > 1e-6, total / share[name].clamp_min(1e-6), initial[name])
        for name, total in sums.items()
    }


def _moved(net: Net, weights: Predicted, inputs: tuple[Tensor, ...], start: float) -> dict[str, Tensor]:
    shapes = net.graph.parameters()
    statistics = {name: torch.full(shapes[name].shape, start) for name in net.statistics}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # both passes drop the same
        net.run(weights, inputs, statistics)
    return statistics


@torch.no_grad()
def accuracy(net: Net, weights: Predicted, data: Data, split: str = "val", limit: int | None = None) -> float:
    """The share of right answers on a split (its first `limit` examples) with calibrated statistics; 0 for weights
    with which the net's output is not finite."""
    statistics = calibrate(net, weights, data)
    inputs, targets = data.whole(split)
    net.module.eval()
    right, count = 0, min(limit or len(targets), len(targets))
    for start in range(0, count, 256):
        rows = slice(start, min(start + 256, count))
        output = net.run(weights, tuple(x[rows] for x in inputs), statistics)
        if not output.isfinite().all():
            return 0.0
        right += int((output.argmax(-1) == targets[rows]).sum())
    return right / count
