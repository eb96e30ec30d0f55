"""A network layer by layer: shapes, parameters, FLOPs, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from archc.facade.tables import human, lay_out
from archc.ir.cost import Cost, cost, node_flops
from archc.ir.dims import Dim, total
from archc.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Row:
    """One node, or a scope with all that is in it (`depth` cuts names).

    `flops` of an op with regions holds those of its regions; the rows of the regions themselves tell one pass of them.
    `shared` says that a row's weights stand in an earlier row too, and are counted there.
    """

    name: str
    op: str
    output: str
    params: int
    flops: Dim
    activation_bytes: Dim
    shared: bool = False
    level: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """The rows and the totals."""

    name: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    cost: Cost

    def __str__(self) -> str:
        """The table, as `archc summary` prints it."""
        rows = [
            (
                "  " * r.level + r.name,
                r.op,
                r.output,
                "shared" if r.shared else f"{r.params:,}" if r.params else "",
                _size(r.flops),
                _size(r.activation_bytes),
            )
            for r in self.rows
        ]
        c = self.cost
        buffers = f", {c.buffers:,} in buffers" if c.buffers else ""
        sizes = f"weights {human(c.weight_bytes, 'B')}, FLOPs {_size(c.flops)}"
        return "\n".join(
            [
                *lay_out(("layer", "op", "output", "params", "FLOPs", "bytes"), rows, right=3),
                "",
                f"{self.name}: {c.params:,} parameters{buffers}",
                f"{sizes}, activations {_size(c.activation_bytes)} bytes",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        c = self.cost
        return {
            "name": self.name,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "rows": [
                {
                    "name": r.name,
                    "op": r.op,
                    "output": r.output,
                    "params": r.params,
                    "flops": _number(r.flops),
                    "activation_bytes": _number(r.activation_bytes),
                    "shared": r.shared,
                    "level": r.level,
                }
                for r in self.rows
            ],
            "totals": {
                "params": c.params,
                "buffers": c.buffers,
                "weight_bytes": c.weight_bytes,
                "flops": _number(c.flops),
                "activation_bytes": _number(c.activation_bytes),
            },
        }


def summarise(graph: Graph, depth: int | None = None) -> Summary:
    """The summary of a network; with `depth`, nodes whose names agree in so many parts share a row."""
    rows = tuple(_rows(graph, 0, set()))
    return Summary(
        name=graph.name,
        inputs=tuple((v.name, str(v.type)) for v in graph.inputs),
        outputs=tuple((n, str(v.type)) for n, v in zip(graph.output_names, graph.outputs, strict=True)),
        rows=rows if depth is None else _grouped(rows, depth),
        cost=cost(graph),
    )


def _rows(graph: Graph, level: int, counted: set[str]) -> Iterator[Row]:
    for node in graph.nodes:
        yield _row(node, level, counted)
        for region in node.regions:
            yield from _rows(region, level + 1, counted)


def _row(node: Node, level: int, counted: set[str]) -> Row:
    new = [p for p in node.weights.values() if p.name not in counted]
    counted.update(p.name for p in new)
    return Row(
        name=node.name,
        op=node.op.name,
        output=", ".join(str(v.type) for v in node.outputs),
        params=sum(p.size for p in new if p.trainable),
        flops=node_flops(node),
        activation_bytes=total(v.type.bytes for v in node.outputs),
        shared=bool(node.weights) and not new,
        level=level,
    )


def _grouped(rows: tuple[Row, ...], depth: int) -> tuple[Row, ...]:
    """Neighbouring rows of one scope as one; a region's rows add parameters only: their op has counted the rest."""
    groups: list[list[Row]] = []
    for row in rows:
        scope = ".".join(row.name.split(".")[:depth])
        if groups and ".".join(groups[-1][0].name.split(".")[:depth]) == scope:
            groups[-1].append(row)
        else:
            groups.append([row])
    return tuple(
        Row(
            name=".".join(group[0].name.split(".")[:depth]),
            op=group[0].op if len(group) == 1 else f"{len(group)} nodes",
            output=[r for r in group if r.level == group[0].level][-1].output,
            params=sum(r.params for r in group),
            flops=total(r.flops for r in group if r.level == group[0].level),
            activation_bytes=total(r.activation_bytes for r in group if r.level == group[0].level),
            shared=all(r.shared for r in group),
            level=group[0].level,
        )
        for group in groups
    )


def _size(dim: Dim) -> str:
    return human(dim) if isinstance(dim, int) else str(dim)


def _number(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)
