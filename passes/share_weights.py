"""One set of weights for blocks that are alike, as in ALBERT: depth without parameters.

Blocks are scopes that are repeated (`layer`, `layer1`, …), or residual blocks where there are none. Two are alike when
they are made of the same operators on the same sizes, wired in the same way. Only what is trained is shared: running
estimates of a norm stay each block's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.passes.blocks import residuals
from archc.passes.manager import Context, Contract, Measured
from archc.passes.matrices import relative
from archc.passes.transform import Options, Refusal, Site, Transform


class ShareOptions(Options):
    """
    how  whose weights all of them have: those of the "first", the "mean" of all; "equal": share what is the same
         already, and refuse where anything is not
    """

    how: Literal["first", "mean", "equal"] = "first"


Block = tuple[Node, ...]


def _find(graph: Graph, options: ShareOptions) -> Iterator[Site | Refusal]:
    for region in graph.graphs():
        for level in _levels(region):
            blocks = [(block, _signature(block)) for block in level if _trained(block)]
            alike: dict[str, list[Block]] = {}
            for block, kind in blocks:
                alike.setdefault(kind, []).append(block)
            if any(len(same) > 1 for same in alike.values()):
                break
        else:
            continue
        apart = {kind for kind, same in alike.items() if len({tuple(map(id, _trained(b))) for b in same}) > 1}
        for block, kind in blocks:
            anchor = next(n for n in block if _trained((n,)))
            if len(alike[kind]) == 1:
                yield Refusal(anchor, "no other block is like it", f"{len(blocks)} blocks are repeated")
            elif kind in apart:
                yield Site(anchor, block, region, kind)


def _levels(graph: Graph) -> Iterator[list[Block]]:
    """Blocks of a graph, larger ones first: its repeated scopes, those in them, and so on; then residual blocks.

    A scope is repeated when another beside it differs by a number only: `layer`, `layer1`.
    """
    beside: dict[tuple[str, str], set[str]] = {}
    paths = {node: node.name.split(".")[:-1] for node in graph.nodes}
    for path in paths.values():
        for i, part in enumerate(path):
            beside.setdefault((".".join(path[:i]), _base(part)), set()).add(part)
    depth = 1
    while True:
        found: dict[str, list[Node]] = {}
        for node, path in paths.items():
            repeated = [i for i, part in enumerate(path) if len(beside[".".join(path[:i]), _base(part)]) > 1]
            if len(repeated) >= depth:
                found.setdefault(".".join(path[: repeated[depth - 1] + 1]), []).append(node)
        if not found:
            break
        yield [tuple(nodes) for nodes in found.values()]
        depth += 1
    yield [block.nodes for block in residuals(graph)]


def _base(part: str) -> str:
    """A name without its number."""
    return part.rstrip("0123456789")


def _inside(block: Block) -> Iterator[Node]:
    """The nodes of a block, those of their regions included."""
    for node in block:
        for region in node.regions:
            yield from region.walk()
        yield node


def _trained(block: Block) -> list[Parameter]:
    """The parameters of a block that are trained, in program order; one that is used twice, twice."""
    return [p for node in _inside(block) for p in node.weights.values() if p.trainable]


def _signature(block: Block) -> str:
    """What a block is made of and how it is wired, whatever things are called."""
    known: dict[Value, str] = {}
    outer: dict[Value, str] = {}
    weights: dict[Parameter, int] = {}

    def value(v: Value) -> str:
        if v in known:
            return known[v]
        return outer.setdefault(v, f"in{len(outer)}: {v.type}")

    def graph(region: Graph) -> list[Any]:
        known.update({v: f"formal{i}: {v.type}" for i, v in enumerate(region.inputs)})
        rows = [line(n) for n in region.nodes]
        return [rows, [value(v) for v in region.outputs]]

    def line(node: Node) -> Any:
        regions = [graph(r) for r in node.regions]
        operands = [value(v) for v in node.inputs]
        held = [(role, weights.setdefault(p, len(weights)), str(p.type)) for role, p in node.weights.items()]
        known.update({v: f"{len(known)}: {v.type}" for v in node.outputs})
        return node.op.name, repr(node.params), operands, held, regions

    return repr([line(node) for node in block])


def _apply(graph: Graph, sites: Sequence[Site], options: ShareOptions, context: Context) -> None:
    kinds: dict[tuple[int, str], list[Site]] = {}
    for site in sites:
        kinds.setdefault((id(site.graph), site.found), []).append(site)
    groups = [group for group in kinds.values() if len(group) > 1]
    if not groups:
        anchor = sites[0].anchor
        raise fail(
            "E0402",
            "`share_weights` finds nothing to share: it takes two blocks that are alike",
            anchor.span,
            label=f"of those chosen, none is like the block of `{anchor.name}`",
            help="choose more of them with `--at`",
        )
    for group in groups:
        _share([_trained(site.nodes) for site in group], group, options, context)


def _share(
    blocks: Sequence[Sequence[Parameter]], group: Sequence[Site], options: ShareOptions, context: Context
) -> None:
    if options.how == "equal":
        _demand_equal(blocks, group, context)
    first, *others = blocks
    replaced: dict[Parameter, Parameter] = {}
    values: dict[Parameter, list[Any]] = {}
    for i, parameter in enumerate(first):
        for block in others:
            replaced[block[i]] = parameter
    if context.weights is not None:
        import numpy as np

        for i, parameter in enumerate(first):
            values[parameter] = [context.value(block[i]) for block in blocks]
        for parameter, given in values.items():
            shared = np.mean(given, axis=0) if options.how == "mean" else given[0]
            context.store(parameter, shared)
            values[parameter] = [g - shared for g in given] + [shared]
        for i, site in enumerate(group):
            lost = np.concatenate([v[i].ravel() for v in values.values()])
            kept = np.concatenate([v[-1].ravel() for v in values.values()])
            of = "distance of its weights from the shared ones, relative to these"
            context.measured.append(Measured("share_weights", site.anchor.name, of, relative(lost, kept)))
    for site in group[1:]:
        for node in _inside(site.nodes):
            node.weights = {role: replaced.get(p, p) for role, p in node.weights.items()}


def _demand_equal(blocks: Sequence[Sequence[Parameter]], group: Sequence[Site], context: Context) -> None:
    """Refuse blocks whose weights differ."""
    import numpy as np

    for block, site in zip(blocks[1:], group[1:], strict=True):
        for parameter, shared in zip(block, blocks[0], strict=True):
            if context.weights is None:
                label = "no weights are known"
            elif not np.array_equal(context.value(parameter), context.value(shared)):
                label = f"`{parameter.name}` is not what `{shared.name}` is"
            else:
                continue
            raise fail(
                "E0426",
                f"`share_weights(how = equal)` needs blocks with the same weights, at `{site.anchor.name}`",
                site.anchor.span,
                label=label,
                help="`how = first` or `how = mean` give up what differs",
            )


def _contract(options: ShareOptions) -> Contract:
    if options.how == "equal":
        return Contract()
    return Contract("reinitialised", "reinitialised", "blocks lose what each has learned by itself")


SHARE_WEIGHTS = Transform(
    name="share_weights",
    doc="Blocks that are alike get one set of weights.",
    options=ShareOptions,
    find=_find,
    apply=_apply,
    contract=_contract,
    where="blocks that are repeated, and residual blocks that are alike",
    variants=("share_weights", "share_weights(how = mean)"),
    paper="Lan et al. 2019, arXiv:1909.11942",
)
