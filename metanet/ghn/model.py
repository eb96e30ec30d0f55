"""The graph hypernetwork: node states from a net's graph by message passing, and weights from node states.

A node begins as what it is by itself (op, attributes, shapes, how far it is from input and output, its weights). In
each round every node hears from those that feed it and those that it feeds, by operand slot, and ops of a region from
the op that carries it. After `rounds` rounds a weight's vector is made of its op's state and its role.

Messages can be left out (`messages = "none"`): the same layers work on every node by itself, which makes a table of
weights keyed by op, attributes, role and place, of equal parameter count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from archc.metanet.ghn.decoder import Decoder
from archc.metanet.ghn.subject import MAX_MEMBER, MAX_RESULT, MAX_SLOT, Subject, collate
from archc.metanet.ghn.turns import products
from archc.metanet.tensor_graph import AXIS_COLUMNS, FLOWS, INIT_COLUMNS, ORIGIN_COLUMNS, POSITION_COLUMNS, REGIONS
from archc.metanet.vocabulary import MAX_AXES, Vocabulary, vocabulary


class GhnConfig(BaseModel):
    """The shape of a hypernetwork."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(64, ge=4, description="size of a node's state")
    rounds: int = Field(3, ge=0, description="rounds of message passing")
    turns: int = Field(8, ge=0, description="rounds in which ops tell how what they pass on has been turned")
    messages: Literal["all", "none"] = Field("all", description="none: every node by itself, same parameters")
    origin: bool = Field(False, description="tell nodes which input axes their axes carry, as the axis rules know it")
    rank: int = Field(32, ge=1, description="terms in a predicted weight")
    width: int = Field(32, ge=1, description="size of the embeddings of interchangeable elements")
    grid: int = Field(8, ge=1, description="cosines along an axis of positions")
    mix: int = Field(24, ge=1, description="bottleneck of the decoder")
    table: int = Field(128, ge=64, description="elements with learned embeddings")


