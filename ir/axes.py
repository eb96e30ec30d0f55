"""Axis classes: which axes of which parameters may be permuted together without changing the function.

Every axis of every value and parameter is a variable. Each node's signature says how the axes of its tensors relate,
and unification joins them: equal letters are one variable, a product splits a variable into factors (outer, inner), a
sum into parts. What is left are *leaves*. A leaf that no op, input or output pins is free: its elements may be
reordered jointly everywhere it occurs. An inner leaf is *indexed* by an outer one (each head permutes its own
channels) when every tensor that carries the inner carries the outer too, and no op looks across the outer while the
inner survives beside it. The outer one may be pinned: then only what is inside each of its elements moves.

The claim is checked numerically by `archc.metanet.symmetry`: a random element of the group must not move the function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from archc.ir.diagnostics import Span
from archc.ir.dims import Dim, exact_div
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.signature import Axis, Letter, Rest, Signature, Size, Sum, Tensor, atoms, parse_signature
from archc.ir.signature import Product as ProductPattern

REPLICAS = {"moe": "expert", "stack": "count"}
"""Letters that an op pins only because their elements are different regions or operands, which may be alike."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Why an axis cannot be permuted: the op that knows its order, and where it stands.

    `only` marks a pin by an op whose replicas may be alike; where they are, they may be exchanged with the axis (see
    `archc.ir.replicas`).
    """

    reason: str
    node: str = ""
    op: str = ""
    span: Span | None = None
    only: bool = False


@dataclass(eq=False, slots=True)
class AxisVar:
    """An axis variable: a leaf, or bound to a product or a sum of variables. `size` may be symbolic."""

    size: Dim
    pin: Pin | None = None
    parent: AxisVar | None = None
    kind: Literal["leaf", "product", "sum"] = "leaf"
    parts: tuple[AxisVar, ...] = ()

    def find(self) -> AxisVar:
        """The variable that stands for this one."""
        root = self
        while root.parent is not None:
            root = root.parent
        while self.parent is not None:  # shorten the path for the next look-up
            self.parent, self = root, self.parent
        return root

    def leaves(self) -> Iterator[AxisVar]:
        """The leaves of this axis, outermost (or first) first; those of size 1 have no structure and are left out."""
        var = self.find()
        if var.kind == "leaf":
            if var.size != 1:
                yield var
        else:
            for part in var.parts:
                yield from part.leaves()


@dataclass(frozen=True, slots=True)
class Member:
    """One occurrence of a class: axis `axis` of the parameter named `parameter`."""

    parameter: str
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class AxisClass:
    """A free leaf: `size` elements that may be permuted jointly in all `members`.

    `indexed_by` are the classes each element of which may have a permutation of its own.
    """

    index: int
    leaf: AxisVar
    size: int
    members: tuple[Member, ...]
    indexed_by: tuple[AxisVar, ...] = ()

    @property
    def copies(self) -> int:
        """How many independent permutations the class has: 1, or the product of the sizes it is indexed by."""
        count = 1
        for outer in self.indexed_by:
            assert isinstance(outer.size, int)
            count *= outer.size
        return count


@dataclass(frozen=True, slots=True)
class PinnedAxis:
    """A parameter's axis (or a factor of it) that is pinned, and why."""

    member: Member
    size: Dim
    pin: Pin


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """Replicas that may change places as wholes: alike experts, or alike branches that are merged.

    replicas  the parameters of each that it has for itself, in step
    axis      the axis that goes along, if any: each replica has its position there, or (of a sum) its part
    places    these positions or parts
    """

    index: int
    kind: Literal["experts", "branches"]
    node: Node
    replicas: tuple[tuple[Parameter, ...], ...]
    axis: AxisVar | None = None
    places: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many replicas there are: they may be put in `size!` orders."""
        return len(self.replicas)


@dataclass(slots=True, eq=False)
class Axes:
    """The axis structure of a graph: `parameters` and `values` give the variable of each axis, `letters` those of the
    letters of each node's signature. `exchanges` are filled by `archc.ir.replicas`, which passes over axes do not
    need."""

    parameters: dict[Parameter, tuple[AxisVar, ...]] = field(default_factory=dict)
    values: dict[Value, tuple[AxisVar, ...]] = field(default_factory=dict)
    letters: dict[Node, Mapping[str, tuple[AxisVar, ...]]] = field(default_factory=dict)
    classes: tuple[AxisClass, ...] = ()
    pinned: tuple[PinnedAxis, ...] = ()
    exchanges: tuple[Exchange, ...] = ()


def derive_axes(graph: Graph, finer: bool = False) -> Axes:
    """The axis classes of a graph, by unification over its nodes and regions.

    `finer` finds more of the group at the price of structures that passes over axes do not expect: a product that meets
    a sum is distributed over it (groups of concatenated channels), and an axis may be indexed by sums, and by factors
    that stand inside of it.
    """
    derivation = _Derivation(finer)
    derivation.graph(graph)
    for value in graph.inputs:
        derivation.pin_all(value, Pin(f"`{value.name}` is an input of the network", span=value.span))
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        derivation.pin_all(value, Pin(f"`{name}` is an output of the network", span=value.span))
    return derivation.finish()


class _Derivation:
    def __init__(self, finer: bool) -> None:
        self.finer = finer
        self.axes = Axes()
        self.mixing: list[tuple[tuple[AxisVar, ...], list[tuple[AxisVar, ...]]]] = []

    # -- variables ------------------------------------------------------------------------------------------------

    def of(self, value: Value) -> tuple[AxisVar, ...]:
        found = self.axes.values.get(value)
        if found is None:
            found = self.axes.values[value] = tuple(AxisVar(size) for size in value.type.shape)
        return found

    def of_parameter(self, parameter: Parameter) -> tuple[AxisVar, ...]:
        found = self.axes.parameters.get(parameter)
        if found is None:
            found = self.axes.parameters[parameter] = tuple(AxisVar(size) for size in parameter.type.shape)
        return found

    def pin_all(self, value: Value, pin: Pin) -> None:
        for var in self.of(value):
            _pin(var, pin)

    # -- the walk -------------------------------------------------------------------------------------------------

    def graph(self, graph: Graph) -> None:
        for node in graph.nodes:
            self.node(node)

    def node(self, node: Node) -> None:
        signature = node.bound.signature
        scope = _Scope(node, dict(node.bound.dims), self.finer)
        tensors = [(t, self.of(v)) for t, v in zip(signature.operands, node.operands, strict=True)]
        tensors += [(t, self.of_parameter(node.weights[t.name])) for t in signature.weights if t.name in node.weights]
        tensors += [(t, self.of(v)) for t, v in zip(signature.results, node.outputs, strict=True)]
        for tensor, variables in tensors:
            scope.relate(tensor, variables)
        if node.regions:
            self.regions(node, scope)
        self.axes.letters[node] = scope.letters
        mixed = tuple(v for name in _mixed(signature) for v in scope.variables(name))
        if mixed:
            self.mixing.append((mixed, [variables for _, variables in tensors]))

    def regions(self, node: Node, scope: _Scope) -> None:
        lines = node.op.region_lines(node.call) if node.op.region_lines else ()
        assert len(lines) == len(node.regions), f"`{node.op.name}` has no line for each of its regions"
        for line, region in zip(lines, node.regions, strict=True):
            self.graph(region)
            formals = region.inputs[: len(region.inputs) - node.captures]
            signature = parse_signature(line)
            for tensor, value in zip(signature.operands, formals, strict=True):
                scope.relate(tensor, self.of(value))
            for tensor, value in zip(signature.results, region.outputs, strict=True):
                scope.relate(tensor, self.of(value))
            for inner, outer in zip(region.inputs[len(formals) :], node.captured, strict=True):
                for a, b in zip(self.of(inner), self.of(outer), strict=True):
                    _unify(a, b, self.finer)

    # -- the result -----------------------------------------------------------------------------------------------

    def finish(self) -> Axes:
        members: dict[AxisVar, list[Member]] = {}
        pinned: list[PinnedAxis] = []
        for parameter, variables in self.axes.parameters.items():
            for i, var in enumerate(variables):
                for leaf in var.leaves():
                    if leaf.pin is not None:
                        pinned.append(PinnedAxis(Member(parameter.name, i), leaf.size, leaf.pin))
                    else:
                        members.setdefault(leaf, []).append(Member(parameter.name, i))
        outer = self.indexed(members)
        self.axes.classes = tuple(
            AxisClass(i, leaf, leaf.size, tuple(places), outer[leaf])
            for i, (leaf, places) in enumerate(members.items())
            if isinstance(leaf.size, int)
        )
        self.axes.pinned = tuple(pinned)
        return self.axes

    def indexed(self, members: Mapping[AxisVar, Sequence[Member]]) -> dict[AxisVar, tuple[AxisVar, ...]]:
        """For each free leaf the leaves (or sums) that index it."""
        candidates: Candidates = {leaf: {} for leaf in members}
        tensors = (*self.axes.parameters.values(), *self.axes.values.values())
        for variables in tensors:
            for var in variables:
                _beside(var.find(), (), candidates, self.finer)
        if not any(candidates.values()):
            return dict.fromkeys(members, ())
        for variables in tensors:
            leaves, factors = [list(v.leaves()) for v in variables], [set(_flat_factors(v)) for v in variables]
            for i, own in enumerate(leaves):
                for leaf in own:
                    for outer in tuple(candidates.get(leaf, ())):
                        known = _known_by(outer)
                        elsewhere = sum(not known.isdisjoint(f) for j, f in enumerate(factors) if j != i)
                        if known.isdisjoint(own) and known.isdisjoint(factors[i]) and elsewhere != 1:
                            del candidates[leaf][outer]
        for mixed, variables_of in self.mixing:
            across = {leaf for var in mixed for leaf in var.leaves()}
            for variables in variables_of:
                for var in variables:
                    inside = {*var.leaves(), *_flat_factors(var)}
                    for leaf in var.leaves():
                        for outer in tuple(candidates.get(leaf, ())):
                            known = _known_by(outer)
                            if not known.isdisjoint(across) and known.isdisjoint(inside):
                                del candidates[leaf][outer]
        return _without_circles(candidates)


Candidates = dict[AxisVar, dict[AxisVar, bool]]
"""For each leaf what may index it, and whether that stands outside of it in some product."""


def _beside(var: AxisVar, above: tuple[AxisVar, ...], candidates: Candidates, finer: bool) -> None:
    """Note, for each leaf under `var`, the leaves that stand outside it in a product; with `finer` sums of leaves too,
    and leaves that stand inside."""
    if var.kind == "leaf":
        if var in candidates:
            candidates[var].update((o, True) for o in above if o is not var)
    elif var.kind == "sum":
        for part in var.parts:
            _beside(part.find(), above, candidates, finer)
    else:
        factors = [part.find() for part in var.parts]
        outside = above
        for factor in factors:
            _beside(factor, outside, candidates, finer)
            # the elements of a sum differ in kind; it indexes only where each part is an axis of its own
            if factor.kind == "leaf" or (finer and _apart(factor)):
                outside = (*outside, factor)
        inside = [f for factor in factors for f in _flat_factors(factor) if f.kind == "leaf"] if finer else []
        for i, leaf in enumerate(inside):
            if leaf in candidates:
                for o in inside[i + 1 :]:
                    if o is not leaf:
                        candidates[leaf].setdefault(o, False)


def _apart(var: AxisVar) -> bool:
    """Whether an axis is a sum of different leaves."""
    parts = [part.find() for part in var.parts]
    return var.kind == "sum" and len(set(parts)) == len(parts) and all(p.kind == "leaf" for p in parts)


def _known_by(outer: AxisVar) -> set[AxisVar]:
    """The axes by which one knows the place on an axis: itself, or a part of a sum."""
    return {outer, *(part.find() for part in outer.parts)}


def _without_circles(candidates: Candidates) -> dict[AxisVar, tuple[AxisVar, ...]]:
    """What indexes what, without circles: of two that could index each other, the outer one does."""
    kept: dict[AxisVar, list[AxisVar]] = {leaf: [] for leaf in candidates}

    def leads_to(start: AxisVar, goal: AxisVar) -> bool:
        waiting, seen = [*_known_by(start)], set[AxisVar]()
        while waiting:
            var = waiting.pop()
            if var is goal:
                return True
            if var not in seen:
                seen.add(var)
                waiting += [k for o in kept.get(var, ()) for k in _known_by(o)]
        return False

    for outside in (True, False):
        for leaf, outer in candidates.items():
            for o, stands_outside in outer.items():
                if stands_outside is outside and isinstance(o.size, int) and not leads_to(o, leaf):
                    kept[leaf].append(o)
    return {leaf: tuple(outer) for leaf, outer in kept.items()}


class _Scope:
    """The letters of one node as variables."""

    def __init__(self, node: Node, sizes: dict[str, Dim | tuple[Dim, ...]], finer: bool) -> None:
        self.node, self.sizes, self.finer = node, sizes, finer
        self.letters: dict[str, tuple[AxisVar, ...]] = {}

    def variables(self, name: str) -> tuple[AxisVar, ...]:
        return self.letters.get(name, ())

    def relate(self, tensor: Tensor, variables: tuple[AxisVar, ...]) -> None:
        """Join the axes of a tensor with the pattern that the signature gives them."""
        length = len(variables) - sum(not isinstance(a, Rest) for a in tensor.axes)
        position = 0
        for axis in tensor.axes:
            if isinstance(axis, Rest):
                self._join_rest(axis, variables[position : position + length])
                position += length
            else:
                _unify(self._pattern(axis, variables[position].size), variables[position], self.finer)
                position += 1

    def _join_rest(self, rest: Rest, variables: tuple[AxisVar, ...]) -> None:
        known = self.letters.setdefault(rest.name, variables)
        assert len(known) == len(variables), f"*{rest.name} has two lengths in {self.node}"
        for a, b in zip(known, variables, strict=True):
            _unify(a, b, self.finer)
            if rest.pinned:
                _pin(a, self._why(rest.name))

    def _pattern(self, axis: Axis, size: Dim) -> AxisVar:
        if isinstance(axis, Letter):
            var = self._letter(axis.name, size)
            if axis.pinned:
                _pin(var, self._why(axis.name))
            return var
        if isinstance(axis, Size):
            fixed = AxisVar(axis.value)
            if axis.value != 1:
                _pin(fixed, self._why(str(axis)))
            return fixed
        if isinstance(axis, Sum):
            parts = tuple(self._pattern(p, self._size(p)) for p in axis.parts)
            return AxisVar(size, kind="sum", parts=tuple(p for p in parts if p.size != 0))
        assert isinstance(axis, ProductPattern)
        factors = tuple(self._pattern(f, self._size(f)) for f in axis.factors)
        factors = tuple(f for f in factors if f.size != 1)
        if len(factors) == 1:
            return factors[0]
        return AxisVar(size, kind="product" if factors else "leaf", parts=factors)

    def _letter(self, name: str, size: Dim) -> AxisVar:
        known = self.letters.get(name)
        if known is None:
            known = self.letters[name] = (AxisVar(size),)
        return known[0]

    def _size(self, axis: Axis) -> Dim:
        if isinstance(axis, Letter) and axis.name in self.letters:
            return self.letters[axis.name][0].size
        return self.node.bound.size(axis)

    def _why(self, letter: str) -> Pin:
        node, op = self.node, self.node.op.name
        return Pin(f"`{op}` knows the order of `{letter}`", node.name, op, node.span, REPLICAS.get(op) == letter)


def _mixed(signature: Signature) -> set[str]:
    tensors = signature.operands + signature.weights + signature.results
    return {a.name for t in tensors for axis in t.axes for a in atoms(axis) if not isinstance(a, Size) and a.mixed}


def _pin(var: AxisVar, pin: Pin) -> None:
    var = var.find()
    if var.kind == "leaf":
        if var.pin is None or (var.pin.only and not pin.only):
            var.pin = pin
        elif var.pin.only and pin.node != var.pin.node:  # two that would each have to exchange theirs
            var.pin = replace(pin, only=False)
    else:
        for part in var.parts:
            _pin(part, pin)


def _unify(a: AxisVar, b: AxisVar, finer: bool = False) -> None:
    """Make two axes one. Structures that cannot be reconciled pin both: sound, if not the largest group."""
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.kind != "leaf" and b.kind == "leaf":
        a, b = b, a
    if a.kind == "leaf":
        a.parent = b
        if a.pin is not None:
            _pin(b, a.pin)
    elif a.kind == b.kind and _align(a, b, finer):
        a.parent = b
    elif finer and a.kind == "product" and b.kind == "sum" and _distribute(a, b):
        b.parent = a
    elif finer and a.kind == "sum" and b.kind == "product" and _distribute(b, a):
        a.parent = b
    else:
        reason = Pin("two uses of this axis divide it in ways that do not fit each other")
        _pin(a, reason)
        _pin(b, reason)


def _distribute(product: AxisVar, total: AxisVar) -> bool:
    """Unify a product with a sum, `g·c = a + b`, by cutting the outer factor: `g = g₁ + g₂`, `a = g₁·c`, `b = g₂·c`."""
    factors, terms = _flat(product), _flat(total)
    for cut in range(1, len(factors)):
        size: Dim = 1
        for factor in factors[cut:]:
            size = size * factor.size
        counts = [exact_div(term.size, size) for term in terms]
        if size == 1 or not all(isinstance(count, int) for count in counts):
            continue
        outer = [AxisVar(count) for count in counts if count is not None]
        whole = AxisVar(sum(int(str(o.size)) for o in outer), kind="sum", parts=tuple(outer))
        head = factors[0] if cut == 1 else AxisVar(whole.size, kind="product", parts=tuple(factors[:cut]))
        _unify(head, whole, True)
        for term, o in zip(terms, outer, strict=True):
            _unify(term, AxisVar(term.size, kind="product", parts=(o, *factors[cut:])), True)
        return True
    return False


def _align(a: AxisVar, b: AxisVar, finer: bool) -> bool:
    """Unify two products, or two sums, part by part, splitting leaves where the cuts differ."""
    left, right = _flat(a), _flat(b)
    while left and right:
        x, y = left[0].find(), right[0].find()
        if x.size == y.size:
            _unify(x, y, finer)
            left, right = left[1:], right[1:]
            continue
        split = _split(x, y, a.kind) or _split(y, x, a.kind)
        if not split:
            return False
        left, right = _spread(left, a.kind), _spread(right, a.kind)
    return not left and not right


def _split(large: AxisVar, small: AxisVar, kind: Literal["leaf", "product", "sum"]) -> bool:
    """Cut a part the size of `small` off the front of the leaf `large`."""
    if large.kind != "leaf":
        return False
    if kind == "product":
        rest = exact_div(large.size, small.size)
    else:
        rest = large.size - small.size
        rest = rest if isinstance(rest, int) and rest > 0 else None
    if rest is None or rest == 1:
        return False
    large.kind, large.parts = kind, (AxisVar(small.size, large.pin), AxisVar(rest, large.pin))
    return True


def _flat(var: AxisVar) -> list[AxisVar]:
    """The parts of a product (or sum), those of nested ones in their place."""
    return _spread([p.find() for p in var.parts], var.kind)


def _flat_factors(var: AxisVar) -> list[AxisVar]:
    """The factors of an axis: of a product its parts, else the axis itself."""
    root = var.find()
    return _flat(root) if root.kind == "product" else [root]


def _spread(parts: Sequence[AxisVar], kind: str) -> list[AxisVar]:
    found: list[AxisVar] = []
    for part in parts:
        root = part.find()
        found += _spread(root.parts, kind) if root.kind == kind else [root]
    return found
