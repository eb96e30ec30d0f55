"""Many nets of one architecture, trained at once: their parameters stacked, the network mapped over the stack.

Each net has its own weights, batches and hyperparameters, and no net sees another: the gradient of the summed loss
with respect to one net's parameters is the gradient of its own loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from archc.backends.torch.module import ArchModule, to_torch
from archc.ir.graph import Graph

Stacked = dict[str, Tensor]
"""Parameter name -> the values of all nets, [nets, *shape]."""


class Stack(nn.Module):
    """A network mapped over stacks of parameters.

    `stack(parameters, x)` with x [nets, batch, …] gives [nets, batch, …].
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.net: ArchModule = to_torch(graph)
        self.paths = {name: ".".join(path) for name, path in self.net.parameter_paths.items()}

    def forward(self, parameters: Stacked, x: Tensor) -> Tensor:
        def one(own: Stacked, rows: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(self.net, own, (rows,))
            return result

        renamed = {self.paths[name]: value for name, value in parameters.items()}
        return torch.func.vmap(one, randomness="different")(renamed, x)


def initial_weights(graph: Graph, seeds: Sequence[int]) -> Stacked:
    """Each net's own initial values: the architecture's initialisers, keyed by its seed."""
    return {
        name: torch.from_numpy(np.stack([p.init.sample(p.shape, seed, name) for seed in seeds])).float()
        for name, p in graph.parameters().items()
    }


def each(values: Tensor, like: Tensor) -> Tensor:
    """One value a net, [nets], shaped to broadcast over a stacked parameter."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


@dataclass
class Optimiser:
    """AdamW or SGD with momentum, net by net: `adam` [nets] says which; `rate` and `decay` are per net.

    Decay is decoupled (Loshchilov & Hutter, arXiv:1711.05101) and spares parameters of one axis. The gradient of each
    net is cut to norm 1. A net whose rate is 0 stands still.
    """

    parameters: Stacked
    adam: Tensor
    decay: Tensor
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        self.first = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        self.second = {n: torch.zeros_like(p) for n, p in self.parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], rate: Tensor) -> None:
        self.steps += 1
        b1, b2 = self.betas
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0)
        cut = 1 / squares.sqrt().clamp(min=1.0)
        for name, parameter in self.parameters.items():
            gradient = gradients[name] * each(cut, parameter)
            first = self.first[name].mul_(b1).add_(gradient, alpha=1 - b1)
            second = self.second[name].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            scaled = (first / (1 - b1**self.steps)) / ((second / (1 - b2**self.steps)).sqrt() + 1e-8)
            move = torch.where(each(self.adam, parameter), scaled, first / (1 - b1))
            if parameter.ndim > 2:
                move = move + each(self.decay, parameter) * parameter
            parameter -= each(rate, parameter) * move
