"""`kan`: a linear layer behind an activation gets learned functions on its edges.

`W act(x) + b` is a Kolmogorov–Arnold layer already: every edge has the function `w · act(x)`. So the new layer has the
activation as its base function and the old weights as base weights, and its splines (or sines, or polynomials) are born
zero. A convolution becomes one by way of `im2col`: every element of its kernel gets a function. With `fit` there is no
base: the splines themselves are fitted to the activation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from pydantic import PositiveInt, model_validator

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.ops.activations import PRELU
from archc.ir.ops.convolution import CONV, IM2COL, conv_geometry
from archc.ir.ops.kan import BASES, KAN, RATIONAL, Base, KanParams
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.shape import RESHAPE, TRANSPOSE
from archc.passes.blocks import is_activation, only_user, users_of
from archc.passes.editing import Editor
from archc.passes.fitting import samples
from archc.passes.functions import Function, function_of
from archc.passes.kan_basis import basis, rational
from archc.passes.manager import Context, Contract, Measured
from archc.passes.partners import Successors
from archc.passes.transform import Options, Refusal, Site, Transform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RANGE = (-3.0, 3.0)
"""Where splines live when nothing is known of the values."""
POINTS = 2001


class KanOptions(Options):
    """basis   the functions on the edges, as of the operator `kan`: B-splines, Fourier, Chebyshev, or, before the
            layer, a rational function for each of `groups` groups of channels (GR-KAN)
    grid    intervals of the splines, or frequencies
    order   degree of the splines or polynomials
    range   where the splines live; by default what the values span on sample data, -3 to 3 without weights
    fit     no base function: the functions are fitted to the activation, where the values lie
    plain   layers without an activation before them, too: their base function is the identity
    groups  of GR-KAN
    """

    basis: Literal["bspline", "fourier", "chebyshev", "grkan"] = "bspline"
    grid: PositiveInt = 5
    order: PositiveInt = 3
    range: tuple[float, float] | None = None
    fit: bool = False
    plain: bool = False
    groups: PositiveInt = 1

    @model_validator(mode="after")
    def _consistent(self) -> KanOptions:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range = {list(self.range)} should be [low, high]")
        if self.groups != 1 and self.basis != "grkan":
            raise ValueError("groups means something for basis = grkan only")
        return self


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to be replaced: the base function by name, and as a function where that is known. `swallows` says that
    the new layer takes the activation's place, too."""

    swallows: bool
    base: str
    fitted: Function | None

    def x(self, node: Node) -> Value:
        """What is read instead of the layer `node`'s operand."""
        act = node.operands[0].producer
        return act.operands[0] if self.swallows and act is not None else node.operands[0]


def _find(graph: Graph, options: KanOptions) -> Iterator[Site | Refusal]:
    users = users_of(graph)
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is not LINEAR and node.op is not CONV:
                continue
            act = node.operands[0].producer
            before = act if act is not None and (is_activation(act) or act.op is PRELU) else None
            if before is None and not options.plain:
                continue
            refusal = _refused_convolution(node) if node.op is CONV else None
            found = refusal or _layer(node, before, options)
            if isinstance(found, Refusal):
                yield found
            elif options.fit and users[node.weights["weight"].name] > 1:
                name = node.weights["weight"].name
                yield Refusal(node, "a fit needs a layer that no other node shares", f"`{name}` is shared")
            else:
                gone = (before,) if before and found.swallows and only_user(region, before.output) else ()
                yield Site(node, (*gone, node), region, found)


def _layer(node: Node, before: Node | None, options: KanOptions) -> Layer | Refusal:
    """What a layer becomes, or why it cannot; `before` is the activation that it reads."""
    x, found = node.operands[0], _spelled(before)
    channels = x.type.shape[1 if node.op is CONV else -1]
    assert isinstance(channels, int)
    if channels % options.groups:
        return Refusal(node, f"`groups = {options.groups}` need a multiple of so many channels", f"found {channels}")
    if before is None or (options.basis == "grkan" and not options.fit):
        return Layer(False, "identity", lambda x: x)  # a rational function stands behind the activation
    base, fitted = before.op.name, function_of(before)
    if options.basis == "grkan" and base not in RATIONAL:
        return Refusal(node, f"a rational function is known for {', '.join(RATIONAL)}", f"found {found}")
    if options.fit and fitted is None:
        return Refusal(node, "a fit needs an activation whose function is known", f"found {found}")
    if not options.fit and (base not in BASES or before.params != before.op.params()):
        known = ", ".join(b for b in BASES if b not in ("none", "identity"))
        return Refusal(node, f"the base function of an edge is {known}", f"found {found}", help="`fit = true` fits it")
    if _padded(node) and fitted is not None and abs(float(fitted(0.0))) > 0:
        return Refusal(node, "padding, which comes first now, needs a function that is 0 at 0", f"found {found}")
    return Layer(True, base, fitted)


