"""The net most like another one, and its weights cut to fit: prediction by looking up what was trained before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from archc.ir.graph import Graph, Value
from archc.metanet.ghn.starts import Weights, kaiming

Likeness = Counter[str]

ROUNDS = 2


def likeness(graph: Graph) -> Likeness:
    """How often each neighbourhood occurs: ops with their attributes, and what feeds them, up to two steps back.

    Labels are refined as Weisfeiler and Lehman do, along the direction of data.
    """
    found: Likeness = Counter()
    for part in graph.graphs():
        label: dict[Value, str] = {value: f"input{i}" for i, value in enumerate(part.inputs)}
        own = {node: f"{node.op.name} {node.params!r}" for node in part.nodes}
        for around in range(ROUNDS + 1):
            new = dict(label)
            for node in part.nodes:
                told = own[node] if not around else f"{own[node]} <- {[label[v] for v in node.inputs]}"
                found[told] += 1
                new.update(dict.fromkeys(node.outputs, told))
            label = new
    return found


def similarity(a: Likeness, b: Likeness) -> float:
    """1 for nets with the same neighbourhoods, 0 for nets that share none (Ruzicka's).

    >>> similarity(Counter("aab"), Counter("ab"))
    0.6666666666666666
    """
    every = {*a, *b}
    return sum(min(a[k], b[k]) for k in every) / max(1, sum(max(a[k], b[k]) for k in every))


def nearest(graph: Graph, candidates: Sequence[Likeness]) -> int:
    """Which candidate is most like the graph; the first of equals."""
    own = likeness(graph)
    return int(np.argmax([similarity(own, other) for other in candidates]))


def transplant(source: Graph, weights: Weights, target: Graph, seed: int = 0) -> Weights:
    """The weights of `source` in the places of `target`.

    A parameter takes its values from the one in the same slot: the n-th of its op and role, in program order (the last,
    where `source` has fewer). Where it is larger than its model, or has none, the rest is Kaiming's.
    """
    slots = _slots(source)
    found = kaiming(target, seed).weights
    for (op, role), names in _slots(target).items():
        models = slots.get((op, role), [])
        for place, name in enumerate(names):
            if not models:
                continue
            model = weights[models[min(place, len(models) - 1)]]
            value = found[name]
            if model.ndim != value.ndim:
                continue
            shared = tuple(slice(0, min(a, b)) for a, b in zip(model.shape, value.shape, strict=True))
            value[shared] = model[shared]
    return found


def _slots(graph: Graph) -> dict[tuple[str, str], list[str]]:
    """The names of parameters by op and role, in program order; a shared one at its first use."""
    found: dict[tuple[str, str], list[str]] = {}
    seen: set[str] = set()
    for node in graph.walk():
        for role, parameter in node.weights.items():
            if parameter.name not in seen:
                seen.add(parameter.name)
                found.setdefault((node.op.name, role), []).append(parameter.name)
    return found
