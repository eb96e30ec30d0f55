"""The parameter graphs of a network: in memory, counted, and as files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archc.facade.model import Model, as_model
from archc.facade.weights import Given, resolve
from archc.ir.diagnostics import did_you_mean, fail
from archc.metanet.neuron_graph import MAX_EDGES, edge_types, neuron_arrays
from archc.metanet.parameter_graph import Level, ParameterGraph
from archc.metanet.tensor_graph import FLOWS, tensor_arrays
from archc.metanet.vocabulary import vocabulary

LEVELS = ("tensor", "neuron")
FILES = (".safetensors", ".pt")
FORMAT = "archc.graph"
"""The metadata entry of a graph file that says what its arrays are, as JSON."""


def graph(
    model: Model | Path | str,
    level: Level = "tensor",
    *,
    weights: Given = None,
    seed: int = 0,
    max_edges: int = MAX_EDGES,
) -> Any:
    """The parameter graph of a network for torch-geometric: a `HeteroData` with a node for every op and parameter
    (`level="tensor"`), or a `Data` with an edge for every element of every parameter (`level="neuron"`).

    weights    at neuron level: a file, arrays by name, or None for initial ones drawn from `seed`
    max_edges  at neuron level: more are refused

    Layouts stand in `archc.metanet.tensor_graph` and `archc.metanet.neuron_graph`. Raises: CompileError E0811 for a
    graph that is too large, E0812 for weights that are not finite, E06xx for weights that do not fit.

    >>> import archc
    >>> net = archc.loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(2)")
    >>> archc.graph(net)["parameter"].size.tolist()
    [8, 2]
    """
    return read(model, level, weights=weights, seed=seed, max_edges=max_edges).torch()


def read(
    model: Model | Path | str,
    level: str = "tensor",
    *,
    weights: Given = None,
    seed: int = 0,
    max_edges: int = MAX_EDGES,
) -> ParameterGraph:
    """The parameter graph without torch. Arguments and mistakes as in `graph`."""
    network, words = as_model(model).graph, vocabulary()
    elements = sum(p.size for p in network.parameters().values())
    if level == "tensor":
        arrays = tensor_arrays(network, words)
        nodes = Counter(words.ops[kind] for kind in arrays.op_kind) | {"parameter": len(arrays.names)}
        edges: dict[str, int] = {f"feeds.{f}": int((arrays.feeds_attr[:, 0] == k).sum()) for k, f in enumerate(FLOWS)}
        edges |= {"weighs": arrays.weighs.shape[1], "inside": arrays.inside.shape[1]}
        held = int(arrays.parameter_size.sum())
        assert held == elements, f"{held} of {elements} elements are in the graph"
        return ParameterGraph("tensor", arrays, words, None, _sorted(nodes), _sorted(edges), len(arrays.names), held)
    if level != "neuron":
        help = did_you_mean(level, LEVELS) or "tensor or neuron"
        raise fail("E0814", "a parameter graph has two levels", label=f"found `{level}`", help=help, exit_code=2)
    import numpy as np

    neurons = neuron_arrays(network, words=words, max_edges=max_edges)
    given = resolve(network, weights, seed).arrays
    names = edge_types(words)
    kinds, types = np.bincount(neurons.kind), np.bincount(neurons.edge_type)
    held = int((neurons.edge_mark == 0).sum())
    assert held == elements, f"{held} of {elements} elements are in the graph"
    return ParameterGraph(
        "neuron",
        neurons,
        words,
        {name: given[name] for name in neurons.names},
        _sorted({words.ops[k]: int(n) for k, n in enumerate(kinds)}),
        _sorted({names[k]: int(n) for k, n in enumerate(types)}),
        len(neurons.names),
        held,
    )


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(((k, int(n)) for k, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


def write(found: ParameterGraph, path: Path | str) -> None:
    """Write a graph to a file: `.safetensors`, arrays with the layout in the metadata; `.pt`, a plain dict of tensors
    with the layout as text, which `torch.load(path, weights_only=True)` reads; or a picture (.svg, .png, .html).

    Raises: CompileError E0022 for another suffix, E0813 for a picture of too many edges.
    """
    from archc.backends.weights import atomic_file, write_weights
    from archc.drawing.parameters import PICTURES, draw_parameters

    target = Path(path)
    if target.suffix in PICTURES:
        draw_parameters(found, target)
    elif target.suffix == ".safetensors":
        write_weights(target, found.flat(), {FORMAT: json.dumps(found.layout())})
    elif target.suffix == ".pt":
        import torch

        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in found.flat().items()}
        with atomic_file(target) as temporary:
            torch.save(tensors | {"layout": json.dumps(found.layout())}, temporary)
    else:
        known = (*FILES, *PICTURES)
        label = f"`{target.suffix}` is not one of {', '.join(known)}" if target.suffix else f"`{path}` has no suffix"
        help = did_you_mean(target.suffix, known) or "the suffix names the format"
        raise fail("E0022", "cannot write a graph in this format", label=label, help=help, exit_code=2)
