"""The module tree of a network: scopes from node names, equal neighbours folded into repeats.

`stage.block1.conv` is the op `conv` in the scope `block1` of the scope `stage`. A run of equal neighbours, each reading
what the one before made, is one `Repeat`: the first copy stands for all. Equal means the same ops, parameters, relative
wiring and sharing of weights; sizes of values do not count, so that the layers of a dense block are equal.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from archc.ir.graph import Graph, Node, Parameter, Value

SMALL = 2  # a scope of so many ops says nothing that its ops do not say: it is dissolved
DEEPEST = 32  # levels of modules; a name may have any number of parts
LONGEST_PERIOD = 64  # of a repeated run without scopes


@dataclass(eq=False, slots=True)
class Scope:
    """A module: what the names of its nodes have in common. A scope that holds one scope takes it in: `stage.block`."""

    name: str
    items: list[Item]


@dataclass(eq=False, slots=True)
class Repeat:
    """`count` equal copies in sequence; `items` is the first copy. `tied`: all copies use one set of weights."""

    count: int
    items: list[Item]
    tied: bool


@dataclass(eq=False, slots=True)
class Region:
    """Equal regions of a structural op, side by side (the experts of a `moe`): the first stands for all."""

    name: str
    graph: Graph
    count: int
    items: list[Item]


Item = Node | Scope | Repeat


@dataclass(eq=False, slots=True)
class Hierarchy:
    """The module tree of a graph, its regions included.

    covers      for each node that is drawn, the nodes that it stands for, itself included
    stands_for  for each node, the node that is drawn for it
    """

    graph: Graph
    items: list[Item] = field(default_factory=list)
    covers: dict[Node, list[Node]] = field(default_factory=dict)
    stands_for: dict[Node, Node] = field(default_factory=dict)
    regions: dict[Node, list[Region]] = field(default_factory=dict)
    _keys: dict[Hashable, int] = field(default_factory=dict)

    def drawn(self, value: Value) -> Value:
        """The value that is drawn for `value`."""
        if value.producer is None:
            return value
        return self.node_for(value.producer).outputs[value.index]

    def node_for(self, node: Node) -> Node:
        """The node that is drawn for `node`."""
        while (other := self.stands_for[node]) is not node:
            node = other
        return node

    def nodes(self, items: Iterable[Item]) -> list[Node]:
        """The drawn nodes of some items, regions not included."""
        found: list[Node] = []
        stack = list(items)[::-1]
        while stack:
            item = stack.pop()
            if isinstance(item, Node):
                found.append(item)
            else:
                stack += item.items[::-1]
        return found

    def all_nodes(self, items: Iterable[Item]) -> list[Node]:
        """The nodes that some items stand for, in program order of each copy."""
        return [c for n in self.nodes(items) for c in self.covers[n]]


def build(graph: Graph) -> Hierarchy:
    """The module tree of a network.

    >>> from archc.grammar.load import loads
    >>> tree = build(loads('''
    ... arch tiny
    ... input x: f32[N, 8]
    ... output y: f32[N, 8]
    ... def block = residual(linear(16) -> relu -> linear(8))
    ... y = x -> repeat(3) { block } -> relu
    ... '''))
    >>> [(type(i).__name__, getattr(i, "count", 1)) for i in tree.items]
    [('Repeat', 3), ('Node', 1)]
    """
    tree = Hierarchy(graph)
    for node in graph.walk():
        tree.covers[node] = [node]
        tree.stands_for[node] = node
    tree.items = _items(tree, graph)
    return tree


def _items(tree: Hierarchy, graph: Graph) -> list[Item]:
    for node in graph.nodes:
        if node.regions:
            tree.regions[node] = _regions(tree, node)
    paths = {node: tuple(node.name.split(".")) for node in graph.nodes}
    depth = _common_prefix(list(paths.values())) if graph is not tree.graph else 0
    return _scope_items(tree, graph.nodes, paths, depth, set(graph.outputs))


def _common_prefix(paths: Sequence[tuple[str, ...]]) -> int:
    """How many leading parts all paths share; the last part of a path is its op and does not count."""
    depth = 0
    while paths and all(len(p) > depth + 1 and p[depth] == paths[0][depth] for p in paths):
        depth += 1
    return depth


def _regions(tree: Hierarchy, node: Node) -> list[Region]:
    groups: list[tuple[str, Hashable, list[Graph]]] = []
    for region in node.regions:
        base = region.name.rpartition(".")[0] if region.name.rpartition(".")[2].isdigit() else region.name
        key = _key(tree, region.nodes, region)
        if groups and groups[-1][:2] == (base, key):
            groups[-1][2].append(region)
        else:
            groups.append((base, key, [region]))
    found = []
    for base, _, graphs in groups:
        items = [_items(tree, g) for g in graphs]
        for other in graphs[1:]:
            _stand_for(tree, list(graphs[0].walk()), list(other.walk()))
        name = base if len(graphs) == 1 or not base.endswith("s") else base[:-1]
        found.append(Region(name, graphs[0], len(graphs), items[0]))
    return found


def _stand_for(tree: Hierarchy, drawn: Sequence[Node], others: Sequence[Node]) -> None:
    """Let each of `drawn` stand for its counterpart too."""
    for a, b in zip(drawn, others, strict=True):
        first, second = tree.node_for(a), tree.node_for(b)
        if first is not second:
            tree.covers[first] += tree.covers.pop(second)
            tree.stands_for[second] = first


def _scope_items(
    tree: Hierarchy, nodes: Sequence[Node], paths: dict[Node, tuple[str, ...]], depth: int, outputs: set[Value]
) -> list[Item]:
    items: list[Item] = []
    for name, members in _grouped(nodes, paths, depth):
        if not name:
            items += members
            continue
        inner = _scope_items(tree, members, paths, depth + 1, outputs)
        if len(members) <= SMALL:
            items += inner
        elif len(inner) == 1 and isinstance(only := inner[0], Scope):
            items.append(Scope(f"{name}.{only.name}", only.items))
        elif len(inner) == 1 and isinstance(only := inner[0], Repeat):
            within = only.items[0]
            if len(only.items) == 1 and isinstance(within, Scope):
                only.items = [Scope(f"{name}.{within.name}", within.items)]
            else:
                only.items = [Scope(name, only.items)]
            items.append(only)
        else:
            items.append(Scope(name, inner))
    return _fold(tree, items, outputs)


def _grouped(nodes: Sequence[Node], paths: dict[Node, tuple[str, ...]], depth: int) -> list[tuple[str, list[Node]]]:
    """Nodes by the part of their name at `depth` ("" for a node that ends there), in topological order.

    Scopes whose nodes would depend on each other both ways (a graph written by a machine may do so) are cut into the
    runs in which they stand in the program.
    """
    runs: list[tuple[str, list[Node]]] = []
    for node in nodes:
        name = paths[node][depth] if len(paths[node]) > depth + 1 and depth < DEEPEST else ""
        if runs and name and runs[-1][0] == name:
            runs[-1][1].append(node)
        else:
            runs.append((name, [node]))
    if len({name for name, _ in runs if name}) == sum(bool(name) for name, _ in runs):
        return runs
    merged: dict[object, tuple[str, list[Node]]] = {}
    for i, (name, members) in enumerate(runs):
        merged.setdefault(name or i, (name, []))[1].extend(members)
    return _sorted(list(merged.values())) or runs


def _sorted(groups: Sequence[tuple[str, list[Node]]]) -> list[tuple[str, list[Node]]] | None:
    """The groups in topological order, the earliest first; None when there is a cycle."""
    home = {node: i for i, (_, members) in enumerate(groups) for node in members}
    readers: list[set[int]] = [set() for _ in groups]
    for node, i in home.items():
        for value in node.inputs:
            if value.producer in home and home[value.producer] != i:
                readers[home[value.producer]].add(i)
    waiting = [0] * len(groups)
    for found in readers:
        for i in found:
            waiting[i] += 1
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(groups[i])
        for j in readers[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                heapq.heappush(ready, j)
    return order if len(order) == len(groups) else None


def _key(tree: Hierarchy, nodes: Sequence[Node], region: Graph | None = None) -> int:
    """One number for all lists of nodes that are equal up to names, sizes of values and what they read from outside."""
    numbers: dict[Value, tuple[int, int]] = {}
    outside: dict[Value, int] = {}
    weights: dict[Parameter, int] = {}
    for value in region.inputs if region else ():
        outside[value] = len(outside)
    rows: list[Hashable] = []
    for i, node in enumerate(nodes):
        operands = tuple(numbers[v] if v in numbers else outside.setdefault(v, len(outside)) for v in node.inputs)
        roles = tuple((role, weights.setdefault(p, len(weights))) for role, p in sorted(node.weights.items()))
        regions = tuple(_key(tree, r.nodes, r) for r in node.regions)
        rows.append((node.op.name, node.params, operands, node.captures, roles, regions))
        numbers |= {v: (i, v.index) for v in node.outputs}
    results = tuple(numbers[v] if v in numbers else outside.get(v) for v in region.outputs) if region else ()
    return tree._keys.setdefault((tuple(rows), results), len(tree._keys))


def _fold(tree: Hierarchy, items: list[Item], outputs: set[Value]) -> list[Item]:
    """Replace runs of equal copies, of one or several items each, by `Repeat`s."""
    keys = [_key(tree, tree.all_nodes([item])) for item in items]
    folded: list[Item] = []
    i = 0
    while i < len(items):
        best: tuple[int, int] | None = None  # count, period
        for period in range(1, min(LONGEST_PERIOD, (len(items) - i) // 2) + 1):
            count = 1
            while keys[i + count * period : i + (count + 1) * period] == keys[i : i + period]:
                count += 1
            if count < 2:
                continue
            copies = [tree.all_nodes(items[i + k * period : i + (k + 1) * period]) for k in range(count)]
            count = _chained(tree, copies, outputs)
            worth = len(copies[0]) > SMALL or count > SMALL
            if count > 1 and worth and (best is None or count * period > best[0] * best[1]):
                best = count, period
        if best is None:
            folded.append(items[i])
            i += 1
            continue
        count, period = best
        copies = [tree.all_nodes(items[i + k * period : i + (k + 1) * period]) for k in range(count)]
        inner = _fold(tree, items[i : i + period], outputs) if period > 1 else items[i : i + 1]
        for copy in copies[1:]:
            for a, b in zip(copies[0], copy, strict=True):
                _stand_for(tree, _within(a), _within(b))
        first = {p for n in copies[0] for m in _within(n) for p in m.weights.values()}
        last = {p for n in copies[-1] for m in _within(n) for p in m.weights.values()}
        folded.append(Repeat(count, inner, bool(first) and first == last))
        i += count * period
    return folded


def _within(node: Node) -> list[Node]:
    """A node and those of its regions."""
    return [*(n for region in node.regions for n in region.walk()), node]


def _chained(tree: Hierarchy, copies: Sequence[Sequence[Node]], outputs: set[Value]) -> int:
    """How many of the copies, counted from the first, are links of one chain.

    Each link reads what the one before made, or what the first reads; nothing but the next link reads from a link,
    the last excepted; its weights are its own, or the first's in the same places.
    """
    keys = [_key(tree, copy) for copy in copies]
    where = {v: (k, (i, v.index)) for k, copy in enumerate(copies) for i, n in enumerate(copy) for v in n.outputs}
    reads = [_reads(copy) for copy in copies]
    weights = [[p for n in copy for m in _within(n) for _, p in sorted(m.weights.items())] for copy in copies]
    pattern: list[object] | None = None
    count = 1
    for k in range(1, len(copies)):
        link: list[object] = []
        for first, value in zip(reads[0], reads[k], strict=True) if len(reads[0]) == len(reads[k]) else ():
            home, place = where.get(value, (-1, None))
            if home == k - 1 and value is not first:
                link.append(place)
            elif value is first:
                link.append("same")
            else:
                return count
        own = set(weights[k]).isdisjoint(p for earlier in weights[:k] for p in earlier)
        if keys[k] != keys[0] or not any(isinstance(p, tuple) for p in link) or (pattern or link) != link:
            return count
        if not own and weights[k] != weights[0]:
            return count
        members = {*copies[k - 1], *copies[k]}
        made = [v for n in copies[k - 1] for v in n.outputs]
        if any(v in outputs or not set(v.uses) <= members for v in made):
            return count
        pattern = link
        count += 1
    return count


def _reads(nodes: Sequence[Node]) -> list[Value]:
    """The values that some nodes read from outside, in order."""
    inside = {v for n in nodes for v in n.outputs}
    return list(dict.fromkeys(v for n in nodes for v in n.inputs if v not in inside))
