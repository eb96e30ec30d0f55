"""`early_exit`: samples of which a head in the middle is sure leave there, and what is behind computes the others.

Everything behind the place becomes the `rest` of an `exit`. A new head, `pool -> linear`, is born with zero weights:
all classes are equally likely, its confidence is the least there is, and no sample leaves until it has learned. (It has
no bias, which would tell one class from another at birth.) A copy of the network's own head is worth something at once,
so samples do leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from archc.ir.diagnostics import CompileError
from archc.ir.dims import Dim, symbol, symbols
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.ops.linear import LINEAR
from archc.ir.ops.norm import LAYER_NORM
from archc.ir.ops.pool import GLOBAL_AVG_POOL
from archc.ir.ops.reduce import MEAN
from archc.ir.ops.structural import EXIT, SKIP, ExitParams
from archc.ir.types import FLOATS, TensorType
from archc.passes.blocks import is_activation, residuals
from archc.passes.editing import Editor, renewed
from archc.passes.manager import Context, Contract
from archc.passes.transform import Options, Refusal, Site, Transform

MARGIN = 0.01
"""How far a threshold has to be above the confidence of a head that knows nothing, in bf16 too."""


class EarlyExitOptions(Options):
    """
    exits       how many, spread evenly over the places; without it one at each place that is selected
    threshold   a sample leaves when the confidence reaches it; above 1 none ever does
    confidence  "max_softmax", "margin" or "entropy", as the operator `exit` has them
    head        "new" is `pool -> linear`, born unsure; "copy" is the network's own head, where the tensor has the
                type that it reads: then the function is not kept
    """

    exits: PositiveInt | None = None
    threshold: float = Field(default=0.9, gt=0)
    confidence: Literal["max_softmax", "entropy", "margin"] = "max_softmax"
    head: Literal["new", "copy"] = "new"

    @model_validator(mode="after")
    def _unsure(self) -> Self:
        if self.confidence != "max_softmax" and self.threshold < MARGIN:
            raise ValueError(f"a `threshold` below {MARGIN:g} would be reached by a head that knows nothing")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A tensor `x` at which samples can leave, and the nodes between it and the output."""

    x: Value
    behind: tuple[Node, ...]


