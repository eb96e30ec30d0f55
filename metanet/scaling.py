"""Scaling symmetries: factors that one layer gains and the next one loses.

What flows between two layers may be scaled, channel by channel, when every op on the way passes a factor on: any
positive one through ReLU and max pooling, a sign through tanh, both through sums and views. The layer before takes the
factors into its rows, the layer after their inverses into its columns. Queries and keys of attention may be scaled
against each other (pairs of channels, with rotary positions), values against the output map.

Every value has an unknown for each part of its channels: the logarithm of a positive factor, or a sign, as a function
of places on some axes. Ops relate them linearly (`RULES`, below); what a rule does not speak of has the factor 1. The
unknowns that remain free are the dimensions of the group. As with permutations the claim is then computed: random
factors, applied to random weights in float64, must not move the function, and must do so when one parameter is left
out.

Not derived, though they are there: factors that a norm removes (its epsilon makes that inexact), different factors for
parts that one axis joins twice (gates cut from one layer), and mixing of the channels of queries and keys by matrices,
of which scalings and permutations are special cases (see `mixing_dimensions`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, Literal

from archc.ir.axes import Axes, AxisVar, derive_axes
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.signature import Rest, Size, Tensor, atoms
from archc.metanet.running import Controls, Move, Trial, change, negative_controls, trial

Kind = Literal["positive", "sign"]
Array = Any  # a numpy array; numpy is imported where it is needed

LINEAR = (
    *("identity", "dropout", "neg", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"),
    *("expand", "flip", "concat", "split", "slice", "stack", "add", "sub", "mean", "sum", "global_avg_pool"),
    *("avg_pool", "adaptive_avg_pool", "pixel_shuffle", "im2col", "col2im", "upsample"),
)
"""Ops that pass any factor on, the same for all operands."""
HOMOGENEOUS = (*("relu", "leaky_relu", "abs", "maximum", "minimum", "max", "min"), *("max_pool", "global_max_pool"))
POWERS = {"square": Fraction(2), "var": Fraction(2), "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}
RULES: Mapping[Kind, Mapping[str, Fraction]] = {
    "positive": {
        **dict.fromkeys((*LINEAR, *HOMOGENEOUS), Fraction(1)),
        **POWERS,
        "reciprocal": Fraction(-1),
        "sign": Fraction(0),
    },
    "sign": {
        **dict.fromkeys((*LINEAR, "tanh", "sin", "erf", "sign", "reciprocal"), Fraction(1)),
        **dict.fromkeys(("square", "abs", "cos"), Fraction(0)),
    },
}
"""The power of an operand's factor that a result has; a sign to the power of 0 is lost. Other ops allow none."""
AFFINE = frozenset({"linear", "conv", "conv_transpose", "bilinear"})
"""Ops whose weight can take any factor of an operand's channels, and of the result's."""


MOST = 64
"""Parts of a value: where there are more, nothing is claimed."""


@dataclass(eq=False)
class Unknown:
    """A logarithm (or sign) as a function of places on the leaves `allowed`; `fold` bounds a leaf's places."""

    allowed: set[AxisVar]
    zero: bool = False
    fold: dict[AxisVar, int] = field(default_factory=dict)
    parent: Unknown | None = None

    def find(self) -> Unknown:
        root = self
        while root.parent is not None:
            root = root.parent
        return root


@dataclass(frozen=True)
class Block:
    """A stretch of an axis and its leaves, each with the stride of its places."""

    offset: int
    size: int
    leaves: tuple[tuple[AxisVar, int], ...]


@dataclass(frozen=True)
class Factor:
    """What an unknown does to a parameter: `power` of it, on a block of each of some axes of the parameter's shape cut
    into the letters of its pattern."""

    parameter: Parameter
    shape: tuple[int, ...]
    places: tuple[tuple[int, Block], ...]
    unknown: Unknown
    power: int


