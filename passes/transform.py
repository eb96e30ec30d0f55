"""Transforms: passes that change an architecture, born equal.

A transform is a record. `find` looks for sites (places where it can act) and says of the others why not; `apply` acts
on the chosen sites, in place, and keeps the weights in step; `contract` says how far the new network computes what the
old one did. Options are a pydantic schema, like an operator's parameters, and are written the same way:
`moe(experts = 8, top_k = 2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from archc.ir.diagnostics import CompileError, Diagnostic, Note
from archc.ir.graph import Graph, Node
from archc.ir.op import Params
from archc.passes.dce import DCE
from archc.passes.manager import Context, Contract, Pass
from archc.passes.where import EVERYWHERE, Where


class Options(Params):
    """The options of a transform; the docstring of a subclass explains each, its validators refuse what cannot be."""


O = TypeVar("O", bound=Options)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A place where a transform can act.

    anchor  the node that the place is called by: selection, reports and pictures speak of it
    nodes   what would be replaced or changed; none where sites may share nodes, as axes do
    graph   the graph or region in which they stand
    found   what the finder has captured, for `apply`
    what    what the place is, where the nodes' names do not say it: "64 channels of 3 weights"
    """

    anchor: Node
    nodes: tuple[Node, ...]
    graph: Graph
    found: Any = None
    what: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Refusal:
    """A place where one would expect the transform to act, and why it cannot. `reason` says what is needed, `found`
    what is there instead."""

    anchor: Node
    reason: str
    found: str = ""
    help: str | None = None
    code: str = "E0403"

    def diagnostic(self, transform: str) -> Diagnostic:
        node = self.anchor
        notes = tuple(Note("used here", use) for use in node.trace)
        message = f"`{transform}` cannot be applied at `{node.name}`: {self.reason}"
        return Diagnostic(self.code, message, node.span, self.found, notes, self.help)


@dataclass(frozen=True, slots=True)
class Transform(Generic[O]):
    """One way to change an architecture.

    doc       a sentence: what becomes what
    options   the schema of its options
    find      (graph, options) -> sites and refusals, in program order, those in regions too
    apply     (graph, sites, options, context): acts on all of these sites
    contract  what is kept, for given options
    where     to what it applies, in words
    variants  specs to be tried, tested and listed: one for each variant of the literature
    paper     where the idea and its equations come from
    """

    name: str
    doc: str
    options: type[O]
    find: Callable[[Graph, O], Iterable[Site | Refusal]]
    apply: Callable[[Graph, Sequence[Site], O, Context], None]
    contract: Callable[[O], Contract]
    where: str = ""
    variants: tuple[str, ...] = ()
    paper: str = ""

    def __repr__(self) -> str:
        return f"Transform({self.name})"


@dataclass(slots=True)
class Found:
    """What a search for sites has found: chosen ones, those that selection leaves out, and refusals."""

    sites: list[Site] = field(default_factory=list)
    others: list[Site] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def find_sites(transform: Transform[O], graph: Graph, options: O, where: Where = EVERYWHERE) -> Found:
    """The sites and refusals of a transform within a selection. Sites that overlap an earlier one are refused."""
    found = Found()
    taken: dict[Node, Node] = {}
    for place in transform.find(graph, options):
        nodes = place.nodes if isinstance(place, Site) else ()
        chosen = where.admits(graph, place.anchor, nodes or (place.anchor,))
        if isinstance(place, Refusal):
            found.refusals += [place] if chosen else []
            continue
        if not chosen:
            found.others.append(place)
            continue
        overlapped = next((taken[n] for n in place.nodes if n in taken), None)
        if overlapped is not None:
            reason = f"it overlaps the site at `{overlapped.name}`, which comes first"
            found.refusals.append(Refusal(place.anchor, reason, help="choose with `--at`"))
            continue
        taken.update(dict.fromkeys(place.nodes, place.anchor))
        found.sites.append(place)
    return found


def as_pass(transform: Transform[O], options: O, where: Where = EVERYWHERE, spec: str = "") -> Pass:
    """The transform with its options as a pass. New parameters that `apply` gives no value get their initial one.

    Raises, when it runs: CompileError E0402 when there is no site within the selection, with each refusal as E0403.
    """

    def run(graph: Graph, context: Context) -> bool:
        found = find(graph)
        if not found.sites:
            raise nothing_to_do(transform, found, where)
        transform.apply(graph, found.sites, options, context)
        settle(graph, context)
        context.applied.append((spec or transform.name, found))
        return True

    def find(graph: Graph) -> Found:
        return find_sites(transform, graph, options, where)

    return Pass(transform.name, run, transform.contract(options), spec or transform.name, find)


def settle(graph: Graph, context: Context) -> None:
    """After surgery: nodes in order, dead ones gone, and a value for each parameter, and none for others."""
    for region in list(graph.graphs()):
        region.sort()
    DCE.run(graph, context)
    if context.weights is None:
        return
    parameters = graph.parameters()
    for name in [n for n in context.weights if n not in parameters]:
        del context.weights[name]
    for name, parameter in parameters.items():
        if name not in context.weights:
            context.store(parameter, parameter.init.sample(parameter.shape, context.seed, name))


def nothing_to_do(transform: Transform[Any], found: Found, where: Where) -> CompileError:
    """Nowhere to act: every refusal, or where the transform would act."""
    if found.refusals:
        return CompileError(*[r.diagnostic(transform.name) for r in found.refusals])
    elsewhere = ", ".join(f"`{s.anchor.name}`" for s in found.others[:5])
    if elsewhere:
        label, help = f"the selection {where} has no site", f"sites are at {elsewhere}{' …' * (len(found.others) > 5)}"
    else:
        label, help = f"it applies to {transform.where}", None
    return CompileError(Diagnostic("E0402", f"`{transform.name}` finds nothing to change", label=label, help=help))
