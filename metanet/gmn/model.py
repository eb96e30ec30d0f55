"""The graph metanetwork: messages along the neuron graph of other networks, weights being states of edges.

Nodes and edges have states. In a round (message passing with edge states, after Kofinas et al. 2024, arXiv:2403.12143)
each edge looks at itself and its two ends; each node at its edges, and along them with their weights w, forwards as the
network computes and backwards as its gradient flows:

    e ← e + silu(W e + P h_source + Q h_target)
    h ← h + MLP(h, mean_in e, mean_out e, Σ_in w · R h_source, Σ_in |w| · …, Σ_out w · S h_target, Σ_out |w| · …)

Everything is shared by all nodes and all edges; what tells them apart are op names, edge types and pinned places. So
the model commutes with the network's own permutations: what it says of a whole network does not change, what it says of
each weight is permuted along.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from archc.metanet.gmn.batch import GraphBatch, ends, flow
from archc.metanet.neuron_graph import NODE_COLUMNS


class GmnConfig(BaseModel):
    """What builds the empty model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(32, ge=4, description="width of the states of nodes")
    edges: int = Field(8, ge=2, description="width of the states of edges")
    rounds: int = Field(3, ge=0, le=20, description="rounds of messages")
    outputs: int = Field(2, ge=0, description="numbers that are said of a network")
    changes: bool = Field(False, description="say a change for each weight, too")
    dropout: float = Field(0.0, ge=0, lt=1, description="in front of the last layer of what is said of a network")
    across: bool = Field(False, description="standardise what is pooled across networks, not within each")
    broken: int = Field(0, ge=0, description="a table of so many rows for the number of each node: for tests only")
    """A control: with it the model knows hidden units by their number, and is not equivariant."""


WEIGHT_FEATURES = 4
WAVES = (1, 2, 3)
NODE_FEATURES = len(NODE_COLUMNS) + 6 * len(WAVES)