@dataclass(frozen=True)
class Scaling:
    """A free unknown: `size` independent factors, of one kind, and what carries it."""

    kind: Kind
    through: str
    leaves: tuple[AxisVar, ...]
    shape: tuple[int, ...]
    parameters: tuple[str, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Scalings:
    """The scaling group of a network: `free` unknowns, and every parameter's factors in terms of them."""

    kind: Kind
    free: list[Scaling]
    factors: list[tuple[Factor, dict[int, Fraction]]]

    @property
    def dimensions(self) -> int:
        return sum(s.size for s in self.free)


Part = tuple[frozenset[AxisVar], Unknown]
Parts = list[Part]


def scalings(graph: Graph, kind: Kind = "positive", axes: Axes | None = None) -> Scalings:
    """The scaling symmetries of a network's weights, as evaluated.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 3]\\ny = x -> linear(8) -> relu -> linear(3)\\n")
    >>> scalings(net).dimensions, scalings(net, "sign").dimensions
    (8, 0)
    """
    return _Derivation(graph, kind, derive_axes(graph) if axes is None else axes).result()


def mixing_dimensions(graph: Graph) -> int:
    """Dimensions of the continuous group inside attention: an invertible matrix for each head of keys between queries
    and keys (where nothing stands between them), and one between values and the output map. Scalings are part of it.

    Counted from the formula, not derived or certified.
    """
    total = 0
    for node in graph.walk():
        if node.op.name == "attention":
            p, dims = node.call.params, node.bound.dims
            kv, d = int(str(dims["kv"])), int(str(dims["d"]))
            between = 0 if p.qk_norm else d if p.positions == "rope" else d * d  # a turn and a factor for each pair
            total += kv * (between + (0 if p.gate == "element" else d * d))
    return total


class _Derivation:
    def __init__(self, graph: Graph, kind: Kind, axes: Axes) -> None:
        self.graph, self.kind, self.axes = graph, kind, axes
        self.parts: dict[Value, Parts] = {}
        self.equations: list[list[tuple[Unknown, Fraction]]] = []
        self.factors: list[Factor] = []
        self.through: dict[Unknown, str] = {}
        self.users: dict[Parameter, int] = {}
        roots = [v for vs in (*axes.values.values(), *axes.parameters.values()) for v in vs]
        self.single = {leaf for v in roots for leaf in _single_parts(v.find())}
        for node in graph.walk():
            for p in node.weights.values():
                self.users[p] = self.users.get(p, 0) + 1

    # -- unknowns -------------------------------------------------------------------------------------------------

    def of(self, value: Value) -> Parts:
        """The unknowns of a value: one for each part, that is each choice of a part on every axis that is a sum."""
        known = self.parts.get(value)
        if known is None:
            known = self.parts[value] = [(key, Unknown(set(key))) for key in self.keys(value)]
        return known

    def keys(self, value: Value) -> list[frozenset[AxisVar]]:
        """The leaves of each part of a value; none where two axes have parts, of which nothing is claimed."""
        keys: list[frozenset[AxisVar]] = [frozenset()]
        for var in self.axes.values.get(value, ()):
            blocks = _blocks(var, self.single)
            if blocks is None or len(blocks) > MOST or len(keys) > 1 < len(blocks):
                return []
            keys = [k | {leaf for leaf, _ in b.leaves} for k in keys for b in blocks]
        return keys

    def none(self, *values: Value) -> None:
        for value in values:
            for _, unknown in self.of(value):
                unknown.find().zero = True

    def same(self, a: Unknown, b: Unknown) -> None:
        a, b = a.find(), b.find()
        if a is b:
            return
        b.allowed &= a.allowed
        b.zero |= a.zero
        for leaf, n in a.fold.items():
            b.fold[leaf] = math.gcd(n, b.fold.get(leaf, n))
        a.parent = b

    def relate(self, a: Value, b: Value, power: Fraction = Fraction(1)) -> None:
        """`b` has the factors of `a`, to a power, on the axes that both have."""
        self.related([a], [b], power)

    def related(
        self, operands: Sequence[Value], results: Sequence[Value], power: Fraction = Fraction(1), drops: bool = False
    ) -> None:
        """The same for every operand and every result; parts that meet no other have no factors, unless the op merely
        `drops` them."""
        met = set[Unknown]()
        for (left, x), (right, y) in self.pairs(operands, results):
            met |= {x, y}
            both = left & right
            x.find().allowed &= both
            y.find().allowed &= both
            if power == 1:
                self.same(x, y)
            else:
                self.equations.append([(y, Fraction(1)), (x, -power)])
        some = any(unknown in met for value in operands for _, unknown in self.of(value))
        for value in (*(() if drops and some else operands), *results):
            for _, unknown in self.of(value):
                if unknown not in met:
                    unknown.find().zero = True
        if not all(self.of(v) for v in (*operands, *results)):
            self.none(*operands, *results)

    def pairs(self, operands: Sequence[Value], results: Sequence[Value]) -> Iterator[tuple[Part, Part]]:
        """The parts that an op takes to each other: in order where both sides have the same ones (those of several
        operands or results one after the other, as `concat` and `split` do), else those whose axes fit."""
        left, right = ([part for v in values for part in self.of(v)] for values in (operands, results))
        if len(operands) + len(results) > 2 and _in_order(left, right) and len(left) > 1:
            yield from zip(left, right, strict=True)
            return
        for a in operands:
            for b in results:
                if _in_order(self.of(a), self.of(b)):
                    yield from zip(self.of(a), self.of(b), strict=True)
                else:
                    yield from ((x, y) for x in self.of(a) for y in self.of(b) if x[0] <= y[0] or y[0] <= x[0])

    # -- parameters -----------------------------------------------------------------------------------------------

    def carry(self, node: Node, role: str, parts: Parts, letters: Sequence[str], power: int) -> None:
        """Let the weight of a role take the factors of `parts`, which stand on the given letters of its pattern."""
        if role not in node.weights:
            return
        parameter = node.weights[role]
        (tensor,) = [t for t in node.bound.signature.weights if t.name == role]
        shape, places = self.cut(node, tensor, letters)
        single = self.users[parameter] == 1
        choices: list[list[tuple[int, Block]]] = [[]]
        for axis, blocks in places:
            if blocks is None or len(choices) * len(blocks) > MOST:
                choices = []
                break
            choices = [[*c, (axis, b)] for c in choices for b in blocks]
        under = {leaf for c in choices for leaf in _under(c)}
        met = set[Unknown]()
        for number, choice in enumerate(choices if single else []):
            leaves = _under(choice)
            found = [u for key, u in parts if key & under == set(leaves)]
            if len(found) > 1 and [set(k & under) for k, _ in parts] == [set(_under(c)) for c in choices]:
                found = [parts[number][1]]
            if len(set(leaves)) != len(leaves) or len(found) != 1:
                continue
            unknown = found[0]
            met.add(unknown)
            unknown.find().allowed &= set(leaves)
            self.factors.append(Factor(parameter, shape, tuple(choice), unknown, power))
        for _, unknown in parts:
            if unknown not in met:
                unknown.find().zero = True

    def cut(
        self, node: Node, tensor: Tensor, letters: Sequence[str]
    ) -> tuple[tuple[int, ...], list[tuple[int, list[Block] | None]]]:
        """The weight's shape with one axis for each letter of its pattern, and the blocks of the wanted letters."""
        shape: list[int] = []
        places: list[tuple[int, list[Block] | None]] = []
        for axis in tensor.axes:
            for atom in atoms(axis):
                if isinstance(atom, Size):
                    shape.append(atom.value)
                    continue
                for var in self.axes.letters[node].get(atom.name, ()):
                    if atom.name in letters:
                        places.append((len(shape), _blocks(var, self.single)))
                    shape.append(int(str(var.find().size)))
                if not self.axes.letters[node].get(atom.name, ()) and not isinstance(atom, Rest):
                    shape.append(1)
        return tuple(shape), places

    def letters(self, node: Node, tensor: Tensor) -> list[str]:
        return [a.name for axis in tensor.axes for a in atoms(axis) if not isinstance(a, Size)]

    # -- ops ------------------------------------------------------------------------------------------------------

    def result(self) -> Scalings:
        for value in (*self.graph.inputs, *self.graph.outputs):
            self.none(value)
        for graph in self.graph.graphs():
            for node in graph.nodes:
                self.node(node)
        return self.solved()

    def node(self, node: Node) -> None:
        name, operands, outputs = node.op.name, node.operands, node.outputs
        rule = getattr(self, f"op_{name}", None)
        if rule is not None:
            rule(node)
        elif name in AFFINE:
            self.affine(node)
        elif name in RULES[self.kind]:
            power = RULES[self.kind][name]
            if power == 0:
                self.none(*outputs)
            else:
                self.related(operands, outputs, power, drops=name == "slice")
        else:
            self.none(*operands, *outputs)
        self.keep_off_pinned(node)
        if node.regions and rule is None:
            self.none(*(v for region in node.regions for v in (*region.inputs, *region.outputs)))
        for region in node.regions:
            for inner, outer in zip(region.inputs[len(region.inputs) - node.captures :], node.captured, strict=True):
                self.relate(outer, inner)

    def keep_off_pinned(self, node: Node) -> None:
        """No factor differs along an axis whose places the op may move or mix."""
        signature = node.bound.signature
        names = {
            atom.name
            for tensor in signature.operands + signature.results
            for axis in tensor.axes
            for atom in atoms(axis)
            if not isinstance(atom, Size) and atom.pinned
        }
        pinned = {leaf for n in names for var in self.axes.letters[node].get(n, ()) for leaf in var.leaves()}
        for value in (*node.operands, *node.outputs) if pinned else ():
            for _, unknown in self.of(value):
                unknown.find().allowed -= pinned

    def affine(self, node: Node) -> None:
        signature, y = node.bound.signature, self.of(node.output)
        own = {t.name: self.letters(node, t) for t in signature.weights}
        made = [x for x in self.letters(node, signature.results[0]) if x in own["weight"]]
        for tensor, x in zip(signature.operands, node.operands, strict=True):
            read = [name for name in self.letters(node, tensor) if name in own["weight"]]
            self.carry(node, "weight", self.of(x), read, -1)
        self.carry(node, "weight", y, made, 1)
        self.carry(node, "bias", y, [x for x in made if x in own.get("bias", ())], 1)

    def made_by(self, node: Node, *roles: str) -> None:
        """Weights that a result is linear in take its factors."""
        signature = node.bound.signature
        for role in roles:
            tensors = [t for t in signature.weights if t.name == role and role in node.weights]
            for tensor in tensors:
                shared = set(self.letters(node, signature.results[0]))
                self.carry(node, role, self.of(node.output), [x for x in self.letters(node, tensor) if x in shared], 1)

    def op_embedding(self, node: Node) -> None:
        self.none(*node.operands)
        self.made_by(node, "weight")

    def op_parameter(self, node: Node) -> None:
        self.made_by(node, "weight")

    def op_buffer(self, node: Node) -> None:
        self.none(node.output)

    def op_positions(self, node: Node) -> None:
        self.relate(node.operands[0], node.output)
        if node.weights:
            self.made_by(node, "weight")
        else:
            self.none(node.output)

    def op_kan(self, node: Node) -> None:
        self.none(*node.operands)
        self.made_by(node, *(("weight",) if "weight" in node.weights else ("base_weight", "coefficients")), "bias")

    def op_constant(self, node: Node) -> None:
        value = node.call.params.value
        if value != 0:  # nothing happens to zeros
            self.none(node.output)

    def op_batch_norm(self, node: Node) -> None:
        """As evaluated: an affine map. The mean moves with its input, the variance stays."""
        self.normalised(node, "weight" in node.weights)
        if "weight" in node.weights:
            self.carry(node, "running_mean", self.of(node.operands[0]), ["c"], 1)

    def op_norm(self, node: Node) -> None:
        self.op_batch_norm(node) if node.output.type.rank == 4 else self.op_layer_norm(node)

    def op_prelu(self, node: Node) -> None:
        if self.kind == "positive":
            self.relate(node.operands[0], node.output)
        else:
            self.none(node.operands[0], node.output)

    def op_layer_norm(self, node: Node) -> None:
        self.normalised(node, False)

    def op_group_norm(self, node: Node) -> None:
        self.normalised(node, False)

    def op_rms_norm(self, node: Node) -> None:
        self.normalised(node, self.kind == "sign")

    def op_instance_norm(self, node: Node) -> None:
        self.normalised(node, self.kind == "sign")

    def normalised(self, node: Node, passes: bool) -> None:
        """A norm whose weight and bias take the factors of its result, and (`passes`) of its operand."""
        (x,), y = node.operands, node.output
        if "weight" not in node.weights:
            self.none(x, y)
            return
        letters = self.letters(node, node.bound.signature.weights[0])
        if passes:
            self.carry(node, "weight", self.of(x), letters, -1)
        else:
            self.none(x)
        self.made_by(node, "weight", "bias")

    def op_mul(self, node: Node, power: int = 1) -> None:
        """The product of the operands' factors, which must stand on the same axes."""
        a, b = node.operands
        y = node.output
        if a is b:
            self.relate(a, y, Fraction(2)) if self.kind == "positive" else self.none(a, y)
            return
        made = self.of(y)
        sides = [self.of(v) for v in (a, b)]
        if not all((made, *sides)):
            self.none(a, b, y)
            return
        met = set[Unknown]()
        for number, (key, unknown) in enumerate(made):
            found = [[side[number][1]] if _in_order(side, made) else [u for k, u in side if k <= key] for side in sides]
            if [len(f) for f in found] == [1, 1]:
                (left,), (right,) = found
                met |= {unknown, left, right}
                self.equations.append([(unknown, Fraction(1)), (left, Fraction(-1)), (right, Fraction(-power))])
        for _, unknown in (*made, *sides[0], *sides[1]):
            if unknown not in met:
                unknown.find().zero = True

    def op_div(self, node: Node) -> None:
        self.op_mul(node, -1)

    def op_where(self, node: Node) -> None:
        self.none(node.operands[0])
        self.related(node.operands[1:], [node.output])

    def op_scaled_dot_product(self, node: Node) -> None:
        q, k, v, *mask = node.operands
        self.none(*mask)
        self.relate(q, k, Fraction(-1))
        self.relate(v, node.output)

    def op_attention(self, node: Node) -> None:
        p, letters = node.call.params, self.axes.letters[node]
        q, k, v, *mask = node.operands
        self.none(*mask)
        for x, name, roles in ((q, "i", ("q_weight", "gate_weight")), (k, "j", ("k_weight",)), (v, "l", ("v_weight",))):
            for role in roles:
                self.carry(node, role, self.of(x), [name], -1)

        def inner(*names: str) -> Parts:
            leaves = frozenset(leaf for n in names for var in letters[n] for leaf in var.leaves())
            return [(leaves, Unknown(set(leaves)))]

        between, values = inner("kv", "d"), inner("kv", "e")
        if p.qk_norm:
            between = inner("d")
        if p.positions == "rope":
            ((leaves, unknown),) = between
            for leaf in leaves & {x for var in letters["d"] for x in var.leaves()}:
                assert isinstance(leaf.size, int)
                unknown.fold[leaf] = leaf.size // 2
        for power, side in ((1, "q"), (-1, "k")):
            for role in (f"{side}_norm_weight",) if p.qk_norm else (f"{side}_weight", f"{side}_bias"):
                self.carry(node, role, between, ["d"] if p.qk_norm else ["kv", "d"], power)
        for role, power in (("v_weight", 1), ("v_bias", 1), ("out_weight", -1)):
            self.carry(node, role, values, ["kv", "e"], power)
        for role in ("out_weight", "out_bias"):
            self.carry(node, role, self.of(node.output), ["o"], 1)
        self.through[between[0][1]], self.through[values[0][1]] = "queries and keys", "values"

    # -- regions ----------------------------------------------------------------------------------------------------

    def op_moe(self, node: Node) -> None:
        """Gates weigh experts, so these agree in their factors, and the router's logits have none."""
        router, *experts = node.regions
        self.relate(node.operands[0], router.inputs[0])
        self.none(*router.outputs)
        for expert in experts:
            self.relate(node.operands[0], expert.inputs[0])
            self.relate(expert.outputs[0], node.output)

    def op_skip(self, node: Node) -> None:
        gate, body = node.regions
        self.none(*gate.outputs)
        self.relate(node.operands[0], gate.inputs[0])
        for value in (body.inputs[0], body.outputs[0], node.output):
            self.relate(node.operands[0], value)

    def op_exit(self, node: Node) -> None:
        self.none(node.output, *(v for region in node.regions for v in region.outputs))
        for region in node.regions:
            self.relate(node.operands[0], region.inputs[0])

    def op_scan(self, node: Node) -> None:
        (cell,) = node.regions
        for i, x in enumerate(node.operands):
            self.relate(x, cell.inputs[i])
        for i, y in enumerate(node.outputs):
            self.relate(cell.outputs[i], y)
            if i:
                self.relate(cell.inputs[i], cell.outputs[i])

    # -- solving ----------------------------------------------------------------------------------------------------

    def solved(self) -> Scalings:
        self.simplify()
        rows = [self.row(e) for e in self.equations]
        rows = [r for r in rows if r]
        changed = True
        while changed:  # unknowns of one equation stand on the same axes
            changed = False
            for r in rows:
                both = set.intersection(*(u.allowed for u in r))
                for u in r:
                    changed |= u.allowed != both
                    u.allowed &= both
        solution = _eliminate(rows, 2 if self.kind == "sign" else 0)
        free: dict[Unknown, int] = {}
        carried: dict[int, dict[str, None]] = {}
        factors = []
        for factor in self.factors:
            root = factor.unknown.find()
            if root.zero:
                continue
            terms = solution.get(root, {root: Fraction(1)})
            own = {free.setdefault(u, len(free)): c for u, c in terms.items()}
            for i in own:
                carried.setdefault(i, {})[factor.parameter.name] = None
            factors.append((factor, own))
        through = {u.find(): word for u, word in self.through.items()}
        found = []
        for u, i in free.items():
            leaves = tuple(u.allowed)
            shape = tuple(u.fold.get(leaf, int(str(leaf.size))) for leaf in leaves)
            found.append(Scaling(self.kind, through.get(u, "layers"), leaves, shape, tuple(carried[i])))
        return Scalings(self.kind, found, factors)

    def simplify(self) -> None:
        """Drop zeros from equations and turn those of two equal terms into one unknown, until nothing changes."""
        changed = True
        while changed:
            changed = False
            for equation in self.equations:
                row = self.row(equation)
                if len(row) == 1:
                    next(iter(row)).zero = changed = True
                elif len(row) == 2:
                    (a, x), (b, y) = row.items()
                    if x == -y or self.kind == "sign":
                        self.same(a, b)
                        changed = True

    def row(self, equation: list[tuple[Unknown, Fraction]]) -> dict[Unknown, Fraction]:
        row: dict[Unknown, Fraction] = {}
        for unknown, coefficient in equation:
            root = unknown.find()
            if not root.zero:
                row[root] = row.get(root, Fraction(0)) + coefficient
        if self.kind == "sign":
            row = {u: c % 2 for u, c in row.items()}
        return {u: c for u, c in row.items() if c}


def _under(choice: Sequence[tuple[int, Block]]) -> list[AxisVar]:
    return [leaf for _, block in choice for leaf, _ in block.leaves]


def _in_order(left: Parts, right: Parts) -> bool:
    """Whether two lists of parts lie on the same axes, one by one."""
    return [key for key, _ in left] == [key for key, _ in right]


def _eliminate(rows: Sequence[Mapping[Unknown, Fraction]], modulus: int) -> dict[Unknown, dict[Unknown, Fraction]]:
    """Unknowns that equations determine, in terms of the others."""
    solution: dict[Unknown, dict[Unknown, Fraction]] = {}

    def reduced(row: Mapping[Unknown, Fraction]) -> dict[Unknown, Fraction]:
        result: dict[Unknown, Fraction] = {}
        for u, c in row.items():
            for v, d in solution.get(u, {u: Fraction(1)}).items():
                result[v] = result.get(v, Fraction(0)) + c * d
        return {u: c % modulus if modulus else c for u, c in result.items() if (c % modulus if modulus else c)}

    for row in rows:
        rest = reduced(row)
        if not rest:
            continue
        pivot, c = rest.popitem()
        known = {u: -d / c for u, d in rest.items()}
        solution[pivot] = {u: d % modulus if modulus else d for u, d in known.items()}
        solution = {u: reduced(terms) for u, terms in solution.items()}
    return solution


def _single_parts(var: AxisVar) -> Iterator[AxisVar]:
    """Parts of size 1 of sums: unlike other axes of size 1 they are told apart."""
    for part in var.parts:
        root = part.find()
        if var.kind == "sum" and root.kind == "leaf" and root.size == 1:
            yield root
        yield from _single_parts(root)


def _blocks(var: AxisVar, single: set[AxisVar]) -> list[Block] | None:
    """The stretches of an axis: one, or one for each part of a sum; None where parts do not lie in one piece.

    Leaves of unknown size carry no factors, and those of size 1 only where they are in `single`.
    """
    root = var.find()
    if root.kind == "leaf":
        fixed = root.size if isinstance(root.size, int) else 1
        return [Block(0, fixed, ((root, 1),) if fixed != 1 or root in single else ())]
    if root.kind == "sum":
        blocks, offset = [], 0
        for part in root.parts:
            inner, size = _blocks(part, single), part.find().size
            if inner is None or not isinstance(size, int):
                return None
            blocks += [Block(offset + b.offset, b.size, b.leaves) for b in inner]
            offset += size
        return blocks
    found: list[Block] | None = None
    for part in reversed(root.parts):
        inner = _blocks(part, single)
        if inner is None:
            return None
        if found is None:
            found = inner
            continue
        if len(found) > 1:
            return None
        (below,) = found
        found = [
            Block(
                b.offset * below.size,
                b.size * below.size,
                (*((leaf, stride * below.size) for leaf, stride in b.leaves), *below.leaves),
            )
            for b in inner
        ]
    return found


# -- the action and its certificate -----------------------------------------------------------------------------------


def sample(found: Scalings, seed: int) -> list[Array]:
    """Random factors: logarithms between ±log 2, or signs (1 for minus), for each free unknown."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    if found.kind == "sign":
        return [rng.integers(0, 2, s.shape).astype(np.float64) for s in found.free]
    return [rng.uniform(-math.log(2), math.log(2), s.shape) for s in found.free]


def apply(found: Scalings, element: Sequence[Array], weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights with every factor taken in; others stay the same objects."""
    import numpy as np

    logs: dict[str, Array] = {}
    for factor, terms in found.factors:
        name = factor.parameter.name
        log = logs.setdefault(name, np.zeros(factor.shape)).reshape(factor.shape)
        logs[name] = log
        where: list[Any] = [slice(None)] * len(factor.shape)
        places: dict[AxisVar, Array] = {}
        for axis, block in factor.places:
            where[axis] = slice(block.offset, block.offset + block.size)
            at = np.arange(block.size).reshape([-1 if i == axis else 1 for i in range(len(factor.shape))])
            for leaf, stride in block.leaves:
                assert isinstance(leaf.size, int)
                places[leaf] = at // stride % leaf.size
        for i, coefficient in terms.items():
            free = found.free[i]
            index = tuple(places[leaf] % n for leaf, n in zip(free.leaves, free.shape, strict=True))
            log[tuple(where)] += factor.power * float(coefficient) * (element[i][index] if index else element[i])
    result = dict(weights)
    for name, log in logs.items():
        scale = np.where(np.round(log).astype(np.int64) % 2, -1.0, 1.0) if found.kind == "sign" else np.exp(log)
        result[name] = weights[name] * scale.reshape(weights[name].shape)
    return result


def _only(found: Scalings, element: Sequence[Array], chosen: int) -> list[Array]:
    """The element with the factors of one free unknown; a sign where all of them are minus."""
    import numpy as np

    kept = np.ones_like(element[chosen]) if found.kind == "sign" else element[chosen]
    return [kept if i == chosen else np.zeros_like(e) for i, e in enumerate(element)]


@dataclass(frozen=True)
class ScalingCertificate:
    """What was measured of one kind: as `symmetry.Certificate`, with the number of free factors."""

    ok: bool
    kind: Kind
    dimensions: int
    error: float
    conditioning: float
    controls: Controls
    moved: float


def certify(
    graph: Graph,
    kind: Kind,
    seed: int = 0,
    controls: int = 4,
    sizes: Mapping[str, int] | None = None,
    found: Scalings | None = None,
    given: Trial | None = None,
) -> ScalingCertificate:
    """Check the scaling symmetries of a network numerically, in float64. `found` and `given` are what was derived and
    run before, if it was."""

    found = scalings(graph, kind) if found is None else found
    given = trial(graph, seed, sizes) if given is None else given
    weights, run, before = given.weights, given.run, given.before
    element = sample(found, seed)
    acted = apply(found, element, weights)
    error = change(before, before)
    if found.free:
        error = max(error, change(before, run(acted)))
    changed = [n for n in weights if acted[n] is not weights[n]]
    moved = sum(int((acted[n] != weights[n]).sum()) for n in changed) / max(1, sum(w.size for w in weights.values()))
    moves: list[Move] = [
        (partial(apply, found, _only(found, element, i), weights), free.parameters)
        for i, free in enumerate(found.free)
        if len(free.parameters) > 1
    ]
    told = negative_controls(given, moves, seed, controls)
    return ScalingCertificate(
        ok=given.allows(error),
        kind=kind,
        dimensions=found.dimensions,
        error=error,
        conditioning=given.conditioning,
        controls=told,
        moved=moved,
    )


def by_way(found: Scalings) -> Iterator[tuple[str, int]]:
    """(what the factors pass through, how many there are)."""
    totals: dict[str, int] = {}
    for s in found.free:
        totals[s.through] = totals.get(s.through, 0) + s.size
    yield from totals.items()
