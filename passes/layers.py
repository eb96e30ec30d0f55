"""What passes share that compute new weights for linear maps and convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.op import Call, OpDef, Params, WeightSpec, bind
from archc.ir.types import TensorType
from archc.passes.manager import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Arrays = Mapping[str, NDArray[np.generic]]


def owns_weights(node: Node, users: Mapping[str, int]) -> bool:
    """Is every weight of the node its own, by what `users_of` has counted? (One that it has not is new.)"""
    return all(users.get(p.name, 1) == 1 for p in node.weights.values())


def weight(node: Node, role: str, weights: Weights) -> Array | None:
    """A weight of a node in float64, None where it has none of this role."""
    import numpy as np

    if role not in node.weights:
        return None
    found: Array = weights[node.weights[role].name].astype(np.float64)
    return found


class Rewiring:
    """New layers in the place of old ones, in one region of a network whose weights are known.

    Weights are kept in the dtype in which those of the old layers were. A new layer stands where that stood whose name
    it has: `finish` puts it there.
    """

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self.graph, self.weights = graph, weights
        self._gone: list[Node] = []
        self._stead: dict[Node, list[Node]] = {}

    def stored(self, values: Mapping[str, Array], like: Node) -> Arrays | None:
        """These weights in the dtype of those of `like`; None where that cannot hold them."""
        import numpy as np

        dtype = self.weights[like.weights["weight"].name].dtype
        with np.errstate(over="ignore"):
            arrays = {role: value.astype(dtype) for role, value in values.items()}
        finite = all(np.isfinite(extreme) for a in arrays.values() if a.size for extreme in (a.min(), a.max()))
        return arrays if finite else None

    def layer(
        self,
        like: Node,
        x: Value,
        params: Params,
        values: Arrays,
        instead_of: Iterable[Node],
        name: str = "",
    ) -> Node:
        """A layer of the op of `like` with these parameters and weights. It is called as `like`; `instead_of` (`like`
        among them) and their weights go."""
        old = like.weights["weight"]
        name = name or like.name
        specs = bind(like.op, Call(params, (x.type,))).weights
        kept = {
            role: parameter
            for role, parameter in like.weights.items()
            if role in specs
            and parameter.shape == specs[role].type.shape
            and _stays(parameter, specs[role], name, role)
        }
        for node in instead_of:
            self.drop(node, kept.values())
        for role, spec in specs.items():
            own = f"{name}.{role}"
            if role not in kept and own in self.weights:  # a program may name its weights as it likes
                while own in self.weights:
                    own += "_"
                kept[role] = Parameter(own, TensorType(values[role].shape, old.type.dtype), spec.init)
        new = self.graph.add(like.op, [x], params, name=name, weights=kept, span=like.span, trace=like.trace)
        self._stead[like] = [self.graph.nodes.pop()]
        for role, value in values.items():
            self.weights[new.weights[role].name] = value
        return new

    def behind(self, node: Node, op: OpDef[Any], params: Params, name: str) -> Node:
        """A node that reads a new layer, right behind it."""
        new = self.graph.add(op, [node.output], params, name=name, span=node.span, trace=node.trace)
        self._stead[node] = [node, self.graph.nodes.pop()]
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
        self.graph.nodes = [new for old in self.graph.nodes for new in self._in_stead(old)]
        self.graph.erase(*self._gone)
        return True

    def _in_stead(self, node: Node) -> Iterator[Node]:
        for new in self._stead.get(node, ()):
            yield from [new] if new is node else self._in_stead(new)
        if node not in self._stead:
            yield node


def _stays(parameter: Parameter, spec: WeightSpec, node: str, role: str) -> bool:
    """Is the parameter what the op would make, or has the program named it?"""
    return parameter.name != f"{node}.{role}" or parameter.init == spec.init


def with_values(params: Params, **changes: Any) -> Params:
    """The parameters with some of them changed."""
    return params.model_copy(update=changes)
