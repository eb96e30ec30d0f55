"""How much a net is like those that a model was trained on: simple features against the ranges that training saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from archc.ir.graph import Graph, Value

_WORDS = {
    "ops": "ops",
    "depth": "ops on its longest path",
    "parameters": "trainable parameters",
    "widest": "elements in its longest weight axis",
    "largest": "elements in its largest weight",
}


def features(graph: Graph) -> dict[str, float]:
    """Counts that tell nets apart: ops, depth, parameters, and the sizes of the largest weights.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)")
    >>> features(net)
    {'ops': 3, 'depth': 3, 'parameters': 58, 'widest': 8, 'largest': 32}
    """
    shapes = [p.shape for p in graph.parameters().values() if p.trainable]
    depth: dict[Value, int] = {}
    for node in graph.nodes:
        own = 1 + max((depth.get(v, 0) for v in node.inputs), default=0)
        depth.update(dict.fromkeys(node.outputs, own))
    return {
        "ops": sum(1 for _ in graph.walk()),
        "depth": max(depth.values(), default=0),
        "parameters": sum(math.prod(s) for s in shapes),
        "widest": max((n for s in shapes for n in s), default=0),
        "largest": max((math.prod(s) for s in shapes), default=0),
    }


def op_counts(graph: Graph) -> Counter[str]:
    """How often each op is applied."""
    return Counter(node.op.name for node in graph.walk())


def ranges(graphs: Iterable[Graph]) -> dict[str, Any]:
    """What training saw, for a model's card: `features` as name -> [least, most], and `ops` as name -> most of one
    net."""
    found: dict[str, list[float]] = {}
    most: Counter[str] = Counter()
    for graph in graphs:
        for name, value in features(graph).items():
            low, high = found.get(name, [value, value])
            found[name] = [min(low, value), max(high, value)]
        most |= op_counts(graph)
    return {"features": found, "ops": dict(sorted(most.items()))}


def unlike(graph: Graph, seen: Mapping[str, Any]) -> list[str]:
    """In what a net is outside of what training saw, in words; nothing when it is inside.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)")
    >>> unlike(net, {"features": {"depth": [4, 9]}, "ops": {"linear": 2, "relu": 1}})
    ['it has 3 ops on its longest path; the nets of training had 4 to 9']
    """
    found = []
    own = features(graph)
    for name, (low, high) in seen.get("features", {}).items():
        if not low <= own[name] <= high:
            found.append(f"it has {own[name]:,} {_WORDS[name]}; the nets of training had {low:,} to {high:,}")
    known: Mapping[str, int] = seen.get("ops", {})
    counts = op_counts(graph)
    if fresh := sorted(name for name in counts if name not in known):
        found.append(f"no net of training has {_listed(fresh)}")
    if many := sorted(name for name, n in counts.items() if n > known.get(name, n)):
        found.append(f"it has more of {_listed(many)} than any net of training")
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
