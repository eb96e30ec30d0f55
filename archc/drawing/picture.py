"""The picture as such, before any drawing: boxes of op rows, clusters, and edges with shapes.

A chain of ops is one box with a row for each. A module, a repeat, a structural op and each of its regions is a cluster,
which may be drawn open (its inside) or closed (a box with its title, its ops and its parameter count).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from archc.drawing import words
from archc.drawing.hierarchy import Hierarchy, Item, Region, Repeat, build
from archc.ir.cost import count_params, graph_flops
from archc.ir.graph import Graph, Node, Parameter, Value

LONGEST_STACK = 12  # rows in one box
WHOLE, MOST = 44, 72  # rows on a page: what fits into the first is opened whole, one of each kind up to the second


@dataclass(eq=False, slots=True)
class Row:
    """One op: `node` stands for `copies` nodes. `shared` names the weights that others use too, as letters; `mark` is
    the colour that sets it off, if any."""

    node: Node
    text: str
    family: str
    shape: str
    shared: str = ""
    mark: str = ""


@dataclass(eq=False, slots=True)
class Box:
    """A leaf of the picture. kind: `ops` has rows; `join` is a small circle or pill; `input`, `output`; `choice` is
    where a structural op puts its regions' results together."""

    id: str
    kind: Literal["ops", "join", "input", "output", "choice"]
    rows: list[Row]
    ins: list[Value]
    outs: list[Value]
    title: str = ""
    note: str = ""


@dataclass(eq=False, slots=True)
class Edge:
    """From a result of one block to an operand of another; None is the cluster's own edge, where a value comes in or
    goes out. style: `data`; `control` decides where data goes; `loop` carries a scan's state to the next step."""

    tail: tuple[Block | None, int]
    head: tuple[Block | None, int]
    label: str = ""
    type: str = ""
    style: Literal["data", "control", "loop"] = "data"


@dataclass(eq=False, slots=True)
class Cluster:
    """A part of the picture that opens and closes. `node` is the structural op that it draws, if it draws one; `mark`
    is the colour that sets it off, if any."""

    id: str
    kind: Literal["network", "module", "structural", "region"]
    title: str
    count: int = 1
    tied: bool = False
    node: Node | None = None
    children: list[Block] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    ins: list[Value] = field(default_factory=list)
    outs: list[Value] = field(default_factory=list)
    note: str = ""
    params: int = 0
    mark: str = ""

    def blocks(self) -> Iterator[Block]:
        """This cluster and everything in it, outermost first."""
        stack: list[Block] = [self]
        while stack:
            block = stack.pop()
            yield block
            if isinstance(block, Cluster):
                stack += reversed(block.children)

    def clusters(self) -> Iterator[Cluster]:
        """This cluster and those in it, outermost first."""
        return (b for b in self.blocks() if isinstance(b, Cluster))


Block = Box | Cluster


@dataclass(eq=False, slots=True)
class Picture:
    """What is drawn of a network. `shared` has a letter for each parameter that several nodes use."""

    root: Cluster
    tree: Hierarchy
    title: str
    subtitle: str
    shared: dict[Parameter, str]

    def families(self) -> list[str]:
        """The families that occur, in the order of the legend."""
        boxes = (b for b in self.root.blocks() if isinstance(b, Box) and b.kind == "ops")
        found = {r.family for b in boxes for r in b.rows}
        return [f for f in words.FAMILIES if f in found]


def compose(graph: Graph) -> Picture:
    """The picture of a network, everything in it; `opened` says what of it to show."""
    return _Composer(graph).picture()


def opened(picture: Picture, collapse: Literal["auto", "all", "none"] | int = "auto") -> set[str]:
    """The ids of the clusters to draw open: those of the first `collapse` levels; every one (`none` is collapsed) or
    only the network itself (`all` are); or (`auto`) as many as stay readable, and of what is alike the first."""
    chosen = {picture.root.id}
    rows, depth = _weight(picture.root), 0
    seen: set[tuple[str, str]] = set()
    level = [c for c in picture.root.children if isinstance(c, Cluster)]
    while level:
        depth += 1
        if collapse == "all" or (isinstance(collapse, int) and depth > collapse):
            break
        whole = collapse != "auto" or rows + sum(map(_weight, level)) <= WHOLE
        following: list[Cluster] = []
        for cluster in level:
            kind = (_stem(cluster.title), cluster.note)
            if not whole and (kind in seen or rows + _weight(cluster) > MOST):
                continue
            seen.add(kind)
            rows += _weight(cluster)
            chosen.add(cluster.id)
            following += (c for c in cluster.children if isinstance(c, Cluster))
        level = following
    return chosen


