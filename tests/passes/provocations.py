"""Random networks with something to do for every cleanup: detours that compute nothing, put behind random nodes.

>>> from random_nets import random_net
>>> graph = provoked(random_net(0, 3).graph, seed=0)
>>> len(list(graph.walk())) > len(list(random_net(0, 3).graph.walk()))
True
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from archc.ir.clone import clone
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.op import REGISTRY, Call, bind
from archc.ir.types import FLOATS, TensorType

Detour = Callable[["Writer", Value], Value | None]
"""Nodes behind a value that end in one of the same type; None where this cannot be done."""


class Writer:
    """Adds nodes with free names to one region."""

    def __init__(self, graph: Graph, rng: random.Random, inside: bool, taken: set[str]) -> None:
        self.graph, self.rng, self.inside, self.taken = graph, rng, inside, taken

    def __call__(self, op: str, *operands: Value, **fields: Any) -> Value:
        return self.node(op, *operands, **fields).output

    def node(self, op: str, *operands: Value, **fields: Any) -> Node:
        name = f"detour{len(self.taken)}"
        self.taken.add(name)
        return self.graph.add(REGISTRY[op], operands, REGISTRY[op].params(**fields), name=name)

    def number(self, value: float, like: Value) -> Value:
        return self("constant", value=value, dtype=like.type.dtype)

    def axis(self, x: Value) -> int | None:
        """An axis of known size; in a region not that of the rows."""
        axes = [a for a, size in enumerate(x.type.shape) if isinstance(size, int) and a >= self.inside and size]
        return self.rng.choice(axes) if axes else None


def neutral(w: Writer, x: Value) -> Value | None:
    if x.type.dtype not in FLOATS:
        return None
    op, number = w.rng.choice([("mul", 1.0), ("div", 1.0), ("sub", 0.0), ("add", -0.0)])
    return w(op, x, w.number(number, x))


def twice(w: Writer, x: Value) -> Value | None:
    if x.type.dtype not in FLOATS:
        return None
    if w.rng.random() < 0.5:
        return w("neg", w("neg", x))
    return w("where", w("gt", x, x), w("relu", w("relu", x)), w("maximum", x, x))


def turned(w: Writer, x: Value) -> Value | None:
    """Permuted, some arithmetic, and permuted back."""
    axes = list(range(int(w.inside), x.type.rank))
    if len(axes) < 2 or x.type.dtype not in FLOATS:
        return None
    w.rng.shuffle(axes)
    order = ([0] if w.inside else []) + axes
    back = tuple(order.index(a) for a in range(x.type.rank))
    return w("permute", between(w, w("permute", x, order=tuple(order))), order=back)


def between(w: Writer, x: Value) -> Value:
    """Arithmetic that keeps the type, with the values tame."""
    kind = w.rng.randrange(3)
    if kind == 0:
        return w("tanh", x)
    if kind == 1:
        return w("mul", w("sigmoid", x), x)
    return w("add", w("mul", x, w.number(0.5, x)), w("sin", x))


def reshaped(w: Writer, x: Value) -> Value | None:
    sizes = [s for s in x.type.shape[1:] if isinstance(s, int)]
    if x.type.dtype not in FLOATS or len(sizes) != x.type.rank - 1 or x.type.rank < 3:
        return None
    flat = w("flatten", x) if w.rng.random() < 0.5 else w("reshape", x, shape=(x.type.shape[0], 1, *sizes))
    return w("reshape", between(w, flat), shape=x.type.shape)


def pieces(w: Writer, x: Value) -> Value | None:
    axis = w.axis(x)
    size = x.type.shape[axis] if axis is not None else 0
    if axis is None or not isinstance(size, int) or size < 2:
        return None
    cut = w.rng.randrange(1, size)
    kind = w.rng.randrange(3)
    if kind == 0:
        return w("concat", *w.node("split", x, parts=(cut, size - cut), axis=axis).outputs, axis=axis)
    joined = w("concat", x, w("slice", x, axis=axis, to=cut), axis=axis)
    if kind == 1:
        return w.node("split", joined, parts=(size, cut), axis=axis - x.type.rank).outputs[0]
    return w("slice", w("slice", w("concat", joined, x, axis=axis), axis=axis, to=size + 1), axis=axis, to=-1)


def casts(w: Writer, x: Value) -> Value | None:
    wider = {"f32": "f64", "f16": "f32", "i32": "i64", "i8": "f32", "bool": "i8"}
    return w("cast", w("cast", x, dtype=wider[x.type.dtype]), dtype=x.type.dtype) if x.type.dtype in wider else None


def spread(w: Writer, x: Value) -> Value | None:
    if x.type.dtype not in FLOATS or not x.type.rank:
        return None
    return w("mul", x, w("expand", w("sigmoid", w.number(0.3, x)), shape=x.type.shape))


def normed(w: Writer, x: Value) -> Value | None:
    """Batch norms, alone and on both sides of a layer."""
    if x.type.dtype not in FLOATS or x.type.rank not in (2, 3, 4) or not isinstance(x.type.shape[1], int):
        return None
    kind = w.rng.randrange(4)
    y = w("batch_norm", x, affine=kind > 0, bias=kind > 1)
    layer = _layer(w, y, x.type.shape[1], w.rng.choice([0, None]))
    return w("batch_norm", layer) if kind == 3 else layer


def layers(w: Writer, x: Value) -> Value | None:
    """Two layers, one of which has a window."""
    width = x.type.shape[1] if x.type.rank == 4 else x.type.shape[-1] if x.type.rank else 0
    if x.type.dtype not in FLOATS or not isinstance(width, int) or x.type.rank < 2:
        return None
    hidden = w.rng.choice([1, width, 2 * width])
    if x.type.rank != 4:
        return w("linear", w("linear", x, out=hidden, bias=w.rng.random() < 0.5), out=width)
    one, two = w.rng.sample([1, 3], 2)
    first = w("conv", x, out=hidden, kernel=one, bias=w.rng.random() < 0.5)
    return w("conv", first, out=width, kernel=two, bias=w.rng.random() < 0.5)


def beside(w: Writer, x: Value) -> Value | None:
    """Layers on one tensor."""
    width = x.type.shape[1] if x.type.rank == 4 else x.type.shape[-1] if x.type.rank else 0
    if x.type.dtype not in FLOATS or not isinstance(width, int) or x.type.rank < 2:
        return None
    bias, kernel = w.rng.random() < 0.5, w.rng.choice([1, 3])
    fields: dict[str, Any] = {"out": width, "bias": bias} | ({"kernel": kernel} if x.type.rank == 4 else {})
    op = "conv" if x.type.rank == 4 else "linear"
    return w("add", w("mul", w(op, x, **fields), w("sigmoid", w(op, x, **fields))), w(op, x, **fields))


def _layer(w: Writer, x: Value, width: int, padding: int | None) -> Value:
    if x.type.rank == 2:
        return w("linear", x, out=width, bias=w.rng.random() < 0.5)
    if padding is None and w.rng.random() < 0.5:
        return w("conv_transpose", x, out=width, kernel=1, bias=w.rng.random() < 0.5)
    kernel = 3 if padding is None else 1
    return w("conv", x, out=width, kernel=kernel, groups=w.rng.choice([1, width]), bias=w.rng.random() < 0.5)


DETOURS: tuple[Detour, ...] = (neutral, twice, turned, reshaped, pieces, casts, spread, normed, layers, beside)


def provoked(graph: Graph, seed: int, share: float = 0.4) -> Graph:
    """A copy of a network with detours behind about this share of its values."""
    copy, rng = clone(graph), random.Random(f"provoked/{seed}")
    taken = {node.name for node in copy.walk()}
    _detour(copy, rng, taken, share, inside=False)
    return copy


def _detour(graph: Graph, rng: random.Random, taken: set[str], share: float, inside: bool) -> None:
    w = Writer(graph, rng, inside, taken)
    for node in list(graph.nodes):
        for region in node.regions:
            _detour(region, rng, taken, share / 2, inside=True)
        for value in node.outputs:
            while rng.random() < share:
                users, places = list(value.uses), [i for i, v in enumerate(graph.outputs) if v is value]
                end = rng.choice(DETOURS)(w, value)
                if end is None:
                    continue
                assert end.type == value.type, f"a detour leads from {value} to {end}"
                for user in users:
                    user.set_inputs(tuple(end if v is value else v for v in user.inputs))
                graph.outputs = [end if i in places else v for i, v in enumerate(graph.outputs)]
                value = end
    graph.sort()


def widened(graph: Graph) -> Graph:
    """The same network with every float in float64: constants, casts and weights too."""
    parameters: dict[Parameter, Parameter] = {}

    def wide(type_: TensorType) -> TensorType:
        return TensorType(type_.shape, "f64") if type_.dtype in FLOATS else type_

    def copy(old: Graph) -> Graph:
        new = Graph(old.name, output_names=list(old.output_names))
        values = {v: new.add_input(v.name, wide(v.type)) for v in old.inputs}
        for node in old.nodes:
            dtype = getattr(node.params, "dtype", None)
            params = node.params.model_copy(update={"dtype": "f64"}) if dtype in FLOATS else node.params
            regions = tuple(map(copy, node.regions))
            bound = bind(node.op, Call(params, tuple(values[v].type for v in node.operands), regions))
            weights = {}
            for role, p in node.weights.items():
                parameters.setdefault(p, Parameter(p.name, bound.weights[role].type, p.init, p.trainable))
                weights[role] = parameters[p]
            operands, captures = ([values[v] for v in given] for given in (node.operands, node.captured))
            made = new.add(
                node.op, operands, params, name=node.name, weights=weights, regions=regions, captures=captures
            )
            values.update(zip(node.outputs, made.outputs, strict=True))
        new.outputs = [values[v] for v in old.outputs]
        return new

    return copy(graph)
