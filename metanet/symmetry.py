"""The permutation group of a network: sampled, applied to weights, and certified numerically.

The group comes from `archc.ir.axes`. An element is a permutation for each free axis class (one for each element of the
axes that index it). Applied to the weights it must not move the function: `certify` checks that in float64 on
random weights and inputs, together with a negative control that must move it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.axes import Axes, AxisClass, AxisVar, derive_axes
from archc.ir.graph import Graph, Parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Array = Any  # a numpy array; numpy is imported where it is needed
Element = dict[AxisVar, "NDArray[np.intp]"]
"""A group element: for each free leaf its permutations, shape (sizes of what indexes it…, size): old place -> new."""

TOLERANCE = 1e-12
CONTROL = 1e-6


def log10_order(axes: Axes) -> float:
    """The decimal logarithm of the number of group elements."""
    return sum(c.copies * math.lgamma(c.size + 1) for c in axes.classes) / math.log(10)


def sample(axes: Axes, seed: int) -> Element:
    """A random element of the group."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    element: Element = {}
    for cls in axes.classes:
        outer = tuple(int(str(o.size)) for o in cls.indexed_by)
        element[cls.leaf] = rng.permuted(np.broadcast_to(np.arange(cls.size), (*outer, cls.size)).copy(), axis=-1)
    return element


def rotation(cls: AxisClass) -> Element:
    """The element that moves every place of one class by one, and no other class."""
    import numpy as np

    outer = tuple(int(str(o.size)) for o in cls.indexed_by)
    return {cls.leaf: np.broadcast_to(np.roll(np.arange(cls.size), 1), (*outer, cls.size))}