def _spelled(activation: Node | None) -> str:
    if activation is None:
        return "none"
    given = activation.params.model_dump(exclude_defaults=True)
    return activation.op.name + (f"({', '.join(f'{k} = {v}' for k, v in given.items())})" if given else "")


def _padded(node: Node) -> bool:
    return node.op is CONV and any(sum(pads) for *_, pads in _geometry(node))


def _geometry(conv: Node) -> list[tuple[int, int, int, tuple[int, int]]]:
    return conv_geometry(conv.call.params, conv.operands[0].type.rank - 2)


def _refused_convolution(node: Node) -> Refusal | None:
    p, type_ = node.call.params, node.operands[0].type
    if type_.rank != 4 or not all(isinstance(size, int) for size in type_.shape[1:]):
        return Refusal(node, "a convolution becomes a KAN on images `[N, C, H, W]` of a known size", f"found {type_}")
    if p.groups != 1 or p.causal or any(dilation != 1 for _, _, dilation, _ in _geometry(node)):
        return Refusal(node, "a convolution becomes a KAN when it is dense, without dilation and not causal")
    return None


def _apply(graph: Graph, sites: Sequence[Site], options: KanOptions, context: Context) -> None:
    editor, ranges = Editor(graph, graph, sites[0].anchor), _ranges(graph, sites, options, context)
    main = "weight" if options.basis == "grkan" else "base_weight"
    successors = Successors(graph, [site.anchor for site in sites], editor, context)
    tied: dict[Parameter, dict[str, Parameter]] = {}
    for site in sites:
        old, layer = site.anchor, site.found
        e, weight = editor.beside(site.graph, old), old.weights["weight"]
        params = _params(old, layer, options, ranges[weight])
        weights = dict(tied.get(weight, {}))
        if not weights and (params.has_base or options.basis == "grkan"):
            weights[main] = _matrix(successors, old)
        if "bias" in old.weights:
            weights["bias"] = old.weights["bias"]
        x = layer.x(old) if old.op is LINEAR else _windows(e, old, layer.x(old))
        new = e.node(KAN, x, full_name=old.name, params=params, weights=weights)
        tied[weight] = {role: p for role, p in new.weights.items() if role != "bias"}
        if options.fit:
            _fit(old, new, layer, ranges[weight], context)
        y = new.output if old.op is LINEAR else _picture(e, old, new.output)
        old.output.replace_all_uses(y, site.graph)


def _params(old: Node, layer: Layer, options: KanOptions, span: tuple[float, float]) -> KanParams:
    """The parameters of the new layer: its functions are born zero beside a base, or else as fitted."""
    p, splines = old.call.params, options.basis == "bspline"
    fitted = options.fit and options.basis != "grkan"
    return KanParams(
        out=p.out,
        basis=options.basis,
        grid=options.grid,
        order=options.order,
        base=cast(Base, "none" if fitted else layer.base),
        range=span if splines else (-1.0, 1.0),
        groups=options.groups,
        noise=0.1 if options.fit else 0.0,
        bias=p.bias or (options.fit and options.basis == "fourier"),
        init=p.init,
    )


def _matrix(successors: Successors, layer: Node) -> Parameter:
    """The weights of a layer as a matrix `[out, in]`: those of `linear` as they are, kernels flattened."""
    old = layer.weights["weight"]
    shape = (old.shape[0], math.prod(old.shape[1:]))
    return old if old.type.rank == 2 else successors.of(old, layer, shape, lambda w: w.reshape(shape))


def _windows(e: Editor, conv: Node, x: Value) -> Value:
    """[N, C, H, W] → [N, places, C · kernel]: what every place of the result is made of."""
    kernel, stride, _, padding = zip(*_geometry(conv), strict=True)
    return e(IM2COL, x, name="windows", kernel=kernel, stride=stride, padding=tuple(before for before, _ in padding))


