"""Gates in other places than feed-forward blocks: on what attention heads found, on convolutions, on what other tokens
say. Each is born open.

A sigmoid is never 1, but it is one half at 0: what a gate born with zero weights multiplies is doubled, which rounds
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from archc.ir.dims import Dim
from archc.ir.dims import product as dim_product
from archc.ir.graph import Graph, Node, Parameter
from archc.ir.init import ONES, ZEROS, Init
from archc.ir.ops.activations import SIGMOID, SILU
from archc.ir.ops.attention import ATTENTION
from archc.ir.ops.convolution import CONV
from archc.ir.ops.elementwise import ADD, MUL
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import LAYER_NORM
from archc.ir.ops.shape import FLATTEN, RESHAPE, TRANSPOSE
from archc.ir.types import TensorType
from archc.passes.blocks import FeedForward, feed_forwards, only_user
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract
from archc.passes.partners import Partners, Successors
from archc.passes.transform import Options, Refusal, Site, Transform

# -- attention ----------------------------------------------------------------------------------------------------


class GatedAttentionOptions(Options):
    """per  one gate for each head, or one for each channel of it ("element")"""

    per: Literal["head", "element"] = "head"


def _find_attention(graph: Graph, options: GatedAttentionOptions) -> Iterator[Site | Refusal]:
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is not ATTENTION:
                continue
            if node.call.params.gated:
                yield Refusal(node, "it needs an attention without a gate", f"gate = {node.call.params.gate!r}")
            else:
                yield Site(node, (node,), region)


def _gate_attention(graph: Graph, sites: Sequence[Site], options: GatedAttentionOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    successors = Successors(graph, [site.anchor for site in sites], editor, context)
    gates: dict[Parameter, dict[str, Parameter]] = {}
    for site in sites:
        old = site.anchor
        out = old.weights["out_weight"]
        params = old.params.model_copy(update={"gate": options.per})
        twice = successors.of(out, old, out.shape, lambda w: 2 * w, doubled(out.init))
        gate = gates.setdefault(out, _closed(old, params))
        e = editor.beside(site.graph, old)
        weights = {**old.weights, "out_weight": twice, **gate}
        new = e.node(ATTENTION, *old.operands, full_name=old.name, params=params, weights=weights)
        old.output.replace_all_uses(new.output, site.graph)


def _closed(old: Node, p: Any) -> dict[str, Parameter]:
    """The gate's parameters, born zero."""
    out = old.weights["out_weight"]
    rows = p.heads if p.gate == "head" else out.shape[1]
    shapes = {"gate_weight": (rows, old.weights["q_weight"].shape[1]), "gate_bias": (rows,)}
    return {
        role: Parameter(f"{old.name}.{role}", TensorType(shape, out.type.dtype), ZEROS)
        for role, shape in shapes.items()
        if role == "gate_weight" or p.gate_bias
    }


def doubled(init: Init) -> Init:
    """What gives twice the same draw.

    >>> doubled(Init("uniform", 0.5))
    Init(kind='uniform', a=1.0, values=())
    """
    return replace(init, a=2 * init.a, values=tuple(2 * v for v in init.values))


GATED_ATTENTION = Transform(
    name="gated_attention",
    doc="Attention gets a sigmoid gate of the query's input on what each head found, before the output projection.",
    options=GatedAttentionOptions,
    find=_find_attention,
    apply=_gate_attention,
    contract=lambda options: Contract(),
    where="`attention` nodes",
    variants=("gated_attention", "gated_attention(element)"),
    paper="Qiu et al. 2025, Gated Attention for Large Language Models, arXiv:2505.06708",
)


# -- convolutions -------------------------------------------------------------------------------------------------


class GatedConvOptions(Options):
    """There are none."""


def _find_convolutions(graph: Graph, options: GatedConvOptions) -> Iterator[Site | Refusal]:
    for region in graph.graphs():
        for node in region.nodes:
            if node.op is CONV and set(node.weights["weight"].shape[2:]) != {1}:
                behind = only_user(region, node.output)
                silu = behind if behind is not None and behind.op is SILU else None
                yield Site(node, (node,) if silu is None else (node, silu), region, silu)


