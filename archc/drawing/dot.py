"""The opened picture in the language of Graphviz, for those who want to lay it out themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from archc.drawing.layout import badge
from archc.drawing.paint import LIGHT
from archc.drawing.picture import Block, Box, Cluster, Edge, Picture

End = tuple[Block | None, int]


def write_dot(picture: Picture, chosen: Collection[str]) -> str:
    """The picture as a `digraph`: a node for each box and closed cluster, a `subgraph` for each open one; `chosen` are
    the ids of the open ones."""
    return _Writer(picture, chosen).text()


class _Writer:
    def __init__(self, picture: Picture, chosen: Collection[str]) -> None:
        self.picture, self.chosen = picture, chosen
        self.lines: list[str] = []
        self.parents = {child.id: cluster for cluster in picture.root.clusters() for child in cluster.children}

    def text(self) -> str:
        label = _quoted(f"{self.picture.title}\n{self.picture.subtitle}")
        self.lines = [
            f"digraph {_quoted(self.picture.title)} {{",
            f'  graph [label={label}, labelloc=t, fontname="Helvetica"];',
            '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11, fillcolor=white];',
            '  edge [fontname="Helvetica", fontsize=9];',
        ]
        self.inside(self.picture.root, "  ")
        for cluster in self.picture.root.clusters():
            if cluster.id in self.chosen and self.visible(cluster):
                self.edges(cluster)
        return "\n".join([*self.lines, "}", ""])

    def visible(self, block: Block) -> bool:
        parent = self.parents.get(block.id)
        while parent is not None:
            if parent.id not in self.chosen:
                return False
            parent = self.parents.get(parent.id)
        return True

    def inside(self, cluster: Cluster, indent: str) -> None:
        for block in cluster.children:
            if isinstance(block, Cluster) and block.id in self.chosen:
                self.lines.append(f"{indent}subgraph cluster_{block.id} {{")
                self.lines.append(f"{indent}  label={_quoted(_title(block))}; style={_style(block)};")
                self.inside(block, indent + "  ")
                self.lines.append(f"{indent}}}")
            else:
                self.lines.append(f"{indent}{block.id} [{_look(block)}];")

    def edges(self, cluster: Cluster) -> None:
        for edge in cluster.edges:
            if edge.tail[0] is None:
                continue
            source = self.source(edge.tail)
            if source is None:
                continue
            for target in self.targets(cluster, edge):
                style = {"control": "style=dashed", "loop": "constraint=false"}.get(edge.style, "")
                label = f"label={_quoted(edge.label)}" if edge.label else ""
                tip = f"tooltip={_quoted(edge.type)}" if edge.type else ""
                self.lines.append(f"  {source.id} -> {target.id} [{', '.join(a for a in (label, style, tip) if a)}];")

    def source(self, end: End) -> Block | None:
        """The box that makes what comes out of a block; None for a value that only passes through (its edge is drawn
        from where it comes in)."""
        block, port = end
        while isinstance(block, Cluster) and block.id in self.chosen:
            block, port = next(e.tail for e in block.edges if e.head == (None, port))
        return block

    def targets(self, cluster: Cluster, edge: Edge) -> Iterator[Block]:
        """The boxes that read an edge, inside whatever clusters it enters or leaves for."""
        waiting: list[tuple[Cluster, End]] = [(cluster, edge.head)]
        while waiting:
            home, (block, port) = waiting.pop(0)
            if block is None:
                continue  # it goes out: the parent's edge, whose source leads here, is drawn there
            if isinstance(block, Box) or block.id not in self.chosen:
                yield block
                continue
            for inner in block.edges:
                if inner.tail == (None, port):
                    if inner.head[0] is None:
                        waiting += [(home, e.head) for e in home.edges if e.tail == (block, inner.head[1])]
                    else:
                        waiting.append((block, inner.head))


def _title(cluster: Cluster) -> str:
    return " ".join(t for t in (cluster.title, badge(cluster)) if t)


def _look(block: Block) -> str:
    if isinstance(block, Cluster):
        return f"label={_quoted(_title(block) + chr(10) + block.note)}, peripheries={2 if block.count > 1 else 1}"
    if block.kind == "join":
        return f"label={_quoted(block.title)}, shape={'circle' if len(block.title) == 1 else 'box'}, margin=0.05"
    if block.kind != "ops":
        return f"label={_quoted(block.title + chr(10) + block.note)}, shape=ellipse"
    rows = [row.text + (f" ◆ {row.shared}" if row.shared else "") for row in block.rows]
    return f'label={_quoted(chr(10).join(rows))}, fillcolor="{LIGHT[block.rows[0].family]}"'


def _style(cluster: Cluster) -> str:
    return '"rounded,dashed"' if cluster.kind == "region" else "rounded"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
