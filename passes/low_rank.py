"""Layers in two: a matrix of low rank, written as a product of two thin ones.

    y = W x + b,  W [o, i]        ->        y = B (A x) + b,  A [r, i], B [o, r]

by the truncated singular value decomposition, `W = U S Vᵀ`: `B = U √S`, `A = √S Vᵀ`. A convolution of k x k becomes one
of k x k to r channels, and one of 1 x 1. Cheaper when `r (i + o) < i o`.

With sample data at hand it is the layer's *output* on them that is kept best: for inputs with second moments
`C = L Lᵀ`, `‖(W - W') X‖ = ‖(W - W') L‖`, so `W L` is cut instead, and `A = √S Vᵀ L⁻¹` (as in SVD-LLM, where this
is shown to be the best that rank r can do).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PositiveInt, model_validator

from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Node
from archc.ir.ops.attention import ATTENTION
from archc.ir.ops.convolution import CONV
from archc.ir.ops.linear import LINEAR
from archc.passes.blocks import users_of
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract, Measured
from archc.passes.matrices import observed, relative, rows_read, weights_or_initial
from archc.passes.opened import open_attention
from archc.passes.transform import Options, Refusal, Site, Transform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_DAMPING = 1e-6  # directions that the data do not have stay finite


class LowRankOptions(Options):
    """One of the first three says how much is kept; `energy = 0.9` where none is given.

    rank       the rank of every layer
    energy     the smallest rank that keeps this share of the sum of squared singular values (1: all that are not zero)
    ratio      the rank at which a layer costs this share of what it did
    data       weigh by the inputs on sample data (true: demand them; false: do not; none: if there are any)
    always     also where two layers cost more than the one
    attention  the projections of `attention`, too: it is opened into its parts
    """

    rank: PositiveInt | None = None
    energy: float | None = Field(None, gt=0, le=1)
    ratio: float | None = Field(None, gt=0, le=1)
    data: bool | None = None
    always: bool = False
    attention: bool = False

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if sum(v is not None for v in (self.rank, self.energy, self.ratio)) > 1:
            raise ValueError("rank, energy and ratio say the same in three ways: give one of them")
        return self

    @property
    def share(self) -> float:
        """The energy with the default filled in."""
        return self.energy or 0.9

    def cut(self, rows: int, columns: int) -> int | None:
        """The rank of a matrix, None where its singular values decide."""
        if self.ratio is not None:
            return max(1, min(rows, columns, math.floor(self.ratio * rows * columns / (rows + columns))))
        return self.rank


def _shape(layer: Node) -> tuple[int, int]:
    """(rows, columns) of a layer as a matrix."""
    out, *rest = layer.weights["weight"].shape
    return out, math.prod(rest)


def _find(graph: Graph, options: LowRankOptions) -> Iterator[Site | Refusal]:
    users = users_of(graph)
    for region in graph.graphs():
        for node in region.nodes:
            if node.op in (LINEAR, CONV):
                place = _place(region, node, options, [_shape(node)], users)
                if place is not None:
                    yield place
            elif options.attention and node.op is ATTENTION:
                weights = [node.weights[f"{role}_weight"] for role in ("q", "k", "v", "out")]
                place = _place(region, node, options, [(w.shape[0], w.shape[1]) for w in weights], users)
                if place is not None:
                    yield place


def _place(
    graph: Graph, node: Node, options: LowRankOptions, shapes: Sequence[tuple[int, int]], users: Mapping[str, int]
) -> Site | Refusal | None:
    """A layer of these matrices as a site, or why it is none; None for a depthwise convolution, which is no matrix."""
    if node.op is CONV and node.call.params.groups != 1:
        if node.weights["weight"].shape[1] == 1:
            return None
        return Refusal(node, "its channels are in groups", "each group is a matrix of its own")
    most_users = max(users[p.name] for p in node.weights.values())
    if most_users > 1:
        return Refusal(node, "its weights are shared with another layer", f"{most_users} layers use them")
    rows, columns = min(shapes, key=lambda s: s[0] * s[1] / (s[0] + s[1]))
    most = min(map(min, shapes))
    if options.rank is not None and options.rank > most:
        found = f"a matrix of {rows} x {columns} has at most rank {most}"
        return Refusal(node, f"rank = {options.rank} is more than it can have", found, code="E0424")
    rank = options.cut(rows, columns)
    if rank is not None and not options.always and rank * (rows + columns) >= rows * columns:
        saving = (rows * columns - 1) // (rows + columns)
        found = f"of {rows} x {columns}, only rank {saving} and below does" if saving else f"it is {rows} x {columns}"
        return Refusal(node, f"two layers of rank {rank} save nothing", found, "`always = true` splits it all the same")
    return Site(node, (node,), graph)


@dataclass(frozen=True)
class _Cut:
    """A layer and the two matrices that are to take its place; the relative errors of the matrix and of its outputs."""

    layer: Node
    graph: Graph
    narrow: Array  # [rank, columns]
    wide: Array  # [rows, rank]
    error: float
    output_error: float | None

    @property
    def rank(self) -> int:
        return len(self.narrow)


def _apply(graph: Graph, sites: Sequence[Site], options: LowRankOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    layers: list[tuple[Node, Graph]] = []
    for site in sites:
        if site.anchor.op in (LINEAR, CONV):
            layers.append((site.anchor, site.graph))
        else:
            parts = open_attention(site.graph, site.anchor, editor)
            layers += [(parts[role], site.graph) for role in ("q", "k", "v", "out")]
            site.graph.sort()
    seen = {} if options.data is False else observed(graph, context, [layer.operands[0] for layer, _ in layers])
    if options.data and (missing := [layer for layer, _ in layers if layer.operands[0] not in seen]):
        raise fail("E0408", f"`low_rank(data = true)` needs data to be run on, at `{missing[0].name}`", missing[0].span)
    cuts = [_cut(layer, region, options, context, seen.get(layer.operands[0])) for layer, region in layers]
    split = [cut for cut in cuts if options.always or cut.rank * sum(_shape(cut.layer)) < math.prod(_shape(cut.layer))]
    if not split:
        ranks = ", ".join(f"`{c.layer.name}` {c.rank} of {min(_shape(c.layer))}" for c in cuts[:5])
        raise fail(
            "E0402",
            f"`low_rank` finds nothing that it would make cheaper: energy = {options.share:g} takes too many ranks",
            label=f"it takes {ranks}",
            help="keep less (`energy`), say the `rank`, or split all the same with `always = true`",
        )
    for cut in split:
        _split(editor.beside(cut.graph, cut.layer), cut, context)


def _cut(layer: Node, graph: Graph, options: LowRankOptions, context: Context, x: Array | None) -> _Cut:
    import numpy as np

    rows, columns = _shape(layer)
    matrix = weights_or_initial(context, layer.weights["weight"]).reshape(rows, columns)
    read = None if x is None else rows_read(layer, x)[:, 0]
    root = None if read is None else _moments(read)  # None: all inputs weigh alike
    left, values, right = np.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    rank = options.cut(rows, columns) or _enough(values, options.share)
    half = np.sqrt(values[:rank])
    narrow = half[:, None] * right[:rank]
    narrow = narrow if root is None else np.linalg.solve(root.T, narrow.T).T
    wide = left[:, :rank] * half
    wrong = wide @ narrow - matrix
    at_output = None if read is None else relative(wrong @ read.T, matrix @ read.T)
    return _Cut(layer, graph, narrow, wide, relative(wrong, matrix), at_output)


def _moments(rows: Array) -> Array:
    """L of the second moments `C = L Lᵀ` of what a layer reads, `rows` [n, i].

    Few rows tell little of C: it is drawn towards a multiple of 1, as far as they scatter (Ledoit and Wolf 2004).
    """
    import numpy as np

    count, width = rows.shape
    moments = rows.T @ rows / count
    mean = float(np.trace(moments)) / width or 1.0
    scatter = (float((np.square(rows).sum(1) ** 2).mean()) - float(np.square(moments).sum())) / count
    apart = float(np.square(moments - mean * np.eye(width)).sum())
    share = min(1.0, max(0.0, scatter) / apart) if apart else 1.0
    share = _DAMPING + (1 - _DAMPING) * share
    return np.linalg.cholesky((1 - share) * moments + share * mean * np.eye(width))


def _enough(values: Array, energy: float) -> int:
    """How many of the (sorted) singular values hold this share of the sum of squares; of zeros, none is needed."""
    import numpy as np

    share = np.cumsum(values**2) / (float((values**2).sum()) or 1.0)
    if energy == 1:
        return max(1, int((values > values[0] * 1e-14).sum()))
    return int(np.searchsorted(share, energy) + 1)


def _split(e: Editor, cut: _Cut, context: Context) -> None:
    layer, rank = cut.layer, cut.rank
    last = layer.name.rpartition(".")[2]
    params = layer.params.model_copy(update={"out": rank, "bias": False, "init": None})
    narrow = e.node(layer.op, layer.operands[0], name=f"{last}_narrow", params=params)
    fields: dict[str, Any] = {"out": _shape(layer)[0], "bias": layer.call.params.bias}
    fields |= {"kernel": 1} if layer.op is CONV else {}
    wide = e.node(layer.op, narrow.output, full_name=layer.name, params=layer.op.params(**fields))
    for role, parameter in wide.weights.items():  # what it holds goes on under the old name
        parameter.name, parameter.trainable = layer.weights[role].name, layer.weights[role].trainable
    context.store(narrow.weights["weight"], cut.narrow.reshape(narrow.weights["weight"].shape))
    context.store(wide.weights["weight"], cut.wide.reshape(wide.weights["weight"].shape))
    layer.output.replace_all_uses(wide.output, cut.graph)
    if context.weights is not None:
        note = [Measured("low_rank", layer.name, f"relative error of the matrix at rank {rank}", cut.error)]
        if cut.output_error is not None:
            note.append(Measured("low_rank", layer.name, "relative error of its outputs", cut.output_error))
        context.measured += note


def _contract(options: LowRankOptions) -> Contract:
    if options.energy == 1:
        return Contract()
    why = "singular values are cut off"
    return Contract("approximate", "approximate", why)


LOW_RANK = Transform(
    name="low_rank",
    doc="A layer becomes two thin ones, by the truncated singular value decomposition of its weights.",
    options=LowRankOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="linear layers and convolutions that are cheaper in two",
    variants=(
        "low_rank(ratio = 0.5)",
        "low_rank(rank = 2)",
        "low_rank(energy = 0.8)",
        "low_rank(energy = 1, always = true)",
        "low_rank(ratio = 0.5, attention = true)",
    ),
    paper="Denton et al. 2014, arXiv:1404.0736; weighed by data: Wang et al. 2024, arXiv:2403.07378",
)
