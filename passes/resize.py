"""A network with axis classes of other sizes: what pruning and widening have in common.

A `Choice` says, for each free leaf of `archc.ir.axes` that is to have another size, which old element stands at each
new place. `resize` writes the network again, in place: weights are gathered accordingly along every axis (products of
heads and channels, concatenations, channels of each head apart), parameters that hold sizes are set anew, and types
inferred again. A parameter that is a letter of its op's signature follows from the letter; what cannot be derived so
has a rule here. `obstacle` says beforehand why some leaves cannot be resized: the claim is tried on every node that
they touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from archc.ir.axes import Axes, AxisVar
from archc.ir.dims import Dim, product, total
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import Init
from archc.ir.op import BindError, Call, Params, bind
from archc.ir.ops.pieces import pad_widths
from archc.ir.types import TensorType
from archc.passes.manager import Context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.intp]


@dataclass(slots=True)
class Choice:
    """Which old elements make up the resized leaves.

    tables   for each leaf: shape (old sizes of what indexes it…, new size), the old element at each new place
    outers   what indexes each leaf
    regions  for a node with fewer regions the numbers of those that stay
    """

    tables: dict[AxisVar, Table] = field(default_factory=dict)
    outers: dict[AxisVar, tuple[AxisVar, ...]] = field(default_factory=dict)
    regions: dict[Node, tuple[int, ...]] = field(default_factory=dict)

    def set(self, leaf: AxisVar, table: Table, outers: tuple[AxisVar, ...] = ()) -> None:
        self.tables[leaf], self.outers[leaf] = table, outers

    def sizes(self) -> dict[AxisVar, int]:
        return {leaf: table.shape[-1] for leaf, table in self.tables.items()}


Sizes = Mapping[AxisVar, int]
"""New sizes of leaves."""


def new_size(var: AxisVar, sizes: Sizes) -> Dim:
    """The size that an axis will have."""
    var = var.find()
    if var.kind == "leaf":
        return sizes.get(var, var.size)
    join = product if var.kind == "product" else total
    return join(new_size(part, sizes) for part in var.parts)


def touched(variables: Iterable[AxisVar], leaves: Iterable[AxisVar] | Sizes) -> bool:
    """Whether one of the leaves is in these axes."""
    return any(leaf in leaves for var in variables for leaf in var.leaves())


# -- which old element stands where ---------------------------------------------------------------------------------


def places(variables: Sequence[AxisVar], choice: Choice) -> tuple[Table, ...]:
    """For each axis of a tensor the old place of each new one, as index arrays that broadcast against each other."""
    import numpy as np

    sizes, rank = choice.sizes(), len(variables)
    fresh = []
    for i, var in enumerate(variables):
        size = new_size(var, sizes)
        assert isinstance(size, int), "a tensor of symbolic size has no places"
        fresh.append(np.arange(size).reshape([-1 if i == j else 1 for j in range(rank)]))
    digits: list[dict[AxisVar, Table]] = []
    for var, place in zip(variables, fresh, strict=True):
        digits.append({})
        _digits(var.find(), place, sizes, digits[-1])
    found = []
    for i, (var, place) in enumerate(zip(variables, fresh, strict=True)):
        scope = {leaf: d for j, own in enumerate(digits) if j != i for leaf, d in own.items()} | digits[i]
        found.append(_old(var.find(), place, scope, choice, sizes))
    return tuple(found)


def _digits(var: AxisVar, place: Table, sizes: Sizes, found: dict[AxisVar, Table]) -> None:
    """The new coordinate of each leaf that is a factor of an axis."""
    if var.kind == "leaf":
        found[var] = place
    elif var.kind == "product":
        for part, digit in _factors(var, place, sizes):
            _digits(part, digit, sizes, found)


def _factors(var: AxisVar, place: Table, sizes: Sizes) -> list[tuple[AxisVar, Table]]:
    pairs = []
    for part in reversed(var.parts):
        size = new_size(part, sizes)
        assert isinstance(size, int)
        pairs.append((part.find(), place % size))
        place = place // size
    return pairs[::-1]


def _old(var: AxisVar, place: Table, scope: Mapping[AxisVar, Table], choice: Choice, sizes: Sizes) -> Any:
    """The old place that each new place of an axis is taken from."""
    import numpy as np

    if var.kind == "leaf":
        table = choice.tables.get(var)
        if table is None:
            return place
        return table[(*(_old(o, scope[o], scope, choice, sizes) for o in choice.outers[var]), place)]
    image: Any
    if var.kind == "product":
        image = 0
        for part, digit in _factors(var, place, sizes):
            image = image * part.size + _old(part, digit, scope, choice, sizes)
        return image
    image, offset, old_offset = np.zeros_like(place), 0, 0
    for part in var.parts:
        root = part.find()
        size = new_size(root, sizes)
        assert isinstance(size, int)
        assert isinstance(root.size, int)
        inside = (place >= offset) & (place < offset + size)
        local = np.clip(place - offset, 0, size - 1)
        own: dict[AxisVar, Table] = {}
        _digits(root, local, sizes, own)
        image = np.where(inside, old_offset + _old(root, local, {**scope, **own}, choice, sizes), image)
        offset, old_offset = offset + size, old_offset + root.size
    return image


def elements(var: AxisVar, leaf: AxisVar, sizes: Sizes | None = None) -> Table:
    """The element of a leaf at each place of an axis (of new sizes); -1 where the place is not of the leaf, but of
    another part of a sum."""
    import numpy as np

    var, sizes = var.find(), sizes or {}
    size = new_size(var, sizes)
    assert isinstance(size, int), "an axis of symbolic size has no places"
    if var.kind == "leaf":
        return np.arange(size) if var is leaf else np.full(size, -1)
    parts = [elements(part, leaf, sizes) for part in var.parts]
    if var.kind == "sum":
        return np.concatenate(parts)
    found, inside = np.full(size, -1), 1
    for part in reversed(parts):
        digit = np.arange(size) // inside % len(part)
        found, inside = np.maximum(found, part[digit]), inside * len(part)
    return found


# -- parameters that hold sizes -------------------------------------------------------------------------------------


class Unresizable(Exception):
    """Why a node cannot have axes of other sizes."""


@dataclass(frozen=True, slots=True)
class _Sized:
    """What a rule looks at: a node, and the sizes that its letters and results will have."""

    node: Node
    axes: Axes
    sizes: Sizes

    @property
    def params(self) -> Any:
        return self.node.params

    def letter(self, name: str) -> Dim:
        """The new size of a letter; 0 where the line has none such."""
        variables = self.axes.letters[self.node].get(name)
        return product(new_size(v, self.sizes) for v in variables) if variables else 0

    def old(self, name: str) -> Dim:
        return product(v.size for v in self.axes.letters[self.node][name])

    def shape(self, value: Value) -> tuple[Dim, ...]:
        return tuple(new_size(v, self.sizes) for v in self.axes.values[value])

    @property
    def result(self) -> tuple[Dim, ...]:
        return self.shape(self.node.outputs[0])


Rule = Callable[[_Sized], Mapping[str, Any]]


def _shaped(s: _Sized) -> Mapping[str, Any]:
    return {"shape": _written(s.params.shape, s.result)}


def _written(given: Sequence[Dim], new: Sequence[Dim]) -> tuple[Dim, ...]:
    """The sizes as a program writes them: -1 stays."""
    return tuple(-1 if g == -1 else n for g, n in zip(given, new, strict=True))


def _unflatten(s: _Sized) -> Mapping[str, Any]:
    axis = s.node.call.axis(s.params.axis)
    return {"sizes": _written(s.params.sizes, s.result[axis : axis + len(s.params.sizes)])}


def _split(s: _Sized) -> Mapping[str, Any]:
    parts = tuple(s.letter(f"x{i}") for i in range(len(s.node.outputs)))
    equal = isinstance(s.params.parts, int) and len(set(parts)) == 1
    return {"parts": s.params.parts if equal else parts}


def _slice(s: _Sized) -> Mapping[str, Any]:
    axis = s.node.call.axis(s.params.axis)
    if s.shape(s.node.operands[0])[axis] == s.node.operands[0].type.shape[axis] or s.params.step != 1:
        return {}
    before = s.letter("before")
    return {"from_": before, "to": before + s.letter("kept") if s.letter("after") else None}


def _pad(s: _Sized) -> Mapping[str, Any]:
    if s.params.mode != "constant":
        return {}
    widths: list[Dim] = []
    for i, _ in reversed(list(enumerate(pad_widths(s.node.call)))):
        widths += [s.letter(f"d{i}l"), s.letter(f"d{i}r")]
    return {"widths": tuple(widths[: len(s.params.widths)])}


def _conv(s: _Sized) -> Mapping[str, Any]:
    return {"out": s.result[1]}


def _matmul(s: _Sized) -> Mapping[str, Any]:
    if s.params.scaled and s.letter("k") != s.old("k"):
        raise Unresizable("`matmul(scaled = true)` divides by the length of the axis it sums over")
    return {}


def _scaled_dot_product(s: _Sized) -> Mapping[str, Any]:
    old = s.old("d")
    if s.params.scale is not None or s.letter("d") == old:
        return {}
    assert isinstance(old, int)
    return {"scale": old**-0.5}  # the length of the old heads: what is left is to be computed as it was


def _attention(s: _Sized) -> Mapping[str, Any]:
    p = s.params
    kv, heads, d = s.letter("kv"), s.letter("kv") * s.letter("r"), s.letter("d")
    if d != s.letter("e"):
        raise Unresizable("`attention` has as many channels in a head's values as in its keys")
    channels = s.shape(s.node.operands[0])[2]
    return {
        "heads": heads,
        "kv_heads": None if p.kv_heads is None else kv,
        "head_dim": d if p.head_dim is not None or heads * d != channels else None,
        "out": s.letter("o") if p.out is not None or s.letter("o") != channels else None,
        **_scaled_dot_product(s),
    }


_RULES: Mapping[str, Rule] = {
    "attention": _attention,
    "conv": _conv,
    "conv_transpose": _conv,
    "buffer": _shaped,
    "expand": _shaped,
    "matmul": _matmul,
    "pad": _pad,
    "parameter": _shaped,
    "reshape": _shaped,
    "scaled_dot_product": _scaled_dot_product,
    "slice": _slice,
    "split": _split,
    "unflatten": _unflatten,
}


def resized_params(node: Node, axes: Axes, sizes: Sizes) -> Params:
    """The parameters of a node whose axes have new sizes.

    Raises: Unresizable when the op cannot have them.
    """
    sized = _Sized(node, axes, sizes)
    update: dict[str, Any] = {
        name: sized.letter(name)
        for name in node.bound.signature.letters & axes.letters[node].keys() & type(node.params).model_fields.keys()
        if type(getattr(node.params, name)) is int
    }
    rule = _RULES.get(node.op.name)
    update |= rule(sized) if rule is not None else {}
    init = getattr(node.params, "init", None)
    if init is not None and init.startswith("values("):
        update["init"] = None  # numbers one by one: the parameter keeps those of what is left
    changed = {name: value for name, value in update.items() if value != getattr(node.params, name)}
    return node.params.model_copy(update=changed) if changed else node.params


# -- can it be done? ------------------------------------------------------------------------------------------------


def obstacle(nodes: Iterable[Node], axes: Axes, sizes: Sizes) -> tuple[Node, str] | None:
    """The first of `nodes` that cannot have leaves of these sizes, and why; None where all can. `nodes` are those that
    the leaves touch."""
    for node in nodes:
        if node.regions:
            continue  # what carries regions holds no sizes: they are those of the regions
        try:
            params = resized_params(node, axes, sizes)
            types = tuple(
                TensorType(tuple(new_size(v, sizes) for v in axes.values[x]), x.type.dtype) for x in node.operands
            )
            bound = bind(node.op, Call(params, types))
        except Unresizable as e:
            return node, str(e)
        except BindError as e:
            return node, e.message
        wanted = [tuple(new_size(v, sizes) for v in axes.values[y]) for y in node.outputs]
        if wanted != [t.shape for t in bound.results]:
            return node, f"`{node.op.name}` would not make the axis that size"
        for role, spec in bound.weights.items():
            if spec.type.shape != tuple(new_size(v, sizes) for v in axes.parameters[node.weights[role]]):
                return node, f"the {role} of `{node.op.name}` would not have that size"
    return None


# -- writing it again -----------------------------------------------------------------------------------------------


def resize(graph: Graph, axes: Axes, choice: Choice, context: Context) -> dict[Parameter, Parameter]:
    """Give the chosen leaves their new sizes, in place; weights are gathered where they are known. Returns the new
    parameter of each old one that changed. `axes` speak of the old nodes and are of no use afterwards."""
    writer = _Writer(axes, choice, context)
    values = {v: v for v in graph.inputs}
    old, graph.nodes = graph.nodes, []
    writer.write(old, graph, values)
    graph.outputs = [values[v] for v in graph.outputs]
    for node in old:
        node.set_inputs(())
    return {p: new for p, new in writer.parameters.items() if new is not p}


def preview(graph: Graph, axes: Axes, sizes: Sizes) -> Graph:
    """The network as it would be with leaves of these sizes, beside the old one: what it would cost."""
    import numpy as np

    choice = Choice()
    for leaf, size in sizes.items():
        choice.set(leaf, np.zeros(size, dtype=np.intp))
    values = {v: Value(v.name, v.type) for v in graph.inputs}
    new = Graph(graph.name, list(values.values()), output_names=graph.output_names)
    _Writer(axes, choice, Context(), gather=False).write(graph.nodes, new, values)
    new.outputs = [values[v] for v in graph.outputs]
    return new


class _Writer:
    def __init__(self, axes: Axes, choice: Choice, context: Context, gather: bool = True) -> None:
        self.axes, self.choice, self.context, self.gather = axes, choice, context, gather
        self.sizes = choice.sizes()
        self.parameters: dict[Parameter, Parameter] = {}

    def write(self, nodes: Iterable[Node], graph: Graph, values: dict[Value, Value]) -> None:
        for old in nodes:
            changes = any(touched(variables, self.sizes) for variables in self.axes.letters[old].values())
            params = resized_params(old, self.axes, self.sizes) if changes else old.params
            operands = [values[v] for v in old.operands]
            stay = self.choice.regions.get(old, range(len(old.regions)))
            regions = [self.region(old.regions[i]) for i in stay]
            new = graph.add(
                old.op,
                operands,
                params,
                name=old.name,
                weights=self.weights(old, params, operands) if changes else old.weights,
                regions=regions,
                captures=[values[v] for v in old.captured],
                span=old.span,
                trace=old.trace,
            )
            values.update(zip(old.outputs, new.outputs, strict=True))

    def region(self, old: Graph) -> Graph:
        new = Graph(old.name, span=old.span)
        values = {}
        for v in old.inputs:
            shape = tuple(new_size(a, self.sizes) for a in self.axes.values[v])
            values[v] = new.add_input(v.name, TensorType(shape, v.type.dtype), v.span)
        self.write(old.nodes, new, values)
        new.outputs = [values[v] for v in old.outputs]
        return new

    def weights(self, old: Node, params: Params, operands: Sequence[Value]) -> dict[str, Parameter]:
        """The parameters of a node's new self."""
        if not old.weights:
            return {}
        specs = bind(old.op, Call(params, tuple(v.type for v in operands))).weights
        found = {}
        for role, parameter in old.weights.items():
            if parameter not in self.parameters:
                usual = parameter.init.kind != "values" and parameter.init == old.bound.weights[role].init
                self.parameters[parameter] = self.parameter(parameter, specs[role].init if usual else parameter.init)
            found[role] = self.parameters[parameter]
        return found

    def parameter(self, old: Parameter, init: Init) -> Parameter:
        variables = self.axes.parameters[old]
        if not touched(variables, self.sizes):  # a bias starts by its layer's fan-in, which may be another
            return old if init == old.init else Parameter(old.name, old.type, init, old.trainable)
        shape = tuple(new_size(v, self.sizes) for v in variables)
        new = Parameter(old.name, TensorType(shape, old.type.dtype), init, old.trainable)
        if not self.gather:
            return new
        if init.kind == "values":
            import numpy as np

            numbers = np.asarray(init.values).reshape(old.shape)[places(variables, self.choice)]
            new.init = Init("values", init.a, tuple(numbers.ravel().tolist()))
        if self.context.weights is not None:
            self.context.store(new, self.context.value(old)[places(variables, self.choice)])
        return new
