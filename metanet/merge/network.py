"""A network in torch whose weights are set again and again: what it computes, and values inside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from archc.backends.inputs import random_inputs
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Value
from archc.metanet.running import change

Array = Any  # a numpy array
Arrays = Mapping[str, Array]

TOLERANCE = 1e-12
"""How far an aligned network may be from what it was, relative to its largest output, times its conditioning."""


class TooFew(Exception):
    """A batch norm in training mode has one number of a channel, and so no variance."""


class Network:
    """A graph in torch. With `values`, these are what it returns, in place of the graph's own outputs."""

    def __init__(self, graph: Graph, values: Sequence[Value] | None = None, double: bool = True) -> None:
        import torch

        from archc.backends.torch.module import to_torch

        if values is not None:
            names = [f"v{i}" for i in range(len(values))]
            graph = Graph(graph.name, graph.inputs, list(values), names, graph.nodes)
        self.graph, self.wide = graph, torch.float64 if double else torch.float32
        module = to_torch(graph)
        self.module = module.double() if double else module
        self.module.eval()

    def load(self, weights: Arrays) -> None:
        import torch

        state = self.module.state_dict()
        for name, tensor in state.items():
            array = np.asarray(weights[name])
            array = array if array.dtype.kind in "iub" else array.astype(np.float64)
            tensor.copy_(torch.from_numpy(np.array(array, order="C")).reshape(tensor.shape))

    def __call__(self, weights: Arrays, inputs: Arrays) -> list[Array]:
        """Its outputs, in evaluation mode."""
        import torch

        self.load(weights)
        given = [torch.from_numpy(np.ascontiguousarray(inputs[v.name])) for v in self.graph.inputs]
        given = [x.to(self.wide) if x.is_floating_point() else x for x in given]
        with torch.no_grad():
            made = self.module(*given)
        return [t.detach().numpy() for t in (made if isinstance(made, tuple) else (made,))]

    def trained(self, weights: Arrays, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        """What becomes of some buffers when the network sees the inputs in training mode."""
        import torch

        self.module.train()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self(weights, inputs)
        except ValueError as error:  # torch refuses to norm a batch of one number
            raise TooFew(str(error)) from error
        finally:
            self.module.eval()
        return {name: tensor.numpy().copy() for name, tensor in self.module.state_dict().items() if name in names}


def check_weights_finite(names: Sequence[str], networks: Sequence[Arrays]) -> None:
    """Raises E0840 for weights that are NaN or infinite."""
    for name, weights in zip(names, networks, strict=True):
        for parameter, array in weights.items():
            array = np.asarray(array)
            if array.dtype.kind in "iub":
                continue
            bad = ~np.isfinite(array.astype(np.float64))
            if bad.any():
                raise fail(
                    "E0840",
                    f"{name} has weights that are no numbers",
                    label=f"`{parameter}`: {int(bad.sum())} of {bad.size} are NaN or infinite",
                    help="train it again, with a lower rate; nothing was written",
                )


def check_same(graph: Graph, before: Arrays, after: Arrays, seed: int = 0) -> tuple[float, float]:
    """The relative error between two sets of weights in float64 on random inputs, and the network's conditioning.

    Raises E0843 (exit code 3) when the error is larger than rounding explains: 1e-12 times the conditioning.
    """
    run, inputs = Network(graph), random_inputs(graph, seed, None, "f64")
    rng = np.random.Generator(np.random.Philox(seed))
    first = run(before, inputs)
    nudged = {n: _nudged(np.asarray(w), rng) for n, w in before.items()}
    conditioning = max(1.0, change(first, run(nudged, inputs)) / 1e-9)
    error = change(first, run(after, inputs))
    if not error <= TOLERANCE * conditioning:
        raise fail(
            "E0843",
            "the aligned network does not compute what it computed before, so it is not averaged",
            label=f"relative error {error:.1e}; rounding explains {TOLERANCE * conditioning:.1e}",
            help="nothing was written; please report this with the program",
            exit_code=3,
        )
    return error, conditioning


def wide(weights: Arrays) -> dict[str, Array]:
    """Floats as float64, the rest as it is."""
    arrays = {name: np.asarray(w) for name, w in weights.items()}
    return {name: a if a.dtype.kind in "iub" else a.astype(np.float64) for name, a in arrays.items()}


def _nudged(array: Array, rng: np.random.Generator) -> Array:
    if array.dtype.kind in "iub":
        return array
    return array.astype(np.float64) * (1 + 1e-9 * rng.uniform(-1, 1, array.shape))
