"""Do two networks compute the same? Run by torch on the same inputs, in float64 and in the networks' own formats.

How a contract is checked, and what `archc verify --same-function` proves. What counts as the same in float64
is an error of at most `EXACT` of the largest output, or what rounding explains where the network itself is worse
conditioned than that: `FACTOR` times what the old network moves when every weight is nudged by one unit in the last
place. In float32 it is `FACTOR` times the same for that format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from archc.facade.numerics import FACTOR
from archc.ir.clone import clone
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Value

if TYPE_CHECKING:
    from archc.passes.manager import Observe

EXACT = 1e-10
Arrays = Mapping[str, Any]
Mode = Literal["eval", "train"]
Format = Literal["f64", "f32"]
_EPSILON = {"f64": 2.0**-53, "f32": 2.0**-24}


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """One output: `error` is the largest difference, `relative` is it to the largest element of the old one, `allowed`
    what is (relative). `reason` says what is wrong besides: shapes, dtypes, places of NaN and infinities."""

    name: str
    shape: tuple[int, ...]
    error: float
    relative: float
    allowed: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason and self.relative <= self.allowed


@dataclass(frozen=True, slots=True)
class Sameness:
    """The outcome of one comparison."""

    outputs: tuple[OutputDifference, ...]
    mode: Mode
    format: Format
    seed: int

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outputs)

    @property
    def relative(self) -> float:
        """The largest relative difference; infinite when something else is wrong."""
        return max((float("inf") if o.reason else o.relative for o in self.outputs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "relative": self.relative}


def same_function(
    old: Graph,
    new: Graph,
    old_weights: Arrays,
    new_weights: Arrays,
    *,
    mode: Mode = "eval",
    format: Format = "f64",
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    inputs: Arrays | None = None,
) -> Sameness:
    """Compare two networks on `inputs` (by name), by default random ones drawn from `seed`.

    Dropout is left out in both. Weights may be float64 whatever the parameters' dtype, and are then used as such.

    Raises: CompileError E0406 when the networks have other inputs or outputs.
    """
    reference = Reference(old, old_weights, mode=mode, format=format, seed=seed, sizes=sizes, inputs=inputs)
    return reference.compare(new, new_weights)


class Reference:
    """A network that others are compared with, on `inputs` or random ones: it is run once, whatever their number."""

    def __init__(
        self,
        graph: Graph,
        weights: Arrays,
        *,
        mode: Mode = "eval",
        format: Format = "f64",
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        inputs: Arrays | None = None,
    ) -> None:
        from archc.backends.inputs import random_inputs

        self.graph, self.weights, self.mode, self.format, self.seed = graph, weights, mode, format, seed
        self.inputs = random_inputs(graph, seed, sizes, "f64") if inputs is None else inputs

    @cached_property
    def outputs(self) -> tuple[list[Any], list[Any]]:
        """What the network computes, and what it computes when every weight is nudged."""
        import numpy as np

        run = _Runner(_without_dropout(self.graph), self.format)
        rng = np.random.Generator(np.random.Philox(self.seed))
        before = run(self.weights, self.inputs, self.mode)
        nudged = {n: _nudged(np.asarray(w), _EPSILON[self.format], rng) for n, w in self.weights.items()}
        return before, run(nudged, self.inputs, self.mode)

    def compare(self, new: Graph, weights: Arrays) -> Sameness:
        """Compare another network with this one; raises what `same_function` raises."""
        old = self.graph
        _same_ports(old, new)
        before, moved = self.outputs
        after = _Runner(_without_dropout(new), self.format)(weights, self.inputs, self.mode)
        least, found = EXACT if self.format == "f64" else 8 * _EPSILON[self.format], []
        for name, value, y, z, noise in zip(old.output_names, old.outputs, before, after, moved, strict=True):
            found.append(_compare(name, value, y, z, noise, least))
        return Sameness(tuple(found), self.mode, self.format, self.seed)


def observer(inputs: Arrays) -> Observe:
    """What lets passes see values of a network on sample data: torch in float64, in evaluation."""

    def observe(graph: Graph, weights: Any, values: Sequence[Value]) -> list[Any]:
        seen = Graph(graph.name, graph.inputs, list(values), [f"v{i}" for i in range(len(values))], graph.nodes)
        return _Runner(seen, "f64")(weights, inputs)

    return observe


def _same_ports(old: Graph, new: Graph) -> None:
    for what, a, b in (
        ("inputs", [(v.name, v.type) for v in old.inputs], [(v.name, v.type) for v in new.inputs]),
        ("outputs", _outputs(old), _outputs(new)),
    ):
        if a != b:
            found = [f"{name}: {type_}" for name, type_ in b]
            needed = [f"{name}: {type_}" for name, type_ in a]
            raise fail(
                "E0406",
                f"`{old.name}` and `{new.name}` have other {what}, so they cannot compute the same",
                label=f"{', '.join(needed)} and {', '.join(found)}",
            )


def _outputs(graph: Graph) -> list[tuple[str, Any]]:
    return [(name, v.type) for name, v in zip(graph.output_names, graph.outputs, strict=True)]


def _without_dropout(graph: Graph) -> Graph:
    """A copy in which nothing is drawn: what one network draws, another would not."""
    if not any(n.op.training_only for n in graph.walk()):
        return graph
    copy = clone(graph)
    for region in copy.graphs():
        for node in [n for n in region.nodes if n.op.training_only]:
            node.output.replace_all_uses(node.operands[0], region)
            region.erase(node)
    return copy


class _Runner:
    """Runs a network in torch with weights of any width."""

    def __init__(self, graph: Graph, format: Format) -> None:
        import numpy as np
        import torch

        from archc.backends.torch.module import to_torch
        from archc.backends.weights import numpy_dtype

        nothing = {  # one number for each parameter, seen in its shape: real ones are written over it
            name: np.broadcast_to(np.zeros((), numpy_dtype(p.type.dtype)), p.shape)
            for name, p in graph.parameters().items()
        }
        self.graph = graph
        self.wide = torch.float64 if format == "f64" else torch.float32
        self.module = to_torch(graph, nothing)
        self.module = self.module.double() if format == "f64" else self.module

    def __call__(self, weights: Arrays, inputs: Arrays, mode: Mode = "eval") -> list[Any]:
        import numpy as np
        import torch

        for name, tensor in self.module.state_dict().items():
            array = np.asarray(weights[name])
            array = array if array.dtype.kind in "iub" else array.astype(np.float64)
            tensor.copy_(torch.from_numpy(np.array(array, order="C", copy=None)).reshape(tensor.shape))
        given = [torch.from_numpy(np.ascontiguousarray(inputs[v.name])) for v in self.graph.inputs]
        given = [x.to(self.wide) if x.is_floating_point() else x for x in given]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.module.train(mode == "train")(*given)
        tensors = [t.detach() for t in (made if isinstance(made, tuple) else (made,))]
        return [(t.double() if t.is_floating_point() else t).numpy() for t in tensors]


def _nudged(array: Any, epsilon: float, rng: Any) -> Any:
    import numpy as np

    if array.dtype.kind in "iub":
        return array
    return array.astype(np.float64) * (1 + epsilon * rng.choice([-1.0, 1.0], array.shape))


def _compare(name: str, value: Value, old: Any, new: Any, nudged: Any, least: float) -> OutputDifference:
    import numpy as np

    if old.shape != new.shape or old.dtype != new.dtype:
        reason = f"{new.dtype}{list(new.shape)}, should be {old.dtype}{list(old.shape)}"
        return OutputDifference(name, new.shape, np.inf, np.inf, least, reason)
    if old.dtype.kind != "f":
        wrong = int((old != new).sum())
        return OutputDifference(name, new.shape, wrong, wrong, 0.0)
    finite = np.isfinite(old)
    if (finite != np.isfinite(new)).any():
        return OutputDifference(name, new.shape, np.inf, np.inf, least, "NaN or infinities stand in other places")
    if not finite.any():
        return OutputDifference(name, new.shape, 0.0, 0.0, least)
    scale = float(np.abs(old[finite]).max()) or 1.0
    error = float(np.abs(new - old)[finite].max())
    moved = np.abs(nudged - old)[finite & np.isfinite(nudged)]
    noise = FACTOR * float(moved.max()) / scale if moved.size else 0.0
    return OutputDifference(name, new.shape, error, error / scale, max(least, noise))
