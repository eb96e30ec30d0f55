"""Where a transform is to act: a selection of sites by name, layer, operator or size.

    blocks.*.ffn         a path: `*` stands for any characters of one part, `**` for several parts; a pattern that
                         names a scope means all that stands in it
    layers 4..8          the blocks with these numbers, from 0, the last included: of `layer1.ffn.gelu` that is 1. The
                         first part of a path that is repeated counts
    op attention         sites at, or with, a node of this operator
    params > 100k        the size of the site's weights; also `flops`, for one sample; suffixes k, M, G
    not op conv          what the rest does not mean

A site is called by its anchor. It is chosen when one of several selections admits it; terms joined by `and` must all.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from archc.ir.cost import count_params, node_flops
from archc.ir.diagnostics import did_you_mean, fail
from archc.ir.dims import substitute, symbols, total
from archc.ir.graph import Graph, Node
from archc.ir.op import REGISTRY

Test = Callable[[Graph, Node, Sequence[Node]], bool]
"""(network, anchor, the site's nodes) -> is it chosen?"""

_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq,
}  # fmt: skip
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_PATH = re.compile(r"[\w.*]+")


@dataclass(frozen=True, slots=True)
class Where:
    """A selection: a site is chosen when one of the terms admits it, and always when there are none.

    Raises: CompileError E0404 for a term that cannot be read, when first used.
    """

    terms: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " or ".join(f"`{t}`" for t in self.terms) if self.terms else "everywhere"

    def admits(self, graph: Graph, anchor: Node, nodes: Sequence[Node]) -> bool:
        return not self.terms or any(test(graph, anchor, nodes) for test in map(parse_term, self.terms))


EVERYWHERE = Where()


@lru_cache(maxsize=256)
def parse_term(term: str) -> Test:
    """The test that a term stands for.

    >>> parse_term("layers 8..4")
    Traceback (most recent call last):
    archc.ir.diagnostics.CompileError: error[E0404]: a selection cannot be read: `layers 8..4`
      the first number is above the last
      help: as `layers 4..8`, or `layers 4`
    """
    if " and " in term:
        tests = [parse_term(part.strip()) for part in term.split(" and ")]
        return lambda graph, anchor, nodes: all(test(graph, anchor, nodes) for test in tests)
    word, _, rest = term.strip().partition(" ")
    rest = rest.strip()
    if word == "not" and rest:
        inner = parse_term(rest)
        return lambda graph, anchor, nodes: not inner(graph, anchor, nodes)
    if word in ("layers", "layer") and rest:
        return _layers(term, rest)
    if word == "op" and rest:
        if rest not in REGISTRY:
            raise _unreadable(term, f"there is no operator `{rest}`", did_you_mean(rest, REGISTRY))
        return lambda graph, anchor, nodes: any(n.op.name == rest for n in (anchor, *nodes))
    if word in ("params", "flops") and rest:
        return _size(term, word, rest)
    if _PATH.fullmatch(term):
        return _path(term)
    raise _unreadable(term, "it is neither a path nor one of `layers`, `op`, `params`, `flops`, `not`")


def _unreadable(term: str, label: str, help: str | None = None) -> Exception:
    help = help or "as `blocks.*.ffn`, `layers 4..8`, `op linear`, `params > 100k`"
    return fail("E0404", f"a selection cannot be read: `{term}`", label=label, help=help)


def _path(pattern: str) -> Test:
    parts = re.split(r"(\*\*|\*)", pattern)
    text = "".join(".*" if p == "**" else r"[^.]*" if p == "*" else re.escape(p) for p in parts)
    regex = re.compile(rf"{text}(\..*)?")
    return lambda graph, anchor, nodes: regex.fullmatch(anchor.name) is not None


def _layers(term: str, rest: str) -> Test:
    found = re.fullmatch(r"(\d+)(?:\s*\.\.\s*(\d+))?", rest)
    if found is None:
        raise _unreadable(term, f"`{rest}` are no numbers", "as `layers 4..8`, or `layers 4`")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise _unreadable(term, "the first number is above the last", "as `layers 4..8`, or `layers 4`")

    def test(graph: Graph, anchor: Node, nodes: Sequence[Node]) -> bool:
        number = layer_number(graph, anchor)
        return number is not None and first <= number <= last

    return test


def layer_number(graph: Graph, node: Node) -> int | None:
    """The number of the block in which a node stands: that of the first part of its path which is repeated."""
    repeated = _repeated(graph)
    path = ""
    for part in node.name.split(".")[:-1]:
        path, before = (f"{path}.{part}" if path else part), path
        base, number = _numbered(part)
        if (before, base) in repeated:
            return number
    return None


def _repeated(graph: Graph) -> frozenset[tuple[str, str]]:
    """(scope, name without number) of scopes of which there are several."""
    seen: dict[tuple[str, str], set[str]] = {}
    for node in graph.walk():
        parts = node.name.split(".")
        for i, part in enumerate(parts[:-1]):
            seen.setdefault((".".join(parts[:i]), _numbered(part)[0]), set()).add(part)
    return frozenset(key for key, parts in seen.items() if len(parts) > 1)


def _numbered(part: str) -> tuple[str, int]:
    """
    >>> _numbered("layer12"), _numbered("layer"), _numbered("3")
    (('layer', 12), ('layer', 0), ('', 3))
    """
    base = part.rstrip("0123456789")
    return base, int(part[len(base) :] or 0)


def _size(term: str, what: str, rest: str) -> Test:
    found = re.fullmatch(r"(>=|<=|==|>|<)\s*(\d+(?:\.\d+)?)([kMG]?)", rest)
    if found is None:
        raise _unreadable(term, "a comparison is missing", f"as `{what} > 100k`")
    compare, bound = _COMPARE[found[1]], float(found[2]) * _UNITS[found[3]]

    def test(graph: Graph, anchor: Node, nodes: Sequence[Node]) -> bool:
        if what == "params":
            size = count_params({p.name: p for n in nodes for p in n.weights.values()}.values())
        else:
            flops = total(node_flops(n) for n in nodes)
            one = substitute(flops, dict.fromkeys(symbols(flops), 1))
            assert isinstance(one, int)
            size = one
        return compare(size, int(bound))

    return test
