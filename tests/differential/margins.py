"""How close a network came to deciding otherwise: the only excuse for a mismatch of numbers.

While the network runs in torch, every op that turns numbers into decisions is watched: comparisons, argmax and top-k,
sorting, rounding, and conversion to integers. Three runs (float64, the network's own format, and float64 with weights
and inputs rounded) tell by how much the deciding numbers are uncertain; a decision whose margin in float64 is within
`FACTOR` times that uncertainty is a close call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from archc.backends.torch.module import to_torch
from archc.facade.numerics import FACTOR
from archc.ir.graph import Graph

COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
ROUNDINGS = {"floor", "ceil", "round", "trunc"}
EXTREMES = {"argmax", "argmin", "topk", "sort", "argsort"}


@dataclass(frozen=True)
class Decision:
    """The numbers that were decided on, and how they were: "threshold" (at 0), "rounding", or, along the last axis,
    "argument" (the first of the largest) and "order" (of the k largest)."""

    kind: str
    x: Tensor


class Watcher(TorchDispatchMode):
    """Collects decisions in the order in which they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Decision] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        kwargs = kwargs or {}
        floats = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        if floats:
            self.note(name, func, floats, args, kwargs)
        return func(*args, **kwargs)

    def note(self, name: str, func: Any, floats: list[Tensor], args: Any, kwargs: Any) -> None:
        x = floats[0].detach()
        if name in COMPARISONS:
            self.decisions.append(Decision("threshold", (args[0] - args[1]).double()))
        elif name in ROUNDINGS:
            self.decisions.append(Decision("rounding", x.double()))
        elif name == "sign":
            self.decisions.append(Decision("threshold", x.double()))
        elif name == "_to_copy" and kwargs.get("dtype") in (torch.int64, torch.int32, torch.int8):
            self.decisions.append(Decision("rounding", x.double()))
        elif name == "_to_copy" and kwargs.get("dtype") is torch.bool:
            self.decisions.append(Decision("threshold", x.double()))
        elif name in EXTREMES:
            axis = next((a for a in (*args[1:], *kwargs.values()) if type(a) is int), -1)
            if name == "topk":
                axis = args[2] if len(args) > 2 else kwargs.get("dim", -1)
            if x.dim():
                kind = "argument" if name in ("argmax", "argmin") else "order"
                self.decisions.append(Decision(kind, x.double().movedim(axis, -1)))


def close_call(graph: Graph, weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """The first decision whose margin is within the noise, in words; empty when there is none."""
    exact, own, moved = (decisions(graph, weights, inputs, kind) for kind in ("exact", "own", "moved"))
    epsilon = 2.0**-53 if any(v.type.dtype == "f64" for v in graph.inputs) else 2.0**-24
    for i, decision in enumerate(exact):
        others = [run[i] for run in (own, moved) if i < len(run)]
        if any(o.kind != decision.kind or o.x.shape != decision.x.shape for o in others):
            return f"decision {i} is met on another path"
        x = decision.x
        finite = torch.isfinite(x) & ~_certain(decision, others)
        if not finite.any():
            continue
        scale = float(x[finite].abs().max())
        noise = max([epsilon * scale, *(_largest((o.x - x)[finite]) for o in others)])
        margin = _margin(decision, others, finite)
        if margin <= FACTOR * noise:
            return f"{decision.kind} {i} has margin {margin:.1e}, noise {noise:.1e}"
    return ""


def decisions(graph: Graph, weights: Mapping[str, Any], inputs: Mapping[str, Any], kind: str) -> list[Decision]:
    module = to_torch(graph, dict(weights)).eval()
    tensors = [torch.from_numpy(np.array(inputs[v.name])) for v in graph.inputs]
    if kind != "own":
        module = module.double()
        tensors = [x.double() if x.is_floating_point() else x for x in tensors]
    if kind == "moved":
        rng = np.random.Generator(np.random.Philox(1))
        with torch.no_grad():
            for tensor in (*module.state_dict().values(), *tensors):
                if tensor.is_floating_point():
                    tensor.mul_(torch.from_numpy(1 + 2.0**-24 * rng.choice([-1.0, 1.0], tuple(tensor.shape))))
    watcher = Watcher()
    with torch.no_grad(), watcher:
        module(*tensors)
    return watcher.decisions


def _certain(decision: Decision, others: list[Decision]) -> Tensor:
    """Where numbers lie exactly on the edge in every run: a copy of a number equals it in every format, a rounded
    number is whole. What then is decided is said by the op, and no excuse. (Not by top-k: it may list equals in any
    order.)"""
    runs = [decision.x, *(o.x for o in others)]
    if decision.kind == "threshold":
        return torch.stack([x == 0 for x in runs]).all(0)
    if decision.kind == "rounding":
        return torch.stack([x == x.round() for x in runs]).all(0)
    return torch.zeros_like(decision.x, dtype=torch.bool)


def _margin(decision: Decision, others: list[Decision], finite: Tensor) -> float:
    x = decision.x
    if decision.kind == "threshold":
        return float(x[finite].abs().min())
    if decision.kind == "rounding":
        return float((x - x.round())[finite].abs().min())
    if x.shape[-1] < 2:
        return float("inf")
    order = x.argsort(dim=-1, stable=True)
    gaps = x.gather(-1, order).diff(dim=-1)
    real = torch.isfinite(gaps)
    if decision.kind == "argument":  # the first of equals is meant: equals in every run are no close call
        real &= ~torch.stack([o.x.gather(-1, order).diff(dim=-1) == 0 for o in (decision, *others)]).all(0)
    gaps = gaps[real]
    return float(gaps.min()) if gaps.numel() else float("inf")


def _largest(x: Tensor) -> float:
    x = x[torch.isfinite(x)]
    return float(x.abs().max()) if x.numel() else 0.0
