"""What a hypernetwork is compared with: the same layers, decoder and parameters, told less about the graph.

Each view of a net keeps its ops, their attributes and their weights, and replaces what they hear in a round:

    graph     the graph, as the hypernetwork sees it
    table     nothing but themselves: weights keyed by op, attributes, shapes, role and topological slot
    context   the ops and attributes of immediate neighbours, as they stand; nothing comes from further away
    shuffled  the graph with its ops in each other's places; depths and degrees are those of the new places
    ordered   the op before and the op after in program order: a list; depth is the place in it
    bag       the mean over all ops of the net: no edges, no order, no depths

A view has every parameter of the hypernetwork and uses it as often: a loop in place of an edge passes the same layers.
Only rows of the small tables of edge labels may stay unused, where a view has no such label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from archc.metanet.ghn.model import Edges, Encoder, Ghn, GhnConfig, normal
from archc.metanet.ghn.nets import Net
from archc.metanet.ghn.subject import Subject
from archc.metanet.tensor_graph import POSITION_COLUMNS
from archc.metanet.vocabulary import Vocabulary

View = Literal["graph", "table", "context", "shuffled", "ordered", "bag"]
VIEWS: tuple[View, ...] = get_args(View)

OWN_COLUMNS = ("weights", "level")
"""Of the position features those that a node has by itself, wherever it stands."""


def build(view: View, config: GhnConfig, tasks: Sequence[str], words: Vocabulary | None = None, seed: int = 0) -> Ghn:
    """An untrained model for a view: the same first weights for all of them.

    >>> from archc.metanet.ghn.model import parameter_count
    >>> len({parameter_count(build(view, GhnConfig(), ["digits"])) for view in VIEWS})
    1
    """
    model = Ghn(config, tasks, words, seed)
    model.encoder.__class__ = _ENCODERS.get(view, Encoder)  # they differ in how they listen, not in what they hold
    return model


def viewed(net: Net, view: View) -> Net:
    """The net as that view tells of it; program, weights and module are the same.

    What is shuffled is decided by the net's name: the same at every step and for every seed.
    """
    other = Net(net.name, net.graph, net.words)
    other.__dict__["module"] = net.module  # one for all views
    other.__dict__["subject"] = _SEEN[view](net.subject, net.name) if view in _SEEN else net.subject
    return other


# -- what is seen -----------------------------------------------------------------------------------------------------


def _loops(subject: Subject, name: str) -> Subject:
    """Every op hears itself alone, on each of the four ways."""
    each = torch.arange(len(subject.kind))
    edges, none = torch.stack([each, each]), torch.zeros(len(each), 3, dtype=torch.long)
    return replace(subject, feeds=edges, flows=none, inside=edges, regions=none[:, :2])


def _shuffled(subject: Subject, name: str) -> Subject:
    """Ops in each other's places: the edges join other ops, and place features are those of the new places."""
    place = torch.from_numpy(shuffle(len(subject.kind), _ends(subject), name))  # op -> the place it takes
    op = torch.empty_like(place)
    op[place] = torch.arange(len(place))
    position = subject.position[place]
    for column in OWN_COLUMNS:
        index = POSITION_COLUMNS.index(column)
        position[:, index] = subject.position[:, index]
    return replace(subject, feeds=op[subject.feeds], inside=op[subject.inside], position=position)


def shuffle(count: int, fixed: Sequence[int], name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A permutation of `count` places that leaves `fixed` where they are, the same for the same name.

    >>> shuffle(5, [0, 4], "a net").tolist() != list(range(5)), shuffle(5, [0, 4], "a net")[[0, 4]].tolist()
    (True, [0, 4])
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.Philox(key))
    free = np.setdiff1d(np.arange(count), np.asarray(fixed, np.int64))
    place = np.arange(count)
    for _ in range(20):
        place[free] = rng.permutation(free)
        if len(free) < 2 or bool((place[free] != free).any()):
            break
    return place


def _ends(subject: Subject) -> list[int]:
    """Inputs and outputs of the net, which nothing feeds or which feed nothing."""
    count = len(subject.kind)
    fed = torch.bincount(subject.feeds[1], minlength=count)
    feeding = torch.bincount(subject.feeds[0], minlength=count)
    return [i for i in range(count) if not (fed[i] and feeding[i])]


def _ordered(subject: Subject, name: str) -> Subject:
    """A path through all ops in program order."""
    count = len(subject.kind)
    each = torch.arange(count)
    edges = torch.stack([each[:-1], each[1:]])
    nothing = torch.zeros(0, 2, dtype=torch.long)
    position = _nowhere(subject)
    place = each.float()
    columns = {
        "relative": place / max(1, count - 1),
        "forward": torch.log2(1 + place),
        "backward": torch.log2(1 + place.flip(0)),
    }
    for column, values in columns.items():
        position[:, POSITION_COLUMNS.index(column)] = values
    flows = torch.zeros(count - 1, 3, dtype=torch.long)
    return replace(subject, feeds=edges, flows=flows, inside=nothing.t(), regions=nothing, position=position)


def _bag(subject: Subject, name: str) -> Subject:
    nothing = torch.zeros(0, 2, dtype=torch.long)
    flows = torch.zeros(0, 3, dtype=torch.long)
    position = _nowhere(subject)
    return replace(subject, feeds=nothing.t(), flows=flows, inside=nothing.t(), regions=nothing, position=position)


def _nowhere(subject: Subject) -> Tensor:
    """Place features without any place."""
    position = torch.zeros_like(subject.position)
    for column in OWN_COLUMNS:
        index = POSITION_COLUMNS.index(column)
        position[:, index] = subject.position[:, index]
    return position


_SEEN = {"table": _loops, "shuffled": _shuffled, "ordered": _ordered, "bag": _bag}


# -- how it is heard --------------------------------------------------------------------------------------------------


class _Table(Encoder):
    """Ops know how they turn what passes, and nothing of other ops."""

    def turned(self, batch: Subject, rounds: int) -> Tensor:
        return super().turned(batch, 0)


class _Context(Encoder):
    """Neighbours are heard as what they are by themselves: op and attributes, the same in every round."""

    def start(self, batch: Subject, tasks: Tensor, weights: Tensor) -> Tensor:
        self._key = normal(self.kind(batch.kind) + self.described(batch))
        return super().start(batch, tasks, weights)

    def heard(self, state: Tensor, batch: Subject, edges: Edges | None) -> Tensor:
        return super().heard(self._key, batch, edges)

    def turned(self, batch: Subject, rounds: int) -> Tensor:
        return super().turned(batch, min(rounds, 1))


class _Bag(_Table):
    """Every op hears the mean over its net."""

    def edges(self, batch: Subject) -> Edges | None:
        return None

    def heard(self, state: Tensor, batch: Subject, edges: Edges | None) -> Tensor:
        label = self.flow.weight[0] + self.slot.weight[0] + self.result.weight[0]
        region = self.region.weight[0] + self.member.weight[0]
        sent = self.senders(state).view(len(state), 4, -1) + torch.stack([label, label, region, region])
        total = sent.new_zeros(batch.nets, *sent.shape[1:]).index_add(0, batch.node_net, F.relu(sent))
        count = torch.bincount(batch.node_net, minlength=batch.nets)
        means: Tensor = total / count[:, None, None]
        return means[batch.node_net].flatten(1)


_ENCODERS: dict[View, type[Encoder]] = {"table": _Table, "context": _Context, "bag": _Bag}

__all__ = ["VIEWS", "View", "build", "shuffle", "viewed"]