class Gmn(nn.Module):
    """A graph metanetwork for graphs made with a vocabulary of `ops` ops and `types` edge types.

    `forward(batch)` gives [graphs, outputs] and, when `changes`, [len(batch.weights)], else None.
    """

    def __init__(self, config: GmnConfig, ops: int, types: int) -> None:
        super().__init__()
        d, w = config.nodes, config.edges
        self.config = config
        self.kind = nn.Embedding(ops, d)
        self.chain = nn.Embedding(ops, d)
        self.edge_kind = nn.Embedding(types, w)
        for table in (self.kind, self.chain, self.edge_kind):
            nn.init.normal_(table.weight, std=0.3)
        self.node_in = nn.Sequential(nn.Linear(NODE_FEATURES, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
        self.edge_in = nn.Linear(WEIGHT_FEATURES + 3, w)
        self.edge_mix = nn.Linear(w, w)
        self.rounds = nn.ModuleList(Round(d, w) for _ in range(config.rounds))
        self.number = nn.Embedding(config.broken, d) if config.broken else None
        if config.outputs:
            self.pooled = nn.Sequential(
                nn.BatchNorm1d(2 * d + 3 * w) if config.across else nn.LayerNorm(2 * d + 3 * w),
                nn.Linear(2 * d + 3 * w, 64),
                nn.SiLU(),
                nn.Dropout(config.dropout),
                nn.Linear(64, config.outputs),
            )
        if config.changes:
            self.change = Change(d, w)

    def forward(self, batch: GraphBatch) -> tuple[Tensor | None, Tensor | None]:
        h, e = self.states(batch)
        said = self.pooled(self.pool(batch, h, e)) if self.config.outputs else None
        return said, self.change(batch, h, e) if self.config.changes else None

    def states(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """The states of nodes [N, nodes] and edges [E, edges] after all rounds."""
        h = self.node_in(node_features(batch)) + self.kind(batch.kind) + self.chain(batch.chain).sum(1)
        if self.number is not None:
            first = torch.searchsorted(batch.graph, torch.arange(batch.graphs))
            own = torch.arange(len(h)) - first[batch.graph]
            h = h + self.number(own % self.config.broken)
        e = self.edge_in(torch.cat((weight_features(batch), batch.edge_attr[:, 1:]), 1))
        e = self.edge_mix(nn.functional.silu(e + self.edge_kind.weight.index_select(0, batch.edge_type)))
        weight = torch.asinh(batch.edge_attr[:, 0])  # a weight that grew very large counts by its logarithm
        along = (*batch.flows(weight), *batch.flows(weight.abs()))
        for step in self.rounds:
            h, e = step(h, e, batch, along)
        return h, e

    def pool(self, batch: GraphBatch, h: Tensor, e: Tensor) -> Tensor:
        """[graphs, …]: means over nodes, over output nodes, over elements of parameters (and of their squares)."""
        own = e.index_select(0, batch.weights)
        where = batch.edge_graph.index_select(0, batch.weights)
        of_weights = _mean(torch.cat((own, own.square()), 1), where, batch.graphs)
        output = batch.x[:, NODE_COLUMNS.index("output")] > 0
        links = _mean(e, batch.edge_graph, batch.graphs)
        nodes = (_mean(h, batch.graph, batch.graphs), _mean(h[output], batch.graph[output], batch.graphs))
        return torch.cat((*nodes, of_weights, links), 1)


class Round(nn.Module):
    """One round of messages; d and w are the widths of the states of nodes and edges."""

    def __init__(self, d: int, w: int) -> None:
        super().__init__()
        self.ends = nn.Linear(d, 2 * w)
        self.sent = nn.Linear(d, 2 * d)
        self.own = nn.Linear(w, w, bias=False)
        self.update = Update(3 * d + 2 * w, d)

    def forward(
        self, h: Tensor, e: Tensor, batch: GraphBatch, along: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        p, q = self.ends(h).chunk(2, 1)
        e = e + nn.functional.silu(self.own(e) + batch.source.gather(p) + batch.target.gather(q))
        arriving, leaving, arriving_size, leaving_size = along
        a, b, c, f = self.sent(h).chunk(4, 1)
        heard = (
            batch.target.mean(e),
            batch.source.mean(e),
            flow(a.contiguous(), arriving, leaving),
            flow(b.contiguous(), arriving_size, leaving_size),
            flow(c.contiguous(), leaving, arriving),
            flow(f.contiguous(), leaving_size, arriving_size),
        )
        return h + self.update(torch.cat((h, *heard), 1)), e


class Update(nn.Module):
    """The MLP of a node, [N, inputs] → [N, d]. Half of its units are smooth steps of normalised sums. Half are sines of
    the sums themselves, so that what a node computes can be followed as it is, above all in networks of sines."""

    def __init__(self, inputs: int, d: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, 2 * d)
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.hidden(x).chunk(2, 1)
        result: Tensor = self.out(torch.cat((nn.functional.silu(self.norm(a)), torch.sin(b)), 1))
        return result


class Change(nn.Module):
    """A change for each element of a parameter, from the states of its edge and its two ends."""

    def __init__(self, d: int, w: int) -> None:
        super().__init__()
        self.ends = nn.Linear(d, 4 * w)
        self.own = nn.Linear(w, 2 * w)
        self.out = nn.Linear(2 * w, 1)

    def forward(self, batch: GraphBatch, h: Tensor, e: Tensor) -> Tensor:
        p, q = self.ends(h).chunk(2, 1)
        at = batch.weights
        seen = p.index_select(0, batch.source.index[at]) + q.index_select(0, batch.target.index[at])
        result: Tensor = self.out(nn.functional.silu(self.own(e.index_select(0, at)) + seen))[:, 0]
        return result


def weight_features(batch: GraphBatch) -> Tensor:
    """[E, 4]: a weight at several scales, and relative to the number of edges that arrive where it does."""
    weight = batch.edge_attr[:, 0]
    relative = weight * batch.target.count[:, 0].sqrt().index_select(0, batch.target.index)
    return torch.stack(
        (torch.asinh(weight), torch.asinh(10 * weight) / 3, torch.asinh(relative), weight.abs().sqrt()), 1
    )


def node_features(batch: GraphBatch) -> Tensor:
    """[N, …]: what the graph says of a node, and waves over its pinned places, so that a sum over pixels can tell a
    smooth pattern of weights from a rough one."""
    first = NODE_COLUMNS.index("pin0")
    pins = batch.x[:, first : first + 3]
    waves = [wave(torch.pi / 2 * k * pins) for k in WAVES for wave in (torch.sin, torch.cos)]
    return torch.cat((batch.x, *waves), 1)


def _mean(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[rows, d] → [groups, d]. Rows stand group by group."""
    return ends(group, groups, torch.arange(len(group))).mean(values)


def parameters_of(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())


def vocabulary_sizes(words: Any) -> tuple[int, int]:
    """The numbers of ops and edge types of a vocabulary."""
    from archc.metanet.neuron_graph import edge_types

    return len(words.ops), len(edge_types(words))
