"""Units of structure: axis classes that can be given another size, and what the network does with them.

A unit is one axis class, or several that must keep one size (the channels of keys and of values in a head of
`attention`). It is called by the first layer that makes its elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from archc.ir.axes import Axes, AxisClass, AxisVar, derive_axes
from archc.ir.graph import Graph, Node
from archc.ir.signature import Signature, Size, Tensor, atoms
from archc.passes.resize import Sizes, obstacle

Role = Literal["made", "read", "inner", "carried", "mixed", "reduced", "met"]
"""What a node does with an axis.

made      a weight and the result have it: the rows of a linear map, a norm's gain
read      an operand and a weight have it, the result has not: it is summed over
inner     only weights have it: the heads inside `attention`
carried   operands and result have it: every element goes its own way
mixed     it survives, but the op looks across it: a softmax, the axis of a layer norm
reduced   one operand has it: a sum, mean or maximum along it
met       several operands have it and no weight: the product of queries and keys
"""


@lru_cache(maxsize=8192)
def letter_roles(signature: Signature) -> Mapping[str, Role]:
    """What the op of a line does with each letter."""

    def named(tensors: Sequence[Tensor]) -> list[set[str]]:
        return [{a.name for axis in t.axes for a in atoms(axis) if not isinstance(a, Size)} for t in tensors]

    everything = (*signature.operands, *signature.weights, *signature.results)
    mixed = {a.name for t in everything for axis in t.axes for a in atoms(axis) if not isinstance(a, Size) and a.mixed}
    operands, weights, results = map(named, (signature.operands, signature.weights, signature.results))
    found: dict[str, Role] = {}
    for name in set().union(*operands, *weights, *results):
        count = sum(name in t for t in operands)
        weighed, result = any(name in t for t in weights), any(name in t for t in results)
        if name in mixed:
            found[name] = "mixed"
        elif result:
            found[name] = "carried" if count else "made"
        elif weighed:
            found[name] = "read" if count else "inner"
        else:
            found[name] = "reduced" if count == 1 else "met"
    return found


def roles(node: Node, axes: Axes, leaf: AxisVar) -> Iterator[tuple[str, Role]]:
    """(letter, role) of each letter of a node that has the leaf in it. What carries regions carries the axis: what is
    done with it is done inside."""
    of = letter_roles(node.bound.signature)
    for name, variables in axes.letters[node].items():
        if name in of and any(leaf is own for v in variables for own in v.leaves()):
            yield name, "carried" if node.regions else of[name]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Axis classes that have one size.

    nodes   all that have it on one of their axes, in program order
    anchor  the layer that the unit is called by
    heads   whether its elements hold others, as heads and groups do
    why     the node that keeps it from having another size, and the reason; None where nothing does
    """

    axes: Axes
    classes: tuple[AxisClass, ...]
    nodes: tuple[Node, ...]
    anchor: Node
    heads: bool
    why: tuple[Node, str] | None = None

    @property
    def what(self) -> str:
        """The unit in words: `64 elements, in 3 weights`."""
        weights = {m.parameter for c in self.classes for m in c.members}
        return f"{self.size} {'heads or groups' if self.heads else 'elements'}, in {len(weights)} weights"

    @property
    def size(self) -> int:
        return self.classes[0].size

    def sizes(self, size: int) -> Sizes:
        """All of the unit's leaves at one size."""
        return {c.leaf: size for c in self.classes}

    def roles(self) -> Iterator[tuple[Node, str, Role]]:
        """(node, letter, role) of everything that is done with the unit."""
        for node in self.nodes:
            for c in self.classes:
                for letter, role in roles(node, self.axes, c.leaf):
                    yield node, letter, role


def find_units(graph: Graph) -> list[Unit]:
    """Every unit of a network, in the order of their anchors."""
    axes = derive_axes(graph)
    order = {node: i for i, node in enumerate(graph.walk())}
    of = {c.leaf: c for c in axes.classes}
    users: dict[AxisVar, dict[Node, None]] = {leaf: {} for leaf in of}
    for node in order:
        for variables in axes.letters[node].values():
            for variable in variables:
                for leaf in variable.leaves():
                    if leaf in users:
                        users[leaf][node] = None
    whole = {v.find() for variables in axes.parameters.values() for v in variables}
    outside = {leaf for variables in axes.parameters.values() for v in variables for leaf in _outside(v.find())}
    units, done = [], set[AxisVar]()
    for leaf, cls in of.items():
        if leaf in done:
            continue
        classes = (cls, *_tied(cls, axes, of, users[leaf]))
        done |= {c.leaf for c in classes}
        nodes = tuple(sorted({n for c in classes for n in users[c.leaf]}, key=order.__getitem__))
        why = obstacle(nodes, axes, {c.leaf: cls.size - 1 for c in classes})
        heads = leaf in outside and leaf not in whole
        units.append(Unit(axes, classes, nodes, _anchor(nodes, axes, leaf), heads, why))
    return sorted(units, key=lambda u: order[u.anchor])


def _outside(var: AxisVar) -> Iterator[AxisVar]:
    """The leaves that stand outside of others in products."""
    if var.kind == "product":
        for part in var.parts[:-1]:
            yield from part.leaves()
    for part in var.parts:
        yield from _outside(part.find())


def _tied(cls: AxisClass, axes: Axes, of: Mapping[AxisVar, AxisClass], nodes: Mapping[Node, None]) -> list[AxisClass]:
    """Other classes that must have the size of this one: `attention` has one number of channels in a head."""
    found: dict[AxisVar, AxisClass] = {}
    for node in nodes:
        if node.op.name == "attention":
            letters = axes.letters[node]
            pair = [leaf for name in "de" for leaf in letters[name][0].leaves()]
            if cls.leaf in pair:
                found.update((leaf, of[leaf]) for leaf in pair if leaf in of and leaf is not cls.leaf)
    return list(found.values())


def _anchor(nodes: Sequence[Node], axes: Axes, leaf: AxisVar) -> Node:
    for node in nodes:
        if node.weights and any(role in ("made", "inner") for _, role in roles(node, axes, leaf)):
            return node
    return next((n for n in nodes if n.weights), nodes[0])
