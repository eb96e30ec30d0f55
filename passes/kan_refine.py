"""`kan_refine`: the functions on the edges of a KAN get a finer grid.

With `factor`, nothing changes: a spline on a grid is one on any grid that contains it, and the range grows by what the
outermost splines reached beyond it, so that the finer ones cover the same numbers. With `grid`, the range stays, and
the finer splines are fitted to the coarse ones on it by least squares, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt, model_validator

from archc.ir.graph import Graph
from archc.ir.ops.kan import KAN, KanParams
from archc.passes.editing import Editor
from archc.passes.kan_basis import basis
from archc.passes.manager import Context, Contract, Measured
from archc.passes.partners import Successors
from archc.passes.transform import Options, Refusal, Site, Transform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class KanRefineOptions(Options):
    """factor  so many times as fine, exactly; 2 unless `grid` is given
    grid    so many intervals on the same range, fitted
    """

    factor: int | None = Field(default=None, ge=2)
    grid: PositiveInt | None = None

    @model_validator(mode="after")
    def _one(self) -> KanRefineOptions:
        if self.factor is not None and self.grid is not None:
            raise ValueError("one of factor and grid decides, not both")
        return self


def refined(p: KanParams, options: KanRefineOptions) -> KanParams:
    """The parameters of a finer layer.

    >>> fine = refined(KanParams(out=4, grid=3, order=1, range=(0.0, 3.0)), KanRefineOptions(factor=2))
    >>> fine.grid, fine.range
    (8, (-0.5, 3.5))
    """
    if options.grid is not None:
        return p.model_copy(update={"grid": options.grid})
    m = options.factor or 2
    if p.basis == "fourier":
        return p.model_copy(update={"grid": m * p.grid})
    (low, high), step = p.range, (p.range[1] - p.range[0]) / p.grid
    beyond = p.order * step * (m - 1) / m  # coarse splines end `order` steps beyond the range, fine ones too
    return p.model_copy(update={"grid": m * p.grid + 2 * p.order * (m - 1), "range": (low - beyond, high + beyond)})


def _find(graph: Graph, options: KanRefineOptions) -> Iterator[Site | Refusal]:
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is not KAN:
                continue
            p: KanParams = node.call.params
            if p.basis not in ("bspline", "fourier"):
                yield Refusal(node, "a finer grid needs splines or frequencies", f'basis = "{p.basis}" has no grid')
            elif options.grid is not None and options.grid <= p.grid:
                yield Refusal(node, f"`grid = {options.grid}` should be finer than before", f"found grid = {p.grid}")
            else:
                yield Site(node, (node,), region)


def _apply(graph: Graph, sites: Sequence[Site], options: KanRefineOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    successors = Successors(graph, [site.anchor for site in sites], editor, context)
    for site in sites:
        old = site.anchor
        before, after = old.call.params, refined(old.call.params, options)
        change, error = _change(before, after)
        coarse = old.weights["coefficients"]
        shape = (*coarse.shape[:2], after.functions)
        fine = successors.of(coarse, old, shape, lambda w, change=change: w @ change)
        if options.grid is not None and before.basis == "bspline":
            context.measured.append(Measured("kan_refine", old.name, "relative error of a spline on the range", error))
        weights = {**old.weights, "coefficients": fine}
        e = editor.beside(site.graph, old)
        new = e.node(KAN, *old.operands, full_name=old.name, params=after, weights=weights)
        fine.init = new.bound.weights["coefficients"].init
        old.output.replace_all_uses(new.output, site.graph)


def _change(before: KanParams, after: KanParams) -> tuple[Array, float]:
    """What old coefficients [K] are multiplied with, [K, K'], and the relative error."""
    import numpy as np

    if before.basis == "fourier":
        more, old = after.grid - before.grid, np.eye(before.grid)
        half = np.pad(old, ((0, 0), (0, more)))
        return np.block([[half, 0 * half], [0 * half, half]]), 0.0
    low, high = before.range
    beyond = 0.0 if before.range == after.range else before.order * (high - low) / before.grid
    x = np.linspace(low - beyond, high + beyond, 40 * after.functions)
    wanted, terms = basis(before, x), basis(after, x)
    change = np.asarray(np.linalg.lstsq(terms, wanted, rcond=1e-13)[0], dtype=np.float64)
    return change.T, float(np.linalg.norm(terms @ change - wanted) / np.linalg.norm(wanted))


def _contract(options: KanRefineOptions) -> Contract:
    if options.grid is None:
        return Contract()
    return Contract("approximate", "approximate", "finer splines are fitted on the range, and reach less far beyond it")


KAN_REFINE = Transform(
    name="kan_refine",
    doc="The functions on the edges of a KAN get a finer grid: exactly, or fitted on the same range.",
    options=KanRefineOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="`kan` layers of splines or frequencies",
    variants=("kan_refine", "kan_refine(factor = 3)", "kan_refine(grid = 20)"),
    paper="Liu et al. 2024, KAN, arXiv:2404.19756, equation 2.16",
)
