"""Networks in float64 on generic weights and one fixed random input: what numeric certificates compute with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph, Node, Parameter, Value
from archc.ir.types import FLOATS, TensorType

Array = Any  # a numpy array; numpy and torch are imported where they are needed
Outputs = list[Array]

SMALL = (64, 96, 128)
"""Heights and widths that a certificate tries for images of a fixed larger size."""


def random_weights(graph: Graph, seed: int) -> dict[str, Array]:
    """Generic float64 weights: nothing that is zero or one at birth stays so, variances stay positive."""
    return {name: _generic(p, seed) for name, p in graph.parameters().items()}


def _generic(parameter: Parameter, seed: int) -> Array:
    import numpy as np

    from archc.ir.init import Init

    drawn = parameter.init.sample(parameter.shape, seed, parameter.name)
    if parameter.init.kind != "constant":
        return drawn
    spread = Init("uniform", 0.4).sample(parameter.shape, seed + 1, parameter.name)
    return np.asarray(drawn + spread)


def with_small_images(graph: Graph) -> Graph:
    """The network on smaller images, where its weights do not depend on their size; else the network itself.

    The weights, and with them their symmetries, are the same; only the certificate is faster.
    """
    for side in SMALL:
        types = {v: _smaller(v.type, side) for v in graph.inputs}
        if all(t is v.type for v, t in types.items()) or any(node.regions for node in graph.nodes):
            return graph
        try:
            return _retyped(graph, types)
        except CompileError:
            continue
    return graph


def _smaller(type_: TensorType, side: int) -> TensorType:
    if type_.rank != 4 or type_.dtype not in FLOATS:
        return type_
    shape = tuple(side if i > 1 and isinstance(d, int) and d > side else d for i, d in enumerate(type_.shape))
    return type_ if shape == type_.shape else TensorType(shape, type_.dtype)


def _retyped(graph: Graph, types: Mapping[Value, TensorType]) -> Graph:
    """The same ops on inputs of other types.

    Raises: CompileError when they cannot be applied to these, or would have weights of other shapes.
    """
    new = Graph(graph.name, output_names=list(graph.output_names))
    copies = {v: new.add_input(v.name, types[v]) for v in graph.inputs}
    for old in graph.nodes:
        inputs = [copies[v] for v in old.inputs]
        node = new.add(old.op, inputs, old.params, name=old.name, weights=old.weights)
        copies.update(zip(old.outputs, node.outputs, strict=True))
    new.outputs = [copies[v] for v in graph.outputs]
    return new


@dataclass
class Runner:
    """Runs a network in float64 on one fixed random input."""

    graph: Graph
    seed: int = 0
    sizes: Mapping[str, int] | None = None
    module: Any = field(init=False)
    inputs: list[Any] = field(init=False)
    shapes: dict[str, list[int]] = field(init=False)
    dtypes: dict[str, Any] = field(init=False)
    paths: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        import torch

        from archc.backends.inputs import random_inputs
        from archc.backends.torch.module import TORCH_DTYPES, to_torch

        self.dtypes = {
            n: torch.float64 if p.type.dtype in FLOATS else TORCH_DTYPES[p.type.dtype]
            for n, p in self.graph.parameters().items()
        }
        nothing = {
            n: torch.zeros(p.shape, dtype=TORCH_DTYPES[p.type.dtype]) for n, p in self.graph.parameters().items()
        }
        self.module = to_torch(self.graph, nothing).double().eval()  # weights come with each call
        found = random_inputs(self.graph, self.seed, self.sizes, "f64")
        self.inputs = [torch.from_numpy(v) for v in found.values()]
        self.shapes = {n: list(v.shape) for n, v in found.items()}
        self.paths = {n: ".".join(path) for n, path in self.module.parameter_paths.items()}

    def tensors(self, weights: Mapping[str, Array]) -> dict[str, Any]:
        import torch

        return {self.paths[n]: torch.from_numpy(w).to(self.dtypes[n]) for n, w in weights.items()}

    def __call__(self, weights: Mapping[str, Array]) -> Outputs:
        import torch

        with torch.no_grad():
            outputs = torch.func.functional_call(self.module, self.tensors(weights), tuple(self.inputs))
        return [o.detach().numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]

    def influence(self, weights: Mapping[str, Array]) -> dict[str, float]:
        """For each trained parameter the largest |∂/∂w · w| of a random projection of the outputs."""
        import torch

        trained = {self.paths[n]: n for n, p in self.graph.parameters().items() if p.trainable}
        tensors = {
            path: t.requires_grad_() if path in trained and t.is_floating_point() else t
            for path, t in self.tensors(weights).items()
        }
        outputs = torch.func.functional_call(self.module, tensors, tuple(self.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        random = torch.Generator().manual_seed(self.seed)
        total: Any = sum(
            (o * torch.rand(o.shape, generator=random, dtype=o.dtype)).sum() for o in outputs if o.requires_grad
        )
        wanted = {trained[path]: t for path, t in tensors.items() if t.requires_grad}
        if not torch.is_tensor(total):  # nothing but whole numbers comes out, or nothing is trained
            return dict.fromkeys(wanted, math.inf)
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        return {
            n: 0.0 if g is None or not t.numel() else float((g * t.detach()).abs().max())
            for (n, t), g in zip(wanted.items(), found, strict=True)
        }


TOLERANCE = 1e-12
CONTROL = 1e-6
NUDGE = 1e-9


@dataclass
class Trial:
    """A network with random weights, run once: what elements of a group are tried on.

    conditioning  relative change of the outputs per relative change of the weights, measured (at least 1)
    limit         the largest change that rounding explains: the conditioning times 1e-12
    large         whether images of a fixed large size make every run expensive
    """

    weights: dict[str, Array]
    run: Runner
    before: Outputs
    conditioning: float
    large: bool

    @property
    def limit(self) -> float:
        return TOLERANCE * self.conditioning

    def allows(self, error: float) -> bool:
        """Whether rounding explains a change of outputs that are finite, and stay so when weights are nudged."""
        return math.isfinite(error) and math.isfinite(self.conditioning) and error <= self.limit


def trial(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Trial:
    """Random weights and inputs for a network, on smaller images where its weights allow."""
    import numpy as np

    weights, graph = random_weights(graph, seed), with_small_images(graph)
    large = any(_smaller(v.type, SMALL[0]) is not v.type for v in graph.inputs)
    if large:  # one image is enough
        sizes = dict.fromkeys(graph.symbols()[:1], 1) | dict(sizes or {})
    run = Runner(graph, seed, sizes)
    before = run(weights)
    rng = np.random.Generator(np.random.Philox(seed))
    nudged = {n: w * (1 + NUDGE * rng.uniform(-1, 1, w.shape)) for n, w in weights.items()}
    return Trial(weights, run, before, max(1.0, change(before, run(nudged)) / NUDGE), large)


def change(before: Outputs, after: Outputs) -> float:
    """The largest relative change over the outputs; infinite when an output is not finite."""
    import numpy as np

    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.dtype.kind != "f":  # bools and whole numbers are the same or not
            a, b = a.astype(np.float64), b.astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return math.inf
        scale = float(np.abs(a).max()) if a.size else 0.0
        if a.size:
            worst = max(worst, float(np.abs(a - b).max()) / (scale or 1.0))
    return worst


@dataclass(frozen=True, slots=True)
class Controls:
    """What came of negative controls: moves of all but one of the parameters that are to move together.

    They say how much a small error is worth, and cannot make it wrong: where none tells, the moves kept the function
    because any part of them does.

    least      the smallest change of the outputs that one made; NaN when none told anything
    count      how many told
    free       moves that each of their parameters can be left out of, though the outputs depend on them (the bias and
               the weights of outputs that are summed): the group is larger than was derived
    unreached  moves of parameters that the input does not reach (an expert that is not chosen)
    """

    least: float = math.nan
    count: int = 0
    free: int = 0
    unreached: int = 0


Move = tuple[Callable[[], Mapping[str, Array]], Sequence[str]]
"""How to make the weights that are moved, and the names of the parameters that move."""

SPARED = 4
"""How many parameters of a move are spared, one after the other, until one tells."""


def negative_controls(given: Trial, moves: Sequence[Move], seed: int, most: int) -> Controls:
    """Leave one parameter where it is while the others of its move go on: the outputs should change. Where they do not,
    another is spared."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    least, count, free, unreached = math.inf, 0, 0, 0
    for k in rng.permutation(len(moves)):
        if count == most:
            break
        make, names = moves[k]
        moved = make()
        for i in rng.permutation(len(names))[:SPARED]:
            found = change(given.before, given.run({**moved, names[i]: given.weights[names[i]]}))
            if found >= CONTROL:
                least, count = min(least, found), count + 1
                break
        else:
            other = {n: given.weights[n] * rng.uniform(1.1, 2, given.weights[n].shape) for n in names}
            reached = change(given.before, given.run({**given.weights, **other})) >= CONTROL
            free, unreached = free + reached, unreached + (not reached)
    return Controls(least if count else math.nan, count, free, unreached)


def conditional(graph: Graph) -> set[Parameter]:
    """Parameters of experts, skipped bodies and exits, which an input need not reach, and of what decides on that,
    where a small change need not change a decision."""
    return {p for node in graph.walk() for inner in _sometimes(node) for p in inner.weights.values()}


def _sometimes(node: Node) -> Iterable[Node]:
    if node.op.name in ("moe", "skip", "exit"):
        for region in node.regions:
            yield from region.walk()
