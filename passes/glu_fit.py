"""Gated feed-forward blocks that are fitted to what a block computes on sample data.

Each neuron's activation is fitted by a gated product of the same pre-activation, `gate(s z) (a z + c) + k`, which the
gate's and the new layer take up in their weights; the constants k go into the bias behind. For as many weights as
before, two thirds of the neurons stay, those whose part in the result is largest, and the layer behind is fitted to
the whole block's result by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from archc.ir.graph import Graph, Node, Value
from archc.ir.init import ONES
from archc.ir.ops.convolution import CONV
from archc.passes.blocks import FeedForward
from archc.passes.editing import Editor
from archc.passes.fitting import GateFit, fit_gate, fit_layer, samples
from archc.passes.functions import Function
from archc.passes.manager import Context, Measured
from archc.passes.partners import Partners

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Up = Literal["one", "copy", "fitted"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A block, the function between its layers, that of the gate, and how the layer beside the gate's comes about."""

    block: FeedForward
    wanted: Function
    gate: Function
    up: Up


@dataclass(frozen=True, slots=True)
class Fitted:
    """The block to be: `hidden` neurons, and the weights of its three layers by role; none when none are known."""

    hidden: int
    first: dict[str, Array] = field(default_factory=dict)
    up: dict[str, Array] = field(default_factory=dict)
    down: dict[str, Array] = field(default_factory=dict)


def matched(hidden: int) -> int:
    """How many neurons three layers have for the weights of two: two thirds, from 64 on a multiple of 8 as kernels
    like.

    >>> matched(8), matched(1024), matched(1)
    (5, 680, 1)
    """
    size = max(1, round(2 * hidden / 3))
    return size if size < 64 else 8 * round(size / 8)


def fit_blocks(graph: Graph, plans: Sequence[Plan], match: bool, context: Context) -> dict[FeedForward, Fitted]:
    """Fit blocks, each on what it reads in the network as it is."""
    if context.weights is None:
        return {p.block: Fitted(matched(p.block.hidden) if match else p.block.hidden) for p in plans}
    found: dict[FeedForward, Fitted] = {}
    for axis in (1, -1):
        chosen = [p for p in plans if (p.block.up.op is CONV) == (axis == 1)]
        rows = samples(graph, context, [p.block.x for p in chosen], axis)
        found |= {p.block: _fit(p, rows[p.block.x], match, context) for p in chosen}
    return found


def _fit(plan: Plan, x: Array, match: bool, context: Context) -> Fitted:
    import numpy as np

    block = plan.block
    weight, bias = _matrix(block.up, context)
    behind, last = _matrix(block.down, context)
    z = x @ weight.T + bias
    wanted = np.asarray(plan.wanted(z))
    fit = _fit_gate(plan, z, wanted, context)
    keep = np.arange(block.hidden)
    if match:
        part = np.linalg.norm(behind, axis=0) * wanted.std(0)
        keep = np.sort(np.argsort(-part, kind="stable")[: matched(block.hidden)])
    slope, offset = fit.slope[keep], fit.offset[keep]
    if match:
        gated = plan.gate(fit.steepness * z[:, keep]) * (slope * z[:, keep] + offset)
        behind, constant, error = fit_layer(gated, wanted @ behind.T, behind[:, keep], "bias" in block.down.weights)
        _measure(context, block, "relative error of the block, on samples that the fit has not seen", error)
    else:
        constant = behind @ fit.constant
    return Fitted(
        len(keep),
        {"weight": fit.steepness * weight[keep], "bias": fit.steepness * bias[keep]},
        {"weight": slope[:, None] * weight[keep], "bias": slope * bias[keep] + offset},
        {"weight": behind, "bias": last if constant is None else last + constant},
    )


def _fit_gate(plan: Plan, z: Array, wanted: Array, context: Context) -> GateFit:
    import numpy as np

    one, zero = np.ones(z.shape[1]), np.zeros(z.shape[1])
    if plan.up != "fitted":
        return GateFit(1.0, zero, one, zero, 0.0) if plan.up == "one" else GateFit(1.0, one, zero, zero, 0.0)
    fit = fit_gate(z, wanted, plan.gate, constant="bias" in plan.block.down.weights)
    _measure(context, plan.block, "relative error of the activation", fit.error)
    return fit


def _measure(context: Context, block: FeedForward, of: str, error: float) -> None:
    context.measured.append(Measured("glu", block.activation.name, of, error))


def _matrix(layer: Node, context: Context) -> tuple[Array, Array]:
    """The weight of a linear map as [out, in], and its bias, zeros where it has none."""
    import numpy as np

    weight = context.value(layer.weights["weight"])
    weight = weight.reshape(weight.shape[:2])
    return weight, context.value(layer.weights["bias"]) if "bias" in layer.weights else np.zeros(len(weight))


def build(e: Editor, block: FeedForward, fitted: Fitted, up: Up, partners: Partners) -> tuple[Node, Node]:
    """The gate's layer, in place of the old first one, and the one beside it."""
    first = _resized(e, block.up, block.up.operands[0], fitted.first, partners.context, out=fitted.hidden)
    born = {"init": "zeros"} if up == "one" else {}
    params = first.params.model_copy(update={"bias": True, **born})
    beside = partners.add(
        e, first, first.op, first.operands[0], "up", bias=ONES if up == "one" else None, params=params
    )
    _store(beside, fitted.up, partners.context)
    return first, beside


def finish(e: Editor, block: FeedForward, product: Value, fitted: Fitted, context: Context) -> None:
    """What follows the product, up to the last layer, in place of what followed the activation."""
    at = block.nodes.index(block.activation) + 1
    values = {block.activation.output: product}
    e.copy(block.nodes[at:-1], values)
    down = _resized(e, block.down, values[block.down.operands[0]], fitted.down, context)
    block.down.output.replace_all_uses(down.output, block.graph)


def _resized(e: Editor, old: Node, x: Value, weights: dict[str, Array], context: Context, **sizes: Any) -> Node:
    """A layer under its old name, its parameters under theirs."""
    node = e.node(old.op, x, full_name=old.name, params=old.params.model_copy(update=sizes))
    for role, parameter in node.weights.items():
        parameter.name = old.weights[role].name
        if parameter.type == old.weights[role].type:
            parameter.init = old.weights[role].init
    _store(node, weights, context)
    return node


def _store(node: Node, weights: dict[str, Array], context: Context) -> None:
    if context.weights is not None:
        for role, parameter in node.weights.items():
            context.store(parameter, weights[role].reshape(parameter.shape))
