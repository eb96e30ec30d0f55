"""Dead code elimination: nodes whose results nobody reads, and captures that no region reads, go.

y = relu(x)                      y = relu(x)
z = exp(x)             →         return y
return y
"""

from __future__ import annotations

from archc.ir.dead import remove_dead_code
from archc.passes.manager import Pass

DCE = Pass("dce", lambda graph, context: remove_dead_code(graph))
