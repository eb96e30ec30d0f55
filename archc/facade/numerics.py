"""Is a compiled result right? Judged by torch in float64, with a tolerance that the network's own conditioning sets.

Shapes, dtypes and the places of NaN and infinities are compared first. Then each output's error is the largest
`|result - judge|`, and what is allowed is `FACTOR` times the noise that the number format makes unavoidable: the larger
of what torch itself errs in that format, of what moves when every weight and input is rounded to it, and of one unit
in the last place of the largest element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from archc.ir.graph import Graph
from archc.ir.types import FLOATS, NUMPY_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTOR = 16.0
"""How many times the unavoidable noise a result may err: kernels add in another order than torch does."""

Arrays = Mapping[str, Any]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output: `error` and `allowed` are absolute; `reason` says what is wrong, and is empty when nothing is."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float
    allowed: float
    scale: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome. `diverges` names the first node whose result is off, where that was looked for."""

    outputs: tuple[OutputCheck, ...]
    seed: int
    sizes: Mapping[str, int]
    diverges: str | None = None

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outputs)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True, slots=True)
class Judge:
    """The network in torch: its outputs in float64, and the noise of its own number format, for one set of inputs."""

    exact: tuple[NDArray[Any], ...]
    noise: tuple[float, ...]


def judge(graph: Graph, weights: Arrays, inputs: Arrays) -> Judge:
    """Run the network in torch: exactly, in its own format, and with everything rounded once more."""
    import numpy as np
    import torch

    from archc.backends.torch.module import to_torch

    rng = np.random.Generator(np.random.Philox(1))
    epsilon = max((_epsilon(v.type.dtype) for v in (*graph.inputs, *graph.outputs)), default=2.0**-24)

    def signs(shape: Sequence[int]) -> NDArray[Any]:
        return np.asarray(1 + epsilon * rng.choice([-1.0, 1.0], tuple(shape)))

    def run(wide: bool, nudged: bool = False) -> tuple[NDArray[Any], ...]:
        module = to_torch(graph, weights).eval()
        module = module.double() if wide else module
        tensors = [_tensor(inputs[v.name], v.type.dtype, wide) for v in graph.inputs]
        if nudged:
            for tensor in (*module.state_dict().values(), *tensors):
                if tensor.is_floating_point():
                    tensor.mul_(torch.from_numpy(signs(tensor.shape)))
        with torch.no_grad():
            made = module(*tensors)
        return tuple(_array(t) for t in (made if isinstance(made, tuple) else (made,)))

    exact, own, moved = run(True), run(False), run(True, nudged=True)
    noise = []
    for y, mine, other in zip(exact, own, moved, strict=True):
        finite = np.isfinite(y) if y.dtype.kind == "f" else np.ones(y.shape, bool)
        if y.dtype.kind != "f" or not finite.any():
            noise.append(0.0)
            continue
        scale = float(np.abs(y[finite]).max())
        errs = (_distance(mine, y, finite), _distance(other, y, finite), epsilon * scale)
        noise.append(max(e for e in errs if np.isfinite(e)))
    return Judge(exact, tuple(noise))


def compare(graph: Graph, judged: Judge, results: Arrays) -> tuple[OutputCheck, ...]:
    """Each output of `results` against the judge."""
    return tuple(
        _compare(name, value.type.dtype, exact, noise, results.get(name))
        for name, value, exact, noise in zip(graph.output_names, graph.outputs, judged.exact, judged.noise, strict=True)
    )


def _compare(name: str, dtype: str, exact: NDArray[Any], noise: float, result: Any) -> OutputCheck:
    import numpy as np

    shape, needed = exact.shape, NUMPY_NAMES[dtype]
    if result is None:
        return OutputCheck(name, shape, dtype, np.inf, 0.0, 0.0, "the output is missing")
    if result.shape != shape:
        return OutputCheck(name, result.shape, dtype, np.inf, 0.0, 0.0, f"shape {result.shape}, should be {shape}")
    if str(result.dtype) != needed:
        return OutputCheck(
            name, shape, str(result.dtype), np.inf, 0.0, 0.0, f"dtype {result.dtype}, should be {needed}"
        )
    if dtype not in FLOATS:
        wrong = int((result != exact).sum())
        return OutputCheck(name, shape, dtype, float(wrong), 0.0, 0.0, f"{wrong} elements differ" if wrong else "")
    wide = result.astype(np.float64)
    reason = _special_values(wide, exact)
    finite = np.isfinite(exact) & np.isfinite(wide)
    error = _distance(wide, exact, finite)
    scale = float(np.abs(exact[finite]).max()) if finite.any() else 0.0
    allowed = FACTOR * noise
    if not reason and error > allowed:
        reason = f"off by {error:.2e} where {allowed:.2e} is allowed"
    return OutputCheck(name, shape, dtype, error, allowed, scale, reason)


def _special_values(result: NDArray[Any], exact: NDArray[Any]) -> str:
    """What differs in the places of NaN, +inf and -inf; overflow of the narrower format is not a difference."""
    import numpy as np

    if (np.isnan(result) != np.isnan(exact)).any():
        return "NaN stands in other places"
    limit = float(np.finfo(np.float32).max)
    for sign, word in ((1, "+inf"), (-1, "-inf")):
        found, needed = result == sign * np.inf, exact == sign * np.inf
        if (found & ~needed & (np.abs(exact) < limit)).any() or (needed & ~found).any():
            return f"{word} stands in other places"
    return ""


def _distance(a: NDArray[Any], b: NDArray[Any], where: NDArray[Any]) -> float:
    import numpy as np

    if not where.any():
        return 0.0
    return float(np.abs(a.astype(np.float64)[where] - b[where]).max())


def _epsilon(dtype: str) -> float:
    return {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}.get(dtype, 0.0)


def _tensor(array: Any, dtype: str, cast: bool) -> Any:
    import numpy as np
    import torch

    from archc.backends.torch.module import TORCH_DTYPES

    if dtype not in FLOATS:
        return torch.from_numpy(np.asarray(array, order="C"))
    wide = torch.from_numpy(np.array(array, dtype=np.float64))
    return wide if cast else wide.to(TORCH_DTYPES[dtype])


def _array(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.double() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def verify_run(
    graph: Graph, weights: Arrays, run: Run, *, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> Verification:
    """Judge a compiled network on random inputs.

    `run` maps inputs by name (numpy, the declared dtypes) to outputs by name. `sizes` fixes symbolic dimensions.
    """
    from archc.backends.inputs import random_inputs, symbol_sizes

    inputs = random_inputs(graph, seed, sizes)
    checks = compare(graph, judge(graph, weights, inputs), run(inputs))
    return Verification(checks, seed, symbol_sizes(graph, sizes))


def first_divergence(
    graph: Graph,
    weights: Arrays,
    compile_run: Callable[[Graph], Run],
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> str | None:
    """The first node (in program order) whose result is off when every node's result is an output; None if none is.

    `compile_run` compiles a graph and returns how to run it. Regions are not looked into.
    """
    exposed = expose(graph)
    verification = verify_run(exposed, weights, compile_run(exposed), seed=seed, sizes=sizes)
    wrong = [o.name for o in verification.outputs if not o.ok]
    return wrong[0] if wrong else None


def expose(graph: Graph) -> Graph:
    """The same nodes with the result of each as an output, in program order."""
    seen: Graph = Graph(graph.name, graph.inputs, [], [], graph.nodes)
    for node in graph.nodes:
        values: Sequence[Any] = node.outputs
        for value in values:
            seen.outputs.append(value)
            seen.output_names.append(value.name)
    return seen
