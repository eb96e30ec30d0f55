"""Dead code elimination: nodes, captures and weights that no output needs go.

y = relu(x)                                    y = relu(x)
z = linear(x, out=8; weight=W)         →       return y
return y
"""

from __future__ import annotations

from archc.ir.dead import remove_dead_code
from archc.ir.graph import Graph
from archc.passes.manager import Context, Pass


def eliminate_dead_code(graph: Graph, context: Context) -> bool:
    """Drop what no output needs, from the graph and from the context's weights."""
    changed = remove_dead_code(graph)
    if context.weights is None:
        return changed
    unused = context.weights.keys() - graph.parameters().keys()
    for name in unused:
        del context.weights[name]
    return changed or bool(unused)


DCE = Pass("dce", eliminate_dead_code)
