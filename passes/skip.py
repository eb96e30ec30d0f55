"""`skip`: gates on residual blocks, that let a sample or a token pass a block by.

A residual block `x + f(x)`, with the activation behind it where that leaves x as it is (relu after relu), becomes the
body of a `skip`: where its gate is closed, x itself goes on. A block that changes shapes has no x to pass on.

Gates are born open, and can learn. A hard gate compares `sigmoid(w · h(x) + b)`, w = 0 and b > 0, with the threshold:
it is open for every input, and in training its 0 or 1 has the sigmoid's gradient (straight through), which is not 0. A
soft gate multiplies, so it has to be 1 and not nearly: a sigmoid never is, and a clamp is at a border where it has no
gradient on one side. `2 · sigmoid(w · h(x) + b)` with w = b = 0 is 1 to the last bit, with the gradient 1/2.

The papers' ideas, with one operator: GateSkip's gates have a number for each channel, here each token has one; the
tokens that skip the middle are still seen by others there, as what they were before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from archc.ir.diagnostics import CompileError
from archc.ir.dims import Dim, symbol, symbols
from archc.ir.graph import Graph, Node, Value
from archc.ir.ops.activations import RELU, RELU6, SIGMOID
from archc.ir.ops.constants import CONSTANT, PARAMETER
from archc.ir.ops.elementwise import ADD, MUL
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.pool import GLOBAL_AVG_POOL, MAX_POOL
from archc.ir.ops.reduce import MEAN
from archc.ir.ops.structural import SKIP, SkipParams
from archc.ir.types import FLOATS, TensorType
from archc.passes.blocks import Residual, residuals
from archc.passes.editing import Editor, common_scope
from archc.passes.manager import Context, Contract
from archc.passes.transform import Options, Refusal, Site, Transform

AHEAD = 2.0
"""How far the logit of a new hard gate lies above that of its threshold: sigmoid(2) = 0.88 above 1/2."""
HIDDEN = 10
"""Width between the two layers of a gate for images, as SkipNet's."""


