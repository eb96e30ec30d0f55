"""New layers beside old ones: gates, and what they gate."""

from __future__ import annotations

from typing import Any

from archc.ir.graph import Node, Parameter, Value
from archc.ir.init import Init
from archc.ir.op import OpDef
from archc.ir.types import TensorType
from archc.passes.editing import Editor
from archc.passes.manager import Context


class Partners:
    """Adds layers beside old ones. Where old ones share their weights, so do the new ones."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._known: dict[tuple[Parameter, str], dict[str, Parameter]] = {}

    def add(
        self, e: Editor, of: Node, op: OpDef[Any], x: Value, name: str, *, bias: Init | None = None, **fields: Any
    ) -> Node:
        """A node `op(x)` called `name`, beside `of`, a layer with a `weight`. `bias` says how its bias starts, if not
        as the op would have it."""
        known = self._known.setdefault((of.weights["weight"], name), {})
        full = e.name(name)
        if bias is not None and not known:
            out, dtype = fields["params"].out if "params" in fields else fields["out"], of.output.type.dtype
            known["bias"] = Parameter(f"{full}.bias", TensorType((out,), dtype), bias)
        node = e.node(op, x, full_name=full, weights=known, **fields)
        known.update(node.weights)
        return node

    def copy(self, e: Editor, of: Node, name: str) -> Node:
        """The layer once more, with weights of its own that are born the same."""
        node = self.add(e, of, of.op, of.operands[0], name, params=of.params)
        if self.context.weights is not None:
            for role, parameter in node.weights.items():
                self.context.store(parameter, self.context.value(of.weights[role]))
        return node

    def constant(self, e: Editor, of: Node, name: str, value: Init) -> Node:
        """A layer like `of` that is born with zero weights and the bias `value`."""
        params = of.params.model_copy(update={"bias": True, "init": "zeros"})
        return self.add(e, of, of.op, of.operands[0], name, bias=value, params=params)
