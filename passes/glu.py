"""`glu`: a feed-forward block gets a second layer that its activation gates, `down(act(W x + b) * (V x + c))`.

Born equal in one of two ways. With V = 0 and c = 1 the product is the old activation, whatever that is. Where the
activation is itself a gate times its argument, `silu(z) = sigmoid(z) * z` say, V and c are copies of W and b, and the
gate is what is left. Other gates are fitted, neuron by neuron, and so are blocks of two thirds of the neurons, which
have as many weights as before: see `archc.passes.glu_fit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archc.ir.graph import Graph, Node, Value
from archc.ir.init import ONES
from archc.ir.op import REGISTRY, OpDef, Params
from archc.ir.ops.activations import RELU
from archc.ir.ops.constants import CONSTANT, PARAMETER
from archc.ir.ops.elementwise import ADD, MUL, SQUARE, SUB
from archc.passes.blocks import FeedForward, feed_forwards, is_layer, only_user, users_of
from archc.passes.editing import Editor
from archc.passes.functions import function
from archc.passes.glu_fit import Fitted, Plan, build, finish, fit_blocks
from archc.passes.manager import Context, Contract
from archc.passes.partners import Partners
from archc.passes.transform import Options, Refusal, Site, Transform

GATES = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "swiglu": "silu", "bilinear": "identity"}
"""The function on the gate's side of each variant in Shazeer's paper."""

SELF_GATED = {"silu": "sigmoid", "hardswish": "hardsigmoid", "square": "identity", "squared relu": "relu"}
"""Activations that are another one times their argument: `act(z) = gate(z) * z`."""

RANGED = ("silu", "gelu", "relu", "hardswish", "mish")
"""Activations that are some gate between 0 and 1, or nearly, times their argument."""
SIGMOIDS = ("sigmoid", "hardsigmoid")


class GluOptions(Options):
    """kind         what gates: "same" keeps the block's own activation; "glu" is a sigmoid, "reglu" relu, "geglu" gelu,
                 "swiglu" silu, "bilinear" nothing. Blocks whose function this does not keep are left out
    match        as many weights as before: two thirds of the neurons, those that matter most, and the layer behind
                 fitted to what all of them gave
    expand       a trainable range of the gate: with `act(z) = z g(z)`, the gate g becomes `(1 + 2α) g - α`, α born 0
    approximate  take blocks of any activation, and fit the gate to it, neuron by neuron
    """

    kind: Literal["same", "glu", "reglu", "geglu", "swiglu", "bilinear"] = "same"
    match: bool = False
    expand: bool = False
    approximate: bool = False

    @property
    def fitted(self) -> bool:
        return self.match or self.approximate


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a block becomes gated.

    gate  the operator on the gate's side, None for none, and its parameters
    up    how the new layer is born: as the constant 1, as a copy of the gate's layer, or fitted
    """

    gate: OpDef[Any] | None
    params: Params | None
    up: Literal["one", "copy", "fitted"]


def recipe(block: FeedForward, kind: str) -> Recipe:
    """How a block's activation is written as a gated product of this kind.

    >>> from archc.grammar.load import loads
    >>> source = "arch a input x: f32[N, 4] output y: f32[N, 4] y = x -> linear(8) -> silu -> linear(4)"
    >>> (block,) = feed_forwards(loads(source))
    >>> recipe(block, "swiglu").up, recipe(block, "glu").up, recipe(block, "reglu").up
    ('one', 'copy', 'fitted')
    """
    found, old = activation_name(block), block.activation
    if kind == "same" or GATES[kind] == found:
        return Recipe(old.op, old.params, "one")
    gate = REGISTRY[GATES[kind]] if kind != "bilinear" else None
    return Recipe(gate, None, "copy" if SELF_GATED.get(found) == GATES[kind] else "fitted")


def activation_name(block: FeedForward) -> str:
    """The function between the layers: an operator's name, or "squared relu"."""
    node = block.activation
    inner = node.operands[0].producer
    return "squared relu" if node.op is SQUARE and inner is not None and inner.op is RELU else node.op.name


def _squared(graph: Graph) -> Iterator[FeedForward]:
    """Feed-forward blocks with `square` or `relu -> square` between their layers."""
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is not SQUARE:
                continue
            between, inner = [node], node.operands[0].producer
            if inner is not None and inner.op is RELU and only_user(region, inner.output) is node:
                between, inner = [inner, node], inner.operands[0].producer
            if inner is None or not is_layer(inner) or only_user(region, inner.output) is not between[0]:
                continue
            while (behind := only_user(region, between[-1].output)) is not None and behind.op.name == "dropout":
                between.append(behind)
            if behind is not None and behind.op is inner.op and is_layer(behind):
                yield FeedForward(region, inner.operands[0], (inner, *between, behind), inner, node, behind)


