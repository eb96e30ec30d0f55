"""What a pruned network is to compute, said by the old one: every removed element masked, nothing resized.

Weights of removed elements are 0. That alone is masking wherever elements are read through weights. Where tensors meet
each other along a pruned axis one of them is multiplied by the mask, and what looks across the axis (a norm, a softmax,
a mean) sees the elements that are left: they are taken out, and put back among zeros.

It is written apart from `archc.passes.resize`, of which it is the check: same function, other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from archc.ir.axes import Axes, AxisVar
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.ops.constants import BUFFER, CONSTANT
from archc.ir.ops.elementwise import MUL
from archc.ir.ops.index import INDEX_SELECT
from archc.ir.ops.pieces import PAD
from archc.ir.types import TensorType
from archc.passes.manager import Weights
from archc.passes.resize import Choice, places, resized_params, touched
from archc.passes.units import letter_roles

if TYPE_CHECKING:
    from numpy.typing import NDArray


def masked(graph: Graph, axes: Axes, choice: Choice, weights: Weights) -> tuple[Graph, Weights]:
    """The network with what `choice` leaves out masked, and its weights. The old one stays as it is.

    Raises: AssertionError for a norm inside `attention` along an axis that is pruned: it cannot be looked into.
    """
    writer = _Masker(axes, choice, weights)
    new = Graph(graph.name, output_names=list(graph.output_names))
    writer.write(graph, new)
    return new, writer.weights


class _Masker:
    def __init__(self, axes: Axes, choice: Choice, weights: Weights) -> None:
        self.axes, self.choice, self.old = axes, choice, weights
        self.weights: Weights = {}
        self.parameters: dict[Parameter, Parameter] = {}
        self.count = 0

    def write(self, old: Graph, new: Graph) -> None:
        values = {v: new.add_input(v.name, v.type, v.span) for v in old.inputs}
        for node in old.nodes:
            self.node(node, new, values)
        new.outputs = [values[v] for v in old.outputs]

    def node(self, old: Node, new: Graph, values: dict[Value, Value]) -> None:
        operands = [values[v] for v in old.operands]
        across = [v for v in self.letters(old, "mixed") if touched([v], self.choice.tables)]
        for v in (*across, *self.letters(old, "reduced")):
            for i, x in enumerate(old.operands):
                axis = self.axis(x, v)
                if axis is not None:
                    operands[i] = self.taken(new, operands[i], axis, self.kept(x, axis))
        for v in self.letters(old, "met"):
            i = next(i for i, x in enumerate(old.operands) if self.axis(x, v) is not None)
            operands[i] = self.multiplied(new, operands[i], old.operands[i])
        made = new.add(
            old.op,
            operands,
            resized_params(old, self.axes, self.choice.sizes()) if across else old.params,
            name=old.name,
            weights={role: self.parameter(p, bool(across)) for role, p in old.weights.items()},
            regions=[self.region(r) for r in old.regions],
            captures=[values[v] for v in old.captured],
        )
        for y, z in zip(old.outputs, made.outputs, strict=True):
            for v in across:
                axis = self.axis(y, v)
                assert axis is not None, f"{old} looks across an axis that it does not pass on"
                z = self.put_back(new, z, axis, self.kept(y, axis), y.type.shape[axis])
            values[y] = z

    def letters(self, node: Node, role: str) -> list[AxisVar]:
        """The axes of a node on which elements are removed, and with which it does this."""
        if node.regions:
            return []
        of = letter_roles(node.bound.signature)
        variables = [v for name, own in self.axes.letters[node].items() if of.get(name) == role for v in own]
        return [v for v in variables if touched([v], self.choice.tables)]

    def axis(self, value: Value, var: AxisVar) -> int | None:
        """The axis of a tensor that has the leaves of a variable."""
        leaves = set(var.leaves())
        return next((i for i, v in enumerate(self.axes.values[value]) if leaves & set(v.leaves())), None)

    def kept(self, value: Value, axis: int) -> NDArray[Any]:
        """The places of an axis that are left."""
        index = places([self.axes.values[value][axis]], self.choice)[0]
        return index.ravel()

    def mask(self, variables: Sequence[AxisVar], shape: Sequence[int]) -> NDArray[Any]:
        import numpy as np

        mask = np.zeros(tuple(shape))
        mask[places(variables, self.choice)] = 1.0
        return mask

    def parameter(self, old: Parameter, across: bool) -> Parameter:
        """The weight with zeros where elements are removed; without them for an op that looks across."""
        import numpy as np

        if old not in self.parameters:
            variables, value = self.axes.parameters[old], np.asarray(self.old[old.name])
            new = old
            if touched(variables, self.choice.tables):
                if across:
                    value = value[places(variables, self.choice)]
                else:
                    value = value * self.mask(variables, old.shape)
                new = Parameter(old.name, TensorType(value.shape, old.type.dtype), old.init, old.trainable)
            self.parameters[old], self.weights[old.name] = new, value
        return self.parameters[old]

    def region(self, old: Graph) -> Graph:
        new = Graph(old.name)
        self.write(old, new)
        return new

    # -- what is added ------------------------------------------------------------------------------------------------

    def add(self, graph: Graph, op: Any, *inputs: Value, **fields: Any) -> Node:
        self.count += 1
        return graph.add(op, inputs, op.params(**fields), name=f"mask{self.count}")

    def index(self, graph: Graph, places: Iterable[int]) -> Value:
        return self.add(graph, CONSTANT, value=tuple(int(i) for i in places), dtype="i64").output

    def taken(self, graph: Graph, x: Value, axis: int, kept: NDArray[Any]) -> Value:
        return self.add(graph, INDEX_SELECT, x, self.index(graph, kept), axis=axis).output

    def put_back(self, graph: Graph, x: Value, axis: int, kept: NDArray[Any], size: Any) -> Value:
        """What was taken out at its old places, zeros elsewhere: the last element of a padded axis."""
        where = [len(kept)] * size
        for i, place in enumerate(kept):
            where[place] = i
        behind = 2 * (x.type.rank - 1 - axis)
        padded = self.add(graph, PAD, x, widths=(*[0] * behind, 0, 1)).output
        return self.taken(graph, padded, axis, where)  # type: ignore[arg-type]

    def multiplied(self, graph: Graph, x: Value, old: Value) -> Value:
        """A tensor with zeros at the removed elements."""
        variables = [v if touched([v], self.choice.tables) else AxisVar(1) for v in self.axes.values[old]]
        shape = [int(str(v.size)) for v in variables]
        mask = self.add(graph, BUFFER, shape=tuple(shape), dtype=x.type.dtype)
        self.weights[f"{mask.name}.weight"] = self.mask(variables, shape)
        return self.add(graph, MUL, x, mask.output).output


__all__ = ["masked"]
