"""The parameter graph at tensor level: a node for every op and every parameter.

`tensor_arrays` reads a network into plain numpy arrays (neither torch nor torch-geometric is imported), and
`tensor_graph` wraps them as a `HeteroData`, which torch-geometric's loaders batch.

**Node type `op`**: one for each network input (`%input`), op, region input (`%formal`) and network output
(`%output`), in that order of the program; ops inside regions (experts, gates, cells) are nodes as well.

    kind        [N] int64       place in `vocabulary.ops`
    attributes  [N, A] float32  the op's parameters: columns `vocabulary.attributes`
    shape       [N, 8·7]        the axes of its first result, **counted from the last**: see `AXIS_COLUMNS`
    origin      [N, 8·12]       which axes of the network's input each of them carries: see `ORIGIN_COLUMNS`
    position    [N, 9]          depth and degree: see `POSITION_COLUMNS`
    level       [N] int64       how many regions it is inside of
    depth       [N] int64       longest path from an input

**Node type `parameter`**: one for each parameter of the network, buffers included, in the order of
`graph.parameters()`; a shared one once. `names` and `shapes` (attributes of the graph) are theirs, `ops` the nodes'.
The edges of `weighs` are in the order of the ops.

    role        [P] int64       place in `vocabulary.roles`, as its first user calls it
    kind        [P] int64       the op of its first user
    sizes       [P, 8] int64    the shape, filled with ones; `rank` [P] says how many count; `size` [P] is their product
    shape       [P, 8·7]        the same axes as features, **counted from the first** (`AXIS_COLUMNS`)
    init        [P, 8]          see `INIT_COLUMNS`: the distribution it is drawn from, fans, how many use it
    trainable   [P] bool

**Edges**: each type has its reverse (`rev_…`) with the same attributes.

    op -feeds-> op              data flow. `edge_attr` [E, 3] int64: kind (`FLOWS`), slot, result
    parameter -weighs-> op      `edge_attr` [E, 1] int64: the role. A parameter that is used n times has n edges
    op -inside-> op             membership: an op of a region to the op that carries the region.
                                `edge_attr` [E, 2] int64: the region's name (`REGIONS`), and which of that name

The slot is the place of the operand: `matmul(a, b)` and `matmul(b, a)` differ, and so do orders of `concat`. Operands
of commutative ops (`add`, `mul`) all have slot 0. `result` says which result of the producer flows. A region's input is
fed by what its op is given (`enter`), and the op by what the region returns (`leave`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from archc.ir.axes import AxisVar, derive_axes
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import fans
from archc.metanet.vocabulary import FORMAL, INPUT, MAX_AXES, OUTPUT, Vocabulary, attributes, number, vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

FLOWS = ("operand", "capture", "enter", "leave")
"""Kinds of data flow: an operand, a value from outside that a region reads, into a region, out of a region."""

REGIONS = ("router", "experts", "shared", "gate", "body", "head", "rest", "cell", "other")
"""Names of regions; those of plug-ins are `other`."""

AXIS_COLUMNS = ("present", "size", "symbolic", "pinned", "factors", "inner", "sum")
"""Of each of 8 axes: is there one; its size (`number`); is it symbolic; is it pinned; how many factors or parts it has
(`number`); the size of the innermost; is it a concatenation."""

ORIGIN_COLUMNS = tuple(f"{end}{part}" for end in ("outer", "inner") for part in (0, 1, 2, 3, 4, "reversed"))
"""Of each of 8 axes: axis 0 … 4 of a network input that its outermost factor carries, and whether in reverse (`flip`);
the same of its innermost factor. Windows (of convolutions, pools, `im2col`) carry the axis that they walk along. All
zero where a factor comes from no input axis."""

POSITION_COLUMNS = (
    "relative", "forward", "backward", "fan_in", "fan_out", "weights", "returns", "level", "walk",
)  # fmt: skip
"""Depth as a share of the longest path through the node; path lengths from an input and to an output (`number`); data
edges in and out, and parameters (`number`); is its result a network output; nesting; the probability that a random walk
of two steps along the data edges comes back. All are the same for nodes that an automorphism exchanges."""

INIT_COLUMNS = ("uniform", "normal", "trunc_normal", "constant", "values", "a", "fan_in", "uses")

INITS = INIT_COLUMNS[:5]


@dataclass(eq=False, slots=True)
class TensorGraph:
    """The arrays of a parameter graph at tensor level; the module's text says what each is."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    ops: list[str]
    op_kind: Ints
    op_attributes: Floats
    op_shape: Floats
    op_origin: Floats
    op_position: Floats
    op_level: Ints
    op_depth: Ints
    parameter_role: Ints
    parameter_kind: Ints
    parameter_sizes: Ints
    parameter_rank: Ints
    parameter_size: Ints
    parameter_shape: Floats
    parameter_init: Floats
    parameter_trainable: NDArray[np.bool_]
    feeds: Ints
    """[2, E]; `feeds_attr` [E, 3]"""
    feeds_attr: Ints
    weighs: Ints
    weighs_attr: Ints
    inside: Ints
    inside_attr: Ints

    @property
    def arrays(self) -> dict[str, Any]:
        """Every array by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("names", "shapes", "ops")}


def tensor_graph(graph: Graph, words: Vocabulary | None = None) -> Any:
    """The parameter graph at tensor level as a `torch_geometric.data.HeteroData`; the module's text says its layout.

    words  the vocabulary of a trained model (default: that of today's registry)

    Raises: CompileError (E0810) for an op, role or attribute that `words` has not.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a  input x: f32[N, 4]  output y: f32[N, 2]  y = x -> linear(8) -> relu -> linear(2)")
    >>> data = tensor_graph(net)
    >>> data.names[0], data["op"].num_nodes, data["parameter", "weighs", "op"].edge_index.shape[1]
    ('linear1.weight', 5, 4)
    """
    return to_hetero(tensor_arrays(graph, words))


def to_hetero(arrays: TensorGraph) -> Any:
    """The arrays as a `HeteroData`."""
    import torch
    from torch_geometric.data import HeteroData

    data = HeteroData()
    for name, array in arrays.arrays.items():
        kind, _, rest = name.partition("_")
        if kind in ("op", "parameter"):
            data[kind][rest] = torch.from_numpy(array)
    data["op"].num_nodes = len(arrays.ops)
    data["parameter"].num_nodes = len(arrays.names)
    for source, relation in (("op", "feeds"), ("parameter", "weighs"), ("op", "inside")):
        index = torch.from_numpy(getattr(arrays, relation))
        attr = torch.from_numpy(getattr(arrays, f"{relation}_attr"))
        forth, back = data[source, relation, "op"], data["op", f"rev_{relation}", source]
        forth.edge_index, forth.edge_attr = index, attr
        back.edge_index, back.edge_attr = index.flip(0), attr
    data.names = arrays.names
    data.shapes = arrays.shapes
    data.ops = arrays.ops
    return data


def tensor_arrays(graph: Graph, words: Vocabulary | None = None) -> TensorGraph:
    """The parameter graph at tensor level as numpy arrays. Raises what `tensor_graph` raises."""
    return _Reader(graph, words or vocabulary()).result()


class _Reader:
    def __init__(self, graph: Graph, words: Vocabulary) -> None:
        self.graph, self.words = graph, words
        self.axes = derive_axes(graph)
        self.origins: dict[AxisVar, int] = {}
        self.reversed: dict[Value, frozenset[AxisVar]] = {}
        self.place: dict[Value, tuple[int, int]] = {}  # value -> (op node, which result)
        self.ops: list[str] = []
        self.kinds: list[int] = []
        self.values: list[Value] = []
        self.levels: list[int] = []
        self.cells: list[tuple[int, int, float]] = []  # of the attribute matrix
        self.feeds: list[tuple[int, int, int, int, int]] = []  # source, target, flow, slot, result
        self.inside: list[tuple[int, int, int, int]] = []
        self.weighs: list[tuple[int, int, int]] = []
        self.parameters = {p: i for i, p in enumerate(graph.parameters().values())}
        self.first: dict[Parameter, tuple[str, int]] = {}  # role and kind of op of the first user

    def result(self) -> TensorGraph:
        for value in self.graph.inputs:
            self.add(INPUT, value.name, value, 0)
            for axis, var in enumerate(self.axes.values.get(value, ())):
                for leaf in var.leaves():
                    self.origins.setdefault(leaf, min(axis, 4))
        self.read(self.graph, 0)
        for slot, (name, value) in enumerate(zip(self.graph.output_names, self.graph.outputs, strict=True)):
            target = self.add(OUTPUT, name, None, 0, shown=value)
            self.flow(value, target, 0, slot)
        missing = self.parameters.keys() - self.first.keys()
        assert not missing, f"no node uses {missing}"
        return self.arrays()

    # -- nodes and edges --------------------------------------------------------------------------------------------

    def add(self, kind: str, name: str, value: Value | None, level: int, shown: Value | None = None) -> int:
        index = len(self.ops)
        self.ops.append(name)
        self.kinds.append(self.words.index("ops", kind))
        self.levels.append(level)
        self.values.append(value or shown)  # type: ignore[arg-type]  # one of them is given
        if value is not None:
            self.place[value] = (index, 0)
        return index

    def flow(self, value: Value, target: int, flow: int, slot: int) -> None:
        source, result = self.place[value]
        self.feeds.append((source, target, flow, slot, result))

    def read(self, graph: Graph, level: int) -> list[int]:
        """Every node of a graph; returns their places, those inside regions of its nodes apart."""
        own = []
        for node in graph.nodes:
            left = [(n, self.enter(node, n, level)) for n in range(len(node.regions))]
            own.append(index := self.node(node, level))
            for n, members in left:
                name, number_of = _region(node, n)
                self.inside += [(member, index, name, number_of) for member in members]
                for slot, value in enumerate(node.regions[n].outputs):
                    self.flow(value, index, 3, slot)
        return own

    def carry(self, node: Node) -> None:
        """Note which input axes the results of a node carry. Leaves that it makes (windows and taps) carry the pinned
        axes of its operands, in turn."""
        known = self.axes.values
        backward = frozenset[AxisVar]().union(*(self.reversed.get(v, ()) for v in node.inputs))
        if node.op.name == "flip":
            backward ^= {*known[node.operands[0]][node.call.axis(node.call.params.axis)].leaves()}
        made = [leaf for v in node.outputs for var in known.get(v, ()) for leaf in var.leaves()]
        own = [leaf for leaf in dict.fromkeys(made) if leaf.pin is not None and leaf.pin.node == node.name]
        fresh = [leaf for leaf in own if leaf not in self.origins]
        if fresh:
            read = [leaf for v in node.operands for var in known.get(v, ()) for leaf in var.leaves()]
            gone = [leaf for leaf in dict.fromkeys(read) if leaf in self.origins and leaf not in made]
            for k, leaf in enumerate(fresh if gone else ()):
                source = gone[k % len(gone)]
                self.origins[leaf] = self.origins[source]
                if source in backward:
                    backward |= {leaf}
        if backward:
            self.reversed.update(dict.fromkeys(node.outputs, backward))

    def enter(self, node: Node, n: int, level: int) -> list[int]:
        region = node.regions[n]
        formals = len(region.inputs) - node.captures
        members = []
        for slot, value in enumerate(region.inputs[:formals]):
            members.append(target := self.add(FORMAL, f"{node.name}.{value.name}", value, level + 1))
            if slot < len(node.operands):
                self.flow(node.operands[slot], target, 2, slot)
        for inner, outer in zip(region.inputs[formals:], node.captured, strict=True):
            self.place[inner] = self.place[outer]
        return members + self.read(region, level + 1)

    def node(self, node: Node, level: int) -> int:
        index = len(self.ops)
        self.ops.append(node.name)
        kind = self.words.index("ops", node.op.name, node)
        self.kinds.append(kind)
        self.levels.append(level)
        self.values.append(node.outputs[0])
        for i, value in enumerate(node.outputs):
            self.place[value] = (index, i)
        self.carry(node)
        column = self.words.places["attributes"]
        for name, amount in attributes(node):
            found = column.get(name)
            self.cells.append((index, self.words.index("attributes", name, node) if found is None else found, amount))
        operands = len(node.inputs) - node.captures
        for slot, value in enumerate(node.inputs):
            source, result = self.place[value]
            captured = slot >= operands
            slot = 0 if node.op.commutative else slot - operands if captured else slot
            self.feeds.append((source, index, int(captured), slot, result))
        for role, parameter in node.weights.items():
            place = self.words.index("roles", role, node)
            self.weighs.append((self.parameters[parameter], index, place))
            self.first.setdefault(parameter, (role, kind))
        return index

    # -- arrays -------------------------------------------------------------------------------------------------------

    def arrays(self) -> TensorGraph:
        import numpy as np

        count, parameters = len(self.ops), list(self.parameters)
        table = np.zeros((count, len(self.words.attributes)), np.float32)
        if self.cells:
            rows, columns, amounts = zip(*self.cells, strict=True)
            table[np.array(rows), np.array(columns)] = amounts
        shapes, origins = zip(*(self.value_axes(v) for v in self.values), strict=True) if count else ((), ())
        feeds = _table(self.feeds, 5)
        weighs, inside = _table(self.weighs, 3), _table(self.inside, 4)
        first = [self.first[p] for p in parameters]
        depth, position = self.positions(feeds, weighs)
        uses = np.bincount(weighs[:, 0], minlength=len(parameters))
        return TensorGraph(
            names=[p.name for p in parameters],
            shapes=[p.shape for p in parameters],
            ops=self.ops,
            op_kind=np.array(self.kinds, np.int64),
            op_attributes=table,
            op_shape=np.array(shapes, np.float32).reshape(count, -1),
            op_origin=np.array(origins, np.float32).reshape(count, -1),
            op_position=position,
            op_level=np.array(self.levels, np.int64),
            op_depth=depth,
            parameter_role=np.array([self.words.index("roles", role) for role, _ in first], np.int64),
            parameter_kind=np.array([kind for _, kind in first], np.int64),
            parameter_sizes=np.array([_padded(p.shape) for p in parameters], np.int64).reshape(-1, MAX_AXES),
            parameter_rank=np.array([len(p.shape) for p in parameters], np.int64),
            parameter_size=np.array([p.size for p in parameters], np.int64),
            parameter_shape=np.array(
                [_axes_features(self.axes.parameters[p], p.shape) for p in parameters], np.float32
            ).reshape(-1, MAX_AXES * len(AXIS_COLUMNS)),
            parameter_init=np.array(
                [_init_features(p, int(n)) for p, n in zip(parameters, uses, strict=True)], np.float32
            ).reshape(-1, len(INIT_COLUMNS)),
            parameter_trainable=np.array([p.trainable for p in parameters], np.bool_),
            feeds=np.ascontiguousarray(feeds[:, :2].T),
            feeds_attr=np.ascontiguousarray(feeds[:, 2:]),
            weighs=np.ascontiguousarray(weighs[:, :2].T),
            weighs_attr=np.ascontiguousarray(weighs[:, 2:]),
            inside=np.ascontiguousarray(inside[:, :2].T),
            inside_attr=np.ascontiguousarray(inside[:, 2:]),
        )

    def value_axes(self, value: Value) -> tuple[list[float], list[float]]:
        variables = self.axes.values.get(value) or tuple(AxisVar(size) for size in value.type.shape)
        shape = value.type.shape
        width, backward = len(ORIGIN_COLUMNS), self.reversed.get(value, ())
        origin: list[float] = [0.0] * (MAX_AXES * width)
        for i, var in enumerate(reversed(variables[-MAX_AXES:])):
            leaves = list(var.leaves())
            for end, leaf in ((0, leaves[:1]), (width // 2, leaves[-1:])):
                axis = self.origins.get(leaf[0]) if leaf else None
                if axis is not None:
                    origin[i * width + end + axis] = 1.0
                    origin[i * width + end + 5] = float(leaf[0] in backward)
        return _axes_features(variables[::-1], shape[::-1]), origin

    def positions(self, feeds: Ints, weighs: Ints) -> tuple[Ints, Floats]:
        """Depths, and the columns of `POSITION_COLUMNS`."""
        import numpy as np

        count = len(self.ops)
        forward, backward = [0] * count, [0] * count
        for source, target, *_ in sorted(self.feeds, key=lambda e: e[1]):  # places are in topological order
            forward[target] = max(forward[target], forward[source] + 1)
        for source, target, *_ in sorted(self.feeds, key=lambda e: -e[0]):
            backward[source] = max(backward[source], backward[target] + 1)
        f, b = np.array(forward, np.float64), np.array(backward, np.float64)
        into, out = np.bincount(feeds[:, 1], minlength=count), np.bincount(feeds[:, 0], minlength=count)
        degree = np.maximum(into + out, 1)
        walk = np.zeros(count)
        share = 1.0 / (degree[feeds[:, 0]] * degree[feeds[:, 1]])
        np.add.at(walk, feeds[:, 0], share)
        np.add.at(walk, feeds[:, 1], share)
        returned = np.zeros(count)
        returned[[self.place[v][0] for v in self.graph.outputs]] = 1.0
        weights = np.bincount(weighs[:, 1], minlength=count)
        logs = [np.log2(1.0 + a) for a in (f, b, into, out, weights)]
        relative = f / np.maximum(f + b, 1)
        columns = [relative, *logs, returned, np.array(self.levels, np.float64), walk]
        return np.array(forward, np.int64), np.stack(columns, 1).astype(np.float32)


def _region(node: Node, n: int) -> tuple[int, int]:
    """The name of a region as a place in `REGIONS`, and which of that name it is."""
    names = node.op.regions
    optional = len([r for r in names if r.endswith("?")])
    several = next((i for i, name in enumerate(names) if name.startswith("*")), None)
    if several is None:
        name, which = names[min(n, len(names) - 1)], 0
    else:
        given = len(node.regions) - len(names) + 1 + optional  # regions under the starred name, optional ones absent
        if optional and getattr(node.params, "shared", False):
            given -= optional
        if n < several:
            name, which = names[n], 0
        elif n < several + given:
            name, which = names[several], n - several
        else:
            name, which = names[several + 1 + n - several - given], 0
    plain = name.strip("*?")
    return REGIONS.index(plain) if plain in REGIONS else REGIONS.index("other"), which


def _axes_features(variables: Sequence[AxisVar], shape: Sequence[Any]) -> list[float]:
    found: list[float] = []
    for var, size in zip(variables[:MAX_AXES], shape[:MAX_AXES], strict=True):
        leaves = list(var.leaves())
        symbolic = not isinstance(size, int)
        found += (
            1.0,
            number(size),
            float(symbolic),
            float(any(leaf.pin is not None for leaf in leaves)),
            number(len(leaves)),
            number(leaves[-1].size) if leaves else 1.0,
            float(var.find().kind == "sum"),
        )
    return found + [0.0] * (MAX_AXES * len(AXIS_COLUMNS) - len(found))


def _init_features(parameter: Parameter, uses: int) -> list[float]:
    init, shape = parameter.init, parameter.shape
    kinds = [float(init.kind == kind) for kind in INITS]
    return [*kinds, number(init.a), number(fans(shape)[0]) if shape else 1.0, number(uses)]


def _padded(shape: Sequence[int]) -> list[int]:
    """The first axes; those beyond the last column are one with it (`shapes` has them all)."""
    kept = [*shape[: MAX_AXES - 1], math.prod(shape[MAX_AXES - 1 :])]
    return kept + [1] * (MAX_AXES - len(kept))


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Ints:
    import numpy as np

    return np.array(rows, np.int64).reshape(-1, width)