def places(graph: Graph) -> list[tuple[Node, Value]]:
    """What may be followed by an exit: residual blocks and skips; activations in a network that has neither."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found = [(block.add, block.result) for block in residuals(graph) if block.graph is graph]
    found += [(node, node.output) for node in graph.nodes if node.op is SKIP]
    found = found or [(node, node.output) for node in graph.nodes if is_activation(node)]
    return sorted(found, key=lambda place: order[place[0]])


def behind(graph: Graph, x: Value) -> tuple[Node, ...]:
    """The nodes that lead from x to the output, in topological order; none when the output does not come from x alone.
    Nodes without operands belong to it when only it reads them."""
    (out,) = graph.outputs
    found: set[Node] = set()
    stack = [out]
    while stack:
        value = stack.pop()
        if value is x:
            continue
        if value.producer is None:
            return ()
        if value.producer not in found:
            found.add(value.producer)
            stack += value.producer.inputs
    alone = all(user in found for node in found for value in node.outputs for user in value.uses)
    return tuple(n for n in graph.nodes if n in found) if alone else ()


def _find(graph: Graph, options: EarlyExitOptions) -> Iterator[Site | Refusal]:
    candidates = places(graph)
    if not candidates:
        return
    *candidates, last = candidates
    obstacle = _no_logits(graph, options)
    if obstacle is not None or not candidates:
        reason, found = obstacle or ("it needs a place with more behind it than the network's head", "found one place")
        yield Refusal(last[0], reason, found, code="E0415")
        return
    possible: list[tuple[Node, Place]] = []
    editor, fits = Editor(graph, graph, last[0]), False
    for anchor, x in candidates:
        place = Place(x, behind(graph, x))
        wrong = _obstacle(place, last[1], options)
        if wrong is None and not fits:
            try:  # what is behind a later place is a part of what is behind this one
                rest, values, sizes = _rest(editor, x, _sizes(1, _symbols(graph))[0])
                editor.inside(rest, "").copy(place.behind, values, sizes=sizes)
                fits = True
            except CompileError as e:
                wrong = ("what is behind it cannot be written for only some of the samples", e.diagnostics[0].message)
        if wrong is not None:
            yield Refusal(anchor, wrong[0], wrong[1], code="E0415")
        else:
            possible.append((anchor, place))
    if options.exits is not None and options.exits > len(possible):
        reason = f"{options.exits} exits need as many places"
        yield Refusal(last[0], reason, f"there are {len(possible)} before it", code="E0415")
        return
    exits = options.exits or len(possible)
    for i in range(exits):
        anchor, place = possible[(i + 1) * len(possible) // (exits + 1) if options.exits else i]
        yield Site(anchor, (place.x.producer or anchor,), graph, place)


def _no_logits(graph: Graph, options: EarlyExitOptions) -> tuple[str, str] | None:
    """What keeps the network from having exits at all."""
    types = [v.type for v in graph.outputs]
    (first, *others), found = types, f"found {', '.join(map(str, types))}"
    if others or first.rank != 2 or first.dtype not in FLOATS:
        return "early exits need one output, the logits of each sample, [N, classes]", found
    classes = first.shape[1]
    if not isinstance(classes, int) or classes < 2:
        return "early exits need a known number of classes, at least 2", found
    if options.head == "new" and options.confidence == "max_softmax" and options.threshold < 1 / classes + MARGIN:
        reason = f"the threshold needs to be above 1/{classes}, the confidence of a head that knows nothing"
        return reason, f"found threshold = {options.threshold:g}"
    return None


def _obstacle(place: Place, last: Value, options: EarlyExitOptions) -> tuple[str, str] | None:
    """What keeps a place from being an exit."""
    x = place.x.type
    if not place.behind:
        return "the output needs to come from this tensor alone", "what is behind it reads others, too"
    if x.dtype not in FLOATS or x.rank < 2 or x.rank > 5:
        return "a head needs samples of floats, [N, C] or [N, ..., C]", f"found {x}"
    if options.head == "copy" and x != last.type:
        return f"a copy of the network's head reads {last.type}", f"found {x}"
    if options.head == "new" and not isinstance(x.shape[_channels(place)], int):
        return "a head needs a known number of channels", f"found {x}"
    return None


def _channels(place: Place) -> int:
    """The axis of the channels: 1 of images and signals, the last of tokens."""
    x = place.x.type
    made = place.x.producer
    spatial = any(n.op.category in ("convolution", "pool") for n in place.behind)
    while made is not None and not spatial and len(made.inputs) == 1:
        spatial, made = made.op.category in ("convolution", "pool"), made.inputs[0].producer
    return 1 if spatial and x.rank > 2 else x.rank - 1


def _symbols(graph: Graph) -> set[str]:
    return {s for region in graph.graphs() for v in region.inputs for s in v.type.symbols}


def _sizes(depth: int, taken: set[str]) -> list[Dim]:
    """Symbols for the samples that each exit leaves to what is behind it."""
    names = (f"Rows{i or ''}" for i in count())
    return [symbol(name) for name in islice((n for n in names if n not in taken), depth)]


def _apply(graph: Graph, sites: Sequence[Site], options: EarlyExitOptions, context: Context) -> None:
    *_, (_, last) = places(graph)
    maker = _Maker(graph, sites, options, context, Place(last, behind(graph, last)))
    graph.outputs[0].replace_all_uses(maker.exit(0, graph, sites[0].found.x), graph)


class _Maker:
    """Adds exits. They are nested: what one leaves to the rest meets the next."""

    def __init__(
        self, graph: Graph, sites: Sequence[Site], options: EarlyExitOptions, context: Context, ending: Place
    ) -> None:
        self.graph, self.sites, self.options, self.context, self.ending = graph, sites, options, context, ending
        self.editor = Editor(graph, graph, sites[0].anchor)
        self.sizes = _sizes(len(sites), _symbols(graph))

    def exit(self, level: int, graph: Graph, x: Value) -> Value:
        """Exit number `level` and all that follow it, on `x` in a graph or region; returns the logits."""
        place: Place = self.sites[level].found
        e = self.editor.beside(graph, self.sites[level].anchor)
        full = e.name("exit")
        head = (self._copied if self.options.head == "copy" else self._new)(e, place, x, f"{full}.head")
        rest, values, sizes = _rest(e, place.x, self.sizes[level])
        inside = e.inside(rest, e.prefix)
        if level + 1 == len(self.sites):
            inside.copy(place.behind, values, sizes=sizes)
            rest.outputs = [values[self.graph.outputs[0]]]
        else:
            following: Place = self.sites[level + 1].found
            later = set(following.behind)
            inside.copy((n for n in place.behind if n not in later), values, sizes=sizes)
            rest.outputs = [self.exit(level + 1, rest, values[following.x])]
        params = ExitParams(threshold=self.options.threshold, confidence=self.options.confidence)
        return e.node(EXIT, x, full_name=full, params=params, regions=(head, rest)).output

    def _copied(self, e: Editor, place: Place, x: Value, prefix: str) -> Graph:
        """The network's own head, with weights of its own."""
        head, (formal,) = e.region("head", [x.type])
        inside = e.inside(head, prefix)
        copies: dict[Parameter, Parameter] = {}
        values, (old, new) = {self.ending.x: formal}, (self.ending.x.type.shape[0], x.type.shape[0])
        sizes = {name: new for name in symbols(old) if symbol(name) == old}
        inside.copy(
            self.ending.behind,
            values,
            rename=lambda name: f"{prefix}.{name.rpartition('.')[2]}",
            weigh=renewed(copies),
            sizes=sizes,
        )
        head.outputs = [values[self.graph.outputs[0]]]
        for before, after in copies.items():
            if self.context.weights is not None:
                self.context.store(after, self.context.value(before))
        return head

    def _new(self, e: Editor, place: Place, x: Value, prefix: str) -> Graph:
        """`pool -> linear`: of images each channel's mean, of tokens their normalised mean."""
        head, (z,) = e.region("head", [x.type])
        inside = e.inside(head, prefix)
        if _channels(place) != x.type.rank - 1:
            z = inside(GLOBAL_AVG_POOL, z)
        elif x.type.rank > 2:
            axes = tuple(range(1, x.type.rank - 1))
            z = inside(LAYER_NORM, inside(MEAN, z, axis=axes[0] if len(axes) == 1 else axes))
        classes = self.graph.outputs[0].type.shape[1]
        head.outputs = [inside(LINEAR, z, out=classes, bias=False, init="zeros")]
        return head