class SkipOptions(Options):
    """
    kind       "sample": a gate for each sample (SkipNet); "token": one for each token of [N, T, C] (GateSkip); "depth":
               the `budget` of tokens with the largest gates (mixture of depths); "middle": gates for the middle
               layers, nested: the k-th decides, where the layers before it have run, whether all that is between the
               k-th layer from the front and the k-th from the back is skipped. A gate for samples sees all tokens:
               where later tokens are to be hidden from earlier ones, take gates for tokens
    mode       "hard" computes nothing for what is skipped, samples or tokens; blocks with attention, which look from
               token to token, are computed for all tokens of gates for tokens. "soft" weighs block and x by the gate,
               and saves nothing
    threshold  a hard gate is open above it
    cost       weight of the share of open gates in the training loss: what makes gates close; `target` of it is free
    budget     of kind "depth": the share of tokens that a block computes. Below 1 the function is not kept
    span       how many consecutive blocks one gate is for; of kind "middle" how many make a layer
    per        of kind "middle": gates for each "sample" or "token"
    levels     of kind "middle": how many gates are nested; without it all that leave the outermost layers alone
    hidden     width of a hidden layer of gates for samples, 0 for none; without it 10 for images and none for others
    """

    kind: Literal["sample", "token", "depth", "middle"] = "sample"
    mode: Literal["hard", "soft"] = "hard"
    threshold: float = Field(default=0.5, ge=0.01, le=0.99)
    cost: NonNegativeFloat = 0.0
    target: float = Field(default=0.0, ge=0, le=1)
    budget: float | None = Field(default=None, gt=0, le=1)
    span: PositiveInt | None = None
    per: Literal["sample", "token"] = "sample"
    levels: PositiveInt | None = None
    hidden: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if (self.kind == "depth") != (self.budget is not None):
            raise ValueError("a mixture of depths, `kind = depth`, needs a `budget`, and nothing else has one")
        if self.kind == "depth" and self.cost:
            raise ValueError("a `budget` says how much is computed; with it there is no `cost`")
        if self.target and not self.cost:
            raise ValueError("`target` needs a `cost`: what is above it costs")
        if self.kind != "middle" and (self.levels is not None or self.per != "sample"):
            raise ValueError("`levels` and `per` are for `kind = middle`")
        if self.hidden is not None and self.by_token:
            raise ValueError("`hidden` is for gates that speak of samples")
        return self

    @property
    def by_token(self) -> bool:
        return self.kind in ("token", "depth") or (self.kind == "middle" and self.per == "token")


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Consecutive blocks, x to `out`, for one gate; `inner` is a span within that has a gate of its own.

    nodes   what the body holds, in topological order: not an activation at the end that would change x
    """

    blocks: tuple[Residual, ...]
    inner: Span | None = None

    @property
    def x(self) -> Value:
        return self.blocks[0].x

    @property
    def out(self) -> Value:
        return self.nodes[-1].output

    @property
    def nodes(self) -> tuple[Node, ...]:
        nodes = [n for block in self.blocks for n in block.nodes]
        after = self.blocks[-1].after
        if after is not None and not keeps(after, self.x):
            nodes.pop()
        return tuple(nodes)


def keeps(activation: Node, x: Value) -> bool:
    """Whether x is its own image, as relu's results are relu's: then skipping may pass the activation by, too."""
    made = x.producer
    if made is None or activation.op not in (RELU, RELU6):
        return False
    if made.op is MAX_POOL:
        return keeps(activation, made.operands[0])
    if made.op is SKIP:
        return keeps(activation, made.operands[0]) and keeps(activation, made.regions[1].outputs[0])
    return made.op is activation.op


def chains(blocks: Sequence[Residual]) -> list[list[Residual]]:
    """Blocks of one graph in sequences in which each is the only one to read what the one before made; those that
    change the shape stand alone, and so do blocks that hold others."""
    found: list[list[Residual]] = []
    inside = {n for block in blocks for n in block.body}
    for block in blocks:
        before = found[-1][-1] if found else None
        follows = (
            before is not None
            and block.x is before.result
            and block.result.type == block.x.type == before.x.type
            and before.result not in block.graph.outputs
            and set(before.result.uses) <= set(block.nodes)
            and before.add not in inside
            and block.add not in inside
        )
        if follows:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def _find(graph: Graph, options: SkipOptions) -> Iterator[Site | Refusal]:
    taken = _symbols(graph)
    bodies = {node.regions[1] for node in graph.walk() if node.op is SKIP}
    by_graph: dict[Graph, list[Residual]] = {}
    for block in residuals(graph):
        by_graph.setdefault(block.graph, []).append(block)
    editor: Editor | None = None
    for region, blocks in by_graph.items():
        for chain in chains(blocks):
            for span in _spans(chain, options):
                if isinstance(span, Refusal):
                    yield span
                    continue
                editor = editor or Editor(graph, region, span.blocks[0].add)
                reason = _obstacle(span, options, region in bodies)
                if reason is None:
                    try:  # is the body defined for some of the samples, or tokens?
                        _body(editor.beside(region, span.blocks[0].add), span, options, _sizes(span, options, taken))
                    except CompileError as e:
                        what = "tokens" if options.kind == "depth" else "samples"
                        label = e.diagnostics[0].message
                        reason = (f"what it computes cannot be written for only some of the {what}", label)
                if reason is None:
                    yield Site(span.blocks[0].add, _all(span), region, span)
                else:
                    yield Refusal(span.blocks[0].add, reason[0], reason[1], code="E0413")


def _all(span: Span) -> tuple[Node, ...]:
    return tuple(n for block in span.blocks for n in block.nodes)


def _spans(chain: list[Residual], options: SkipOptions) -> Iterator[Span | Refusal]:
    """What gets gates of a chain of blocks."""
    if options.kind == "middle":
        yield _middle(chain, options)
        return
    size = options.span or 1
    whole = len(chain) - len(chain) % size
    for i in range(0, whole, size):
        yield Span(tuple(chain[i : i + size]))
    if whole < len(chain):
        reason = f"one gate is to be for {size} consecutive blocks of one shape"
        yield Refusal(chain[whole].add, reason, f"found {len(chain) - whole} from here", code="E0414")


def _middle(chain: list[Residual], options: SkipOptions) -> Span | Refusal:
    size = options.span or (2 if _alternates(chain) else 1)
    layers = len(chain) // size
    most = (layers - 1) // 2
    levels = options.levels or most
    if not 1 <= levels <= most:
        needed = f"{max(1, levels)} nested gate{'s need' if levels > 1 else ' needs'} {2 * max(1, levels) + 1} layers"
        found = f"found {layers}, of {size} block{'s' * (size > 1)} each"
        return Refusal(chain[0].add, f"{needed} of one shape in a row", found, code="E0414")
    span: Span | None = None
    for level in reversed(range(most + 1 - levels, most + 1)):
        span = Span(tuple(chain[level * size : (layers - level) * size]), span)
    assert span is not None
    return span


def _alternates(chain: list[Residual]) -> bool:
    """Whether layers are pairs of blocks: one with attention, one without."""
    attends = [any(n.op.category == "attention" for n in block.body) for block in chain]
    return len(chain) % 2 == 0 and all(attends[::2]) and not any(attends[1::2])


def _obstacle(span: Span, options: SkipOptions, skipped: bool) -> tuple[str, str] | None:
    """What keeps a span from being skipped: what is needed, and what was found."""
    x, result = span.x.type, span.blocks[-1].result.type
    if x != result:
        return "it changes the shape, so that nothing can take its place", f"it makes {result} of {x}"
    if x.dtype not in FLOATS or x.rank < 2:
        return "a gate needs samples of floats, [N, C] or [N, ..., C]", f"found {x}"
    if skipped and span.blocks[0].graph.outputs == [span.blocks[-1].result]:
        return "it is skipped already", "it is the body of a `skip`"
    if not isinstance(x.shape[_channels(span)], int):
        return "a gate needs a known number of channels", f"found {x}"
    if options.by_token and (x.rank != 3 or x.shape[1] == 1 or _channels(span) != 2):
        return "a gate for each token needs tokens, [N, T, C]", f"found {x}"
    return None


def _channels(span: Span) -> int:
    """The axis of the channels: 1 of images and signals, the last of tokens; what the span is made of tells."""
    spatial = span.x.type.rank > 2 and any(n.op.category in ("convolution", "pool") for n in _all(span))
    return 1 if spatial else span.x.type.rank - 1


def _apply(graph: Graph, sites: Sequence[Site], options: SkipOptions, context: Context) -> None:
    editor, taken = Editor(graph, sites[0].graph, sites[0].anchor), _symbols(graph)
    inner_first = {region: [s for s in sites if s.graph is region] for region in reversed(list(graph.graphs()))}
    for region, here in inner_first.items():
        used: set[str] = set()
        called = [editor.free(_called(site.found)) for site in here]
        for site, name in reversed(list(zip(here, called, strict=True))):  # a span's x may be what another one makes
            span: Span = site.found
            e, sizes = editor.beside(region, site.anchor), _sizes(span, options, taken)
            span.out.replace_all_uses(_skip(e, name, span, span.x, options, sizes), region)
            used |= {str(size) for size in sizes}
        taken |= used


def _symbols(graph: Graph) -> set[str]:
    """Every symbol that the network uses."""
    return {s for region in graph.graphs() for v in region.inputs for s in v.type.symbols}


def _sizes(span: Span, options: SkipOptions, taken: set[str]) -> list[Dim]:
    """Symbols for the rows, or tokens, that reach a span and those nested in it."""
    base = "Kept" if options.kind == "depth" else "Rows"
    depth, inner = 1, span.inner
    while inner is not None:
        depth, inner = depth + 1, inner.inner
    names = (base + str(i or "") for i in count())
    return [symbol(name) for name in islice((n for n in names if n not in taken), depth)]


def _called(span: Span) -> str:
    """What a skip is called: `skip`, in the scope in which the span stands."""
    scope = common_scope(n.name for n in _all(span))
    return f"{scope}.skip" if scope else "skip"


def _skip(e: Editor, full: str, span: Span, x: Value, options: SkipOptions, rows: Sequence[Dim]) -> Value:
    """The span as a `skip` on x, which stands for the span's own x. `rows` are sizes for its rows and those within."""
    gate = _gate(e, span, x.type, options, f"{full}.gate")
    body = _body(e, span, options, rows)
    params = SkipParams(
        mode=options.mode,
        threshold=options.threshold,
        budget=options.budget,
        cost=options.cost,
        target=options.target,
    )
    return e.node(SKIP, x, full_name=full, params=params, regions=(gate, body)).output


