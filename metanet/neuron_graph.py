"""The parameter graph at neuron level: a node for every element of an axis, an edge for every element of a parameter.

**Nodes.** Each value of the network has a *set* of nodes for every axis that some parameter speaks of (channels, hidden
units, heads × channels, experts; pixels only where a weight tells them apart). Ops that change each element on its own
(activations, norms, dropout) work on the set of their operand, if nobody else reads that; others make a new one. Inside
fused ops (attention) the axes between two weights have sets as well, down to the heads. An op with weights has one
node of its own, its hub: biases come from there.

    x           [N, 10] float32  see `NODE_COLUMNS`; the same for nodes that the network's symmetry exchanges, while
                                 pinned places (input features, classes, pixels) know which they are
    kind        [N] int64        the op that made the set: a place in `vocabulary.ops`
    chain       [N, 4] int64     the ops that then work on it, in order (0: none)
    node_set    [N] int64        which set a node belongs to; `hub` is a column of x

**Edges.** First one for every element of every parameter, in the order of `names` and row-major inside: elements of
parameter `k` are the edges `offsets[k] … offsets[k + 1]`, so that a result for each of these edges *is* a result for
each weight (`places` turns it into arrays by name). Zero weights are edges like others. Then come copies: a parameter
that is used n times has n − 1 of them. Last come links, which carry no parameter: through concat, reshape, residual
sums, products (slot 0 and slot 1 apart), into and out of regions.

    edge_index  [2, E] int64     from what is read to what is made
    edge_type   [E] int64        place in `edge_types(vocabulary)`: "conv.weight", "link.mul[1]", "link.factor" …
    edge_mark   [E] int64        0 a parameter's element, 1 a copy, 2 a link
    edge_attr   [E, 4] float32   the weight (links: 1), then up to three pinned coordinates from -1 to 1 (the tap of a
                                 convolution, the basis function of a KAN; 0 where there is none)

A norm's gain is an edge from a channel to the same channel (a loop where both are one node), a depthwise
convolution's taps are parallel loops, a bias goes from the hub to a channel.

The symmetry of the network acts on this graph: a permutation of its weights (`archc.metanet.symmetry.apply`) gives the
same graph with its nodes permuted (`NeuronArrays.moved`), so that what passes messages along it is equivariant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from archc.ir.axes import Axes, AxisVar
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY
from archc.metanet.neuron_sets import NodeSet, indexed_by
from archc.metanet.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

MAX_EDGES = 20_000_000
"""Edges of a graph unless one asks for more: about 1 GB."""

NODE_COLUMNS = ("size", "hub", "input", "output", "inner", "pinned", "pin0", "pin1", "pin2", "depth")
"""Size of the set (`number`); is it a hub; of a network input; of an output; inside a fused op; how many pinned digits
it has; the first three of them, from -1 to 1; depth of the op that made it, from 0 to 1."""

MAX_SLOTS = 4
"""Operands of an op that takes any number of them (`einsum`) that have a type of link each."""

MARKS = ("weight", "copy", "link")

STRUCTURE = ("factor", "pair", "hub", "route", "back", "enter", "leave")


@dataclass(eq=False, slots=True)
class NeuronArrays:
    """The graph without its weights, as numpy arrays; the module's text says what each is. One for all networks of an
    architecture: `values` puts weights in."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    offsets: Ints
    x: Floats
    kind: Ints
    chain: Ints
    node_set: Ints
    edge_index: Ints
    edge_type: Ints
    edge_mark: Ints
    edge_attr: Floats
    """Its first column holds no weights yet."""
    copies: list[tuple[int, int]]
    """(parameter, first edge) of each copy."""
    axes: Axes = field(repr=False)
    sets: list[NodeSet] = field(repr=False)

    def values(self, weights: Mapping[str, Any]) -> Floats:
        """The first column of `edge_attr` for these weights, [E]; links have 1.

        Raises: CompileError E0603 … for weights of another architecture, E0812 for NaN or infinite ones.
        """
        import numpy as np

        arrays = checked(self.names, self.shapes, weights)
        column = np.ones(len(self.edge_type), np.float32)
        if arrays:
            np.concatenate([a.reshape(-1) for a in arrays], out=column[: self.offsets[-1]], casting="unsafe")
        for parameter, first in self.copies:
            column[first : first + arrays[parameter].size] = arrays[parameter].reshape(-1)
        return column

    def places(self, column: Any) -> dict[str, Any]:
        """What stands at the edges of parameters ([E, …] or [W, …]), as an array of the parameter's shape by name."""
        return {
            name: column[self.offsets[k] : self.offsets[k + 1]].reshape(*shape, *column.shape[1:])
            for k, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True))
        }

    def moved(self, element: Mapping[AxisVar, Any]) -> Ints:
        """Where an element of the symmetry group sends each node, [N]. The element must be of `self.axes`, and permute
        axes only: an exchange of replicas (experts, branches) moves whole parts of the graph."""
        import numpy as np

        assert all(isinstance(key, AxisVar) for key in element), "an exchange of replicas is no permutation of axes"
        index = indexed_by(self.axes)
        result = np.arange(len(self.x))
        for nodes in self.sets:
            result[nodes.base : nodes.base + nodes.size] = nodes.base + nodes.image(element, index)
        return result


