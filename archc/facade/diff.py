"""The semantic difference of two architectures: what was added, removed or changed, whatever the text looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from archc.ir.canonical import canonical
from archc.ir.cost import cost
from archc.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `kind` is `added`, `removed` or `changed`; `before` and `after` show the node."""

    kind: str
    name: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """`same` when both mean one architecture (equal canonical hashes); then there are no changes."""

    same: bool
    changes: tuple[Change, ...]
    params: tuple[int, int]
    flops: tuple[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "same": self.same,
            "changes": [{"kind": c.kind, "name": c.name, "before": c.before, "after": c.after} for c in self.changes],
            "params": list(self.params),
            "flops": list(self.flops),
        }


def diff(a: Graph, b: Graph) -> Difference:
    """Compare two networks: nodes are matched by what they do and in which order, then by name."""
    one, two = cost(a), cost(b)
    same = canonical(a).hash == canonical(b).hash
    return Difference(
        same=same,
        changes=() if same else tuple(_changes(a, b)),
        params=(one.params, two.params),
        flops=(str(one.flops), str(two.flops)),
    )


def _changes(a: Graph, b: Graph) -> list[Change]:
    ports = [
        Change("changed" if x and y else "added" if y else "removed", f"{kind} {name}", x, y)
        for kind, left, right in (("input", _inputs(a), _inputs(b)), ("output", _outputs(a), _outputs(b)))
        for name in dict.fromkeys([*left, *right])
        if (x := left.get(name, "")) != (y := right.get(name, ""))
    ]
    left, right = list(a.walk()), list(b.walk())
    matcher = SequenceMatcher(None, [_what(n) for n in left], [_what(n) for n in right], autojunk=False)
    changes = list(ports)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        old, new = left[i1:i2], right[j1:j2]
        by_name = {n.name: n for n in new}
        for node in old:
            twin = by_name.pop(node.name, None)
            if twin is None:
                changes.append(Change("removed", node.name, _what(node)))
            else:
                changes.append(Change("changed", node.name, _what(node), _what(twin)))
        changes += [Change("added", n.name, "", _what(n)) for n in new if n.name in by_name]
    return changes or [Change("changed", "wiring", "the same nodes", "connected, or sharing weights, in another way")]


def _inputs(graph: Graph) -> Mapping[str, str]:
    return {v.name: str(v.type) for v in graph.inputs}


def _outputs(graph: Graph) -> Mapping[str, str]:
    return {n: str(v.type) for n, v in zip(graph.output_names, graph.outputs, strict=True)}


def _what(node: Node) -> str:
    """An op with the parameters that are not at their defaults, and its result types."""
    fields = type(node.params).model_fields
    said = [
        f"{info.alias or name} = {getattr(node.params, name)}"
        for name, info in fields.items()
        if info.is_required() or getattr(node.params, name) != info.default
    ]
    return f"{node.op.name}({', '.join(said)}) -> {', '.join(str(v.type) for v in node.outputs)}"