def _stem(title: str) -> str:
    """A title without the number that tells it from its like: `stage` of `stage2`."""
    return re.sub(r"\d+(?=$| · )", "", title)


def _weight(cluster: Cluster) -> int:
    """How many rows a cluster shows when it is open and what is in it closed."""
    return sum(len(b.rows) or 1 if isinstance(b, Box) else 2 for b in cluster.children)


class _Composer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tree: Hierarchy = build(graph)
        self.count = 0
        users: dict[Parameter, set[Node]] = {}
        for node in graph.walk():
            for parameter in node.weights.values():
                users.setdefault(parameter, set()).add(self.tree.node_for(node))
        several = [p for p, nodes in users.items() if len(nodes) > 1]
        self.shared = {p: _letters(i) for i, p in enumerate(several)}
        self.results = {v for g in graph.graphs() for v in g.outputs}

    def picture(self) -> Picture:
        graph, root = self.graph, Cluster(self.new_id(), "network", self.graph.name)
        inputs: list[Block] = [
            Box(self.new_id(), "input", [], [], [v], words.shortened(v.name), words.shape_text([v.type]))
            for v in graph.inputs
        ]
        outputs: list[Block] = [
            Box(self.new_id(), "output", [], [v], [], words.shortened(name), words.shape_text([v.type]))
            for name, v in zip(graph.output_names, graph.outputs, strict=True)
        ]
        root.children = [*inputs, *self.blocks(self.tree.items), *outputs]
        self.connect(root)
        params = count_params(graph.parameters().values())
        root.params = params
        flops = graph_flops(graph)
        size = f"{words.count_text(flops)}FLOPs" if isinstance(flops, int) else ""
        sizes = {"N": 1} if "N" in graph.symbols() else {}
        if not size and graph.symbols() == ["N"]:
            from archc.ir.dims import substitute

            one = substitute(flops, dict(sizes))
            size = f"{words.count_text(one)} FLOPs at N = 1" if isinstance(one, int) else ""
        subtitle = " · ".join(s for s in (f"{words.count_text(params)} parameters", size) if s)
        return Picture(root, self.tree, words.shortened(graph.name), subtitle, self.shared)

    def new_id(self) -> str:
        self.count += 1
        return f"b{self.count - 1}"

    def blocks(self, items: Sequence[Item]) -> list[Block]:
        return [self.block(item) for item in items]

    def block(self, item: Item) -> Block:
        if isinstance(item, Node):
            return self.structural(item) if item.regions else self.box(item)
        cluster = Cluster(self.new_id(), "module", "")
        inner = item.items
        if isinstance(item, Repeat):
            cluster.count, cluster.tied = item.count, item.tied
            if len(inner) == 1 and not isinstance(inner[0], (Node, Repeat)):
                cluster.title, inner = words.shortened(_stem(inner[0].name)), inner[0].items
        else:
            cluster.title = words.shortened(item.name)
        cluster.ins, cluster.outs = self.ports(item.items)
        cluster.children = self.blocks(inner)
        cluster.params = self.params(item.items)
        cluster.note = words.ops_text(self.tree.nodes(inner))
        self.connect(cluster)
        return _merged(cluster)

    def params(self, items: Sequence[Item]) -> int:
        nodes = (m for n in self.tree.all_nodes(items) for m in [*(x for r in n.regions for x in r.walk()), n])
        return count_params(dict.fromkeys(p for n in nodes for p in n.weights.values()))

    def ports(self, items: Sequence[Item]) -> tuple[list[Value], list[Value]]:
        """What some items read from outside, and what of theirs is read outside (as drawn)."""
        drawn = self.tree.nodes(items)
        every = set(self.tree.all_nodes(items))
        inside = {v for n in every for v in n.outputs}
        ins = list(dict.fromkeys(v for n in drawn for v in n.inputs if v not in inside))
        outs = [
            v
            for n in drawn
            for v in n.outputs
            if any(
                c.outputs[v.index] in self.results or not set(c.outputs[v.index].uses) <= every
                for c in self.tree.covers[n]
            )
        ]
        return ins, outs

    def box(self, node: Node) -> Box:
        glyph = words.GLYPHS.get(node.op.name, "")
        ins = list(dict.fromkeys(node.inputs))
        many = sum(1 for v in node.inputs if v.type.rank) > 1 and bool(glyph)
        letters = dict.fromkeys(self.shared[p] for p in node.weights.values() if p in self.shared)
        copies = self.tree.covers[node]
        row = Row(
            node,
            words.op_text(node),
            words.family(node),
            words.shape_text([c.outputs[0].type for c in copies]),
            ", ".join(letters),
        )
        return Box(self.new_id(), "join" if many else "ops", [row], ins, list(node.outputs), glyph if many else "")

    def structural(self, node: Node) -> Cluster:
        """The cluster of `moe`, `skip`, `exit` or `scan`: its regions, and where their results come together."""
        ins = list(dict.fromkeys(node.inputs))
        _, outs = self.ports([node])
        made = Cluster(self.new_id(), "structural", words.op_text(node), node=node, ins=ins, outs=outs)
        made.params = self.params([node])
        regions = self.tree.regions[node]
        made.note = words.ops_text([n for r in regions for n in self.tree.nodes(r.items)])
        clusters = [self.region(r) for r in regions]
        made.children = [*clusters]
        for region, cluster in zip(regions, clusters, strict=True):
            outer = dict(zip(region.graph.inputs, (*node.operands, *node.captured), strict=False))
            for port, formal in enumerate(cluster.ins):
                made.edges.append(Edge((None, ins.index(outer[formal])), (cluster, port)))
        if node.op.name == "scan":
            cell, graph = clusters[0], regions[0].graph
            for i, value in enumerate(graph.outputs):
                port = cell.outs.index(self.tree.drawn(value))
                if node.outputs[i] in outs:
                    made.edges.append(Edge((cell, port), (None, outs.index(node.outputs[i]))))
                if i and graph.inputs[i] in cell.ins:
                    made.edges.append(Edge((cell, port), (cell, cell.ins.index(graph.inputs[i])), style="loop"))
            return made
        title, note = _choice(node)
        choice = Box(self.new_id(), "choice", [], [], outs, title, note)
        for i, cluster in enumerate(clusters):
            control = i == 0 and node.op.name in ("moe", "skip")
            for port, value in enumerate(cluster.outs):
                label = words.shape_text([value.type])
                made.edges.append(
                    Edge((cluster, port), (choice, 0), label, str(value.type), "control" if control else "data")
                )
        if node.op.name == "skip":
            made.edges.append(Edge((None, ins.index(node.inputs[0])), (choice, 0)))
        made.edges += [Edge((choice, 0), (None, i)) for i in range(len(outs))]
        made.children.append(choice)
        return made

    def region(self, region: Region) -> Cluster:
        graph = region.graph
        cluster = Cluster(self.new_id(), "region", region.name, count=region.count)
        cluster.children = self.blocks(region.items)
        read = {v for n in graph.nodes for v in n.inputs} | set(graph.outputs)
        cluster.ins = [v for v in graph.inputs if v in read]
        cluster.outs = list(dict.fromkeys(self.tree.drawn(v) for v in graph.outputs))
        cluster.params = self.params(region.items)
        cluster.note = words.ops_text(self.tree.nodes(region.items))
        self.connect(cluster)
        return cluster

    def connect(self, cluster: Cluster) -> None:
        """Draw the edges between a cluster's children, and fuse chains of ops."""
        drawn = self.tree.drawn
        source: dict[Value, tuple[Block | None, int]] = {v: (None, i) for i, v in enumerate(cluster.ins)}
        source |= {drawn(v): (None, i) for i, v in enumerate(cluster.ins)}
        for block in cluster.children:
            source |= {v: (block, i) for i, v in enumerate(block.outs)}
        labelled: set[tuple[str, str]] = set()  # results of one shape, by their block: one of their edges says it
        for block in cluster.children:
            for i, value in enumerate(block.ins):
                tail = source[value] if value in source else source[drawn(value)]
                edge = Edge(tail, (block, i), "", str(value.type))
                if tail[0] is not None and not _is_terminal(tail[0]):
                    label = self.label(block, i)
                    if (tail[0].id, label) not in labelled:
                        edge.label = label
                        labelled.add((tail[0].id, label))
                cluster.edges.append(edge)
        if cluster.kind != "network":
            for i, value in enumerate(cluster.outs):
                cluster.edges.append(Edge(source[drawn(value)], (None, i), "", str(value.type)))
        _fuse(cluster)

    def label(self, block: Block, port: int) -> str:
        """The shape of an operand; where the block stands for several copies, what their shapes range over."""
        value = block.ins[port]
        if isinstance(block, Box) and block.rows:
            node = block.rows[0].node
            position = node.inputs.index(value)
            return words.shape_text([c.inputs[position].type for c in self.tree.covers[node]])
        return words.shape_text([value.type])


