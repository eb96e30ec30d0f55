"""`widen`: axis classes get more elements, copies of the old ones, which share the weights that read them.

Net2WiderNet for every axis class: channels of residual streams, hidden units, heads. A copy computes what its original
does, through any function and any norm of single channels, so the network is born equal. A norm or a mean along the
axis stays what it is when every element is copied alike. Where copies would count twice (a sum along the axis, a
softmax, tensors that meet along it) the class is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from archc.ir.axes import AxisVar
from archc.ir.graph import Graph, Node, Parameter
from archc.ir.signature import Size, atoms
from archc.passes.manager import Context, Contract
from archc.passes.resize import Choice, elements, obstacle, resize
from archc.passes.transform import Options, Refusal, Site, Transform
from archc.passes.units import Role, Unit, find_units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

EVEN = ("layer_norm", "rms_norm", "group_norm", "norm", "mean")
"""What looks along an axis and gives the same when every element is there equally often."""

ANY = ("max", "min", "any", "all")
"""What does not care how often an element is there."""

READERS = ("linear", "tied_linear", "bilinear", "conv", "conv_transpose", "kan", "attention")
"""What is linear in the weights with which it reads an axis, so that they can be shared out among copies."""

FUNCTIONS = ("numerator", "denominator")
"""Weights of a reader that belong to the element and not to the reading: a copy needs all of them."""

INSIDE = {"kv": ("out_weight",), "r": ("out_weight",), "e": ("out_weight",), "d": ("q_weight", "q_bias")}
"""Of each letter inside `attention` the weights that are divided: what reads the heads, one side of `q · k`."""


class WidenOptions(Options):
    """factor  how many times as wide. Where a norm or a mean looks along the axis it has to be a whole number
    noise   how unequally copies share what reads them, from 0 (equally) to 1: they learn different things, and the
            function is kept all the same, for the shares still add up to 1
    heads   heads and groups too, as wholes
    """

    factor: float = Field(default=2.0, gt=1, le=64)
    noise: float = Field(default=0.0, ge=0, le=1)
    heads: bool = False


Place = tuple[Parameter, int, AxisVar]
"""A leaf on an axis of a parameter."""


def _find(graph: Graph, options: WidenOptions) -> Iterator[Site | Refusal]:
    for unit in find_units(graph):
        if unit.heads and not options.heads:
            continue
        width = round(unit.size * options.factor)
        fixed = obstacle(unit.nodes, unit.axes, unit.sizes(width))
        seen = _unequal(unit, options.factor.is_integer())
        if fixed is None and seen is None and width > unit.size:
            yield Site(unit.anchor, (), graph, unit, unit.what)
        for why, reason in ((fixed, "it cannot have more elements"), (seen, "copies of its elements would not be one")):
            if why is not None:
                found = f"{unit.size} elements, which `{why[0].name}` has too"
                yield Refusal(unit.anchor, f"{reason}: {why[1]}", found, code="E0422")
                break


def _unequal(unit: Unit, whole: bool) -> tuple[Node, str] | None:
    """The node that tells copies of an element from one, and how; None where none does."""
    for node, letter, role in unit.roles():
        op = node.op.name
        if role == "met":
            return node, f"tensors meet along it in `{op}`, and copies would count again"
        if role == "read" and op not in READERS:
            return node, f"`{op}` is not known to be linear in what reads it"
        if role == "inner" and (op != "attention" or letter not in INSIDE):
            return node, f"it is inside `{op}`"
        if role in ("mixed", "reduced") and op not in ANY:
            if op not in EVEN:
                return node, f"`{op}` looks along it, and copies would count again"
            if not all(_scaled(v, unit) for v in unit.axes.letters[node][letter]):
                return node, f"`{op}` looks along it and along elements that would not be copied"
            if not whole:
                return node, f"`{op}` looks along it, and needs every element copied alike: a whole `factor`"
    reads, kept = _places(unit)
    for place in reads.keys() & kept.keys():
        return kept[place], f"`{place[0].name}` is shared by what makes it and what reads it"
    return None


def _scaled(var: AxisVar, unit: Unit) -> bool:
    """Whether the axis as a whole grows with the unit: not where only some parts of a concatenation do."""
    var = var.find()
    if var.kind == "leaf":
        return any(var is c.leaf for c in unit.classes)
    return (all if var.kind == "sum" else any)(_scaled(part, unit) for part in var.parts)


def _places(unit: Unit) -> tuple[dict[Place, Node], dict[Place, Node]]:
    """Where weights read the unit, and where they have it otherwise, with a node that says so."""
    reads: dict[Place, Node] = {}
    kept: dict[Place, Node] = {}
    does_of: dict[Node, dict[str, Role]] = {}
    for node, letter, role in unit.roles():
        does_of.setdefault(node, {})[letter] = role
    for node, does in does_of.items():
        for tensor in node.bound.signature.weights:
            if tensor.name not in node.weights:
                continue
            for axis, pattern in enumerate(tensor.axes):  # a `*rest` of a weight stands last: its axes are pinned
                for letter in {a.name for a in atoms(pattern) if not isinstance(a, Size)} & does.keys():
                    divided = _divided(node, tensor.name, letter, does[letter])
                    for leaf in _leaves(unit, node, letter):
                        (reads if divided else kept)[node.weights[tensor.name], axis, leaf] = node
    return reads, kept


def _divided(node: Node, weight: str, letter: str, role: Role) -> bool:
    """Whether copies of a letter's elements share what this weight has for them."""
    if role == "inner":
        return weight in INSIDE[letter]
    return role == "read" and weight not in FUNCTIONS