class Ghn(nn.Module):
    """A hypernetwork for a vocabulary and tasks, both by name.

        >>> from archc.grammar.load import loads
        >>> from archc.metanet.ghn.turns import products
    from archc.metanet.ghn.subject import subject
        >>> net = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)")
        >>> model = Ghn(GhnConfig(), tasks=["digits"])
        >>> weights = model([subject(net, model.words)], [0])
        >>> {name: tuple(w.shape) for name, w in weights[0].items()}["linear2.weight"]
        (2, 8)
    """

    def __init__(
        self, config: GhnConfig, tasks: Sequence[str] = (), words: Vocabulary | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self.tasks, self.words = config, tuple(tasks), words or vocabulary()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = Encoder(config, len(self.tasks), self.words)
            self.decoder = Decoder(config.hidden, config.rank, config.width, config.grid, config.mix, config.table)

    def forward(self, nets: Sequence[Subject], tasks: Sequence[int]) -> list[dict[str, Tensor]]:
        """For each net its weights by parameter name, for the task of that number. What is not predicted (statistics,
        buffers) has the value that the program gives."""
        batch = collate(nets)
        vectors, turns = self.encoder(batch, torch.tensor(list(tasks), dtype=torch.long))
        values = iter(self.decoder(vectors, turns, batch.plans))
        return [{plan.name: next(values) for plan in net.plans} for net in nets]


class Encoder(nn.Module):
    """Subjects -> a vector for each weight."""

    def __init__(self, config: GhnConfig, tasks: int, words: Vocabulary) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.kind = nn.Embedding(len(words.ops), hidden)
        self.attributes = nn.Parameter(0.3 * torch.randn(len(words.attributes), hidden))
        self.task = nn.Embedding(max(1, tasks), hidden)
        self.role = nn.Embedding(len(words.roles), hidden)
        features = MAX_AXES * len(AXIS_COLUMNS) + len(POSITION_COLUMNS)
        self.features = nn.Linear(features, hidden)
        self.origin = nn.Linear(MAX_AXES * len(ORIGIN_COLUMNS), hidden, bias=False) if config.origin else None
        self.weight = nn.Linear(MAX_AXES * len(AXIS_COLUMNS) + len(INIT_COLUMNS), hidden)
        self.first = _mlp(hidden, hidden, hidden)
        self.flow = nn.Embedding(len(FLOWS), hidden)
        self.slot = nn.Embedding(MAX_SLOT + 1, hidden)
        self.result = nn.Embedding(MAX_RESULT + 1, hidden)
        self.region = nn.Embedding(len(REGIONS), hidden)
        self.member = nn.Embedding(MAX_MEMBER + 1, hidden)
        self.senders = nn.Linear(hidden, 4 * hidden, bias=False)
        self.update = _mlp(5 * hidden, 2 * hidden, hidden)
        self.key = nn.Embedding(len(words.roles), hidden)
        self.owner = nn.Embedding(len(words.ops), hidden)
        self.last = _mlp(3 * hidden, 2 * hidden, hidden)
        self.turn = nn.Linear(hidden, 8)
        nn.init.zeros_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)
        for table in (self.flow, self.slot, self.result, self.region, self.member):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, batch: Subject, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Of each weight a vector [p, 2·hidden], what it is and where it stands, and how its input is turned [p, 8];
        `tasks` [nets] are numbers."""
        weights = self.role(batch.use_role) + self.weight(batch.weight_features)[batch.use_weight]
        state = own = self.start(batch, tasks, weights)
        edges = self.edges(batch)
        for _ in range(max(1, self.config.rounds)):
            known = normal(state)
            state = state + self.update(torch.cat([known, self.heard(known, batch, edges)], 1))
        turns = self.turned(batch, self.config.turns if edges is not None else 0)
        count = len(batch.plans)
        joined = torch.cat([normal(state)[batch.use_op], normal(own)[batch.use_op], normal(weights)], 1)
        key = self.key(batch.use_role) + self.owner(batch.kind[batch.use_op])
        found = torch.cat([self.last(joined), key, turns[batch.use_op]], 1)
        summed = found.new_zeros(count, found.shape[1]).index_add(0, batch.use_weight, found)
        context, key, turns = torch.split(summed, [key.shape[1], key.shape[1], 8], 1)
        uses = torch.bincount(batch.use_weight, minlength=count).clamp_min(1)
        return torch.cat([normal(key), normal(context)], 1), turns / uses[:, None]

    def turned(self, batch: Subject, rounds: int) -> Tensor:
        """How the result of each op is turned, as it knows after so many rounds, [n, 8]: what the op does to what its
        operands are, which it hears from them. See `archc.metanet.ghn.turns`."""
        kind = self.kind(batch.kind) + self.described(batch)
        own: Tensor = 0.1 * self.turn(normal(kind)) + F.one_hot(batch.turn, 8)
        if not rounds:
            return own
        source, target = batch.feeds
        count = torch.bincount(target, minlength=len(own)).clamp_min(1)[:, None]
        first = torch.bincount(target, minlength=len(own))[:, None] == 0
        act = torch.einsum("ni,ijk->njk", own, products())  # [n, 8, 8]: what it hears -> what it says
        state = own
        for _ in range(rounds):
            heard = torch.zeros_like(state).index_add(0, target, state[source]) / count
            state = torch.where(first, own, torch.bmm(heard.unsqueeze(1), act).squeeze(1))
        return state

    def described(self, batch: Subject) -> Tensor:
        """The attributes of each op, [n, hidden]."""
        found: Tensor = F.embedding_bag(
            batch.columns, self.attributes, batch.starts, mode="sum", per_sample_weights=batch.amounts
        )
        return found

    def start(self, batch: Subject, tasks: Tensor, weights: Tensor) -> Tensor:
        """What each op is by itself, [n, hidden]."""
        state: Tensor = self.kind(batch.kind) + self.features(torch.cat([batch.shape, batch.position], 1) / 4)
        state = state + self.described(batch)
        if self.origin is not None:
            state = state + self.origin(batch.origin)
        state = state + self.task(tasks)[batch.node_net]
        state = state.index_add(0, batch.use_op, 0.5 * weights)
        joined: Tensor = state + self.first(normal(state))
        return joined

    def edges(self, batch: Subject) -> Edges | None:
        """All messages of a round: what a node says in four ways lies in rows 4·node … 4·node + 3."""
        if self.config.messages == "none" or self.config.rounds == 0:
            return None
        flow = self.flow(batch.flows[:, 0]) + self.slot(batch.flows[:, 1]) + self.result(batch.flows[:, 2])
        source, target = batch.feeds
        member, carrier = batch.inside
        region = self.region(batch.regions[:, 0]) + self.member(batch.regions[:, 1])
        return Edges(
            torch.cat([4 * source, 4 * target + 1, 4 * member + 2, 4 * carrier + 3]),
            torch.cat([4 * target, 4 * source + 1, 4 * carrier + 2, 4 * member + 3]),
            torch.cat([flow, flow, region, region]),
        )

    def heard(self, state: Tensor, batch: Subject, edges: Edges | None) -> Tensor:
        """The sums of messages, [n, 4·hidden]: from producers, consumers, members of own regions, and the carrier."""
        nodes, hidden = state.shape
        if edges is None:
            return state.new_zeros(nodes, 4 * hidden)
        sent: Tensor = self.senders(state).view(4 * nodes, hidden)
        messages = F.relu(sent.index_select(0, edges.source) + edges.kind)
        return sent.new_zeros(4 * nodes, hidden).index_add(0, edges.target, messages).view(nodes, 4 * hidden)


@dataclass(frozen=True)
class Edges:
    """Rows that speak, rows that hear, and what the edges are, [e, hidden]."""

    source: Tensor
    target: Tensor
    kind: Tensor


def normal(x: Tensor) -> Tensor:
    """Each row with mean 0 and deviation 1."""
    return F.layer_norm(x, x.shape[-1:])


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


__all__ = ["Encoder", "Ghn", "GhnConfig", "parameter_count"]
