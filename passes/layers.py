"""What passes share that compute new weights for linear maps and convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.init import ZEROS
from archc.ir.op import Params
from archc.ir.types import TensorType
from archc.passes.manager import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def parameter_users(graph: Graph) -> Counter[Parameter]:
    """How many nodes use each parameter, in regions too."""
    return Counter(p for node in graph.walk() for p in node.weights.values())


def owns_weights(node: Node, users: Mapping[Parameter, int]) -> bool:
    """Is every weight of the node its own? (One that nobody has counted is new.)"""
    return all(users.get(p, 1) == 1 for p in node.weights.values())


def weight(node: Node, role: str, weights: Weights) -> Array | None:
    """A weight of a node in float64, None where it has none of this role."""
    import numpy as np

    if role not in node.weights:
        return None
    found: Array = weights[node.weights[role].name].astype(np.float64)
    return found


class Rewiring:
    """New layers in the place of old ones, in one region of a network whose weights are known.

    Values of weights are given in float64 and kept in the dtype in which those of the old ones were. `finish` puts the
    nodes in order.
    """

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self.graph, self.weights = graph, weights
        self._gone: list[Node] = []

    def storable(self, values: Mapping[str, Array], like: Node) -> bool:
        """Are these weights finite numbers in the dtype of those of `like`?"""
        import numpy as np

        stored = self.weights[like.weights["weight"].name].dtype
        with np.errstate(over="ignore"):
            return all(bool(np.isfinite(v.astype(stored).astype(np.float64)).all()) for v in values.values())

    def layer(
        self,
        like: Node,
        x: Value,
        params: Params,
        values: Mapping[str, Array],
        instead_of: Iterable[Node],
        name: str = "",
    ) -> Node:
        """A layer of the op of `like` with these parameters and weights. It is called as `like`; `instead_of` (`like`
        among them) and their weights go."""
        stored = self.weights[like.weights["weight"].name].dtype
        kind = like.weights["weight"].type.dtype
        kept = {r: p for r, p in like.weights.items() if r in values and p.shape == values[r].shape and not name}
        for node in instead_of:
            self.drop(node, kept.values())
        name = name or like.name
        taken = {role: f"{name}.{role}" for role in values if role not in kept and f"{name}.{role}" in self.weights}
        for role, own in taken.items():  # a program may name its weights as it likes
            while own in self.weights:
                own += "_"
            kept[role] = Parameter(own, TensorType(values[role].shape, kind), ZEROS)
        new = self.graph.add(like.op, [x], params, name=name, weights=kept, span=like.span, trace=like.trace)
        for role, value in values.items():
            self.weights[new.weights[role].name] = value.astype(stored)
        return new

    def drop(self, node: Node, kept: Iterable[Parameter] = ()) -> None:
        """Take a node out, with its weights; its results must not be used when `finish` is called."""
        for parameter in node.weights.values():
            if parameter not in kept:
                del self.weights[parameter.name]
        node.set_inputs(())
        self._gone.append(node)

    def finish(self) -> bool:
        """Returns whether anything has changed."""
        if not self._gone:
            return False
        self.graph.erase(*self._gone)
        self.graph.sort()
        return True


def with_values(params: Params, **changes: Any) -> Params:
    """The parameters with some of them changed."""
    return params.model_copy(update=changes)
