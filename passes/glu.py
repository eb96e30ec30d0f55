"""`glu`: a feed-forward block gets a second layer that its activation gates, `down(act(W x + b) * (V x + c))`.

Born equal in one of two ways. With V = 0 and c = 1 the product is the old activation, whatever that is. Where the
activation is itself a gate times its argument, `silu(z) = sigmoid(z) * z` say, V and c are copies of W and b, and the
gate is what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from archc.ir.graph import Graph, Node, Value
from archc.ir.init import ONES
from archc.ir.op import REGISTRY
from archc.ir.ops.constants import CONSTANT, PARAMETER
from archc.ir.ops.elementwise import ADD, MUL, SUB
from archc.passes.blocks import FeedForward, feed_forwards
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract
from archc.passes.partners import Partners
from archc.passes.transform import Options, Refusal, Site, Transform

GATES = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "swiglu": "silu", "bilinear": "identity"}
"""The function on the gate's side of each variant in Shazeer's paper."""

SELF_GATED = {"silu": "sigmoid", "hardswish": "hardsigmoid"}
"""Activations that are an operator times their argument: `act(z) = gate(z) * z`."""

RANGED = ("silu", "gelu", "relu", "hardswish", "mish")
"""Activations that are some gate between 0 and 1, or nearly, times their argument."""


class GluOptions(Options):
    """kind      what gates: "same" keeps the block's own activation; "glu" is a sigmoid, "reglu" relu, "geglu" gelu,
              "swiglu" silu. Blocks with other activations are left out
    expand    a trainable range of the gate: with `act(z) = z g(z)`, the gate g becomes `(1 + 2α) g - α`, α born 0
    """

    kind: Literal["same", "glu", "reglu", "geglu", "swiglu"] = "same"
    expand: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a block becomes gated: the function of the gate, and whether the new layer is born as a copy of the gate's
    or as the constant 1."""

    gate: str
    copy: bool


def recipe(activation: Node, kind: str) -> Recipe | None:
    """How an activation is written exactly as a gated product of this kind; None for not at all.

    >>> from archc.grammar.load import loads
    >>> silu = loads("arch a input x: f32[N, 4] output y: f32[N, 4] y = x -> silu").nodes[0]
    >>> recipe(silu, "glu"), recipe(silu, "reglu")
    (Recipe(gate='sigmoid', copy=True), None)
    """
    name = activation.op.name
    if kind == "same" or GATES[kind] == name:
        return Recipe(name, copy=False)
    if SELF_GATED.get(name) == GATES[kind]:
        return Recipe(GATES[kind], copy=True)
    return None


def _find(graph: Graph, options: GluOptions) -> Iterator[Site | Refusal]:
    for block in feed_forwards(graph):
        found = block.activation.op.name
        how = recipe(block.activation, options.kind)
        if block.gate is not None:
            yield Refusal(block.activation, "it needs a block without a gate", f"its {found} is gated already")
        elif how is None:
            known = [GATES[options.kind], *(a for a, gate in SELF_GATED.items() if gate == GATES[options.kind])]
            reason = f"`kind = {options.kind}` keeps the function of blocks with {' or '.join(known)} alone"
            yield Refusal(block.activation, reason, f"found {found}", help=f"`kind = same` gates with the {found}")
        elif options.expand and not how.copy and found not in RANGED:
            reason = f"`expand` needs a gate times its argument: {', '.join(RANGED)}"
            yield Refusal(block.activation, reason, f"found {found}")
        else:
            yield Site(block.activation, block.nodes, block.graph, block)


def _apply(graph: Graph, sites: Sequence[Site], options: GluOptions, context: Context) -> None:
    editor, partners = Editor(graph, graph, sites[0].anchor), Partners(context)
    for site in sites:
        block: FeedForward = site.found
        old, z = block.activation, block.up.output
        how = recipe(old, options.kind)
        assert how is not None
        e = editor.beside(site.graph, old)
        if how.copy:
            gate = e(REGISTRY[how.gate], z, name=how.gate)
            up = partners.copy(e, block.up, "up")
        else:  # a node of its own: all that reads the old one is to read the product
            gate = e(old.op, z, full_name=old.name, params=old.params)
            up = partners.constant(e, block.up, "up", ONES)
        if options.expand:
            gate = expanded(e, gate, None if how.copy else z)
        old.output.replace_all_uses(e(MUL, gate, up.output, name="gated"), site.graph)


def expanded(e: Editor, gate: Value, argument: Value | None) -> Value:
    """The gate g with a trainable range, `(1 + 2α) g - α` = `g + α (2 g - 1)`, α born 0.

    Of a gate times its argument z, as silu is, it is `act + α (2 act - z)`; `argument` is this z, None for 1."""
    dtype = gate.type.dtype
    alpha = e(PARAMETER, name="alpha", shape=(1,), init="zeros", dtype=dtype)
    whole = e(CONSTANT, name="one", value=1.0, dtype=dtype) if argument is None else argument
    reach = e(SUB, e(ADD, gate, gate, name="twice"), whole, name="reach")
    return e(ADD, gate, e(MUL, reach, alpha, name="range"), name="expanded")


def _contract(options: GluOptions) -> Contract:
    return Contract()


GLU = Transform(
    name="glu",
    doc="A feed-forward block becomes a gated one, GLU, ReGLU, GEGLU or SwiGLU, with a second layer that its "
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
        "glu(expand = true)",
        "glu(glu, expand = true)",
    ),
    paper="Shazeer 2020, arXiv:2002.05202; range of the gate: Huang 2024, arXiv:2405.20768",
)
