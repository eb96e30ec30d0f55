"""Batches of neuron graphs: many networks, of one architecture or of many, as one graph.

`Collator` puts networks together without building a graph for each: what belongs to an architecture (everything but the
weights) is made once. A batch of torch-geometric's loaders becomes the same with `from_data`. A batch also holds the
two incidence matrices of its edges as sparse matrices, with which sums over edges cost a twentieth of `index_add`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archc.backends.weights import Array
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.metanet.neuron_graph import NeuronArrays, neuron_arrays
from archc.metanet.vocabulary import Vocabulary, vocabulary


class _Gather(torch.autograd.Function):
    """Rows of nodes for edges; back: sums over the edges of each node."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, ends: Ends) -> Tensor:
        ctx.ends = ends
        return h.index_select(0, ends.index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ends.matrix @ gradients[0].contiguous(), None


class _Total(torch.autograd.Function):
    """Sums over the edges of each node; back: rows of nodes for edges."""

    @staticmethod
    def forward(ctx: Any, e: Tensor, ends: Ends) -> Tensor:
        ctx.ends = ends
        total: Tensor = ends.matrix @ e
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.ends.index), None


class _Flow(torch.autograd.Function):
    """A sparse matrix times rows of nodes; back: its transpose times their gradients."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        result: Tensor = matrix @ h
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ gradients[0].contiguous(), None, None


@dataclass(frozen=True, eq=False)
class Ends:
    """One end of all edges: `index` [E] is the node there, `count` [nodes, 1] how many edges each node has.

    order  [E] the edges by node; `first` [nodes + 1] where each node's begin
    """

    index: Tensor
    order: Tensor
    first: Tensor
    count: Tensor
    matrix: Tensor
    """[nodes, E] 1 where an edge ends at a node."""

    def gather(self, h: Tensor) -> Tensor:
        """[nodes, d] → [E, d]: for each edge the row of its node."""
        result: Tensor = _Gather.apply(h, self)  # type: ignore[no-untyped-call]
        return result

    def mean(self, e: Tensor) -> Tensor:
        """[E, d] → [nodes, d]: for each node the mean over its edges."""
        result: Tensor = _Total.apply(e, self)  # type: ignore[no-untyped-call]
        return result / self.count


def ends(index: Tensor, nodes: int, order: Tensor | None = None) -> Ends:
    """`order` are the edges by node, if the caller knows them."""
    order = torch.argsort(index, stable=True) if order is None else order
    count = torch.bincount(index, minlength=nodes)
    first = torch.cat((torch.zeros(1, dtype=torch.int64), count.cumsum(0)))
    matrix = _sparse(first, order, torch.ones(len(index)), (nodes, len(index)))
    return Ends(index, order, first, count.clamp(min=1)[:, None].float(), matrix)


def _sparse(first: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this layout is young
        return torch.sparse_csr_tensor(first, columns, values, size, check_invariants=False)


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Graphs side by side. Nodes N, edges E, graphs G; see `archc.metanet.neuron_graph` for x … edge_attr.

    graph        [N] which graph a node is of
    edge_graph   [E] the same of edges
    weights      [E'] the edges that are elements of parameters, each once: net by net, in the order of its parameters
    """

    x: Tensor
    kind: Tensor
    chain: Tensor
    edge_type: Tensor
    edge_attr: Tensor
    source: Ends
    target: Ends
    graph: Tensor
    edge_graph: Tensor
    weights: Tensor
    graphs: int

    def flows(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices [N, N] whose products with states of nodes are, at each node, the sums over its edges of `values`
        [E] times the state at the other end: (of edges that arrive, of edges that leave)."""
        size = (len(self.x), len(self.x))
        sides = ((self.target, self.source), (self.source, self.target))
        arriving, leaving = (
            _sparse(a.first, b.index.index_select(0, a.order), values.index_select(0, a.order), size) for a, b in sides
        )
        return arriving, leaving


@dataclass(frozen=True, eq=False)
class _Structure:
    arrays: NeuronArrays
    tensors: dict[str, Tensor]
    orders: tuple[Tensor, Tensor]
    count: int
    """Elements of parameters."""


class Collator:
    """Puts nets (an architecture's graph and weights) together.

    >>> from archc.grammar.load import loads
    >>> from archc.metanet.symmetry import random_weights
    >>> net = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(2)")
    >>> batch = Collator()([(net, random_weights(net, seed)) for seed in range(3)])
    >>> batch.graphs, len(batch.weights)
    (3, 30)
    """

    def __init__(self, words: Vocabulary | None = None) -> None:
        self.words = words or vocabulary()
        self.known: dict[int, tuple[Graph, _Structure]] = {}

    def structure(self, graph: Graph) -> _Structure:
        """What belongs to the architecture. Raises what `neuron_arrays` raises."""
        if id(graph) not in self.known:
            arrays = neuron_arrays(graph, words=self.words)
            names = ("x", "kind", "chain", "edge_index", "edge_type", "edge_attr")
            tensors = {n: torch.from_numpy(getattr(arrays, n)) for n in names}
            orders = tuple(torch.argsort(tensors["edge_index"][k], stable=True) for k in (0, 1))
            made = _Structure(arrays, tensors, (orders[0], orders[1]), int(arrays.offsets[-1]))
            self.known[id(graph)] = graph, made  # the graph is kept, so that its id stays its own
        return self.known[id(graph)][1]

    def arrays(self, graph: Graph) -> NeuronArrays:
        """The neuron graph of an architecture."""
        return self.structure(graph).arrays

    def column(self, graph: Graph, weights: Mapping[str, Any]) -> Tensor:
        """The weights as they stand at the edges, [E]. Raises E0603–E0606 and E0812, as `NeuronArrays.values` does."""
        return torch.from_numpy(self.structure(graph).arrays.values(weights))

    def __call__(self, nets: Sequence[tuple[Graph, Mapping[str, Any]]]) -> GraphBatch:
        return self.join([graph for graph, _ in nets], [self.column(*net) for net in nets])

    def join(self, graphs: Sequence[Graph], columns: Sequence[Tensor]) -> GraphBatch:
        """A batch of nets whose weights are given as `column` gives them."""
        parts = [self.structure(graph) for graph in graphs]
        nodes = np.array([len(p.tensors["x"]) for p in parts])
        edges = np.array([len(p.tensors["edge_type"]) for p in parts])
        starts, edge_starts = np.cumsum(nodes) - nodes, np.cumsum(edges) - edges
        joined = {n: torch.cat([p.tensors[n] for p in parts]) for n in ("x", "kind", "chain", "edge_type")}
        edge_attr = torch.cat([p.tensors["edge_attr"][:, 1:] for p in parts])
        sides = []
        for k in (0, 1):
            index = torch.cat([p.tensors["edge_index"][k] + int(s) for p, s in zip(parts, starts, strict=True)])
            order = torch.cat([p.orders[k] + int(s) for p, s in zip(parts, edge_starts, strict=True)])
            sides.append(ends(index, int(nodes.sum()), order))
        places = [torch.arange(p.count) + int(s) for p, s in zip(parts, edge_starts, strict=True)]
        number = torch.arange(len(parts))
        return GraphBatch(
            **joined,
            edge_attr=torch.cat((torch.cat(list(columns))[:, None], edge_attr), 1),
            source=sides[0],
            target=sides[1],
            graph=number.repeat_interleave(torch.from_numpy(nodes)),
            edge_graph=number.repeat_interleave(torch.from_numpy(edges)),
            weights=torch.cat(places),
            graphs=len(parts),
        )

    def places(self, graphs: Sequence[Graph], values: Tensor) -> list[dict[str, Tensor]]:
        """A value for each of a batch's `weights` as tensors by parameter name, net by net."""
        counts = [self.structure(graph).count for graph in graphs]
        return [
            self.structure(graph).arrays.places(own)
            for graph, own in zip(graphs, torch.split(values, counts), strict=True)
        ]


def flow(h: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
    """`matrix @ h`, and gradients for h alone."""
    result: Tensor = _Flow.apply(h, matrix, transposed)  # type: ignore[no-untyped-call]
    return result


def from_data(data: Any) -> GraphBatch:
    """A batch of torch-geometric's loaders (or one `Data`) of `neuron_graph`'s graphs."""
    nodes = len(data.x)
    graph = data.batch if getattr(data, "batch", None) is not None else torch.zeros(nodes, dtype=torch.int64)
    source, target = data.edge_index
    return GraphBatch(
        x=data.x,
        kind=data.kind,
        chain=data.chain,
        edge_type=data.edge_type,
        edge_attr=data.edge_attr,
        source=ends(source, nodes),
        target=ends(target, nodes),
        graph=graph,
        edge_graph=graph[source],
        weights=torch.nonzero(data.edge_mark == 0)[:, 0],
        graphs=int(graph.max()) + 1,
    )


def check_known(edge_type: Tensor, trained: Tensor, words: Sequence[str]) -> None:
    """Raises: CompileError E0832 when a graph has edges of types that no network of the training had.

    trained  [types], bool
    """
    missing = torch.unique(edge_type[~trained[edge_type]]).tolist()
    if missing:
        names = ", ".join(f"`{words[k]}`" for k in missing)
        label = "what it says of such a network would mean nothing"
        message = f"this metanetwork was trained on no network with {names}"
        raise fail("E0832", message, label=label, help="train it on a zoo that has it")


__all__ = ["Array", "Collator", "Ends", "GraphBatch", "check_known", "ends", "flow", "from_data"]
