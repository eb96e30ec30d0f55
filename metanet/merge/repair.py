"""Setting right the statistics of a merged network.

The mean of two weights that agree in part only is shorter than either, so what a merged network's units compute varies
less than in both networks, layer after layer (Jordan et al. 2022, REPAIR, arXiv:2211.08403). Two remedies, both folded
into what the network has, so that its architecture stays:

Batch norm: the running estimates are measured anew, on data, each layer seeing what the mended layers before it give.

Linear and convolutional layers that no batch norm follows at once: each output channel is given the mean and the
deviation that lie between those of the networks, by scaling its weights and moving its bias; without a bias, the
deviation alone. Layers whose results the network returns are not touched, nor those whose weights are shared or that a
scan runs again and again. Attention is taken apart to reach its projections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archc.ir.clone import clone
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.ops.norm import BATCH_NORM
from archc.ir.ops.shape import PERMUTE
from archc.metanet.merge.activations import opened
from archc.metanet.merge.network import Network, TooFew, wide

Array = Any  # a numpy array
Arrays = Mapping[str, Array]

LAYERS = {"linear": -1, "conv": 1}
"""Op -> the axis of its result that counts output channels; axis 0 of its weight counts them too."""

EPS = 1e-8
"""What is added to the variance of a channel before it is divided by."""


@dataclass(frozen=True)
class Repaired:
    """Mended weights, and what was done: how many batch norms were measured anew, how many layers were rescaled, how
    many layers could not be (shared, scanned, or of too few rows)."""

    weights: Arrays
    norms: int = 0
    layers: int = 0
    left: int = 0

    def __str__(self) -> str:
        parts = [f"{self.norms} batch norm{_s(self.norms)} measured anew"] if self.norms else []
        parts += [f"{self.layers} layer{_s(self.layers)} rescaled"] if self.layers else []
        parts += [f"{self.left} left as they are"] if self.left else []
        return ", ".join(parts) or "nothing to repair"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


class Repair:
    """Repairs of merged networks of one architecture on the same data, between the same networks.

    `inputs` are data by input name, as many samples as the statistics should rest on (hundreds do). A batch norm is put
    behind each layer, whose gain and shift are the wanted deviation and mean; one step in training mode then tells the
    statistics of all norms, each on what comes out of the mended layers before it. Those that were put in are folded
    into their layers again.

    Raises: CompileError E0844 where a batch norm sees too few numbers to have statistics.
    """

    def __init__(self, graph: Graph, networks: Sequence[Arrays], inputs: Mapping[str, Array]) -> None:
        self.graph, self.inputs, self.networks = _without_dropout(opened(graph)), inputs, networks
        self.norms = sum(node.op.name == "batch_norm" for node in self.graph.walk())
        self.inside = True
        self._prepare()

    def __call__(self, merged: Arrays, shares: Sequence[float]) -> Repaired:
        """The repaired mean of the networks with these shares, in float64."""
        if not self.running:
            return Repaired(wide(merged), left=self.left)
        weights = wide(merged)
        for probe, *ends in zip(self.probes, *self.ends, strict=True):
            for role, of_ends in zip(("bias", "weight"), zip(*ends, strict=True), strict=True):
                weights[probe.weights[role].name] = sum(s * x for s, x in zip(shares, of_ends, strict=True))
        try:
            weights = self._measured(weights)
        except TooFew:
            self._leave_regions()
            return self(merged, shares)
        for (_, node), probe in zip(self.layers, self.probes, strict=True):
            deviation, shift, mean, variance = (weights.pop(p.name) for p in probe.weights.values())
            _fold(node, weights, mean, shift, deviation / np.sqrt(variance + EPS))
        return Repaired(weights, self.norms, len(self.layers), self.left)

    def _prepare(self) -> None:
        graph = clone(self.graph)
        self.layers, self.left = _layers(graph, self.inside)
        self.probes = [_probe(region, node, f"repair{i}") for i, (region, node) in enumerate(self.layers)]
        used = [n for n in graph.walk() if n.op.name == "batch_norm"]
        self.running = {p.name: p.shape for n in used for p in n.weights.values() if not p.trainable}
        if not self.running:
            return
        self.network = Network(graph)  # what the probes make is not used yet
        try:
            self.ends = [self._moments(w) for w in self.networks]
        except TooFew:
            self._leave_regions()
            return
        for (region, node), probe in zip(self.layers, self.probes, strict=True):
            _insert(region, node, probe)
        self.network = Network(graph)

    def _leave_regions(self) -> None:
        """Begin again, with layers inside regions left as they are: one of them sees too few rows."""
        if not self.inside:
            raise fail(
                "E0844",
                "statistics cannot be measured on so few data",
                label="a batch norm sees one number of a channel",
                help="give it more samples, or leave the repair out: `--no-repair`",
            )
        self.inside = False
        self._prepare()

    def _moments(self, weights: Arrays) -> list[tuple[Array, Array]]:
        """Mean and deviation of each output channel of each layer."""
        blank = {p.name: np.ones(p.shape) for probe in self.probes for p in probe.weights.values()}
        found = self._measured(wide(weights) | blank)
        names = [[probe.weights[role].name for role in ("running_mean", "running_var")] for probe in self.probes]
        return [(found[mean], np.sqrt(found[variance])) for mean, variance in names]

    def _measured(self, weights: dict[str, Array]) -> dict[str, Array]:
        """Running estimates as they are on the data.

        A training step turns an estimate r into d r + (1 - d) s, where s is the statistic of the batch and d depends on
        the momentum and on how often the norm is used. A step from 0 and one from 1 tell d and s.
        """
        zero, one = (
            self.network.trained(
                weights | {n: np.full(self.running[n], x) for n in self.running}, self.inputs, self.running
            )
            for x in (0.0, 1.0)
        )
        measured = {}
        for name in self.running:
            decay = one[name] - zero[name]
            used = decay < 1 - 1e-6  # else no row came to the norm
            measured[name] = np.where(used, zero[name] / np.where(used, 1 - decay, 1), weights.get(name, np.nan))
        return weights | measured


def _probe(region: Graph, node: Node, name: str) -> Node:
    """A batch norm of what a layer makes, which nobody uses yet."""
    norm = region.add(
        BATCH_NORM, [_turned(region, node.output, node, name)], BATCH_NORM.params(eps=EPS, momentum=1.0), name=name
    )
    region.sort()
    return norm


def _turned(region: Graph, value: Value, node: Node, name: str) -> Value:
    """The channels of a layer's result at axis 1, or those of such a value back where they were."""
    rank, axis = value.type.rank, LAYERS[node.op.name] % value.type.rank
    if axis == 1:
        return value
    order = [0, axis, *(i for i in range(1, rank) if i != axis)]
    if value is not node.output:
        order = [order.index(i) for i in range(rank)]
    return region.add(PERMUTE, [value], PERMUTE.params(order=tuple(order)), name=f"{name}.turned").output