def _rest(e: Editor, x: Value, rows: Dim) -> tuple[Graph, dict[Value, Value], dict[str, Dim]]:
    """An empty region for as many samples as reach it, the value that stands for x in it, and what its symbols are."""
    batch, *others = x.type.shape
    region, (formal,) = e.region("rest", [TensorType((rows, *others), x.type.dtype)])
    return region, {x: formal}, {name: rows for name in symbols(batch) if symbol(name) == batch}


def _contract(options: EarlyExitOptions) -> Contract:
    if options.head == "copy" and options.threshold <= 1:
        return Contract("approximate", "exact", "samples leave of which the copied head is sure")
    return Contract()


EARLY_EXIT = Transform(
    name="early_exit",
    doc="Samples of which a head in the middle is sure leave there; the others are computed to the end.",
    options=EarlyExitOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="residual blocks (or activations, where there are none) of networks that classify, [N, classes]",
    variants=(
        "early_exit",
        "early_exit(exits = 2)",
        "early_exit(exits = 1, confidence = entropy)",
        "early_exit(exits = 1, confidence = margin, threshold = 0.5)",
        "early_exit(head = copy)",
        "early_exit(head = copy, threshold = 1.1)",
    ),
    paper="Teerapittayanon et al. 2016, BranchyNet, arXiv:1709.01686; copies: Schuster et al. 2022, arXiv:2207.07061",
)
