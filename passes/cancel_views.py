"""Views that undo each other around elementwise arithmetic go.

    a = permute(x, order=[0, 2, 3, 1])
    b = relu(a)                              b = relu(x)
    c = mul(b, constant(value=2.0))    →     c = mul(b, constant(value=2.0))
    d = permute(c, order=[0, 3, 1, 2])       return c
    return d

An elementwise op does not care where an element stands. So what lies between a view and tensors that all were made by
the inverse view (besides numbers, which have no axes) may as well work on what these were made of. The same for a
`reshape` of reshapes that came from its own shape.
"""

from __future__ import annotations

from archc.ir.graph import Graph, Node, Value
from archc.ir.ops.shape import PERMUTE, RESHAPE
from archc.passes.canonicalise import permutation
from archc.passes.manager import Context, Pass


def cancel_views(graph: Graph, context: Context) -> bool:
    """Rewrite every stretch of arithmetic between inverse views, in each region on its own. The inner views stay for
    dead code elimination."""
    changed = False
    for region in list(graph.graphs()):
        gone: list[Node] = []
        for view in [n for n in region.nodes if n.op in (PERMUTE, RESHAPE)]:
            between = _between(region, view)
            if between:
                _rebuild(region, view, between)
                gone += [view, *between]
        if gone:
            region.erase(*gone)
            region.sort()
            changed = True
    return changed


def _between(graph: Graph, view: Node) -> list[Node]:
    """The elementwise nodes that nothing but `view` needs, in topological order, if all else that they read is undone
    by it or is a number; none otherwise."""
    read: dict[Value, int] = {view.operands[0]: 1}
    found: list[Node] = []
    ready = [view.operands[0]]
    while ready:  # a node is entered when all its readers are in: each is entered for one view at most
        value = ready.pop()
        node = value.producer
        if node is None or not node.op.elementwise or value.type.rank == 0 or graph.use_count(value) != read[value]:
            continue
        found.append(node)
        for operand in node.operands:
            read[operand] = read.get(operand, 0) + 1
            if read[operand] == sum(operand.uses.values()):
                ready.append(operand)
    inside = {node.output for node in found}
    if any(v.type.rank and v not in inside and not _undone(v, view) for v in read):
        return []
    if view.op is RESHAPE and any(v.type.rank and v.type.shape != view.operands[0].type.shape for v in read):
        return []  # something broadcasts: in another shape it may not
    return found[::-1]


def _undone(value: Value, view: Node) -> bool:
    """Does `view`, applied to the value, give what the value was made of?"""
    before = value.producer
    if before is None or before.op is not view.op:
        return False
    if view.op is RESHAPE:
        return before.operands[0].type.shape == view.output.type.shape
    inner, outer = permutation(before), permutation(view)
    return [inner[a] for a in outer] == list(range(len(outer)))


def _rebuild(graph: Graph, view: Node, between: list[Node]) -> None:
    """The same nodes, on what the inner views were made of."""
    copies: dict[Value, Value] = {}

    def source(value: Value) -> Value:
        if value in copies or not value.type.rank:
            return copies.get(value, value)
        assert value.producer is not None
        return value.producer.operands[0]

    for old in between:
        operands = [source(v) for v in old.operands]
        new = graph.add(old.op, operands, old.params, name=old.name, span=old.span, trace=old.trace)
        copies[old.output] = new.output
    view.output.replace_all_uses(copies[view.operands[0]], graph)
    for old in (view, *between):
        old.set_inputs(())


CANCEL_VIEWS = Pass("cancel_views", cancel_views)