def _leaves(unit: Unit, node: Node, letter: str) -> set[AxisVar]:
    own = {leaf for v in unit.axes.letters[node][letter] for leaf in v.leaves()}
    return own & {c.leaf for c in unit.classes}


def _apply(graph: Graph, sites: Sequence[Site], options: WidenOptions, context: Context) -> None:
    import numpy as np

    units: list[Unit] = [site.found for site in sites]
    choice = Choice()
    shares: dict[AxisVar, Array] = {}
    reads: dict[Place, Node] = {}
    for unit in units:
        reads |= _places(unit)[0]
        for i, cls in enumerate(unit.classes):
            rng = np.random.Generator(np.random.Philox(key=_key(context.seed, f"{unit.anchor.name}:{i}")))
            copied = _copied(cls.size, round(cls.size * options.factor), rng)
            shares[cls.leaf] = _shares(copied, cls.size, options.noise, rng)
            outer = [int(str(o.size)) for o in cls.indexed_by]
            choice.set(cls.leaf, np.broadcast_to(copied, (*outer, len(copied))), cls.indexed_by)
    axes, sizes = units[0].axes, choice.sizes()
    new = resize(graph, axes, choice, context)
    if context.weights is None:
        return
    for parameter, axis, leaf in reads:
        var = axes.parameters[parameter][axis]
        element = elements(var, leaf, sizes)
        share = np.where(element >= 0, shares[leaf][element], 1.0)
        value = context.value(new[parameter])
        context.store(new[parameter], value * share.reshape([-1 if i == axis else 1 for i in range(value.ndim)]))


def _copied(size: int, width: int, rng: Any) -> Any:
    """The old element at each new place: all in turn, and of the last turn as many as there is room for, drawn."""
    import numpy as np

    turns, rest = divmod(width, size)
    return np.concatenate([np.tile(np.arange(size), turns), rng.permutation(size)[:rest]]).astype(np.intp)


def _shares(copied: Any, size: int, noise: float, rng: Any) -> Array:
    """What each copy has of the weights that read its original: they add up to 1 for each."""
    import numpy as np

    counts = np.bincount(copied, minlength=size)
    drawn = rng.uniform(-1.0, 1.0, len(copied))
    mean = np.bincount(copied, drawn, minlength=size) / counts
    alone = counts[copied] == 1
    result: Array = (1.0 + np.where(alone, 0.0, noise * (drawn - mean[copied]))) / counts[copied]
    return result


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:widen:{name}".encode()).digest()[:16], "little")


def _contract(options: WidenOptions) -> Contract:
    return Contract()


WIDEN = Transform(
    name="widen",
    doc="More channels, hidden units and heads, as copies of the old ones that share what reads them.",
    options=WidenOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="axes that no input, output or order holds fast, and along which nothing is added up",
    variants=("widen", "widen(factor = 3, noise = 0.5)", "widen(factor = 1.5)", "widen(heads = true)"),
    paper="Chen et al. 2016, Net2Net, arXiv:1511.05641",
)
