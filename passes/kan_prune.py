"""`kan_prune`: edges and nodes of a KAN that hardly say anything go.

An edge matters as much as its function varies on what it reads. A node between two KAN layers matters when an edge into
it does and an edge out of it does: as the smaller of the two largest. A node that goes leaves what it gave on average
in the bias of the layer that reads it; an edge that goes, what its function is on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from archc.ir.graph import Graph, Node, Value
from archc.ir.ops.kan import KAN
from archc.passes.blocks import users_of
from archc.passes.editing import Editor
from archc.passes.fitting import samples
from archc.passes.kan_basis import edges
from archc.passes.manager import Context, Contract, Measured
from archc.passes.matrices import weights_or_initial
from archc.passes.transform import Options, Refusal, Site, Transform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Places = NDArray[np.intp]
    Mask = NDArray[np.bool_]

POINTS = 512
"""Samples that edges are measured on, at most."""


class KanPruneOptions(Options):
    """threshold  edges and nodes go that matter less than this share of the layer's most important edge; 0.01 unless
               `ratio` is given
    ratio      this share of the nodes of each hidden layer goes, those that matter least
    """

    threshold: float | None = Field(default=None, gt=0, lt=1)
    ratio: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one(self) -> KanPruneOptions:
        if self.threshold is not None and self.ratio is not None:
            raise ValueError("one of threshold and ratio decides, not both")
        return self


def _find(graph: Graph, options: KanPruneOptions) -> Iterator[Site | Refusal]:
    users = users_of(graph)
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is not KAN:
                continue
            shared = [p.name for p in node.weights.values() if users[p.name] > 1]
            if shared:
                yield Refusal(node, "its edges belong to this layer alone", f"`{shared[0]}` is shared")
            elif node.call.params.basis == "grkan":
                yield Refusal(node, "its functions are on edges, not on channels", 'found basis = "grkan"')
            else:
                yield Site(node, (node,), region)


@dataclass(slots=True, eq=False)
class Layer:
    """A layer, its weights by role, how much its edges' functions vary and what they are on average, [out, in] each;
    and which inputs, outputs and edges stay."""

    node: Node
    weights: dict[str, Array]
    spread: Array
    mean: Array
    inputs: Places
    outputs: Places
    edges: Mask

    @property
    def relative(self) -> Array:
        """What matters, as shares of what matters most."""
        return self.spread / (self.spread.max() or 1.0)


def _apply(graph: Graph, sites: Sequence[Site], options: KanPruneOptions, context: Context) -> None:
    import numpy as np

    nodes = [site.anchor for site in sites]
    rows = samples(graph, context, [n.operands[0] for n in nodes], -1)
    layers = {n: _layer(n, rows[n.operands[0]][:POINTS], context) for n in nodes}
    for site in sites:
        layer, readers = layers[site.anchor], [layers.get(n) for n in site.anchor.output.uses]
        if not readers or None in readers or site.anchor.output in site.graph.outputs:
            continue
        behind = [reader for reader in readers if reader is not None]
        layer.outputs = _staying(layer, behind, options)
        for reader in behind:
            reader.inputs = layer.outputs
    editor, moved = Editor(graph, graph, nodes[0]), dict[Value, Value]()
    for site in sites:
        layer, x = layers[site.anchor], site.anchor.operands[0]
        if options.ratio is None:
            layer.edges = np.asarray(layer.relative >= (options.threshold or 0.01))
        new = _rebuilt(editor.beside(site.graph, site.anchor), layer, moved.get(x, x), context)
        moved[site.anchor.output] = new.output
        if new.output.type == site.anchor.output.type:
            site.anchor.output.replace_all_uses(new.output, site.graph)
        left = layer.edges[layer.outputs][:, layer.inputs].sum() / layer.edges.size
        context.measured.append(Measured("kan_prune", site.anchor.name, "share of the edges left", float(left)))


def _layer(node: Node, x: Array, context: Context) -> Layer:
    import numpy as np

    weights = {role: weights_or_initial(context, p) for role, p in node.weights.items()}
    y = edges(node, weights, x)
    out, inputs = y.shape[1:]
    return Layer(node, weights, y.std(0), y.mean(0), np.arange(inputs), np.arange(out), np.ones((out, inputs), bool))


def _staying(layer: Layer, readers: Sequence[Layer], options: KanPruneOptions) -> Places:
    """The nodes behind a layer that stay, at least the one that matters most."""
    import numpy as np

    out = np.max([reader.relative.max(0) for reader in readers], axis=0)
    matters = np.minimum(layer.relative.max(1), out)
    if options.ratio is None:
        stay = np.flatnonzero(matters >= (options.threshold or 0.01))
    else:
        stay = np.sort(np.argsort(-matters, kind="stable")[: len(matters) - round(options.ratio * len(matters))])
    return stay if len(stay) else np.array([int(matters.argmax())])


def _rebuilt(e: Editor, layer: Layer, x: Value, context: Context) -> Node:
    """The layer on fewer channels, its weak edges 0; what goes leaves its mean in the bias."""
    import numpy as np

    old, kept = layer.node, np.ix_(layer.outputs, layer.inputs)
    goes = np.ones_like(layer.edges)
    goes[:, layer.inputs] = ~layer.edges[:, layer.inputs]
    bias = layer.weights.get("bias", 0.0) + (goes * layer.mean).sum(1)
    params = old.params.model_copy(
        update={"out": len(layer.outputs), "bias": old.call.params.has_bias or bool(goes.any())}
    )
    new = e.node(KAN, x, full_name=old.name, params=params)
    for role, parameter in new.weights.items():
        if role in old.weights:
            parameter.name = old.weights[role].name
        if role == "bias":
            context.store(parameter, bias[layer.outputs])
            continue
        mask = layer.edges[kept]
        value = layer.weights[role][kept]
        context.store(parameter, value * (mask[..., None] if value.ndim == 3 else mask))
    return new


KAN_PRUNE = Transform(
    name="kan_prune",
    doc="Edges and hidden nodes of a KAN that hardly say anything go.",
    options=KanPruneOptions,
    find=_find,
    apply=_apply,
    contract=lambda options: Contract("approximate", "approximate", "weak edges and nodes go; their means stay"),
    where="`kan` layers with functions on their edges; nodes between such layers",
    variants=("kan_prune", "kan_prune(threshold = 0.1)", "kan_prune(ratio = 0.25)"),
    paper="Liu et al. 2024, KAN, arXiv:2404.19756, section 2.5.1",
)
