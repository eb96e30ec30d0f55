"""What a network asks of the sizes that its types leave open, such as `T` of at least 6 for `select(1, 5)`.

Where a size is known, the operators ask for it when the network is built. Where it is a symbol they cannot; whoever
runs the network with actual sizes has to ask, or else memory is read that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from archc.ir.diagnostics import Span
from archc.ir.dims import Atom, Dim, Expr, Mod, Symbol, symbols
from archc.ir.graph import Graph, Node
from archc.ir.op import Call
from archc.ir.ops import convolution, index, pieces, reduce

Least = Iterator[tuple[Dim, int]]


@dataclass(frozen=True)
class Need:
    """`size`, over the symbols of the inputs, must not be negative; `words` say of which node, and what that means."""

    size: Expr
    words: str
    span: Span | None = None


def needs(graph: Graph) -> list[Need]:
    """What the nodes of a network ask of the symbols of its inputs, without repetitions and what always holds.

    >>> from archc.grammar.load import loads
    >>> for need in needs(loads("arch a()\\ninput x: f32[N, T]\\noutput y: f32[N]\\ny = x -> select(1, 5)\\n")):
    ...     print(need.size, "|", need.words)
    T - 6 | `select` (line 4) needs `T` to be at least 6
    """
    own = set(graph.symbols())
    return [need for need in _every(graph) if symbols(need.size) <= own]


def unknowable(graph: Graph) -> list[Need]:
    """What nodes of regions ask of sizes that come about while the network runs, such as the rows that an expert gets.

    That there is at least one is not counted: where there is none, nothing of the result is used.
    """
    own = set(graph.symbols())
    return [need for need in _every(graph) if not symbols(need.size) <= own and not _holds(need.size + 1)]


def _every(graph: Graph) -> list[Need]:
    found: dict[Expr, Need] = {}
    for node in graph.walk():
        for size, least in (*_asked(node), *((d, 0) for v in node.outputs for d in v.type.shape)):
            rest = size - least
            if isinstance(rest, Expr) and not _holds(rest):
                line = f" (line {node.span.line})" if node.span else ""
                found.setdefault(rest, Need(rest, f"`{node.name}`{line} needs {_as_words(rest)}", node.span))
    return list(found.values())


def _holds(size: Dim) -> bool:
    """Whether a size is evidently never negative."""
    if isinstance(size, int):
        return size >= 0
    return all(c >= 0 and all(map(_atom_holds, m)) for m, c in size.terms)


def _atom_holds(atom: Atom) -> bool:
    if isinstance(atom, Symbol):
        return True
    if not isinstance(atom.denominator, int):
        return False
    return isinstance(atom, Mod) or _holds(atom.numerator)


def _as_words(size: Expr) -> str:
    """What `size >= 0` means."""
    constant = dict(size.terms).get((), 0)
    rest = size - constant
    assert isinstance(rest, Expr)
    ((_, coefficient), *others) = rest.terms
    if not others and coefficient == -1:
        return f"`{-rest}` to be at most {constant}"
    return f"`{rest}` to be at least {-constant}"


def _asked(node: Node) -> Least:
    ask = _OWN.get(node.op.name)
    return ask(node.call) if ask else iter(())


def _slice(call: Call[Any]) -> Least:
    start, stop = pieces.slice_bounds(call)
    size = call.types[0].shape[call.axis(call.params.axis)]
    yield from ((start, 0), (stop - start, 0), (size - stop, 0))


def _select(call: Call[Any]) -> Least:
    size = call.types[0].shape[call.axis(call.params.axis)]
    yield size, call.params.index + 1 if call.params.index >= 0 else -call.params.index


def _pad(call: Call[Any]) -> Least:
    for size, widths in zip(call.types[0].shape, pieces.pad_widths(call), strict=True):
        least = {"reflect": max(widths) + 1, "circular": max(widths), "replicate": 1}.get(call.params.mode, 0)
        yield size, least if any(widths) else 0


def _top_k(call: Call[Any]) -> Least:
    yield call.types[0].shape[call.axis(call.params.axis)], call.params.k


def _extreme(call: Call[Any]) -> Least:
    """There is no largest of nothing."""
    for axis in call.axes(call.params.axis):
        yield call.types[0].shape[axis], 1


def _upsample(call: Call[Any]) -> Least:
    """There is nothing to interpolate between."""
    if call.params.mode != "nearest":
        for size in call.types[0].shape[2:]:
            yield size, 1


_OWN: dict[str, Callable[[Call[Any]], Least]] = {
    pieces.SLICE.name: _slice,
    pieces.SELECT.name: _select,
    pieces.PAD.name: _pad,
    index.TOP_K.name: _top_k,
    convolution.UPSAMPLE.name: _upsample,
    **{op.name: _extreme for op in (reduce.MAX, reduce.MIN, reduce.ARGMAX, reduce.ARGMIN)},
}
