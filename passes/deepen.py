"""`deepen`: more layers that change nothing yet.

After a residual block comes another like it, with weights of its own of which the last bring its body to 0: `y + 0`.
Where no block is, a layer that is the identity may follow a relu: `relu(I · relu(x)) = relu(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import ZEROS
from archc.ir.ops.convolution import CONV
from archc.ir.ops.elementwise import ADD
from archc.ir.ops.linear import LINEAR
from archc.passes.blocks import Residual, residuals
from archc.passes.editing import Editor, common_scope, scope_of
from archc.passes.manager import Context, Contract
from archc.passes.transform import Options, Refusal, Site, Transform

IDEMPOTENT = ("relu", "relu6")
"""Activations of which a second one changes nothing."""

LAST: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("linear", "conv", "conv_transpose", "bilinear"), ("weight", "bias")),
    **dict.fromkeys(
        ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm", "norm"), ("weight", "bias")
    ),
    "attention": ("out_weight", "out_bias"),
    "kan": ("weight", "base_weight", "coefficients", "bias"),
    "parameter": ("weight",),
}
"""The weights of a layer with which its result is 0."""

THROUGH = (
    "cast", "dropout", "expand", "flatten", "identity", "permute", "reshape", "squeeze", "transpose", "unflatten",
    "unsqueeze", "relu", "relu6", "gelu", "silu", "tanh", "mish", "leaky_relu", "elu",
)  # fmt: skip
"""Operators of one tensor that make 0 of 0."""


class DeepenOptions(Options):
    """kind    "residual": another block behind each residual block, born without effect; "identity": a layer behind
            each relu, born as the identity
    count   how many behind each
    kernel  of an identity convolution, odd
    """

    kind: Literal["residual", "identity"] = "residual"
    count: PositiveInt = Field(default=1, le=64)
    kernel: PositiveInt = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} has no middle: it should be odd")
        if self.kernel != 1 and self.kind != "identity":
            raise ValueError('`kernel` means something for kind = "identity" only')
        return self


@dataclass(frozen=True, slots=True)
class _Block:
    """A residual block and the weights that are to be 0 in its copy."""

    residual: Residual
    last: tuple[Parameter, ...]


def _find(graph: Graph, options: DeepenOptions) -> Iterator[Site | Refusal]:
    return _activations(graph, options) if options.kind == "identity" else _blocks(graph)


def _blocks(graph: Graph) -> Iterator[Site | Refusal]:
    for block in residuals(graph):
        if block.shortcut:
            continue  # it changes the shape: a copy does not fit behind it
        last = silent(block.out, set(block.body))
        if isinstance(last, Node):
            reason = "the body of the new block needs a last layer with weights, which brings it to 0"
            yield Refusal(block.add, reason, f"it ends in `{last.op.name}`", code="E0423")
        else:
            yield Site(block.add, (block.add,), block.graph, _Block(block, last))


def silent(value: Value, within: set[Node]) -> tuple[Parameter, ...] | Node:
    """The weights that bring a value to 0 when they are 0, or the node at which none could."""
    node = value.producer
    assert node is not None, "a value to be made 0 is computed"
    if node not in within:
        return node
    op = node.op.name
    if op in LAST:
        found = tuple(node.weights[role] for role in LAST[op] if role in node.weights)
        return found or node
    if op in THROUGH:
        return silent(node.operands[0], within) if node.operands[0].producer in within else node
    if op == "mul":  # one of the two is enough
        tried = [silent(v, within) for v in node.operands if v.producer in within]
        return next((t for t in tried if not isinstance(t, Node)), node)
    if op == "add" or op == "moe":
        values = [*node.operands] if op == "add" else [v for r in node.regions[1:] for v in r.outputs]
        inner = within | {n for r in node.regions for n in r.nodes}
        parts: list[Parameter] = []
        for v in values:
            part = silent(v, inner) if v.producer in inner else node
            if isinstance(part, Node):
                return part
            parts += part
        return tuple(parts)
    return node


def _activations(graph: Graph, options: DeepenOptions) -> Iterator[Site | Refusal]:
    for region in graph.graphs():
        for node in region.nodes:
            if node.op.category != "activation" or not node.op.elementwise or node.op.name == "dropout":
                continue
            made = node.operands[0].type
            images = made.rank in (3, 4, 5) and _of_images(node)
            channels = made.shape[1 if images else -1] if made.rank > 1 else None
            if node.op.name not in IDEMPOTENT:
                reason = "a second activation has to change nothing, as with relu"
                help = "`kind = residual` works with any activation"
                yield Refusal(node, reason, f"found {node.op.name}", help=help, code="E0423")
            elif not isinstance(channels, int):
                yield Refusal(node, "a layer needs a known number of channels", f"found {made}", code="E0423")
            else:
                yield Site(node, (node,), region, (images, channels))


def _of_images(node: Node) -> bool:
    """Whether channels stand before space: the nearest op before that tells is a convolution, a pool or a norm of
    channels."""
    value = node.operands[0]
    while value.producer is not None and value.producer.operands:
        before = value.producer
        if before.op.category in ("convolution", "pool") or before.op.name in ("batch_norm", "group_norm"):
            return True
        if before.op is LINEAR or before.op.category == "shape":
            return False
        value = before.operands[0]
    return False


def _apply(graph: Graph, sites: Sequence[Site], options: DeepenOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    for site in reversed(sites):  # what a later block reads is still what it was found to read
        for count in range(options.count):
            e = editor.beside(site.graph, site.anchor)
            if options.kind == "identity":
                _add_identity(e, site, options, context)
            else:
                _add_block(e, site.found, count, context)


def _behind(value: Value, graph: Graph, make: Callable[[Value], Value]) -> None:
    """Let every reader of a value read what `make` makes of it."""
    users, outputs = [*value.uses], [i for i, v in enumerate(graph.outputs) if v is value]
    new = make(value)
    for user in users:
        user.set_inputs(tuple(new if v is value else v for v in user.inputs))
    for i in outputs:
        graph.outputs[i] = new


def _add_block(e: Editor, found: _Block, count: int, context: Context) -> None:
    block = found.residual
    scope = common_scope(n.name for n in block.body) if len(block.body) > 1 else scope_of(block.body[0].name)
    label = f"deeper{count or ''}"
    copies: dict[Parameter, Parameter] = {}

    def rename(name: str) -> str:
        rest = name[len(scope) + 1 :] if scope else name
        return ".".join(filter(None, (scope, label, rest)))

    def weigh(old: Parameter, node: str, role: str) -> Parameter:
        if old not in copies:
            zero = old in found.last
            copies[old] = new = Parameter(f"{node}.{role}", old.type, ZEROS if zero else old.init, old.trainable)
            if context.weights is not None:
                value = context.value(old)
                context.store(new, value * 0 if zero else value)
        return copies[old]

    def make(y: Value) -> Value:
        values = {block.x: y}
        e.copy(block.body, values, rename=rename, weigh=weigh)
        total = e.node(ADD, y, values[block.out], full_name=e.free(rename(block.add.name))).output
        if block.after is None or block.after.op.name not in IDEMPOTENT:
            return total
        return e.node(block.after.op, total, full_name=e.free(rename(block.after.name))).output

    _behind(block.result, block.graph, make)


def _add_identity(e: Editor, site: Site, options: DeepenOptions, context: Context) -> None:
    import numpy as np

    activation, (images, channels) = site.anchor, site.found

    def make(y: Value) -> Value:
        if images:
            layer = e.node(CONV, y, name="deeper", out=channels, kernel=options.kernel)
            value = np.zeros(layer.weights["weight"].shape)
            middle: Any = (slice(None), slice(None), *[options.kernel // 2] * (y.type.rank - 2))
            value[middle] = np.eye(channels)
        else:
            layer = e.node(LINEAR, y, name="deeper", out=channels)
            value = np.eye(channels)
        context.store(layer.weights["weight"], value)
        context.store(layer.weights["bias"], np.zeros(channels))
        return e.node(activation.op, layer.output, name=activation.op.name, params=activation.params).output

    _behind(activation.output, site.graph, make)


def _contract(options: DeepenOptions) -> Contract:
    return Contract()


DEEPEN = Transform(
    name="deepen",
    doc="More blocks and layers, born without effect.",
    options=DeepenOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="residual blocks `x + body(x)`, or (`kind = identity`) relu",
    variants=("deepen", "deepen(count = 2)", "deepen(kind = identity)", "deepen(kind = identity, kernel = 3)"),
    paper="Chen et al. 2016, Net2Net, arXiv:1511.05641; zero-born blocks: Goyal et al. 2017, arXiv:1706.02677",
)
"""`kind = identity` needs weights to be born equal: an identity is no initial distribution."""
