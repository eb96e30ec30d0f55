"""Weights as small integers: a layer becomes a quantised one, its inputs stay floats.

    y = W x + b        ->        y = (scale · (q - zero)) x + b,  q of 8 or 4 bits

`rtn` rounds each weight to the nearest code, with the scale that makes the largest one fit. `gpfq` goes along the
inputs and chooses each code so that it makes up for what the codes before have got wrong, on sample data: with X the
inputs [rows, i] of the layer and Y those that it gets from the layers quantised before it,

    q_t = Q(⟨Y_t, u + w_t X_t⟩ / ‖Y_t‖²),    u ← u + w_t X_t - q_t Y_t.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Node
from archc.ir.op import OpDef
from archc.ir.ops.attention import ATTENTION
from archc.ir.ops.convolution import CONV
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.quantised import LARGEST, QUANTIZED_CONV, QUANTIZED_LINEAR, Bits, pack
from archc.passes.blocks import users_of
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract, Measured
from archc.passes.matrices import observed, relative, rows_read
from archc.passes.opened import open_attention
from archc.passes.transform import Options, Refusal, Site, Transform

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_ROWS = 1024  # rows of data that `gpfq` follows


class QuantizeOptions(Options):
    """
    bits       of a weight
    method     "rtn": round to nearest; "gpfq": greedy path following, which needs data
    group      as many inputs of a linear layer share a scale; without it all of an output do. A convolution has a scale
               for each of its channels
    symmetric  codes around zero; without it linear layers have a zero of their own beside each scale
    attention  the projections of `attention`, too: it is opened into its parts
    """

    bits: Bits = 8
    method: Literal["rtn", "gpfq"] = "rtn"
    group: PositiveInt | None = None
    symmetric: bool = True
    attention: bool = True


def _find(graph: Graph, options: QuantizeOptions) -> Iterator[Site | Refusal]:
    users = users_of(graph)
    for region in graph.graphs():
        for node in region.nodes:
            if node.op not in (LINEAR, CONV) and not (node.op is ATTENTION and options.attention):
                continue
            shared = max(users[p.name] for p in node.weights.values())
            widths = {p.shape[1] for role, p in node.weights.items() if role.endswith("weight") and len(p.shape) == 2}
            uneven = [w for w in sorted(widths) if options.group and w % options.group]
            if shared > 1:
                yield Refusal(node, "its weights are shared with another layer", f"{shared} layers use them")
            elif uneven:
                reason = f"groups of {options.group} do not divide its inputs"
                yield Refusal(node, reason, f"it has {uneven[0]} inputs", code="E0425")
            elif options.method == "gpfq" and region is not graph:
                reason = "`gpfq` follows data, which are not seen inside a region"
                yield Refusal(node, reason, f"it stands in `{region.name}`", "take `method = rtn` there")
            else:
                yield Site(node, (node,), region)


def _apply(graph: Graph, sites: Sequence[Site], options: QuantizeOptions, context: Context) -> None:
    if options.method == "gpfq" and (context.observe is None or not context.data or context.weights is None):
        found = "no weights are known" if context.weights is None else "there are none"
        raise fail(
            "E0408",
            "`quantize_weights(method = gpfq)` needs data",
            label=found,
            help="give some, or round to nearest: `method = rtn`",
        )
    editor = Editor(graph, graph, sites[0].anchor)
    layers: list[tuple[Graph, Node]] = []
    for site in sites:
        if site.anchor.op is ATTENTION:
            parts = open_attention(site.graph, site.anchor, editor)
            site.graph.erase(site.anchor)
            layers += [(site.graph, node) for node in parts.values() if node.op is LINEAR]
        else:
            layers.append((site.graph, site.anchor))
    for region in {id(g): g for g, _ in layers}.values():
        region.sort()
    seen = observed(graph, context, [layer.operands[0] for _, layer in layers])
    read = {layer: rows_read(layer, seen[x]) for _, layer in layers if (x := layer.operands[0]) in seen}
    for region, layer in layers:
        _quantize(editor.beside(region, layer), graph, layer, options, context, read.get(layer))


def _quantize(
    e: Editor, graph: Graph, layer: Node, options: QuantizeOptions, context: Context, read: Array | None
) -> None:
    """Replace one layer. `read` is what the layer read before anything was quantised, [rows, groups, inputs]."""
    kept = {role: p for role, p in layer.weights.items() if role == "bias"}
    p = layer.call.params
    op: OpDef[Any] = QUANTIZED_LINEAR if layer.op is LINEAR else QUANTIZED_CONV
    if layer.op is LINEAR:
        params = op.params(out=p.out, bits=options.bits, group=options.group, symmetric=options.symmetric, bias=p.bias)
    else:
        params = op.params(**p.model_dump(exclude={"init"}), bits=options.bits)
    weight = layer.weights["weight"]
    rounded = None
    if context.weights is not None:
        import numpy as np

        matrix = context.value(weight).reshape(weight.shape[0], -1)
        grid = _grid(matrix, options, layer.op is LINEAR)
        codes = grid.codes(matrix)
        if options.method == "gpfq":
            assert read is not None
            now = rows_read(layer, observed(graph, context, [layer.operands[0]])[layer.operands[0]])
            codes = _follow(matrix, grid, read[:_ROWS], now[:_ROWS])
        rounded = grid.values(codes)
        _measure(layer, matrix, rounded, read, context)
    new = e.node(op, layer.operands[0], full_name=layer.name, params=params, weights=kept)
    layer.output.replace_all_uses(new.output, e.graph)
    e.graph.erase(layer)
    e.graph.sort()
    if context.weights is None or rounded is None:
        return
    if new.weights["weight"].name != weight.name:
        del context.weights[weight.name]
    shape = new.weights["weight"].shape
    context.store(new.weights["weight"], pack(codes.astype(np.int8), options.bits).reshape(shape))
    context.store(new.weights["scale"], grid.scale.reshape(new.weights["scale"].shape))
    if "zero" in new.weights:
        context.store(new.weights["zero"], grid.zero.reshape(new.weights["zero"].shape))


@dataclass(frozen=True)
class _Grid:
    """What values codes stand for: scale and zero [out, runs] of a matrix [out, inputs]; the least and largest code."""

    scale: Array
    zero: Array
    least: int
    most: int

    def codes(self, matrix: Array) -> Array:
        """The nearest code of each element."""
        return self.nearest(matrix, *self._spread(matrix.shape[1]))

    def column(self, values: Array, t: int, inputs: int) -> tuple[Array, Array]:
        """The nearest codes for one input of every output, and the values that they stand for."""
        run = t * self.scale.shape[1] // inputs
        scale, zero = self.scale[:, run], self.zero[:, run]
        codes = self.nearest(values, scale, zero)
        return codes, scale * (codes - zero)

    def nearest(self, values: Array, scale: Array, zero: Array) -> Array:
        import numpy as np

        return np.clip(np.rint(values / scale + zero), self.least, self.most)

    def values(self, codes: Array) -> Array:
        scale, zero = self._spread(codes.shape[1])
        return scale * (codes - zero)

    def _spread(self, inputs: int) -> tuple[Array, Array]:
        import numpy as np

        each = inputs // self.scale.shape[1]
        return np.repeat(self.scale, each, axis=1), np.repeat(self.zero, each, axis=1)


def _grid(matrix: Array, options: QuantizeOptions, linear: bool) -> _Grid:
    """The finest grid on which every element of a run has a place. Scales are rounded to float32, as they are kept."""
    import numpy as np

    most = LARGEST[options.bits]
    runs = matrix.shape[1] // options.group if options.group and linear else 1
    split = matrix.reshape(len(matrix), runs, -1)
    if options.symmetric or not linear:
        scale = np.abs(split).max(axis=2) / most
        least, zero = -most, np.zeros_like(scale)
    else:
        low, high = np.minimum(split.min(axis=2), 0), np.maximum(split.max(axis=2), 0)
        least = -most - 1
        scale = (high - low) / (most - least)
        zero = np.rint(least - low / np.where(scale > 0, scale, 1))
    scale = np.where(scale > 0, scale, 1).astype(np.float32).astype(np.float64)
    return _Grid(scale, zero, least, most)


def _follow(matrix: Array, grid: _Grid, before: Array, now: Array) -> Array:
    """Codes by greedy path following; rows `before` and `now` [rows, groups, inputs] are what the layer read and reads.

    The error `u` is kept for every output at once, [rows, outputs].
    """
    import numpy as np

    groups, inputs = now.shape[1:]
    own = len(matrix) // groups
    codes = np.empty_like(matrix)
    for group in range(groups):
        rows = slice(group * own, (group + 1) * own)
        part = _Grid(grid.scale[rows], grid.zero[rows], grid.least, grid.most)
        error = np.zeros((len(now), own))
        for t in range(inputs):
            x, y = before[:, group, t], now[:, group, t]
            error += np.outer(x, matrix[rows, t])
            norm = float(y @ y)
            wanted = y @ error / norm if norm > 0 else matrix[rows, t]
            codes[rows, t], values = part.column(wanted, t, inputs)
            error -= np.outer(y, values)
    return codes


def _measure(layer: Node, matrix: Array, rounded: Array, read: Array | None, context: Context) -> None:
    import numpy as np

    wrong = rounded - matrix
    told = [Measured("quantize_weights", layer.name, "relative error of the weights", relative(wrong, matrix))]
    if read is not None:
        groups = read.shape[1]

        def outputs(weights: Array) -> Array:
            grouped = weights.reshape(groups, -1, weights.shape[1])
            return np.asarray(np.einsum("rgi,goi->rgo", read, grouped, optimize=True))

        error = relative(outputs(wrong), outputs(matrix))
        told.append(Measured("quantize_weights", layer.name, "relative error of its outputs", error))
    context.measured += told


def _contract(options: QuantizeOptions) -> Contract:
    why = f"weights are rounded to {options.bits} bits, and trained no more"
    return Contract("approximate", "approximate", why)


QUANTIZE_WEIGHTS = Transform(
    name="quantize_weights",
    doc="Weights become integers of 8 or 4 bits with a scale for each output, and are read as such by the kernels.",
    options=QuantizeOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="linear layers, convolutions and the projections of attention",
    variants=(
        "quantize_weights",
        "quantize_weights(bits = 4)",
        "quantize_weights(symmetric = false)",
        "quantize_weights(bits = 4, group = 2)",
        "quantize_weights(method = gpfq)",
    ),
    paper="Jacob et al. 2017, arXiv:1712.05877; GPFQ: Lybrand and Saab 2021, arXiv:2010.15979",
)
