"""Weights that a child inherits from its parent, so that its training need not begin at nothing.

A transform says itself what becomes of the weights: it is applied again, to the parent's trained ones, and the child
computes what the parent did as far as the transform's contract goes. For any other change the two networks are laid
over each other, and parameters of nodes that correspond are carried over. What is left is drawn afresh, as always.

All of it follows from the two networks and the candidate's `origin`: any process that has them comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.passes.manager import Context, run_passes
from archc.passes.spec import parse_pass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

TRANSFORM = "transform/"
"""How the origin of a candidate begins that a transform has made; the pass follows, with its options and its place."""
RADII = (4, 2, 1)
"""How far around itself a node is compared when neither all before it nor all behind it is alike."""


@dataclass(frozen=True)
class Inherited:
    """What a child starts from.

    weights   arrays by the child's parameter names, in the formats of its parameters; what is missing is drawn afresh
    share     of the child's weights (their elements) that come from the parent
    contract  what a transform keeps of the parent's function (`exact`, `approximate`, `reinitialised`); `matched` when
              parameters were carried over one by one, and nothing is promised
    """

    weights: dict[str, Any]
    share: float
    contract: str


def inherited(parent: Graph, weights: Arrays, child: Graph, origin: str, seed: int = 0) -> Inherited:
    """The weights that `child` inherits from `parent`; `origin` is that of the child's candidate.

    >>> from archc.grammar.load import loads
    >>> import numpy as np
    >>> text = "arch a input x: f32[N, 2] output y: f32[N, 2] y = x -> linear(3) -> relu -> linear(2)"
    >>> old = loads(text)
    >>> weights = {n: np.ones(p.shape, np.float32) for n, p in old.parameters().items()}
    >>> new = inherited(old, weights, loads(text.replace("linear(2)", "linear(3) -> tanh -> linear(2)")), "mutation/x")
    >>> sorted(new.weights), new.contract
    (['linear.bias', 'linear.weight', 'linear2.bias', 'linear2.weight'], 'matched')
    """
    if origin.startswith(TRANSFORM):
        found = _transformed(parent, weights, child, origin.removeprefix(TRANSFORM), seed)
        if found is not None:
            return found
    carried = {
        mine.name: weights[theirs.name] for mine, theirs in matching(parent, child).items() if theirs.name in weights
    }
    return Inherited(carried, _share(child, set(carried)), "matched")


def _share(child: Graph, names: set[str]) -> float:
    sizes = {name: p.size for name, p in child.parameters().items()}
    return sum(sizes[name] for name in names) / max(sum(sizes.values()), 1)


# Transforms


def _transformed(parent: Graph, weights: Arrays, child: Graph, spec: str, seed: int) -> Inherited | None:
    """The parent's weights taken through the transform; None when that leads to another network than the child, as
    where its structure depends on the weights."""
    import numpy as np

    from archc.backends.weights import numpy_dtype

    graph, step = clone(parent), parse_pass(spec)
    wide = {n: np.asarray(w) if w.dtype.kind in "iub" else np.asarray(w, np.float64) for n, w in weights.items()}
    context = Context(wide, seed=seed, wide=True)
    try:
        run_passes(graph, [step], context)
    except CompileError:
        return None
    made, wanted = canonical(graph), canonical(child)
    if made.hash != wanted.hash:
        return None
    assert context.weights is not None
    pairs = list(zip(wanted.parameters, made.parameters, strict=True))
    arrays = {m.name: context.weights[t.name].astype(numpy_dtype(m.type.dtype)) for m, t in pairs}
    return Inherited(arrays, _share(child, {m.name for m, t in pairs if t.name in weights}), step.contract.train)


# Laying one network over another


def matching(parent: Graph, child: Graph) -> dict[Parameter, Parameter]:
    """The child's parameters that correspond to one of the parent's, of the same shape.

    Nodes correspond when all that leads to them is alike, back to the inputs; else when all that follows is alike, on
    to the outputs; else when their surroundings are, the wider the better. Each is taken once, in program order.
    """
    pairs: dict[Node, Node] = {}
    theirs, mine = _Colours(parent), _Colours(child)
    rounds: list[Callable[[_Colours], Mapping[Node, Hashable]]] = [
        lambda c: c.before(),
        lambda c: c.behind(),
        *(lambda c, r=r: c.around(r) for r in RADII),
    ]
    for colour in rounds:
        _pair(colour(theirs), colour(mine), pairs)
    found: dict[Parameter, Parameter] = {}
    taken: set[Parameter] = set()
    for node, other in pairs.items():
        for role, parameter in node.weights.items():
            match = other.weights[role]
            if parameter not in found and match not in taken:
                found[parameter] = match
                taken.add(match)
    return found


def _pair(theirs: Mapping[Node, Hashable], mine: Mapping[Node, Hashable], pairs: dict[Node, Node]) -> None:
    taken = set(pairs.values())
    free: dict[Hashable, list[Node]] = {}
    for node in reversed([*theirs]):
        if node not in taken:
            free.setdefault(theirs[node], []).append(node)
    for node, colour in mine.items():
        if node not in pairs and free.get(colour):
            pairs[node] = free[colour].pop()


class _Colours:
    """Colours of the nodes of a graph and its regions: equal colours, equal surroundings."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.own = {n: hash((n.op.name, repr(n.params), _shapes(n), len(n.regions))) for n in graph.walk()}

    def before(self) -> Mapping[Node, Hashable]:
        """By what leads to a node."""
        found: dict[Node, Hashable] = {}
        self._before(self.graph, [hash(("input", i, str(v.type))) for i, v in enumerate(self.graph.inputs)], found)
        return found

    def _before(self, graph: Graph, inputs: list[int], found: dict[Node, Hashable]) -> list[int]:
        """Colours of the results of a graph whose inputs have these."""
        colours = dict(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            given = [colours[v] for v in node.inputs]
            captured = given[len(given) - node.captures :]
            inner = []
            for i, region in enumerate(node.regions):
                formals = range(len(region.inputs) - node.captures)
                inner += self._before(region, [*(hash(("formal", i, j, *given)) for j in formals), *captured], found)
            if node.op.commutative:
                given.sort()
            colour = found[node] = hash((self.own[node], *given, *inner))
            colours |= {v: hash((colour, v.index)) for v in node.outputs}
        return [colours[v] for v in graph.outputs]

    def behind(self) -> Mapping[Node, Hashable]:
        """By what follows from a node."""
        found: dict[Node, Hashable] = {}
        self._behind(self.graph, ("output",), found)
        return found

    def _behind(self, graph: Graph, place: tuple[Hashable, ...], found: dict[Node, Hashable]) -> None:
        read: dict[Value, list[int]] = {}
        for i, value in enumerate(graph.outputs):
            read.setdefault(value, []).append(hash((*place, i)))
        for node in reversed(graph.nodes):
            colour = found[node] = hash((self.own[node], *(tuple(sorted(read.get(v, ()))) for v in node.outputs)))
            for i, value in enumerate(node.inputs):
                read.setdefault(value, []).append(hash((colour, 0 if node.op.commutative else i)))
            for i, region in enumerate(node.regions):
                self._behind(region, (colour, i), found)

    def around(self, radius: int) -> Mapping[Node, Hashable]:
        """By what is so many steps away, forwards and backwards."""
        found: dict[Node, int] = dict(self.own)
        for _ in range(radius):
            found = {
                node: hash(
                    (
                        colour,
                        *(found[v.producer] if v.producer is not None else 0 for v in node.inputs),
                        tuple(sorted(found[user] for v in node.outputs for user in v.uses)),
                    )
                )
                for node, colour in found.items()
            }
        return found


def _shapes(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple((role, str(p.type)) for role, p in sorted(node.weights.items()))