def _find(graph: Graph, options: GluOptions) -> Iterator[Site | Refusal]:
    users = users_of(graph)
    for block in (*feed_forwards(graph), *_squared(graph)):
        anchor, found = block.activation, activation_name(block)
        how = recipe(block, options.kind)
        gate = how.gate.name if how.gate is not None else "identity"
        shared = [p.name for n in (block.up, block.down) for p in n.weights.values() if users[p.name] > 1]
        if block.gate is not None:
            yield Refusal(anchor, "it needs a block without a gate", f"its {found} is gated already")
        elif how.up == "fitted" and not options.fitted:
            known = [GATES[options.kind], *(a for a, gate in SELF_GATED.items() if gate == GATES[options.kind])]
            reason = f"`kind = {options.kind}` keeps the function of blocks with {' or '.join(known)} alone"
            help = f"`kind = same` gates with the {found}, `approximate = true` fits"
            yield Refusal(anchor, reason, f"found {found}", help=help)
        elif options.expand and gate not in (*RANGED, *SIGMOIDS):
            reason = f"`expand` needs a gate times its argument: {', '.join(RANGED)}"
            yield Refusal(anchor, reason, f"found {found}")
        elif options.fitted and function_of_block(block) is None:
            yield Refusal(anchor, "a fit needs an activation whose function is known", f"found {found}")
        elif options.fitted and shared:
            yield Refusal(anchor, "a fit needs layers that no other node shares", f"`{shared[0]}` is shared")
        else:
            yield Site(anchor, block.nodes, block.graph, block)


def function_of_block(block: FeedForward) -> Any:
    """The activation on arrays, None where it is not known."""
    if activation_name(block) == "squared relu":
        relu = function("relu")
        assert relu is not None
        return lambda x: relu(x) ** 2
    return function(block.activation.op.name, block.activation.params)


def _apply(graph: Graph, sites: Sequence[Site], options: GluOptions, context: Context) -> None:
    editor, partners = Editor(graph, graph, sites[0].anchor), Partners(context)
    blocks: list[FeedForward] = [site.found for site in sites]
    fits: dict[FeedForward, Fitted] = {}
    if options.fitted:
        recipes = [recipe(block, options.kind) for block in blocks]
        plans = [Plan(b, function_of_block(b), gate_function(r), r.up) for b, r in zip(blocks, recipes, strict=True)]
        fits = fit_blocks(graph, plans, options.match, context)
    for block in blocks:
        e, how, first = editor.beside(block.graph, block.activation), recipe(block, options.kind), block.up
        if options.fitted:
            first, up = build(e, block, fits[block], how.up, partners)
        elif how.up == "copy":
            up = partners.copy(e, first, "up")
        else:
            up = partners.constant(e, first, "up", ONES)
        gate = gate_node(e, block, how, first)
        if options.expand:
            gate = expanded(e, gate, None if how.gate is None or how.gate.name in SIGMOIDS else first.output)
        product = e(MUL, gate, up.output, name="gated")
        if options.fitted:
            finish(e, block, product, fits[block], context)
        else:
            block.activation.output.replace_all_uses(product, block.graph)


def gate_function(how: Recipe) -> Any:
    found = function("identity" if how.gate is None else how.gate.name, how.params)
    assert found is not None
    return found


def gate_node(e: Editor, block: FeedForward, how: Recipe, first: Node) -> Value:
    """The gate's function of what the first layer gives."""
    old = block.activation
    if how.gate is None:
        return first.output
    if how.up == "one":  # a node of its own under the old name: all that reads the old one is to read the product
        inner = old.operands[0].producer
        assert inner is not None
        z = first.output if inner is block.up else e(inner.op, first.output, full_name=inner.name, params=inner.params)
        return e(old.op, z, full_name=old.name, params=old.params)
    return e(how.gate, first.output, name=how.gate.name)


def expanded(e: Editor, gate: Value, argument: Value | None) -> Value:
    """The gate g with a trainable range, `(1 + 2α) g - α` = `g + α (2 g - 1)`, α born 0.

    Of a gate times its argument z, as silu is, it is `act + α (2 act - z)`; `argument` is this z, None for 1."""
    dtype = gate.type.dtype
    alpha = e(PARAMETER, name="alpha", shape=(1,), init="zeros", dtype=dtype)
    whole = e(CONSTANT, name="one", value=1.0, dtype=dtype) if argument is None else argument
    reach = e(SUB, e(ADD, gate, gate, name="twice"), whole, name="reach")
    return e(ADD, gate, e(MUL, reach, alpha, name="range"), name="expanded")


def _contract(options: GluOptions) -> Contract:
    if options.match:
        return Contract("approximate", "approximate", "a third of the neurons goes, and the layer behind is fitted")
    if options.approximate:
        return Contract("approximate", "approximate", "the gate is fitted to another activation")
    return Contract()


GLU = Transform(
    name="glu",
    doc="A feed-forward block becomes a gated one, GLU, ReGLU, GEGLU, SwiGLU or bilinear, with a second layer that its "
    "activation gates.",
    options=GluOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="feed-forward blocks, `linear -> activation -> linear`, and those of 1x1 convolutions",
    variants=(
        "glu",
        "glu(glu)",
        "glu(reglu)",
        "glu(geglu)",
        "glu(swiglu)",
        "glu(bilinear)",
        "glu(expand = true)",
        "glu(glu, expand = true)",
        "glu(match = true)",
        "glu(swiglu, approximate = true)",
        "glu(swiglu, match = true)",
    ),
    paper="Shazeer 2020, arXiv:2002.05202; range of the gate: Huang 2024, arXiv:2405.20768; squared relu: So et al. "
    "2021, Primer, arXiv:2109.08668",
)