def _picture(e: Editor, conv: Node, rows: Value) -> Value:
    """[N, places, out] → [N, out, H', W']."""
    return e(RESHAPE, e(TRANSPOSE, rows, name="channels", a=1, b=2), name="picture", shape=conv.output.type.shape)


# -- where the functions live, and what they are fitted to -----------------------------------------------------------


def _ranges(
    graph: Graph, sites: Sequence[Site], options: KanOptions, context: Context
) -> dict[Parameter, tuple[float, float]]:
    """The range of what is read, for each weight: layers that share one share the range."""
    found: dict[Parameter, tuple[float, float]] = {}
    needed = options.basis == "bspline" or options.fit
    for axis in (1, -1):
        chosen = [s for s in sites if (s.anchor.op is CONV) == (axis == 1)]
        known = options.range is None and needed and context.weights is not None
        seen = samples(graph, context, [s.found.x(s.anchor) for s in chosen], axis) if known else {}
        for site in chosen:
            weight = site.anchor.weights["weight"]
            low, high = _span(seen[site.found.x(site.anchor)], options.fit) if known else options.range or RANGE
            before = found.get(weight, (low, high))
            found[weight] = (min(low, before[0]), max(high, before[1]))
    return found


def _span(values: Array, whole: bool) -> tuple[float, float]:
    """The range of values, one in a thousand at each end left out unless `whole`, rounded outwards to two digits."""
    import numpy as np

    low, high = np.quantile(values, [0.0, 1.0] if whole else [0.001, 0.999])
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-6)) - 1)
    start, stop = math.floor(low / step) - 1, math.ceil(high / step) + 1
    return float(f"{start * step:.6g}"), float(f"{stop * step:.6g}")


def _fit(old: Node, new: Node, layer: Layer, span: tuple[float, float], context: Context) -> None:
    """Fit the functions of a layer to the activation, by least squares over the range."""
    import numpy as np

    p: KanParams = new.call.params
    assert layer.fitted is not None
    x = np.linspace(*span, POINTS)
    wanted = np.asarray(layer.fitted(x))
    if p.basis == "grkan":
        above, below = (np.array(part) for part in RATIONAL[p.base_function])
        _measure(context, old, rational(above, below, x) - wanted)
        return
    terms = basis(p, x)
    if p.basis == "fourier":
        terms = np.concatenate([terms, np.ones((POINTS, 1))], 1)
    found = np.linalg.lstsq(terms, wanted, rcond=1e-12)[0]
    _measure(context, old, terms @ found - wanted)
    if context.weights is None:
        return
    weight = context.value(old.weights["weight"]).reshape(p.out, -1)
    context.store(new.weights["coefficients"], weight[..., None] * found[: p.functions])
    if p.basis == "fourier":
        before = context.value(old.weights["bias"]) if "bias" in old.weights else 0.0
        context.store(new.weights["bias"], before + weight.sum(1) * found[-1])


def _measure(context: Context, layer: Node, error: Array) -> None:
    import numpy as np

    for of, value in (("largest", np.abs(error).max()), ("root mean square", np.sqrt((error**2).mean()))):
        context.measured.append(Measured("kan", layer.name, f"{of} error of the function on its range", float(value)))


def _contract(options: KanOptions) -> Contract:
    why = "the functions are fitted to the activation, where the values lie"
    return Contract("approximate", "approximate", why) if options.fit else Contract()


KAN_EDGES = Transform(
    name="kan",
    doc="A linear layer or convolution behind an activation becomes a Kolmogorov-Arnold layer, the activation its base "
    "function.",
    options=KanOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="`activation -> linear` and `activation -> conv`; with `plain = true` any linear layer and convolution",
    variants=(
        "kan",
        "kan(fourier)",
        "kan(chebyshev)",
        "kan(grkan)",
        "kan(plain = true)",
        "kan(grkan, plain = true)",
        "kan(fit = true)",
        "kan(chebyshev, order = 8, fit = true)",
        "kan(grkan, fit = true)",
    ),
    paper="Liu et al. 2024, KAN, arXiv:2404.19756; convolutions: Bodner et al. 2024, arXiv:2406.13155; GR-KAN: Yang "
    "and Wang 2024, arXiv:2409.10594",
)