def _body(e: Editor, span: Span, options: SkipOptions, rows: Sequence[Dim]) -> Graph:
    """The region that computes a span, on as many rows (or tokens) as reach it."""
    x = span.x.type
    sizes: dict[str, Dim] = {}
    if options.kind == "depth" or not options.by_token:
        axis = 1 if options.kind == "depth" else 0
        old = x.shape[axis]
        sizes = {name: rows[0] for name in symbols(old) if symbol(name) == old}
        x = TensorType((*x.shape[:axis], rows[0], *x.shape[axis + 1 :]), x.dtype)
    body, (formal,) = e.region("body", [x])
    inside = e.inside(body, e.prefix)
    values = {span.x: formal}
    nodes, inner = span.nodes, span.inner
    if inner is not None:
        within = set(inner.nodes)
        first = next(i for i, n in enumerate(nodes) if n in within)
        inside.copy(nodes[:first], values, sizes=sizes)
        values[inner.out] = _skip(inside, e.free(_called(inner)), inner, values[inner.x], options, rows[1:])
        nodes = nodes[first + len(within) :]
    inside.copy(nodes, values, sizes=sizes)
    body.outputs = [values[span.out]]
    return body


def _gate(e: Editor, span: Span, type_: TensorType, options: SkipOptions, prefix: str) -> Graph:
    """What decides: [N, 1], or [N, T, 1] for tokens, born open."""
    gate, (x,) = e.region("gate", [type_])
    inside = e.inside(gate, prefix)
    images = _channels(span) != type_.rank - 1
    hidden = options.hidden if options.hidden is not None else HIDDEN * images
    if images:
        x = inside(GLOBAL_AVG_POOL, x)
    elif type_.rank > 2 and not options.by_token:
        x = inside(MEAN, x, axis=1 if type_.rank == 3 else tuple(range(1, type_.rank - 1)))
    if hidden and not options.by_token:
        x = inside(RELU, inside(LINEAR, x, out=hidden))
    x = inside(LINEAR, x, out=1, bias=False, init="zeros")
    level = 0.0 if options.mode == "soft" else AHEAD + math.log(options.threshold / (1 - options.threshold))
    bias = inside(PARAMETER, name="bias", shape=(1,), init=f"constant({level!r})", dtype=type_.dtype)
    x = inside(SIGMOID, inside(ADD, x, bias))
    if options.mode == "soft":
        x = inside(MUL, x, inside(CONSTANT, name="two", value=2.0, dtype=type_.dtype), name="gate")
    gate.outputs = [x]
    return gate


def _contract(options: SkipOptions) -> Contract:
    if options.budget is not None and options.budget < 1:
        why = f"a block computes {options.budget:g} of the tokens, the others pass it by"
        return Contract("approximate", "approximate", why)
    return Contract()


SKIP_BLOCKS = Transform(
    name="skip",
    doc="A residual block gets a gate by which a sample, or a token, may pass it by; gates are born open.",
    options=SkipOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="residual blocks that keep the shape, `x + body(x)`, also with a relu behind",
    variants=(
        "skip",
        "skip(sample, cost = 0.1, target = 0.5)",
        "skip(sample, mode = soft)",
        "skip(sample, span = 2)",
        "skip(token)",
        "skip(token, mode = soft)",
        "skip(middle)",
        "skip(middle, per = token)",
        "skip(depth, budget = 1.0)",
        "skip(depth, budget = 0.5)",
    ),
    paper="Wang et al. 2017, SkipNet, arXiv:1711.09485; tokens: Laitenberger et al. 2025, arXiv:2510.13876; middle: "
    "Lawson and Aitchison 2025, arXiv:2506.21103; depth: Raposo et al. 2024, arXiv:2404.02258",
)