def apply(axes: Axes, element: Element, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The weights, each axis reordered by the element. Arrays keep their shapes and dtypes."""
    index = {c.leaf: c.indexed_by for c in axes.classes}
    return {
        p.name: _permute(weights[p.name], variables, element, index) if p.name in weights else weights[p.name]
        for p, variables in axes.parameters.items()
    } | {name: w for name, w in weights.items() if name not in {p.name for p in axes.parameters}}


def _permute(
    weight: Array, variables: tuple[AxisVar, ...], element: Element, index: Mapping[AxisVar, tuple[AxisVar, ...]]
) -> Array:
    import numpy as np

    rank = weight.ndim
    places = [np.arange(s).reshape([-1 if i == j else 1 for j in range(rank)]) for i, s in enumerate(weight.shape)]
    digits: list[dict[AxisVar, Array]] = []
    for var, place in zip(variables, places, strict=True):
        digits.append({})
        _digits(var.find(), place, digits[-1])
    moved = []
    for i, (var, place) in enumerate(zip(variables, places, strict=True)):
        scope = {leaf: d for j, own in enumerate(digits) if j != i for leaf, d in own.items()} | digits[i]
        moved.append(_image(var.find(), place, scope, element, index))
    result = np.empty_like(weight)
    result[tuple(np.broadcast_arrays(*moved)) if rank else ()] = weight
    return result


def _digits(var: AxisVar, place: Array, found: dict[AxisVar, Array]) -> None:
    """The coordinate of each leaf that is a factor of the axis."""
    if var.kind == "leaf":
        found[var] = place
    elif var.kind == "product":
        for part, digit in _split(var, place):
            _digits(part, digit, found)


def _split(var: AxisVar, place: Array) -> list[tuple[AxisVar, Array]]:
    pairs = []
    for part in reversed(var.parts):
        root = part.find()
        assert isinstance(root.size, int)
        pairs.append((root, place % root.size))
        place = place // root.size
    return pairs[::-1]


def _image(
    var: AxisVar,
    place: Array,
    scope: Mapping[AxisVar, Array],
    element: Element,
    index: Mapping[AxisVar, tuple[AxisVar, ...]],
) -> Array:
    """Where the element sends each place of an axis."""
    import numpy as np

    if var.kind == "leaf":
        table = element.get(var)
        if table is None:
            return place
        return table[(*(scope[o] for o in index[var]), place)]
    if var.kind == "product":
        image: Array = 0
        for part, digit in _split(var, place):
            image = image * part.size + _image(part, digit, scope, element, index)
        return image
    image, offset = np.zeros_like(place), 0
    for part in var.parts:
        root = part.find()
        assert isinstance(root.size, int)
        inside = (place >= offset) & (place < offset + root.size)
        local = np.clip(place - offset, 0, root.size - 1)
        own: dict[AxisVar, Array] = {}
        _digits(root, local, own)
        image = np.where(inside, offset + _image(root, local, {**scope, **own}, element, index), image)
        offset += root.size
    return image


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured. `ok` when no element moved the function and every control did.

    error         largest change of an output under a group element, relative to the largest output
    conditioning  relative change of the outputs per relative change of the weights, measured (at least 1)
    control       smallest change over the negative controls: a class applied to all but one of its parameters
    controls      how many controls were run
    unreached     how many were given up because the input reaches none of the class (an expert that is not chosen)
    moved         share of the trained numbers that the first element moved
    """

    ok: bool
    error: float
    conditioning: float
    control: float
    controls: int
    unreached: int
    moved: float
    classes: int
    log10_order: float


def random_weights(graph: Graph, seed: int) -> dict[str, Array]:
    """Generic float64 weights: nothing that is zero or one at birth stays so, variances stay positive."""
    return {name: _generic(p, seed) for name, p in graph.parameters().items()}


def _generic(parameter: Parameter, seed: int) -> Array:
    import numpy as np

    from archc.ir.init import Init

    drawn = parameter.init.sample(parameter.shape, seed, parameter.name)
    if parameter.init.kind != "constant":
        return drawn
    spread = Init("uniform", 0.4).sample(parameter.shape, seed + 1, parameter.name)
    return np.asarray(drawn + spread)


def certify(
    graph: Graph, seed: int = 0, elements: int = 2, controls: int = 8, sizes: Mapping[str, int] | None = None
) -> Certificate:
    """Check the axis classes of a network numerically, in float64."""
    import numpy as np

    axes = derive_axes(graph)
    weights = random_weights(graph, seed)
    run = _Runner(graph, seed, sizes)
    before = run(weights)
    rng = np.random.Generator(np.random.Philox(seed))
    nudged = {n: w * (1 + 1e-9 * rng.uniform(-1, 1, w.shape)) for n, w in weights.items()}
    conditioning = max(1.0, _change(before, run(nudged)) / 1e-9)
    error, moved = 0.0, 0.0
    for k in range(elements):
        acted = apply(axes, sample(axes, seed + k), weights)
        error = max(error, _change(before, run(acted)))
        if k == 0:
            total = sum(w.size for w in weights.values())
            moved = sum(int((acted[n] != w).sum()) for n, w in weights.items()) / max(1, total)
    candidates = [c for c in axes.classes if len({m.parameter for m in c.members}) > 1]
    control, count, unreached = math.inf, 0, 0
    for k in rng.permutation(len(candidates)):
        if count == controls:
            break
        chosen = candidates[k]
        spared = chosen.members[int(rng.integers(len(chosen.members)))].parameter
        if _change(before, run({**weights, spared: weights[spared] * 1.5})) < CONTROL:
            unreached += 1
            continue
        acted = apply(axes, rotation(chosen), weights)
        change = _change(before, run({**acted, spared: weights[spared]}))
        control, count = min(control, change), count + 1
    ok = error <= TOLERANCE * conditioning and (count == 0 or control >= CONTROL)
    return Certificate(
        ok=ok,
        error=error,
        conditioning=conditioning,
        control=control if count else math.nan,
        controls=count,
        unreached=unreached,
        moved=moved,
        classes=len(axes.classes),
        log10_order=log10_order(axes),
    )


class _Runner:
    """Runs the network in float64 on one fixed random input."""

    def __init__(self, graph: Graph, seed: int, sizes: Mapping[str, int] | None) -> None:
        import torch

        from archc.backends.inputs import random_inputs
        from archc.backends.torch.module import to_torch

        self.module = to_torch(graph).double().eval()
        self.inputs = [torch.from_numpy(v) for v in random_inputs(graph, seed, sizes, "f64").values()]

    def __call__(self, weights: Mapping[str, Array]) -> list[Array]:
        import torch

        self.module.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
        with torch.no_grad():
            outputs = self.module(*self.inputs)
        return [o.detach().numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _change(before: list[Array], after: list[Array]) -> float:
    """The largest relative change over the outputs; infinite when an output is not finite."""
    import numpy as np

    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.dtype.kind != "f":  # bools and whole numbers are the same or not
            a, b = a.astype(np.float64), b.astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return math.inf
        scale = float(np.abs(a).max()) if a.size else 0.0
        if a.size:
            worst = max(worst, float(np.abs(a - b).max()) / (scale or 1.0))
    return worst
