"""Attention whose cost grows with the number of tokens, not with its square.

    softmax(q kᵀ) v        ->        φ(q) (Σ_u φ(k_u) v_uᵀ) / φ(q) Σ_u φ(k_u)

The projections stay what they are. How near this comes to softmax depends on the feature map φ: `elu` (x + 1 above 0,
eˣ below) and `relu` are other attentions, meant to be trained further; `favor` takes m random directions ω,
`φ(x) = exp(ω x - ‖x‖² / 2)`, whose products are exp(q k) on average, so that its error falls with m; `hedgehog` is
`softmax([x, -x])`, spiky as softmax is.

Causal attention of a known number of tokens goes by chunks: within one all pairs are compared, and what is before it is
summed up (memory: T / chunk states of [m, d]; all running sums would be T of them). Of an open number it is a `scan`,
one state that each token is added to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from archc.ir.dims import Dim, exact_div
from archc.ir.graph import Graph, Node, Value
from archc.ir.ops.activations import ELU, RELU, SOFTMAX
from archc.ir.ops.attention import ATTENTION, SCALED_DOT_PRODUCT
from archc.ir.ops.constants import BUFFER, CONSTANT
from archc.ir.ops.elementwise import ADD, DIV, EXP, GE, MUL, NEG, SQUARE, SUB
from archc.ir.ops.linear import EINSUM, MATMUL
from archc.ir.ops.pieces import CONCAT, PAD, SLICE
from archc.ir.ops.reduce import CUMSUM, MAX, SUM
from archc.ir.ops.shape import CAST, EXPAND, PERMUTE, RESHAPE
from archc.ir.ops.structural import SCAN
from archc.ir.types import TensorType
from archc.passes.editing import Editor
from archc.passes.manager import Context, Contract, Measured
from archc.passes.matrices import relative
from archc.passes.opened import open_attention
from archc.passes.transform import Options, Refusal, Site, Transform

_LEAST = 1e-6  # added to features, so that no query finds nothing


class LinearAttentionOptions(Options):
    """
    feature   the map φ: "elu", "relu", "favor" or "hedgehog"
    features  of "favor": how many random directions, by default twice the channels of a head
    chunk     tokens of causal attention that are compared with each other
    """

    feature: Literal["elu", "relu", "favor", "hedgehog"] = "elu"
    features: PositiveInt | None = None
    chunk: PositiveInt = 64

    @model_validator(mode="after")
    def _features_of_favor(self) -> Self:
        if self.features is not None and self.feature != "favor":
            raise ValueError('features means something for feature = "favor" only')
        return self


def _find(graph: Graph, options: LinearAttentionOptions) -> Iterator[Site | Refusal]:
    for region in graph.graphs():
        for node in region.nodes:
            if node.op not in (ATTENTION, SCALED_DOT_PRODUCT):
                continue
            p = node.call.params
            t, u = (v.type.shape[-2] for v in node.operands[:2])
            if len(node.operands) > 3:
                reason = "linear attention cannot leave out single pairs of tokens"
                yield Refusal(node, reason, "it takes a mask")
            elif node.op is ATTENTION and p.positions == "alibi":
                reason = "linear attention has no scores that a distance could be taken from"
                yield Refusal(node, reason, 'it has positions = "alibi"')
            elif p.causal and t != u:
                yield Refusal(node, "causal linear attention needs as many queries as keys", f"{t} and {u}")
            elif node.op is SCALED_DOT_PRODUCT and not isinstance(node.operands[0].type.shape[-1], int):
                yield Refusal(
                    node, "the channels of a head must be known", f"there are {node.operands[0].type.shape[-1]}"
                )
            else:
                yield Site(node, (node,), region)


def _apply(graph: Graph, sites: Sequence[Site], options: LinearAttentionOptions, context: Context) -> None:
    editor = Editor(graph, graph, sites[0].anchor)
    for site in sites:
        product = site.anchor
        if product.op is ATTENTION:
            product = open_attention(site.graph, site.anchor, editor)["product"]
            site.graph.erase(site.anchor)
        e = editor.inside(site.graph, site.anchor.name)
        e.origin = site.anchor
        linear = _Linear(e, product, options)
        value = linear.write()
        site.graph.sort()
        if linear.directions is not None and context.weights is not None:  # they are needed now, to measure
            parameter = linear.directions.weights["weight"]
            context.store(parameter, parameter.init.sample(parameter.shape, context.seed, parameter.name))
        if context.observe is not None and context.weights is not None and site.graph is graph:
            old, new = context.observe(graph, context.weights, [product.output, value])
            of = "relative error of what its heads find"
            context.measured.append(Measured("linear_attention", site.anchor.name, of, relative(new - old, old)))
        product.output.replace_all_uses(value, site.graph)
        site.graph.erase(product)


class _Linear:
    """Writes linear attention in place of one product: q [n, h, t, d], k [n, kv, u, d], v [n, kv, u, e]."""

    def __init__(self, e: Editor, product: Node, options: LinearAttentionOptions) -> None:
        self.e, self.product, self.options = e, product, options
        self.q, self.k, self.v = product.operands
        self.n, self.heads, self.t, self.d = self.q.type.shape
        self.dtype = self.q.type.dtype
        self.directions: Node | None = None
        if options.feature == "favor":
            assert isinstance(self.d, int)
            shape = (options.features or 2 * self.d, self.d)
            self.directions = e.node(BUFFER, name="directions", shape=shape, init="normal(1.0)", dtype=self.dtype)

    def write(self) -> Value:
        """The value that replaces the product's: [n, h, t, e]."""
        q, k = self.features(self.q, False), self.features(self.k, True)
        v = self.with_ones(self.v)
        k, v = self.for_each_head(k), self.for_each_head(v)
        if not self.product.call.params.causal:
            found = self.e(MATMUL, q, self.e(EINSUM, k, v, equation="nhum,nhue->nhme"))
        elif isinstance(self.t, int):
            found = self.by_chunks(q, k, v, self.t)
        else:
            found = self.by_steps(q, k, v)
        width = self.v.type.shape[-1]
        assert isinstance(width, int)
        weighted = self.e(SLICE, found, axis=3, from_=0, to=width)
        return self.e(DIV, weighted, self.e(SLICE, found, axis=3, from_=width), name="linear")

    def number(self, value: float) -> Value:
        return self.e(CONSTANT, value=value, dtype=self.dtype)

    def features(self, x: Value, keys: bool) -> Value:
        """φ(x), [n, heads, tokens, m]."""
        kind = self.options.feature
        if kind == "elu":
            return self.e(ADD, self.e(ELU, x), self.number(1.0), name="features")
        if kind == "relu":
            return self.e(ADD, self.e(RELU, x), self.number(_LEAST), name="features")
        scale = self.product.call.params.scale
        assert isinstance(self.d, int)
        root = (self.d**-0.5 if scale is None else scale) ** 0.5
        x = self.e(MUL, x, self.number(root))
        if kind == "hedgehog":
            return self.e(SOFTMAX, self.e(CONCAT, x, self.e(NEG, x), axis=3), axis=3, name="features")
        assert self.directions is not None
        along = self.e(MATMUL, x, self.e(PERMUTE, self.directions.output, order=(1, 0)))
        length = self.e(SUM, self.e(SQUARE, x), axis=3, keepdim=True)
        power = self.e(SUB, along, self.e(MUL, length, self.number(0.5)))
        # a factor of a query, or of all keys of a head, is in the sum and in what it is divided by
        largest = self.e(MAX, power, axis=(2, 3) if keys else 3, keepdim=True)
        return self.e(ADD, self.e(EXP, self.e(SUB, power, largest)), self.number(_LEAST), name="features")

    def with_ones(self, v: Value) -> Value:
        """v and a channel of ones: what is summed of it is what the rest is divided by."""
        ones = self.e(EXPAND, self.number(1.0), shape=(*v.type.shape[:-1], 1))
        return self.e(CONCAT, v, ones, axis=3)

    def for_each_head(self, x: Value) -> Value:
        """Keys or values [n, kv, u, c] for each of the query's heads."""
        n, kv, u, c = x.type.shape
        if kv == self.heads:
            return x
        each = exact_div(self.heads, kv)
        assert each is not None
        wide = self.e(EXPAND, self.e(RESHAPE, x, shape=(n, kv, 1, u, c)), shape=(n, kv, each, u, c))
        return self.e(RESHAPE, wide, shape=(n, self.heads, u, c))

    def by_chunks(self, q: Value, k: Value, v: Value, length: int) -> Value:
        """Within a chunk, masked products; of what is before it, one sum for each chunk."""
        e, size = self.e, min(self.options.chunk, length)
        count = -(-length // size)
        spare = count * size - length

        def cut(x: Value) -> Value:
            x = e(PAD, x, widths=(0, 0, 0, spare)) if spare else x
            shape: tuple[Dim, ...] = (self.n, self.heads, count, size, x.type.shape[-1])
            return e(RESHAPE, x, shape=shape)

        q, k, v = cut(q), cut(k), cut(v)
        place = e(CUMSUM, e(EXPAND, self.number(1.0), shape=(size,)), axis=0)
        past = e(GE, e(RESHAPE, place, shape=(size, 1)), e(RESHAPE, place, shape=(1, size)))
        scores = e(MUL, e(EINSUM, q, k, equation="nhctm,nhcum->nhctu"), e(CAST, past, dtype=self.dtype))
        found = e(MATMUL, scores, v)
        if count > 1:
            states = e(EINSUM, k, v, equation="nhcum,nhcue->nhcme")
            earlier = e(SUB, e(CUMSUM, states, axis=2), states)
            found = e(ADD, found, e(MATMUL, q, earlier))
        width = v.type.shape[-1]
        found = e(RESHAPE, found, shape=(self.n, self.heads, count * size, width))
        return e(SLICE, found, axis=2, from_=0, to=length) if spare else found

    def by_steps(self, q: Value, k: Value, v: Value) -> Value:
        """One token after the other: the state is the sum of φ(k) vᵀ so far."""
        e = self.e
        features, width = q.type.shape[-1], v.type.shape[-1]
        assert isinstance(features, int)
        rows = e(CONCAT, q, k, v, axis=3)
        state = e(EXPAND, self.number(0.0), shape=(self.n, self.heads, features, width))
        step = TensorType((self.n, self.heads, rows.type.shape[-1]), self.dtype)
        cell, (row, sums) = e.region("cell", [step, state.type])
        inside = e.inside(cell, e.prefix)
        mine = inside(SLICE, row, axis=2, to=features)
        key = inside(SLICE, row, axis=2, from_=features, to=2 * features)
        value = inside(SLICE, row, axis=2, from_=2 * features)
        outer = inside(EINSUM, key, value, equation="nhm,nhe->nhme")
        total = inside(ADD, sums, outer)
        cell.outputs = [inside(EINSUM, mine, total, equation="nhm,nhme->nhe"), total]
        return e.node(SCAN, rows, state, regions=[cell], axis=2).outputs[0]


def _contract(options: LinearAttentionOptions) -> Contract:
    return Contract("approximate", "approximate", f"features (`{options.feature}`) stand for softmax")


LINEAR_ATTENTION = Transform(
    name="linear_attention",
    doc="Softmax attention becomes linear attention: products of features, summed once.",
    options=LinearAttentionOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="`attention` and `scaled_dot_product` without a mask",
    variants=(
        "linear_attention",
        "linear_attention(relu)",
        "linear_attention(favor)",
        "linear_attention(hedgehog)",
        "linear_attention(chunk = 4)",
    ),
    paper="Katharopoulos et al. 2020, arXiv:2006.16236; favor: Choromanski et al. 2020, arXiv:2009.14794; hedgehog: "
    "Zhang et al. 2024, arXiv:2402.04347",
)
