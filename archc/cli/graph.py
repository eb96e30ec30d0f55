"""`archc graph`: what a metanetwork sees of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archc.cli.console import note, print_json
from archc.cli.options import Dims, File, Json, Seed, Set, Weights, keep, open_model, register
from archc.cli.tables import print_table

SHOWN = 12


def add_commands(app: typer.Typer) -> None:
    register(app, graph)


def graph(
    file: File,
    level: Annotated[str, typer.Option(help="tensor: ops and parameters; neuron: an edge for every weight")] = "tensor",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help=".safetensors, .pt, .svg, .png or .html (default: count only)")
    ] = None,
    weights: Weights = None,
    seed: Seed = 0,
    max_edges: Annotated[
        int | None, typer.Option("--max-edges", min=1, help="at neuron level, refuse graphs of more (20 million)")
    ] = None,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """The parameter graph of a network: counted, written, or drawn.

    Example: archc graph examples/resnet18.arch --level tensor -o resnet18.svg
    """
    from archc.facade.graphs import read, write
    from archc.metanet.neuron_graph import MAX_EDGES

    keep(file, weights, from_=out)
    model = open_model(file, settings, dims)
    found = read(model, level, weights=weights, seed=seed, max_edges=max_edges or MAX_EDGES)
    if out is not None:
        write(found, out)
    nodes, edges = sum(found.nodes.values()), sum(found.edges.values())
    if as_json:
        print_json(
            {
                "level": found.level,
                "nodes": nodes,
                "edges": edges,
                "parameters": found.parameters,
                "elements": found.elements,
                "nodes_by_kind": found.nodes,
                "edges_by_type": found.edges,
                "file": out,
            }
        )
        return
    print(
        f"{nodes:,} nodes, {edges:,} edges; {found.parameters:,} parameters of {found.elements:,} elements, all in it"
    )
    for title, counts in (("nodes", found.nodes), ("edges", found.edges)):
        rows = [(name, f"{count:,}") for name, count in counts.items()]
        rest = sum(count for _, count in list(counts.items())[SHOWN:])
        rows = rows[:SHOWN] + ([(f"{len(rows) - SHOWN} more", f"{rest:,}")] if rest else [])
        print()
        print_table((title, "count"), rows, right=1)
    if out is not None:
        note(f"wrote {out}")
