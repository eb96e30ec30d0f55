"""Every operator against its hand-written reference: inferred types, decompositions, and the torch backend.

Values and weights are random with a seed made from the case (`harness.inputs`). Tolerances are `harness.TOLERANCE`:
1e-10 in f64 and 2e-4 in f32, relative to the element or to the largest one of the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import CASES, Case
from harness import all_cases, build, difference, inputs, run_reference, weights
from torch import Tensor
from torch_reference import REFERENCE

from archc.backends.torch.module import to_torch
from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.op import REGISTRY
from archc.ir.types import FLOATS

OPS = sorted(REGISTRY)


def cases_of(op: str) -> list[Case]:
    return [case for case in all_cases() if case.op == op]


def dtypes_of(graph: Graph) -> tuple[str, ...]:
    """A run in f64 takes its dtype from a float input or parameter; where there is none, f32 means f32."""
    types = [v.type for v in graph.inputs] + [p.type for p in graph.parameters().values()]
    return ("f64", "f32") if any(t.dtype in FLOATS for t in types) else ("f32",)


def runs(op: str) -> Iterator[tuple[Case, Graph, list[Tensor], dict[str, Tensor], list[Tensor], str, str]]:
    """Each case of an op at each size and dtype, with what the references say."""
    for case in cases_of(op):
        graph = build(case)
        for sizes in case.sizes:
            for dtype in dtypes_of(graph):
                values, parameters = inputs(case, sizes, dtype), weights(case, dtype)
                needed = run_reference(graph, values, parameters, dtype)
                where = f"{case} at {dict(sizes)} in {dtype}"
                yield case, graph, values, parameters, needed, dtype, where


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_and_cases(op: str) -> None:
    assert op in REFERENCE
    assert any(case.op == op for case in CASES)
    assert REGISTRY[op].example or op == "tied_linear"  # that one needs a `share` beside it
    for case in cases_of(op):
        used = {node.op.name for node in build(case).walk()}
        assert op in used or op == "identity", case  # identities leave no node


def test_references_are_of_ops_that_exist() -> None:
    assert set(REFERENCE) <= set(REGISTRY)
    assert {case.op for case in CASES} <= set(REGISTRY)


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
@pytest.mark.parametrize("op", OPS)
def test_torch_backend_agrees(op: str) -> None:
    for case, graph, values, _, needed, dtype, where in runs(op):
        module = to_torch(graph, weights(case, "f32"), dtype=dtype).eval()
        with torch.no_grad():
            found = module(*values)
        found = found if isinstance(found, tuple) else (found,)
        for i, (a, b) in enumerate(zip(found, needed, strict=True)):
            assert not (wrong := difference(a, b, dtype)), f"result {i} of {where}: {wrong}"


def test_a_wrong_result_is_noticed() -> None:
    """Negative control: each kind of disagreement is one."""
    x = torch.tensor([1.0, 2.0, float("nan"), float("inf")], dtype=torch.float64)
    assert not difference(x.clone(), x, "f64")
    for i, wrong in enumerate((1 + 1e-8, float("nan"), 0.0, -float("inf"))):
        y = x.clone()
        y[i] = wrong
        assert difference(y, x, "f64")
    assert difference(x.float(), x, "f64")
    assert difference(x[:3], x, "f64")


def expanded(graph: Graph) -> Graph:
    """The graph with each node that has a decomposition replaced by it, once; regions stay as they are."""
    result = Graph(graph.name)
    env: dict[Value, Value] = {v: result.add_input(v.name, v.type) for v in graph.inputs}
    for node in graph.nodes:
        operands = [env[v] for v in node.inputs]
        made: list[Value] = []
        if node.op.decompose is not None:
            made = list(node.op.decompose(GraphBuilder(result, node), _twin(node, operands)))
        made = made or list(_twin(node, operands, result).outputs)
        assert [v.type for v in made] == [v.type for v in node.outputs], node
        env.update(zip(node.outputs, made, strict=True))
    result.outputs = [env[v] for v in graph.outputs]
    return result


def stages(graph: Graph) -> Iterator[Graph]:
    """The graph decomposed once, twice, … until nothing is left to decompose."""
    names = [node.op.name for node in graph.nodes]
    for _ in range(12):
        graph = expanded(graph)
        before, names = names, [node.op.name for node in graph.nodes]
        if names == before:
            return
        yield graph
    pytest.fail(f"decomposing does not end: {names}")


def _twin(node: Node, operands: list[Value], graph: Graph | None = None) -> Node:
    """The same node on other values; without a graph it stands nowhere and leaves no trace on the values' users."""
    home = graph if graph is not None else Graph("aside")
    count = len(node.operands)
    copy = home.add(
        node.op,
        operands[:count],
        node.params,
        name=node.name,
        weights=node.weights,
        regions=node.regions,
        captures=operands[count:],
    )
    if graph is None:
        for value in dict.fromkeys(copy.inputs):
            value.uses.pop(copy, None)
    return copy


DECOMPOSED = [op for op in OPS if REGISTRY[op].decompose is not None]


@pytest.mark.parametrize("op", DECOMPOSED)
def test_decompositions_agree(op: str) -> None:
    tried = 0
    for _, graph, values, parameters, needed, dtype, where in runs(op):
        for simpler in stages(graph):
            tried += 1
            assert set(simpler.parameters()) <= set(parameters), where
            found = run_reference(simpler, values, parameters, dtype)
            for i, (a, b) in enumerate(zip(found, needed, strict=True)):
                if wrong := difference(a, b, dtype):
                    pytest.fail(f"result {i} of {where} as {[n.op.name for n in simpler.nodes]}: {wrong}")
    assert tried, f"no case of {op} was decomposed"
