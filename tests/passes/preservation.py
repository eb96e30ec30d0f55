"""Every cleanup on one network: what each pass must keep, as a function that says what is wrong.

A network is looked at twice. At its own number formats, passes that do no arithmetic must keep every bit. With every
float made a float64, weights too, all passes must keep the function to 1e-10 of its largest element, or to what the
network's own conditioning makes of a rounding (`archc.facade.sameness`). And every pass must leave a well-formed graph
that prints and parses to itself, must say truly whether it changed anything, and must find nothing to do when it is run
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from margins import close_call
from provocations import widened
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from archc.backends.inputs import random_inputs
from archc.backends.torch.module import to_torch
from archc.facade.sameness import Reference
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.ir.types import NUMPY_NAMES
from archc.metanet.symmetry import random_weights
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.pipeline import INFERENCE, NAMED

Arrays = dict[str, Any]

PASSES: Mapping[str, Sequence[Pass]] = {p.name: [p] for p in NAMED} | {"inference": INFERENCE}
BITWISE = ("canonicalise", "simplify", "join_pieces", "cse", "dce")
"""Those that do no arithmetic. (`cancel_views` does none, either; but torch's elementwise kernels round otherwise at
the end of a row than within it, and it moves elements there.)"""
IN_TRAINING = (*BITWISE, "cancel_views", "fold_constants", "cleanup", "fuse_branches")
"""Those that keep the function in training, too."""


@dataclass
class Kept:
    """What the passes did to one network: those that changed it, what they broke (`pass/check` -> words), the largest
    relative difference in float64, and mismatches that a decision on too close a margin excuses."""

    changed: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    excused: dict[str, str] = field(default_factory=dict)
    error: float = 0.0
    comparisons: int = 0


def check_cleanups(
    graph: Graph, seed: int, sizes: Mapping[str, int] | None = None, passes: Mapping[str, Sequence[Pass]] = PASSES
) -> Kept:
    """Run each pass on copies of the network, and compare."""
    kept = Kept()
    own, wide = _Subject(graph, seed, sizes), _Subject(widened(graph), seed, sizes)
    for name, steps in passes.items():
        subject = own if name in BITWISE else wide
        new, context, changed = subject.after(steps)
        if not changed:
            continue
        kept.changed.append(name)
        for check, reason in subject.form(steps, new, context).items():
            kept.wrong[f"{name}/{check}"] = reason
        kept.comparisons += 1
        if subject is wide:
            _compare(kept, name, wide, new, context, "eval")
        elif own.bits(new, context) != own.own_bits:
            kept.wrong[f"{name}/bits"] = "a bit of an output changed"
        if name in IN_TRAINING and wide.trains:
            new, context, changed = wide.after(steps, training=True)
            kept.comparisons += changed
            if changed:
                _compare(kept, name, wide, new, context, "train")
    return kept


def _compare(kept: Kept, name: str, subject: _Subject, new: Graph, context: Context, mode: Any) -> None:
    weights: Any = context.weights
    found = (subject.in_training if mode == "train" else subject.in_evaluation).compare(new, weights)
    if found.ok:
        kept.error = max(kept.error, found.relative)
        return
    reason = "; ".join(o.reason or f"{o.name} is off by {o.relative:.1e}" for o in found.outputs if not o.ok)
    excuse = close_call(subject.graph, subject.weights, subject.inputs)
    (kept.excused if excuse else kept.wrong)[f"{name}/{mode}"] = f"{reason} ({excuse})" if excuse else reason


class Contiguous(TorchFunctionMode):
    """Lets every function see its operands as if nobody had turned or cut them: torch takes other kernels, which add in
    another order, for other strides."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not getattr(func, "__name__", "_").endswith("_"):  # what writes in place, and what is no arithmetic
            args = tree_map_only(torch.Tensor, _fresh, args)
        return func(*args, **(kwargs or {}))


def _fresh(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


class _Subject:
    """A network with weights and inputs at its own formats."""

    def __init__(self, graph: Graph, seed: int, sizes: Mapping[str, int] | None) -> None:
        self.graph, self.seed = graph, seed
        types = {name: p.type.dtype for name, p in graph.parameters().items()}
        self.weights = {n: w.astype(NUMPY_NAMES[types[n]]) for n, w in random_weights(graph, seed).items()}
        self.inputs = random_inputs(graph, seed, sizes)

    @cached_property
    def in_evaluation(self) -> Reference:
        return Reference(self.graph, self.weights, seed=self.seed, inputs=self.inputs)

    @cached_property
    def in_training(self) -> Reference:
        return Reference(self.graph, self.weights, mode="train", seed=self.seed, inputs=self.inputs)

    @cached_property
    def trains(self) -> bool:
        """Torch refuses a batch norm of one number in training."""
        try:
            return bool(self.in_training.outputs)
        except ValueError as e:
            if "more than 1" not in str(e):
                raise
            return False

    def context(self, training: bool = False) -> Context:
        return Context(dict(self.weights), training=training)

    def after(self, steps: Sequence[Pass], training: bool = False) -> tuple[Graph, Context, bool]:
        new, context = clone(self.graph), self.context(training)
        changed = any(ran.changed for ran in run_passes(new, steps, context))
        return new, context, changed

    def form(self, steps: Sequence[Pass], new: Graph, context: Context) -> Mapping[str, str]:
        """What is wrong with a graph that passes have left, and with their weights."""
        wrong = {}
        parameters = new.parameters()
        assert context.weights is not None
        if not context.weights.keys() >= parameters.keys():
            wrong["weights"] = f"no weights for {sorted(parameters.keys() - context.weights.keys())}"
        elif any(context.weights[n].shape != p.shape for n, p in parameters.items()):
            wrong["weights"] = "weights of another shape"
        difference = structurally_equal(new, loads(print_graph(new)))
        if difference is not None:
            wrong["round trip"] = difference
        again = [ran.name for ran in run_passes(clone(new), steps, Context(dict(context.weights))) if ran.changed]
        if again:
            wrong["idempotent"] = f"run again, {', '.join(again)} changed something"
        return wrong

    @cached_property
    def own_bits(self) -> list[bytes]:
        return self.bits(self.graph, self.context())

    def bits(self, graph: Graph, context: Context) -> list[bytes]:
        assert context.weights is not None
        module = to_torch(graph, {n: context.weights[n] for n in graph.parameters()}).eval()
        with torch.no_grad(), Contiguous():
            made = module(*(torch.from_numpy(np.asarray(self.inputs[v.name], order="C")) for v in graph.inputs))
        found = [y.detach().numpy() for y in (made if isinstance(made, tuple) else (made,))]
        return [np.where(np.isnan(y), np.nan, y).tobytes() if y.dtype.kind == "f" else y.tobytes() for y in found]
