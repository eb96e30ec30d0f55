"""Every op of the registry runs in torch: as its type says, differentiably, and as its decomposition does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from expressions import graph_of, graph_of_example, random_inputs
from torch import Tensor

import archc.ir.ops
from archc.backends.protocol import Lowerings
from archc.backends.torch.codegen import lowering
from archc.backends.torch.module import TORCH_DTYPES, ArchModule, to_torch
from archc.ir.decompose import decompose
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY, OpDef
from archc.ir.types import FLOATS

assert archc.ir.ops.__all__
OPS = [op for op in REGISTRY.values() if op.example]
SIZES = {"N": 3, "T": 4}

each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


def outputs(module: ArchModule, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = module(*inputs)
    return found if isinstance(found, tuple) else (found,)


def test_torch_can_express_every_op() -> None:
    assert lowering.missing() == []
    assert lowering.missing([OpDef("no_such_op", "", "x[*b] -> [*b]")]) == ["no_such_op"]


def test_an_op_is_lowered_once() -> None:
    table: Lowerings[Any] = Lowerings("demo")
    table("relu")(str)
    with pytest.raises(ValueError, match="demo backend has a lowering for `relu`"):
        table("relu")(str)


@each_op
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_results_have_the_inferred_types(op: OpDef[Any], dtype: str) -> None:
    graph = graph_of_example(op)
    double = dtype == "f64"
    module = to_torch(graph, dtype=dtype if double else None).eval()
    found = outputs(module, random_inputs(graph, SIZES, double=double))
    for value, result in zip(graph.outputs, found, strict=True):
        wanted = value.type.substitute(SIZES)
        assert tuple(result.shape) == wanted.shape
        if op.name == "one_hot" and double:
            continue  # neither a weight nor an input is a float here, so nothing was doubled that it could follow
        follows = double and wanted.dtype in FLOATS
        assert result.dtype == (torch.float64 if follows else TORCH_DTYPES[wanted.dtype])


@each_op
def test_gradients_reach_every_trainable_parameter(op: OpDef[Any]) -> None:
    graph = graph_of_example(op)
    module = to_torch(graph, dtype="f64").train()
    if not list(module.parameters()):
        return
    found, aux = module.forward_with_aux(*random_inputs(graph, SIZES, double=True))
    results = found if isinstance(found, tuple) else (found,)
    torch.manual_seed(0)
    loss = sum((result * torch.randn_like(result)).sum() for result in (*results, *aux.values()))
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("op", [op for op in OPS if op.decompose is not None], ids=lambda op: op.name)
def test_the_decomposition_agrees(op: OpDef[Any]) -> None:
    graph, simpler = graph_of_example(op), graph_of_example(op)
    changed = decompose(simpler, lambda other: other.name != op.name)
    if not changed:
        pytest.skip("the op does not decompose for the types of its example")
    module, other = to_torch(graph, dtype="f64").eval(), to_torch(simpler, dtype="f64").eval()
    other.load_state_dict(module.state_dict())
    inputs = random_inputs(graph, SIZES, double=True)
    for result, wanted in zip(outputs(module, inputs), outputs(other, inputs), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def close(graph: Graph, wanted: Any, *inputs: Tensor) -> None:
    torch.testing.assert_close(to_torch(graph).eval()(*inputs), wanted, rtol=1e-5, atol=1e-6)


def test_a_mask_that_hides_everything_gives_zeros() -> None:
    """A query that may see nothing gets zeros, not NaN; with `causal` both hold."""
    q = torch.randn(2, 3, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False
    for extra in ("", ", causal = true"):
        expression = f"scaled_dot_product(x, x, x, y{extra})"
        graph = graph_of([expression], ["f32[N, 3, 4, 8]", "bool[4, 4]"])
        found = to_torch(graph)(q, mask)
        allowed = mask.tril() if extra else mask
        scores = (q @ q.mT / 8**0.5).masked_fill(~allowed, float("-inf"))
        torch.testing.assert_close(found, scores.softmax(-1).nan_to_num() @ q, rtol=1e-5, atol=1e-6)
        assert (found[:, :, 1] == 0).all()


def test_causal_attention_does_not_see_what_follows() -> None:
    graph = graph_of(['x -> attention(2, causal = true, positions = "alibi")'], ["f32[N, T, 8]"])
    module = to_torch(graph)
    x = torch.randn(2, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = module(x), module(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("value", ["1.5", "-2", "0.1", "-0.5"])
def test_numbers_stand_in_expressions(value: str) -> None:
    """Rank-0 constants are written where they are used; negative ones must bind as one."""
    graph = graph_of([f"(x * {value}) + ({value} - x) / 2"], ["f32[N]"])
    x, number = torch.randn(5), float(value)
    assert "torch.full" not in to_torch(graph).source
    close(graph, x * number + (number - x) / 2, x)


def test_clamp_keeps_integers_whole() -> None:
    graph = graph_of(["x -> clamp(-1, 2)"], ["i64[N]"])
    assert torch.equal(to_torch(graph)(torch.tensor([-5, 0, 7])), torch.tensor([-1, 0, 2]))


@pytest.mark.parametrize(("expression", "shape"), [("x -> instance_norm", (1, 6, 1)), ("x -> group_norm(4)", (1, 4))])
def test_a_norm_of_single_elements_is_zero(expression: str, shape: tuple[int, ...]) -> None:
    """`F.group_norm` and `F.instance_norm` refuse them; the result is well defined."""
    graph = graph_of([expression], [f"f32[{', '.join(map(str, shape))}]"])
    module = to_torch(graph).double().eval()
    assert module(torch.randn(shape, dtype=torch.float64)).abs().max() < 1e-10