def neuron_graph(
    graph: Graph, weights: Mapping[str, Any], words: Vocabulary | None = None, max_edges: int = MAX_EDGES
) -> Any:
    """The parameter graph at neuron level as a `torch_geometric.data.Data`; the module's text says its layout.

    weights    arrays or tensors by parameter name
    max_edges  more are refused before anything is built

    Raises: CompileError E0810 for an op that `words` has not, E0811 when there are too many edges, E0603 … for weights
    of another architecture, E0812 for NaN or infinite ones.

    >>> from archc.grammar.load import loads
    >>> from archc.metanet.symmetry import random_weights
    >>> net = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)")
    >>> data = neuron_graph(net, random_weights(net, 0))
    >>> data.num_nodes, data.offsets.tolist()  # 4 + 8 + 2 and two hubs
    (16, [0, 32, 40, 56, 58])
    """
    return to_data(neuron_arrays(graph, words=words, max_edges=max_edges), weights)


def to_data(arrays: NeuronArrays, weights: Mapping[str, Any]) -> Any:
    """The arrays with these weights as a `Data`."""
    import torch
    from torch_geometric.data import Data

    edge_attr = arrays.edge_attr.copy()
    edge_attr[:, 0] = arrays.values(weights)
    tensors = {
        name: torch.from_numpy(getattr(arrays, name))
        for name in ("x", "kind", "chain", "node_set", "edge_index", "edge_type", "edge_mark")
    }
    data = Data(**tensors, edge_attr=torch.from_numpy(edge_attr))
    data.offsets = torch.from_numpy(arrays.offsets)
    data.names, data.shapes = arrays.names, arrays.shapes
    return data


def neuron_arrays(
    graph: Graph, axes: Axes | None = None, words: Vocabulary | None = None, max_edges: int = MAX_EDGES
) -> NeuronArrays:
    """The graph of an architecture, weights left out. Raises what `neuron_graph` raises of E0810 and E0811.

    axes  those of the graph, where the caller has them (a group element speaks of the very variables)
    """
    from archc.ir.axes import derive_axes
    from archc.metanet.neuron_build import build

    return build(graph, axes or derive_axes(graph), words or vocabulary(), max_edges)


def checked(names: list[str], shapes: list[tuple[int, ...]], weights: Mapping[str, Any]) -> list[Any]:
    """The arrays of these parameters, in order. Raises what `NeuronArrays.values` raises."""
    import numpy as np

    from archc.backends.weights import check_weights, type_of
    from archc.ir.types import TensorType

    found = {n: w.detach().cpu().numpy() if hasattr(w, "detach") else np.asarray(w) for n, w in weights.items()}
    if list(found) != names or any(found[n].shape != s for n, s in zip(names, shapes, strict=True)):
        # dtypes are free here: a float64 weight is as good as a float32 one
        needed = {
            n: TensorType(s, type_of(found[n]).dtype if n in found else "f32")
            for n, s in zip(names, shapes, strict=True)
        }
        check_weights(needed, {n: type_of(a) for n, a in found.items()})
    for name in names:
        array = found[name]
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            wrong = int((~np.isfinite(array)).sum())
            raise fail(
                "E0812",
                f"`{name}` is not finite",
                label=f"{wrong} of its {array.size} elements are NaN or infinite",
                help="a run that diverged is no input for a metanetwork: take an earlier checkpoint",
            )
    return [found[name] for name in names]


def too_large(count: int, limit: int) -> Exception:
    """A graph that has too many edges (E0811)."""
    return fail(
        "E0811",
        f"the graph at neuron level has {count:,} edges, and the limit is {limit:,}",
        label="one for every element of every parameter, and links between neurons",
        help="take the graph at tensor level (`--level tensor`), or raise the limit (`--max-edges`)",
    )


@lru_cache(maxsize=8)
def edge_types(words: Vocabulary) -> tuple[str, ...]:
    """The names of edge types: a parameter's op and role, a link's op and slot, a link's structure.

    >>> names = edge_types(vocabulary())
    >>> "conv.weight" in names, "link.matmul[1]" in names, "link.factor" in names
    (True, True, True)
    """
    found = [f"link.{name}" for name in STRUCTURE]
    for name in words.ops:
        op = REGISTRY.get(name)
        if op is not None:
            found += [f"{name}.{role}" for role in op.weights]
            many = MAX_SLOTS if any(o.startswith("*") for o in op.operand_names) else max(1, len(op.operand_names))
            alike = op.commutative or op.category == "shape"
            found += [f"link.{name}[{slot}]" for slot in range(1 if alike else many)]
    return tuple(found)
