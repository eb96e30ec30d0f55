"""From a case to a graph, input values and weights; and a graph computed by the references alone.

`run_reference` walks a graph and asks `torch_reference` for each node, so it is a backend of its own: slow, plain, and
without a line in common with the others.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cases import CASES, Case, Sizes
from torch import Tensor
from torch_reference import DTYPES, REFERENCE

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.grammar.parser import parse
from archc.grammar.program import Program
from archc.grammar.syntax import Bind
from archc.grammar.values import tensors_of
from archc.ir.dims import Dim, Expr, substitute
from archc.ir.graph import Graph, Node, Value
from archc.ir.op import REGISTRY
from archc.ir.types import FLOATS

NAMES = "xyzw"
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 6.0, -6.0, 1e-6, -1e-6)
SPECIAL += (1e-30, -1e-30, 10.0, -10.0, 19.99, 20.01, -20.0, 50.0, -50.0, 88.0, -88.0, 1e4, -1e4, 2.5)


def all_cases() -> list[Case]:
    """The table, and the example of every op that is not in it word for word."""
    examples = [
        Case(op.name, (f"def example = {op.example}",), (f"example({', '.join(NAMES[: len(types)])})",), types, kinds)
        for op in REGISTRY.values()
        if op.example
        for types in [op.example_inputs]
        for kinds in [tuple("index" if t[0] == "i" else "bools" if t[0] == "b" else "normal" for t in types)]
    ]
    return [*CASES, *examples]


def program(case: Case) -> str:
    """The text of a case as an architecture. What its outputs are typed is not known before it is elaborated."""
    lines = ["arch case()"]
    lines += [f"input {name}: {type_}" for name, type_ in zip(NAMES, case.inputs, strict=False)]
    lines += [f"output r{i}: f32[1]" for i in range(len(case.results))]
    lines += case.statements
    lines += [f"r{i} = {result}" for i, result in enumerate(case.results)]
    return "\n".join(lines) + "\n"


class _Untyped(Program):
    """A program whose outputs have the types of what they are bound to; several results are several outputs."""

    def _check_output(self, name: str, item: Bind) -> None:
        for i, tensor in enumerate(tensors_of(self.env.names[name]) or ()):
            key = f"{name}_{i}" if i else name
            self.outputs[key] = self.outputs[name]
            self.results[key] = (tensor.value, item.value.span)


@functools.cache
def build(case: Case) -> Graph:
    """The graph of a case, at the dtypes of the table."""
    return _Untyped(parse(program(case))).elaborate()


def random(case: Case, sizes: Sizes, purpose: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{case} {sizes} {purpose}".encode()))


def inputs(case: Case, sizes: Sizes, dtype: str) -> list[Tensor]:
    """Values for the inputs of a case; those of f32 in the table are of `dtype`."""
    rng, values = random(case, sizes, "inputs"), []
    for value, kind in zip(build(case).inputs, case.kinds, strict=True):
        shape = tuple(int(substitute(d, dict(sizes))) for d in value.type.shape)  # type: ignore[arg-type]
        array = _array(rng, kind, shape).astype(np.float32)  # f64 gets the same numbers
        values.append(torch.from_numpy(array).to(DTYPES[_at(value.type.dtype, dtype)]))
    return values


def _array(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape))
    if kind == "special":
        return np.resize(rng.permutation(SPECIAL), shape)
    if kind == "wide":
        return np.resize(rng.permutation([v for v in SPECIAL if not np.isinf(v)]), shape)
    if kind == "distinct":
        return rng.permutation(size).reshape(shape) - size / 3
    if kind == "ties":
        return rng.integers(0, 3, shape)
    if kind == "index":
        return rng.integers(0, 6, shape)
    if kind == "bools":
        return rng.integers(0, 2, shape)
    if kind in ("mask", "lowered"):
        mask = rng.integers(0, 2, shape) * (np.arange(shape[-2]) != 1)[:, None]
        return mask if kind == "mask" else np.where(mask, rng.standard_normal(shape), -np.inf)
    if kind == "bytes":
        return rng.uniform(-100, 100, shape)
    normal = 2 * rng.standard_normal(shape)
    if kind == "positive":
        return np.abs(normal) + 0.1
    if kind == "large":
        return normal * 2e3
    if kind == "nan":
        normal.flat[:: max(2, size // 2)] = np.nan
        return normal
    assert kind == "normal", kind
    return normal


def weights(case: Case, dtype: str) -> dict[str, Tensor]:
    """Random values for every parameter, buffers included: initial values such as zeros would hide mistakes."""
    found = {}
    for name, parameter in build(case).parameters().items():
        rng = random(case, (), name)
        array = 0.5 * rng.standard_normal(parameter.shape)
        if name.endswith("running_var"):
            array = np.abs(array) + 0.2
        if parameter.type.dtype == "i8":  # codes: any byte
            array = rng.integers(-128, 128, parameter.shape)
        found[name] = torch.from_numpy(np.asarray(array, dtype=np.float32)).to(DTYPES[_at(parameter.type.dtype, dtype)])
    return found


def _at(found: str, dtype: str) -> str:
    """A dtype of the program in a run at `dtype`: at f64 all floats are f64, at f32 nothing changes."""
    return dtype if dtype == "f64" and found in FLOATS else found


@dataclass(frozen=True)
class Step:
    """One node of a run: what it was given and made, and `compute(operands, weights)` to do it again otherwise."""

    node: Node
    operands: list[Tensor]
    weights: dict[str, Tensor]
    results: tuple[Tensor, ...]
    sizes: Mapping[str, Dim]
    compute: Callable[[list[Tensor], Mapping[str, Tensor]], tuple[Tensor, ...]]


def run_reference(
    graph: Graph,
    values: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    dtype: str = "f32",
    *,
    sizes: Mapping[str, Dim] | None = None,
    steps: list[Step] | None = None,
) -> list[Tensor]:
    """The outputs of a graph, every node computed by the reference of its op, floats at `dtype`.

    `sizes` are those of symbols from outside a region; `steps` collects what each node did.
    """
    sizes = dict(sizes or {})
    env: dict[Value, Tensor] = {}
    for value, tensor in zip(graph.inputs, values, strict=True):
        env[value] = tensor
        for dim, size in zip(value.type.shape, tensor.shape, strict=True):
            if isinstance(dim, Expr) and str(dim).isidentifier():
                sizes[str(dim)] = size
    for node in graph.nodes:
        given = [env[v] for v in node.inputs]
        operands, captured = given[: len(node.operands)], given[len(node.operands) :]
        own = {role: parameters[parameter.name] for role, parameter in node.weights.items()}
        compute = _computation(node, captured, parameters, dtype, sizes)
        results = compute(operands, own)
        for value, result in zip(node.outputs, results, strict=True):
            shape = tuple(substitute(d, sizes) for d in value.type.shape)
            assert tuple(result.shape) == shape, f"{node}: reference made {tuple(result.shape)}, inferred {shape}"
            assert result.dtype == DTYPES[_at(value.type.dtype, dtype)], f"{node}: reference made {result.dtype}"
            env[value] = result
        if steps is not None:
            steps.append(Step(node, operands, own, results, sizes, compute))
    return [env[v] for v in graph.outputs]


def _computation(
    node: Node, captured: list[Tensor], parameters: Mapping[str, Tensor], dtype: str, sizes: Mapping[str, Dim]
) -> Callable[[list[Tensor], Mapping[str, Tensor]], tuple[Tensor, ...]]:
    """The reference of a node with everything but its operands and weights filled in."""
    fields = type(node.params).model_fields
    params = {f.alias or name: _concrete(getattr(node.params, name), sizes) for name, f in fields.items()}
    if "dtype" in params:
        params["dtype"] = _at(params["dtype"], dtype)
    regions = [
        lambda *xs, region=region: run_reference(region, [*xs, *captured], parameters, dtype, sizes=sizes)
        for region in node.regions
    ]

    def compute(operands: list[Tensor], own: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        result = REFERENCE[node.op.name](params, operands, own, *([regions] if regions else []))
        return result if isinstance(result, tuple) else (result,)

    return compute


def _concrete(value: Any, sizes: Mapping[str, Dim]) -> Any:
    """A parameter with the sizes of symbols filled in."""
    if isinstance(value, Expr):
        return substitute(value, sizes)
    if isinstance(value, tuple):
        return tuple(_concrete(v, sizes) for v in value)
    return value


TOLERANCE = {"f64": 1e-10, "f32": 2e-4}
"""Of an element, relative to itself or to the largest finite element of the result."""


def difference(found: Tensor, needed: Tensor, dtype: str, tolerance: float | None = None) -> str:
    """What is wrong with `found`, or the empty text. NaN equals NaN; infinities must agree."""
    if found.shape != needed.shape or found.dtype != needed.dtype:
        return f"{found.dtype}{list(found.shape)} instead of {needed.dtype}{list(needed.shape)}"
    if not needed.is_floating_point():
        return "" if torch.equal(found, needed) else f"{found.tolist()} instead of {needed.tolist()}"
    finite = needed[torch.isfinite(needed)].abs()
    scale = float(finite.clamp(max=100).max()) if finite.numel() else 1.0
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    close = torch.isclose(found, needed, rtol=limit, atol=limit * max(scale, 1e-2), equal_nan=True)
    if bool(close.all()):
        return ""
    worst = (~close).nonzero()[:3].tolist()
    rows = [f"{at}: {found[tuple(at)].item()!r} instead of {needed[tuple(at)].item()!r}" for at in worst]
    return f"{int((~close).sum())} of {close.numel()} elements differ, {'; '.join(rows)}"
