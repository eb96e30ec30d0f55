"""The permutation group of a network: sampled, applied to weights, and certified numerically.

The group comes from `archc.ir.axes` (classes of axes), `archc.ir.replicas` (alike experts and branches) and
`archc.ir.whole` (axes that were cut for nothing). An element is a permutation for each free axis class (one for each
element of the axes that index it), and an order for each set of replicas. Applied to the weights it must not move the
function: `certify` checks that in float64 on random weights and inputs, together with a negative control that must
move it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from archc.ir.axes import Axes, AxisClass, AxisVar, Exchange, derive_axes
from archc.ir.graph import Graph
from archc.ir.replicas import find_replicas
from archc.ir.whole import mend
from archc.metanet.running import (
    CONTROL,
    TOLERANCE,
    Controls,
    Move,
    Trial,
    change,
    conditional,
    negative_controls,
    random_weights,
    trial,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CONTROL",
    "TOLERANCE",
    "Certificate",
    "Element",
    "apply",
    "certify",
    "group",
    "order",
    "random_weights",
    "sample",
]

Array = Any  # a numpy array; numpy is imported where it is needed
Element = dict[AxisVar | Exchange, "NDArray[np.intp]"]
"""A group element: for each free leaf its permutations, shape (sizes of what indexes it…, size), and for each exchange
one of its replicas: old place -> new."""


def group(graph: Graph) -> Axes:
    """The axis classes and exchanges that generate the permutation group of a network's weights.

    >>> from archc.grammar.load import loads
    >>> net = loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 3]\\ny = x -> linear(8) -> relu -> linear(3)")
    >>> axes = group(net)
    >>> [(c.size, [m.parameter for m in c.members]) for c in axes.classes]
    [(8, ['linear.weight', 'linear.bias', 'linear1.weight'])]
    """
    axes = derive_axes(graph, finer=True)
    mend(graph, axes)
    axes.exchanges = find_replicas(graph, axes)
    moved = {e.node.name for e in axes.exchanges if e.axis is not None and len(e.places) == e.axis.size}
    axes.pinned = tuple(p for p in axes.pinned if not (p.pin.only and p.pin.node in moved))
    return axes


def order(axes: Axes) -> Counter[int]:
    """The order of the group as a product of factorials: {n: k} means (n!)^k.

    >>> from archc.grammar.load import loads
    >>> order(group(loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 3]\\ny = x -> linear(8) -> linear(3)")))
    Counter({8: 1})
    """
    factors = Counter[int]()
    for cls in axes.classes:
        factors[cls.size] += cls.copies
    for exchange in axes.exchanges:
        factors[exchange.size] += 1
    return factors


def exact_order(axes: Axes) -> int:
    """The number of group elements."""
    return math.prod(math.factorial(n) ** k for n, k in order(axes).items())


def log10_order(axes: Axes) -> float:
    """The decimal logarithm of the number of group elements."""
    return sum(k * math.lgamma(n + 1) for n, k in order(axes).items()) / math.log(10)


def order_text(axes: Axes) -> str:
    """The order as it is printed: `64!^12 · 8!`, largest first; `1` for the trivial group."""
    factors = sorted(order(axes).items(), reverse=True)
    return " · ".join(f"{n}!" + (f"^{k}" if k > 1 else "") for n, k in factors) or "1"


def sample(axes: Axes, seed: int) -> Element:
    """A random element of the group."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    element: Element = {}
    for cls in axes.classes:
        outer = tuple(int(str(o.size)) for o in cls.indexed_by)
        element[cls.leaf] = rng.permuted(np.broadcast_to(np.arange(cls.size), (*outer, cls.size)).copy(), axis=-1)
    for exchange in axes.exchanges:
        element[exchange] = rng.permutation(exchange.size)
    return element


def rotation(cls: AxisClass | Exchange) -> Element:
    """The element that moves every place of one class (or every replica of one exchange) by one, and nothing else."""
    import numpy as np

    if isinstance(cls, Exchange):
        return {cls: np.roll(np.arange(cls.size), 1)}
    outer = tuple(int(str(o.size)) for o in cls.indexed_by)
    return {cls.leaf: np.broadcast_to(np.roll(np.arange(cls.size), 1), (*outer, cls.size))}


# -- the action -----------------------------------------------------------------------------------------------------


def apply(axes: Axes, element: Element, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights, each axis reordered by the element, then replicas exchanged. Arrays keep their shapes and dtypes;
    those that the element does not move are the same objects."""
    tables = {key: table for key, table in element.items() if isinstance(key, AxisVar)}
    index = {c.leaf: c.indexed_by for c in axes.classes}
    moved = _reordered(axes, tables, index, weights)
    for exchange in axes.exchanges:
        if exchange in element:
            moved = _exchanged(axes, exchange, element[exchange], moved)
    return moved


Tables = Mapping[AxisVar, "NDArray[np.intp]"]
Index = Mapping[AxisVar, tuple[AxisVar, ...]]


def _reordered(axes: Axes, tables: Tables, index: Index, weights: Mapping[str, Array]) -> dict[str, Array]:
    result = dict(weights)
    for p, variables in axes.parameters.items():
        if p.name in result and any(_moves(v.find(), tables) for v in variables):
            result[p.name] = _permute(result[p.name], variables, tables, index)
    return result


def _exchanged(
    axes: Axes, exchange: Exchange, table: NDArray[np.intp], weights: Mapping[str, Array]
) -> dict[str, Array]:
    import numpy as np

    result = dict(weights)
    if exchange.axis is not None:
        count = len(exchange.axis.parts) if exchange.axis.kind == "sum" else exchange.axis.size
        assert isinstance(count, int)
        places, whole = np.asarray(exchange.places), np.arange(count)
        whole[places] = places[table]
        result = _reordered(axes, {exchange.axis: whole}, {exchange.axis: ()}, result)
    taken = {
        exchange.replicas[new][i].name: result[p.name]
        for old, new in enumerate(table)
        for i, p in enumerate(exchange.replicas[old])
        if p.name in result
    }
    return result | taken


def _moves(var: AxisVar, tables: Tables) -> bool:
    return var in tables or (var.kind != "leaf" and any(_moves(p.find(), tables) for p in var.parts))


def _permute(weight: Array, variables: tuple[AxisVar, ...], tables: Tables, index: Index) -> Array:
    import numpy as np

    rank = weight.ndim
    places = [np.arange(s).reshape([-1 if i == j else 1 for j in range(rank)]) for i, s in enumerate(weight.shape)]
    outer = {o for key in tables for o in index.get(key, ())}
    digits: list[dict[AxisVar, Array]] = []
    for var, place in zip(variables, places, strict=True):
        digits.append({})
        _digits(var.find(), place, digits[-1], outer)
    moved = []
    for i, (var, place) in enumerate(zip(variables, places, strict=True)):
        scope = {leaf: d for j, own in enumerate(digits) if j != i for leaf, d in own.items()} | digits[i]
        moved.append(_image(var.find(), place, scope, tables, index) if _moves(var.find(), tables) else place)
    if all(m.size == s for m, s in zip(moved, weight.shape, strict=True)):  # no axis needs to know of another
        result = weight
        for i, (image, place) in enumerate(zip(moved, places, strict=True)):
            if image is not place:
                result = result.take(np.argsort(image.ravel()), axis=i)
        return result
    result = np.empty_like(weight)
    result[tuple(np.broadcast_arrays(*moved))] = weight
    return result


def _digits(var: AxisVar, place: Array, found: dict[AxisVar, Array], outer: set[AxisVar]) -> None:
    """The coordinate of each leaf that is a factor of the axis, and of each sum that has one as a part and indexes."""
    if var.kind == "product":
        for part, digit in _split(var, place):
            _digits(part, digit, found, outer)
        return
    found[var] = place
    for sum_ in outer:
        if sum_.kind == "sum" and var is not sum_:
            offset = 0
            for part in sum_.parts:
                if part.find() is var:
                    found[sum_] = place + offset
                offset += int(str(part.size))


def _split(var: AxisVar, place: Array) -> list[tuple[AxisVar, Array]]:
    pairs = []
    for part in reversed(var.parts):
        root = part.find()
        assert isinstance(root.size, int)
        pairs.append((root, place % root.size))
        place = place // root.size
    return pairs[::-1]


def _image(var: AxisVar, place: Array, scope: Mapping[AxisVar, Array], tables: Tables, index: Index) -> Array:
    """Where the element sends each place of an axis."""
    import numpy as np

    if var.kind == "leaf":
        table = tables.get(var)
        if table is None:
            return place
        return table[(*(scope[o] for o in index[var]), place)]
    if var.kind == "product":
        image: Array = 0
        for part, digit in _split(var, place):
            image = image * part.size + _image(part, digit, scope, tables, index)
        return image
    roots = [part.find() for part in var.parts]
    offsets = np.cumsum([0, *(int(str(r.size)) for r in roots)])
    goes = tables.get(var)  # whole parts change places
    image = np.zeros_like(place)
    for k, root in enumerate(roots):
        inside = (place >= offsets[k]) & (place < offsets[k + 1])
        local = np.clip(place - offsets[k], 0, int(str(root.size)) - 1)
        own: dict[AxisVar, Array] = {}
        _digits(root, local, own, {o for key in tables for o in index.get(key, ())})
        to = offsets[k if goes is None else goes[k]]
        image = np.where(inside, to + _image(root, local, {**scope, **own}, tables, index), image)
    return image


# -- the certificate ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured. `ok` when no element moved the function; `controls` say what that is worth.

    error         largest change of an output under a group element, relative to the largest output
    conditioning  relative change of the outputs per relative change of the weights, measured (at least 1)
    controls      negative controls: a class applied to all but one of its parameters
    moved         share of the trained numbers that the first element moved
    exchanges     how many sets of replicas there are
    inputs        the shape of each input it was computed on
    inert         parameters whose random change does not move the outputs, found by computing
    idle          parameters of experts, bodies and exits that this input does not reach
    """

    ok: bool
    error: float
    conditioning: float
    controls: Controls
    moved: float
    classes: int
    log10_order: float
    exchanges: int = 0
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    inert: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


def certify(
    graph: Graph,
    seed: int = 0,
    elements: int = 2,
    controls: int = 8,
    sizes: Mapping[str, int] | None = None,
    axes: Axes | None = None,
    given: Trial | None = None,
) -> Certificate:
    """Check the permutation group of a network numerically, in float64. `axes` and `given` are what was derived and
    run before, if it was.

    Images of a fixed size above 64 are replaced by smaller ones where the weights do not depend on their size; where
    they do, one image is enough, with one element and half of the controls.
    """

    axes = group(graph) if axes is None else axes
    given = trial(graph, seed, sizes) if given is None else given
    weights, run, before = given.weights, given.run, given.before
    if given.large:
        elements, controls = min(elements, 1), controls // 2
    error, moved = change(before, before), 0.0  # infinite when an output is not finite
    for k in range(elements):
        acted = apply(axes, sample(axes, seed + k), weights)
        error = max(error, change(before, run(acted)))
        if k == 0:
            total = sum(w.size for w in weights.values())
            moved = sum(int((acted[n] != w).sum()) for n, w in weights.items()) / max(1, total)
    moves: list[Move] = [
        (partial(apply, axes, rotation(chosen), weights), names) for chosen, names in _movable(axes) if len(names) > 1
    ]
    told = negative_controls(given, moves, seed, controls)
    inert, idle = inert_parameters(given) if controls else ((), ())
    return Certificate(
        ok=given.allows(error),
        error=error,
        conditioning=given.conditioning,
        controls=told,
        moved=moved,
        classes=len(axes.classes),
        log10_order=log10_order(axes),
        exchanges=len(axes.exchanges),
        inputs=run.shapes,
        inert=inert,
        idle=idle,
    )


def _movable(axes: Axes) -> Iterator[tuple[AxisClass | Exchange, list[str]]]:
    """Each class and exchange with the names of the parameters that it moves."""
    for cls in axes.classes:
        yield cls, list(dict.fromkeys(m.parameter for m in cls.members))
    for exchange in axes.exchanges:
        names = [p.name for replica in exchange.replicas for p in replica]
        if exchange.axis is not None:
            table = {exchange.axis: None}
            names += [p.name for p, vs in axes.parameters.items() if any(_moves(v.find(), table) for v in vs)]  # type: ignore[arg-type]
        yield exchange, list(dict.fromkeys(names))


def inert_parameters(given: Trial) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(parameters whose random change does not move the outputs, those of parts that this input does not reach).

    Candidates have no gradient; each is then changed by a random factor and must not move the outputs. Trained
    parameters only: buffers are not considered.
    """
    import numpy as np

    weights, run, before, limit = given.weights, given.run, given.before, given.limit
    influence = run.influence(weights)
    least = 1e-12 * max(influence.values(), default=0.0)
    suspects = [n for n, size in influence.items() if size <= least and weights[n].size]
    rng = np.random.Generator(np.random.Philox(run.seed))
    other = {n: weights[n] * rng.uniform(1.1, 2, weights[n].shape) for n in suspects}
    if suspects and change(before, run({**weights, **other})) > limit:
        suspects = [n for n in suspects if change(before, run({**weights, n: other[n]})) <= limit]
    sometimes = {p.name for p in conditional(run.graph)}
    idle = [n for n in suspects if influence[n] == 0.0 and n in sometimes]
    return tuple(n for n in suspects if n not in idle), tuple(idle)
