"""New layers beside old ones, and new parameters in place of old ones, where weights may be shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import Init
from archc.ir.op import OpDef
from archc.ir.types import TensorType
from archc.passes.blocks import users_of
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


class Successors:
    """Parameters in place of old ones, for `nodes` that are made anew: of another shape, or other values.

    What nodes shared, they share. A successor has the old name, or, where another node goes on with the old parameter,
    one of its own."""

    def __init__(self, graph: Graph, nodes: Iterable[Node], editor: Editor, context: Context) -> None:
        self.users = users_of(graph)
        self.chosen = Counter(p.name for node in nodes for p in node.weights.values())
        self.editor, self.context = editor, context
        self._known: dict[Parameter, Parameter] = {}

    def of(self, old: Parameter, node: Node, shape: tuple[int, ...], value: Any, init: Init | None = None) -> Parameter:
        """The successor of a parameter of `node`; `value` gives its weights from the old ones, as float64."""
        if old not in self._known:
            stays = self.chosen[old.name] != self.users[old.name]
            name = self.editor.free(f"{node.name}.{old.name.rpartition('.')[2]}") if stays else old.name
            new = Parameter(name, TensorType(shape, old.type.dtype), init or old.init, old.trainable)
            if self.context.weights is not None:
                self.context.store(new, value(self.context.value(old)))
            self._known[old] = new
        return self._known[old]