def _gate_convolutions(graph: Graph, sites: Sequence[Site], options: GatedConvOptions, context: Context) -> None:
    editor, partners = Editor(graph, graph, sites[0].anchor), Partners(context)
    for site in sites:
        conv, silu = site.anchor, site.found
        e = editor.beside(site.graph, conv)
        if silu is not None:
            gate = e(SIGMOID, partners.copy(e, conv, "gate").output, name="sigmoid")
            silu.output.replace_all_uses(e(MUL, conv.output, gate, name="gated"), site.graph)
            continue
        half = e(SIGMOID, partners.constant(e, conv, "gate", ZEROS).output, name="sigmoid")
        users = tuple(conv.output.uses)
        gated = e(MUL, conv.output, e(ADD, half, half, name="twice"), name="gated")
        for user in users:
            user.set_inputs(tuple(gated if v is conv.output else v for v in user.inputs))
        site.graph.outputs = [gated if v is conv.output else v for v in site.graph.outputs]


GATED_CONV = Transform(
    name="gated_conv",
    doc="A convolution is multiplied by a gate, a sigmoid of a second one: `(W * x + b) ⊙ σ(V * x + c)`. Behind a "
    "silu the gate is born as a copy, else as 2 σ(0).",
    options=GatedConvOptions,
    find=_find_convolutions,
    apply=_gate_convolutions,
    contract=lambda options: Contract(),
    where="convolutions with a kernel larger than 1",
    variants=("gated_conv",),
    paper="Dauphin et al. 2016, Language Modeling with Gated Convolutional Networks, arXiv:1612.08083",
)


# -- tokens -------------------------------------------------------------------------------------------------------


class GmlpOptions(Options):
    """own  what is mixed over tokens: a projection of the block's input of its own (as the halves of the channels that
    the paper splits off), or the hidden activations themselves
    """

    own: bool = False


def _find_tokens(graph: Graph, options: GmlpOptions) -> Iterator[Site | Refusal]:
    ordered = _ordered(graph)
    for block in feed_forwards(graph):
        anchor, hidden = block.activation, block.activation.output.type
        if ordered is not None:
            reason = "a spatial gate lets every token see all others, those to come too"
            yield Refusal(anchor, reason, f"`{ordered.name}` is causal")
        elif hidden.rank < 3 or not all(isinstance(size, int) for size in _places(block)):
            yield Refusal(anchor, "a spatial gate needs a known number of tokens", f"found {hidden}")
        elif hidden.rank > 3 and block.up.op is not CONV:
            yield Refusal(anchor, "a spatial gate needs tokens `[N, T, C]`, or images", f"found {hidden}")
        else:
            yield Site(anchor, block.nodes, block.graph, block)


def _ordered(graph: Graph) -> Node | None:
    """A node that keeps the future from the past."""
    return next((n for n in graph.walk() if n.op.name == "scan" or getattr(n.params, "causal", False)), None)


def _places(block: FeedForward) -> tuple[Dim, ...]:
    shape = block.activation.output.type.shape
    return shape[2:] if block.up.op is CONV else shape[1:-1]


def _gate_tokens(graph: Graph, sites: Sequence[Site], options: GmlpOptions, context: Context) -> None:
    editor, partners = Editor(graph, graph, sites[0].anchor), Partners(context)
    for site in sites:
        block: FeedForward = site.found
        first, old, image = block.up, block.activation, block.up.op is CONV
        e = editor.beside(site.graph, old)
        hidden = seen = e(old.op, old.operands[0], full_name=old.name, params=old.params)
        if options.own:
            own = partners.add(e, first, first.op, first.operands[0], "own", params=first.params)
            seen = e(old.op, own.output, name=old.op.name, params=old.params)
        if image:
            seen = e(TRANSPOSE, e(FLATTEN, seen, name="flatten", from_=2), name="transpose", a=1, b=2)
        normed = partners.add(e, first, LAYER_NORM, seen, "spatial_norm").output
        count = dim_product(_places(block))
        rows = e(TRANSPOSE, normed, name="transpose", a=1, b=2)
        gate = partners.add(e, first, LINEAR, rows, "spatial", bias=ONES, out=count, init="zeros").output
        if image:
            gate = e(RESHAPE, gate, name="reshape", shape=hidden.type.shape)
        else:
            gate = e(TRANSPOSE, gate, name="transpose", a=1, b=2)
        old.output.replace_all_uses(e(MUL, hidden, gate, name="gated"), site.graph)


GMLP = Transform(
    name="gmlp",
    doc="A feed-forward block gets a spatial gating unit: its hidden activations are multiplied by a linear map over "
    "tokens, born as the constant 1.",
    options=GmlpOptions,
    find=_find_tokens,
    apply=_gate_tokens,
    contract=lambda options: Contract(),
    where="feed-forward blocks on a known number of tokens or pixels, in networks that are not causal",
    variants=("gmlp", "gmlp(own = true)"),
    paper="Liu et al. 2021, Pay Attention to MLPs, arXiv:2105.08050",
)
