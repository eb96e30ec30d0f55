"""`kan_symbolic`: edges of a KAN whose function is a formula become that formula, with its numbers as parameters.

Of a layer's edges, those with the same f are computed together, `Σ_i c_oi f(a_oi x_i + b_oi)`; straight lines are a
linear layer. What no formula fits stays with the KAN layer; when nothing stays, it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Value
from archc.ir.init import ZEROS
from archc.ir.ops.activations import SILU, TANH
from archc.ir.ops.constants import PARAMETER
from archc.ir.ops.elementwise import ABS, ADD, EXP, MUL, NEG, SIN, SQUARE
from archc.ir.ops.kan import KAN, KanParams
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.reduce import SUM
from archc.ir.ops.shape import UNSQUEEZE
from archc.passes.blocks import users_of
from archc.passes.editing import Editor
from archc.passes.fitting import samples
from archc.passes.kan_symbolic import STEEPEST, Edge, Formula, library, read_layer
from archc.passes.manager import Context, Contract, Measured
from archc.passes.transform import Options, Refusal, Site, Transform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

WRITTEN: dict[str, Callable[[Editor, Value], Value]] = {
    "x^2": lambda e, z: e(SQUARE, z),
    "x^3": lambda e, z: e(MUL, e(SQUARE, z), z, name="cube"),
    "x^4": lambda e, z: e(SQUARE, e(SQUARE, z)),
    "exp": lambda e, z: e(EXP, z),
    "sin": lambda e, z: e(SIN, z),
    "tanh": lambda e, z: e(TANH, z),
    "abs": lambda e, z: e(ABS, z),
    "gauss": lambda e, z: e(EXP, e(NEG, e(SQUARE, z))),
    "silu": lambda e, z: e(SILU, z),
}
"""How a function of the library is computed by operators; straight lines are a linear layer."""


class KanSymbolicOptions(Options):
    """min_r2  what R² a formula needs on the range of what the edge reads"""

    min_r2: float = Field(default=0.99, gt=0, le=1)


def _find(graph: Graph, options: KanSymbolicOptions) -> Iterator[Site | Refusal]:
    users = users_of(graph)
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is not KAN:
                continue
            shared = [p.name for p in node.weights.values() if users[p.name] > 1]
            if node.call.params.basis == "grkan":
                yield Refusal(node, "its functions are on edges, not on channels", 'found basis = "grkan"')
            elif shared:
                yield Refusal(node, "its edges belong to this layer alone", f"`{shared[0]}` is shared")
            else:
                yield Site(node, (node,), region)


def _apply(graph: Graph, sites: Sequence[Site], options: KanSymbolicOptions, context: Context) -> None:
    if context.weights is None:
        label = "formulas are read off learned functions"
        raise fail("E0416", "`kan_symbolic` needs weights", label=label, help="give them: `--weights FILE`")
    rows = samples(graph, context, [s.anchor.operands[0] for s in sites], -1)
    symbols = [s for s in library() if s.total]
    editor, taken = Editor(graph, graph, sites[0].anchor), 0
    read = [[*read_layer(s.anchor, rows[s.anchor.operands[0]], context, symbols, 1, 0.0)] for s in sites]
    best = max((f.r2 for edges in read for e in edges for f in e.formulas), default=0.0)
    for site, edges in zip(sites, read, strict=True):
        fitting = {(e.output, e.input): f for e in edges for f in e.formulas[:1] if _serves(e, f, options)}
        site_share = len(fitting) / len(edges)
        context.measured.append(Measured("kan_symbolic", site.anchor.name, "share of edges with a formula", site_share))
        if fitting:
            taken += len(fitting)
            _write(editor.beside(site.graph, site.anchor), site, fitting, context)
    if not taken:
        label = f"no edge is a formula of R² {options.min_r2:g}; the best has {best:.4f}"
        raise fail("E0402", "`kan_symbolic` finds nothing to change", label=label)


def _serves(edge: Edge, formula: Formula, options: KanSymbolicOptions) -> bool:
    """Whether a formula fits well enough, and its numbers are tame."""
    import numpy as np

    if formula.r2 < options.min_r2:
        return False
    f, x = formula.simple(), np.linspace(edge.low, edge.high, 33)
    z = f.a * x + f.b
    part = f.c * next(s for s in library() if s.name == f.symbol).function(z)
    return bool(np.abs(part).max() <= STEEPEST * max(float(np.ptp(part)), 1e-9) or f.symbol == "x")


def _write(e: Editor, site: Site, formulas: dict[tuple[int, int], Formula], context: Context) -> None:
    """The layer as formulas, and as a KAN layer for the edges that have none."""
    import numpy as np

    old, x = site.anchor, site.anchor.operands[0]
    p: KanParams = old.call.params
    out, inputs = old.weights["coefficients"].shape[:2]
    offset = context.value(old.weights["bias"]) if "bias" in old.weights else np.zeros(out)
    inner = e.inside(site.graph, old.name)
    terms: list[Value] = []
    wide: Value | None = None
    for symbol in dict.fromkeys(f.symbol for f in formulas.values()):
        a, b, c = (np.zeros((out, inputs)) for _ in range(3))
        for (o, i), formula in formulas.items():
            if formula.symbol == symbol:
                f = formula.simple()
                a[o, i], b[o, i], c[o, i] = f.a, f.b, f.c
                offset[o] += f.d
        if symbol == "x":
            offset += b.sum(1)
            if a.any():
                terms.append(_linear(inner, x, a, context))
            continue
        wide = wide or inner(UNSQUEEZE, x, name="each", axis=x.type.rank - 1)
        argument = inner(ADD, inner(MUL, wide, _numbers(inner, f"{symbol}.a", a, x, context)),
                         _numbers(inner, f"{symbol}.b", b, x, context))  # fmt: skip
        scaled = inner(MUL, WRITTEN[symbol](inner, argument), _numbers(inner, f"{symbol}.c", c, x, context))
        terms.append(inner(SUM, scaled, name=_plain(f"{symbol}.sum"), axis=-1))
    left = np.ones((out, inputs), bool)
    left[tuple(np.array([*formulas]).T)] = False
    if left.any():
        params = p.model_copy(update={"bias": True})
        kan = e.node(KAN, x, full_name=old.name, params=params)
        for role in kan.weights:
            if role != "bias":
                value = context.value(old.weights[role])
                context.store(kan.weights[role], value * (left[..., None] if value.ndim == 3 else left))
        context.store(kan.weights["bias"], offset)
        terms.append(kan.output)
    else:
        terms.append(_numbers(inner, "offset", offset, x, context))
    total = terms[0]
    for term in terms[1:]:
        total = inner(ADD, total, term, name="total")
    if len(terms) == 1 and not left.any():  # a layer that is constant: it still has the shape of its input
        zeros = _linear(inner, x, np.zeros((out, inputs)), context)
        total = inner(ADD, zeros, total, name="total")
    old.output.replace_all_uses(total, site.graph)


def _linear(e: Editor, x: Value, weight: Array, context: Context) -> Value:
    node = e.node(LINEAR, x, out=len(weight), bias=False)
    context.store(node.weights["weight"], weight)
    return node.output


def _numbers(e: Editor, name: str, value: Array, like: Value, context: Context) -> Value:
    """Numbers as a parameter."""
    node = e.node(PARAMETER, name=_plain(name), shape=value.shape, init="zeros", dtype=like.type.dtype)
    assert node.weights["weight"].init == ZEROS
    context.store(node.weights["weight"], value)
    return node.output


def _plain(name: str) -> str:
    return name.replace("x^", "power")


KAN_SYMBOLIC = Transform(
    name="kan_symbolic",
    doc="Edges of a KAN whose function is a formula become that formula.",
    options=KanSymbolicOptions,
    find=_find,
    apply=_apply,
    contract=lambda options: Contract("approximate", "approximate", "formulas are fitted to the functions of edges"),
    where="`kan` layers with functions on their edges, with weights",
    variants=("kan_symbolic", "kan_symbolic(min_r2 = 0.9)"),
    paper="Liu et al. 2024, KAN, arXiv:2404.19756, section 2.5.1",
)
