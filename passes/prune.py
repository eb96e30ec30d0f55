"""`prune`: whole elements of axis classes go, with everything that belongs to them: rows here, columns there, gains.

A class is one axis wherever it occurs, so a channel of a residual stream goes from every layer that writes or reads it,
a head from queries, keys, values and output, a group or the hidden units of an expert likewise. What is left computes
what the network computes with the removed elements masked (see `archc.passes.masking`): their weights at 0, and norms,
softmax and means along a pruned axis over the elements that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from archc.ir.axes import AxisVar
from archc.ir.cost import graph_flops
from archc.ir.diagnostics import fail
from archc.ir.dims import Dim, product, substitute, symbols
from archc.ir.graph import Graph, Node
from archc.passes.dead_elements import always_zero, dead
from archc.passes.fewer_experts import drop_experts, find_mixtures
from archc.passes.importance import By, scores
from archc.passes.manager import Context, Contract, Measured
from archc.passes.resize import Choice, Sizes, new_size, preview, resize
from archc.passes.transform import Options, Refusal, Site, Transform
from archc.passes.units import Unit, find_units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TOKENS = 128
"""The length of sequences for which FLOPs are compared, where it is symbolic. The batch is 1."""


class PruneOptions(Options):
    """ratio     the share to be removed, at least; a quarter unless told otherwise
    of        of what: "flops" (one sample; 128 tokens where their number is free), "params", or "channels": elements
    by        what is removed first: the smallest "magnitude", the least "variance" on data (times the weights that
              read it), or "random"
    across    "uniform": the same share of every class; "global": whatever scores least anywhere, at most 90% of a class
    round_to  sizes that remain are multiples of this (of a quarter of the class where that is less): what vectors hold
    heads     whether heads and groups may go as wholes
    experts   instead of all this: the share of every mixture's experts that goes, those that the router's weights
              favour least
    dead      instead of all this: whatever does nothing goes, and the function stays
    """

    ratio: float | None = Field(default=None, gt=0, lt=1)
    of: Literal["flops", "params", "channels"] = "flops"
    by: By = "magnitude"
    across: Literal["uniform", "global"] = "uniform"
    round_to: PositiveInt = 16
    heads: bool = True
    experts: float | None = Field(default=None, gt=0, lt=1)
    dead: bool = False

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if (self.ratio is not None) + (self.experts is not None) + self.dead > 1:
            raise ValueError("one of `ratio`, `experts` and `dead` says what goes")
        return self

    @property
    def share(self) -> float:
        """The ratio with the default filled in."""
        return 0.25 if self.ratio is None else self.ratio


def _find(graph: Graph, options: PruneOptions) -> Iterator[Site | Refusal]:
    if options.experts is not None:
        yield from find_mixtures(graph, options.experts)
        return
    for unit in find_units(graph):
        if unit.heads and not options.heads:
            continue
        if unit.why is not None:
            node, reason = unit.why
            found = f"{unit.size} elements, which `{node.name}` has too"
            yield Refusal(unit.anchor, f"its elements cannot go: {reason}", found, code="E0421")
        else:
            yield Site(unit.anchor, (), graph, unit, unit.what)


def _apply(graph: Graph, sites: Sequence[Site], options: PruneOptions, context: Context) -> None:
    if options.experts is not None:
        drop_experts(graph, [site.found for site in sites], context)
        return
    units: list[Unit] = [site.found for site in sites]
    if options.dead:
        _drop_dead(graph, units, context)
        return
    measure = _measure(graph, units[0], options.of)
    choice = choose(graph, units, options, context)
    before, after = measure({}), measure(choice.sizes())
    resize(graph, units[0].axes, choice, context)
    context.measured.append(Measured("prune", graph.name, f"share of {options.of} removed", 1 - after / before))


def choose(graph: Graph, units: Sequence[Unit], options: PruneOptions, context: Context) -> Choice:
    """What is to stay: the least that is to go so that the ratio is reached, and there what scores least."""
    rated = scores(graph, units, options.by, context)
    families = _families(graph, units)
    rule = _uniform if options.across == "uniform" else _global(families, rated)
    measure = _measure(graph, units[0], options.of)
    sizes = _search(lambda share: rule(families, share, options.round_to), families, measure, options)
    return keep_best(rated, sizes)


def _drop_dead(graph: Graph, units: Sequence[Unit], context: Context) -> None:
    """Remove every element that does nothing."""
    import numpy as np

    if context.weights is None:
        raise fail("E0402", "`prune(dead = true)` finds nothing to change", label="without weights nothing is dead")
    zeros = always_zero(graph, context)
    choice, gone = Choice(), 0
    for unit in units:
        flags = dead(graph, unit, context, zeros)
        count = min(unit.size - 1, *(int(f.sum(axis=-1).min()) for f in flags))  # every copy keeps equally many
        for cls, own in zip(unit.classes, flags, strict=True):
            if count:
                # the first `count` of the dead ones of each copy go
                last = np.cumsum(own, axis=-1) <= count
                kept = np.argsort(own & last, axis=-1, kind="stable")[..., : unit.size - count]
                choice.set(cls.leaf, np.sort(kept, axis=-1), cls.indexed_by)
                gone += count
    if not gone:
        raise fail("E0402", "`prune(dead = true)` finds nothing to change", label="every element does something")
    resize(graph, units[0].axes, choice, context)
    context.measured.append(Measured("prune", graph.name, "dead elements removed", float(gone)))


def keep_best(rated: Mapping[Unit, Sequence[Array]], sizes: Sizes) -> Choice:
    """The elements that score best, in their old order."""
    import numpy as np

    choice = Choice()
    for unit, own in rated.items():
        for cls, score in zip(unit.classes, own, strict=True):
            best = np.argsort(-score, axis=-1, kind="stable")[..., : sizes[cls.leaf]]
            choice.set(cls.leaf, np.sort(best, axis=-1), cls.indexed_by)
    return choice


# -- how large the units are to be ------------------------------------------------------------------------------------


def step(unit: Unit, round_to: int) -> int:
    """What the size of a unit is to be a multiple of."""
    return 1 if unit.heads else max(1, min(round_to, unit.size // 4))


Rule = Callable[["Sequence[Family]", float, int], Sizes]
"""(families, share, what to round to) -> sizes of their leaves."""


def _rounded(unit: Unit, size: float, round_to: int) -> int:
    grain = step(unit, round_to)
    return min(unit.size, max(1, math.ceil(size / grain - 1e-9)) * grain)


Family = Sequence[Unit]
"""Units that keep one size: a unit alone, or the like ones in the experts of a mixture, which run side by side."""


def _families(graph: Graph, units: Sequence[Unit]) -> list[Family]:
    within: dict[Node, Node] = {}
    for mixture in graph.walk():
        if mixture.op.name == "moe":
            within.update((node, mixture) for region in mixture.regions for node in region.walk())
    found: dict[Any, list[Unit]] = {}
    for unit in units:
        around = within.get(unit.anchor)
        key = unit if around is None else (around, unit.size, len(unit.nodes), unit.anchor.op)
        found.setdefault(key, []).append(unit)
    return list(found.values())


def _sizes(family: Family, size: int) -> dict[AxisVar, int]:
    return {leaf: size for unit in family for leaf in unit.sizes(size)}


def _uniform(families: Sequence[Family], share: float, round_to: int) -> Sizes:
    """Every class without this share of its elements."""
    found: dict[AxisVar, int] = {}
    for family in families:
        found |= _sizes(family, _rounded(family[0], family[0].size * (1 - share), round_to))
    return found


def _global(families: Sequence[Family], rated: Mapping[Unit, Sequence[Array]]) -> Rule:
    """Classes without all that scores below a threshold: the score that this share of all elements is below."""
    import numpy as np

    # what goes at each size, the least first: the mean over what goes together
    slots = []
    for family in families:
        rows = [np.sort(s, axis=-1).reshape(-1, family[0].size) for unit in family for s in rated[unit]]
        slots.append(np.concatenate(rows).mean(axis=0))
    everything = np.sort(np.concatenate(slots))

    def rule(families: Sequence[Family], share: float, round_to: int) -> Sizes:
        threshold = everything[min(len(everything) - 1, int(share * len(everything)))]
        found: dict[AxisVar, int] = {}
        for family, own in zip(families, slots, strict=True):
            left = max(float((own >= threshold).sum()), family[0].size * 0.1)
            found |= _sizes(family, _rounded(family[0], left, round_to))
        return found

    return rule


def _measure(graph: Graph, unit: Unit, of: str) -> Callable[[Sizes], float]:
    """What a network with leaves of these sizes costs."""
    axes = unit.axes

    def flops(sizes: Sizes) -> float:
        return _one_sample(graph, graph_flops(preview(graph, axes, sizes)))

    def params(sizes: Sizes) -> float:
        shapes = [[new_size(v, sizes) for v in variables] for p, variables in axes.parameters.items() if p.trainable]
        return float(sum(int(str(product(s))) for s in shapes))

    def channels(sizes: Sizes) -> float:
        return float(sum(sizes.get(c.leaf, c.size) for c in axes.classes))

    return {"flops": flops, "params": params, "channels": channels}[of]


def _one_sample(graph: Graph, flops: Dim) -> float:
    """FLOPs as a number: a batch of 1, and `TOKENS` for whatever else is free."""
    batches = {s for v in graph.inputs for s in symbols(v.type.shape[0])} if graph.inputs else set()
    value = substitute(flops, {s: 1 if s in batches else TOKENS for s in symbols(flops)})
    assert isinstance(value, int)
    return float(value)


def _search(
    sizes_at: Callable[[float], Sizes],
    families: Sequence[Family],
    measure: Callable[[Sizes], float],
    options: PruneOptions,
) -> Sizes:
    """The sizes at the least share that removes enough. Where rounding lets many classes shrink at one share, only as
    many of them do as are needed, the largest first.

    Raises: CompileError E0420 when even the largest share does not remove enough.
    """
    before = measure({})
    goal = before * (1 - options.share)
    low, high = 0.0, 1.0
    small, large = sizes_at(high), sizes_at(low)
    if (cost := measure(small)) > goal:
        raise fail(
            "E0420",
            f"`prune` cannot remove {options.share:.0%} of the {options.of}",
            label=f"at most {1 - cost / before:.0%} belongs to what may go",
            help="a smaller `ratio`, a smaller `round_to`, or a wider selection",
        )
    while small != large and high - low > 1e-4:
        middle = (low + high) / 2
        sizes = sizes_at(middle)
        if sizes == small or (sizes != large and measure(sizes) <= goal):
            high, small = middle, sizes
        else:
            low, large = middle, sizes
    apart = [f for f in families if small[f[0].classes[0].leaf] != large[f[0].classes[0].leaf]]
    apart.sort(key=lambda family: -family[0].size)

    def first(count: int) -> Sizes:
        return {**large, **{leaf: small[leaf] for f in apart[:count] for u in f for leaf in u.sizes(0)}}

    few, many = 0, len(apart)
    while many - few > 1:
        count = (few + many) // 2
        few, many = (few, count) if measure(first(count)) <= goal else (count, many)
    return first(many)


def _contract(options: PruneOptions) -> Contract:
    if options.dead:
        return Contract()
    return Contract("approximate", "approximate", "what is removed is missed, as if it were masked")


PRUNE = Transform(
    name="prune",
    doc="Whole channels, heads, groups and hidden units go, from every layer that has them.",
    options=PruneOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="axes that no input, output or order holds fast: channels, heads, groups, hidden units",
    variants=(
        "prune",
        "prune(ratio = 0.5)",
        "prune(of = params, by = random)",
        "prune(across = global)",
        "prune(heads = false, round_to = 1)",
        "prune(experts = 0.25)",
        "prune(dead = true)",
    ),
    paper="Fang et al. 2023, DepGraph, arXiv:2301.12900; magnitude: Li et al. 2016, arXiv:1608.08710",
)