def _merged(cluster: Cluster) -> Cluster:
    """A module that holds nothing but one cluster is one frame with that: `stage · skip`."""
    only = cluster.children[0]
    if len(cluster.children) > 1 or not isinstance(only, Cluster) or (cluster.count > 1 and only.count > 1):
        return cluster
    if (len(only.ins), len(only.outs)) != (len(cluster.ins), len(cluster.outs)):
        return cluster
    only.title = " · ".join(t for t in (cluster.title, only.title) if t)
    only.count, only.tied = cluster.count * only.count, cluster.tied or only.tied
    only.ins = [cluster.ins[e.tail[1]] for i in range(len(only.ins)) for e in cluster.edges if e.head == (only, i)]
    return only


def _is_terminal(block: Block) -> bool:
    return isinstance(block, Box) and block.kind == "input"


def _fuse(cluster: Cluster) -> None:
    """Put ops that follow each other, with nothing else reading between them, into one box."""
    outgoing: dict[int, list[Edge]] = {}
    incoming: dict[int, list[Edge]] = {}
    for edge in cluster.edges:
        outgoing.setdefault(id(edge.tail[0]), []).append(edge)
        incoming.setdefault(id(edge.head[0]), []).append(edge)
    for block in list(cluster.children):
        if not isinstance(block, Box) or block.kind != "ops":
            continue
        arriving = incoming.get(id(block), [])
        if len(arriving) != 1 or not isinstance(above := arriving[0].tail[0], Box):
            continue
        leaving = outgoing.get(id(above), [])
        if above.kind != "ops" or len(leaving) != 1 or len(above.rows) + len(block.rows) > LONGEST_STACK:
            continue
        above.rows += block.rows
        above.outs = block.outs
        cluster.edges.remove(leaving[0])
        cluster.children.remove(block)
        outgoing[id(above)] = outgoing.get(id(block), [])
        for edge in outgoing[id(above)]:
            edge.tail = (above, edge.tail[1])


def _choice(node: Node) -> tuple[str, str]:
    p: Any = node.params  # the schema is the op's own
    if node.op.name == "moe":
        by_expert = p.routing == "expert"
        return "weighted sum", "of those that chose it" if by_expert else f"of the {words.chosen_text(node)}"
    if node.op.name == "skip":
        if p.budget is not None:
            return "choose", f"body(x) for the {p.budget:.0%} with the largest gate, else x"
        soft = p.mode == "soft"
        return ("blend", "g·body(x) + (1−g)·x") if soft else ("choose", f"body(x) if g > {p.threshold:g}, else x")
    measure = str(p.confidence).replace("_", " ")
    return "choose", f"head(x) if {measure} ≥ {p.threshold:g}, else rest(x)"


def _letters(number: int) -> str:
    text = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(ord("A") + digit) + text
    return text