def _insert(region: Graph, node: Node, probe: Node) -> None:
    """Let those who use a layer's result use that of its probe."""
    last = _turned(region, probe.output, node, f"{probe.name}.back")
    before = {probe, probe.inputs[0].producer}
    for user in [u for u in node.output.uses if u not in before]:
        user.set_inputs(tuple(last if v is node.output else v for v in user.inputs))
    region.outputs = [last if v is node.output else v for v in region.outputs]
    region.sort()


def _fold(node: Node, weights: dict[str, Array], mean: Array, wanted: Array, factor: Array) -> None:
    """Scale a layer's channels, and move their means to what is wanted."""
    weight = weights[name := node.weights["weight"].name]
    weights[name] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if "bias" in node.weights:
        bias = weights[name := node.weights["bias"].name]
        weights[name] = (bias - mean) * factor + wanted


def _layers(graph: Graph, inside: bool) -> tuple[list[tuple[Graph, Node]], int]:
    """The layers that can be rescaled, with the graphs they stand in; how many inside the network cannot."""
    uses = Counter(p for node in graph.walk() for p in node.weights.values())
    chosen = [(g, n) for g in _once(graph, inside) for n in g.nodes if n.op.name in LAYERS and _alone(n, g, uses)]
    chosen = [(g, n) for g, n in chosen if not (g is graph and _ends(n, graph))]
    wanted = sum(n.op.name in LAYERS and _alone(n, g, None) and not (g is graph and _ends(n, graph))
                 for g in graph.graphs() for n in g.nodes)  # fmt: skip
    return chosen, wanted - len(chosen)


def _once(graph: Graph, inside: bool) -> Iterator[Graph]:
    """The graph, and regions in it whose nodes run once for each row."""
    yield graph
    for node in graph.nodes if inside else ():
        for region in node.regions if node.op.name != "scan" else ():
            yield from _once(region, inside)


def _alone(node: Node, graph: Graph, uses: Mapping[Parameter, int] | None) -> bool:
    """Whether a layer is not followed by batch norms alone, and has its weights for itself (where `uses` are told)."""
    normed = node.output.uses and all(u.op.name == "batch_norm" for u in node.output.uses)
    if normed and node.output not in graph.outputs:
        return False
    return uses is None or all(uses[p] == 1 and p.trainable for p in node.weights.values())


def _ends(node: Node, graph: Graph) -> bool:
    """Whether the network returns what a node makes, perhaps in another shape."""
    value = node.output
    return value in graph.outputs or any(u.op.category == "shape" and _ends(u, graph) for u in value.uses if u.outputs)


def _without_dropout(graph: Graph) -> Graph:
    """A copy in which nothing is left out at random."""
    copy = clone(graph)
    for region in copy.graphs():
        for node in [n for n in region.nodes if n.op.training_only]:
            node.output.replace_all_uses(node.operands[0], region)
            region.erase(node)
    return copy
