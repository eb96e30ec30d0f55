"""A transform applied to a program with generic weights, and what must hold of it whatever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import archc
from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.facade.model import Model
from archc.facade.sameness import Sameness, observer, same_function
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.ir.types import FLOATS, NUMPY_NAMES
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass


@dataclass(frozen=True)
class Applied:
    """A network before and after, with weights (float64) and what the transform measured."""

    old: Graph
    new: Graph
    before: Mapping[str, Any]
    after: dict[str, Any]
    context: Context

    @property
    def text(self) -> str:
        """The new program without its head."""
        return print_graph(self.new).partition("output")[2].partition("\n")[2].strip()

    def same(self, mode: Any = "eval", weights: Mapping[str, Any] | None = None) -> Sameness:
        return same_function(self.old, self.new, self.before, weights or self.after, mode=mode)

    def stored(self) -> dict[str, Any]:
        """The new weights in the dtypes of their parameters."""
        types = {name: p.type.dtype for name, p in self.new.parameters().items()}
        return {n: np.asarray(w).astype(NUMPY_NAMES[types[n]]) for n, w in self.after.items()}


def applied(
    source: str,
    spec: str,
    at: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Applied:
    """Run one transform; the result prints and re-parses to itself. `data` are given ones; else they are random."""
    old = loads(source)
    new, before = clone(old), random_weights(old, 0) | dict(weights or {})
    inputs = random_inputs(old, 0, None, "f64") if data is None else data
    context = Context(dict(before), wide=True, observe=observer(inputs), data=data is not None)
    run_passes(new, [parse_pass(spec, at)], context)
    assert context.weights is not None
    assert context.weights.keys() == new.parameters().keys()
    assert structurally_equal(new, loads(print_graph(new))) is None
    return Applied(old, new, before, context.weights, context)


def compiled_difference(graph: Graph, weights: Mapping[str, Any], seed: int = 0) -> float:
    """The largest difference between torch and the compiled network, relative to the largest output."""
    inputs = random_inputs(graph, seed)
    module = to_torch(graph, weights).eval()
    with torch.no_grad():
        expected = module(*(torch.from_numpy(inputs[v.name]) for v in graph.inputs))
    with archc.compile(Model(graph), weights=weights, cache=False) as artifact:
        found = artifact.run(inputs)
    outputs = expected if isinstance(expected, tuple) else (expected,)
    wrong = 0.0
    for name, y, value in zip(graph.output_names, outputs, graph.outputs, strict=True):
        assert found[name].shape == tuple(y.shape)
        if value.type.dtype in FLOATS:
            wrong = max(wrong, float(np.abs(found[name] - y.numpy()).max() / (np.abs(y.numpy()).max() or 1)))
    return wrong
