"""Cleanups: the listing before and after, and the function before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.ir.graph import Graph
from archc.passes.canonicalise import CANONICALISE
from archc.passes.cse import CSE
from archc.passes.dce import DCE
from archc.passes.fold_constants import FOLD_CONSTANTS
from archc.passes.listing import listing
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.pipeline import CLEANUP, INFERENCE
from archc.passes.simplify import SIMPLIFY

HEAD = "arch net()\ninput x: f32[N, 4, 6]\noutput y: "


def after(step: Pass, source: str, context: Context | None = None) -> str:
    """The body of the listing when `step` has run; it must say that it changed something exactly when it did."""
    graph = loads(source)
    before = listing(graph)
    (ran,) = run_passes(graph, [step], context)
    assert ran.changed == (listing(graph) != before)
    return body(graph)


def body(graph: Graph) -> str:
    return "\n".join(line.strip() for line in listing(graph).splitlines()[1:])


def outputs(graph: Graph, weights: dict[str, Any], *inputs: torch.Tensor) -> torch.Tensor:
    module = to_torch(graph).double().eval()
    module.load_state_dict({name: torch.from_numpy(array).double() for name, array in weights.items()})
    with torch.no_grad():
        found: torch.Tensor = module(*inputs)
    return found


def test_dce_drops_what_no_output_needs() -> None:
    source = HEAD + "f32[N, 4, 6]\nlet unused = x -> exp -> relu\ny = x -> tanh\n"
    assert after(DCE, source) == "tanh = tanh(x) : f32[N, 4, 6]\nreturn tanh"


def test_dce_drops_captures_that_no_region_reads() -> None:
    source = """arch net()
input x: f32[N, 8]
output y: f32[N, 8]
let scale = x -> exp
y = x -> skip(gate = linear(1) -> sigmoid, body = fn(z) { let unused = sum(scale) * z return z -> linear(8) })
"""
    graph = loads(source)
    skip = graph.nodes[-1]
    assert (skip.op.name, skip.captures) == ("skip", 1)
    assert run_passes(graph, [DCE])[0].changed
    assert skip.captures == 0
    assert [n.op.name for n in graph.nodes] == ["skip"]
    assert all(len(r.inputs) == 1 for r in skip.regions)


def test_cse_merges_equal_nodes_in_any_order_of_their_operands() -> None:
    source = HEAD + "f32[N, 4, 6]\nlet a = x * exp(x)\nlet b = exp(x) * x\ny = a - b\n"
    assert after(CSE, source) == (
        "a.exp = exp(x) : f32[N, 4, 6]\n"
        "a.mul = mul(x, a.exp) : f32[N, 4, 6]\n"
        "sub = sub(a.mul, a.mul) : f32[N, 4, 6]\n"
        "return sub"
    )


@pytest.mark.parametrize(
    "statements",
    [
        "y = (x - exp(x)) + (exp(x) - x)",  # subtraction does not commute
        "y = linear(6)(x) + linear(6)(x)",  # two sets of weights
        "y = softmax(x, axis = 1) + softmax(x, axis = 2)",
        "y = x / 0.0 + x / neg(constant(0.0))",  # equal numbers, other results
    ],
)
def test_cse_keeps_what_differs(statements: str) -> None:
    graph = loads(HEAD + f"f32[N, 4, 6]\n{statements}\n")
    kept = [n.op.name for n in graph.nodes if n.op.name in ("sub", "linear", "softmax", "div")]
    run_passes(graph, [FOLD_CONSTANTS, CSE])
    assert [n.op.name for n in graph.nodes if n.op.name in ("sub", "linear", "softmax", "div")] == kept


def test_cse_merges_layers_of_shared_weights_and_no_dropout_in_training() -> None:
    shared = loads(HEAD + "f32[N, 4, 6]\nshare f = linear(6)\ny = f(x) + f(x)\n")
    run_passes(shared, [CSE])
    assert [n.op.name for n in shared.nodes] == ["linear", "add"]
    for training, left in ((True, 2), (False, 1)):
        graph = loads(HEAD + "f32[N, 4, 6]\ny = dropout(0.5)(x) * dropout(0.5)(x)\n")
        run_passes(graph, [CSE], Context(training=training))
        assert sum(n.op.name == "dropout" for n in graph.nodes) == left


def test_canonicalise_makes_one_view_of_many() -> None:
    source = HEAD + "f32[N, 4, 6]\ny = x -> flatten -> unflatten(1, [2, 12]) -> reshape([-1, 6, 4])\n"
    source = source.replace("output y: f32[N, 4, 6]", "output y: f32[N, 6, 4]")
    graph = loads(source)
    run_passes(graph, [CANONICALISE, DCE])
    assert body(graph) == "reshape = reshape(x, shape=[N, 6, 4]) : f32[N, 6, 4]\nreturn reshape"


def test_canonicalise_undoes_inverse_views() -> None:
    source = HEAD + "f32[N, 4, 6]\ny = x -> transpose(1, 2) -> permute([0, 2, 1]) -> flatten -> unflatten(1, [4, 6])\n"
    graph = loads(source)
    run_passes(graph, [CANONICALISE, DCE])
    assert body(graph) == "return x"


def test_canonicalise_drops_dropout_but_not_in_training() -> None:
    source = HEAD + "f32[N, 4, 6]\ny = x -> dropout(0.1) -> relu\n"
    assert "dropout" not in after(CANONICALISE, source)
    assert "dropout" in after(CANONICALISE, source, Context(training=True))


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("x * 1.0", 0),
        ("x / 1.0", 0),
        ("x - 0.0", 0),
        ("-(-x)", 0),
        ("1.0 / x", 1),
        ("x + 0.0", 1),
        ("x - neg(constant(0.0))", 1),
    ],
)
def test_simplify_knows_what_is_neutral(expression: str, left: int) -> None:
    graph = loads(HEAD + f"f32[N, 4, 6]\ny = {expression}\n")
    run_passes(graph, [FOLD_CONSTANTS, SIMPLIFY, DCE])
    assert len([n for n in graph.nodes if n.op.name != "constant"]) == left


def test_constants_fold_in_one_go() -> None:
    source = HEAD + "f32[N, 4, 6]\ny = x * sqrt(constant(1.0) + constant(1.0))\n"
    graph = loads(source)
    run_passes(graph, [FOLD_CONSTANTS, DCE])
    root = float(np.float32(np.sqrt(2.0)))
    assert body(graph).splitlines()[0] == f"sqrt = constant(value={root}, dtype='f32') : f32[]"
    assert [n.op.name for n in graph.nodes] == ["constant", "mul"]


def test_constants_are_rounded_to_their_dtype_after_each_step() -> None:
    """0.1 + 0.2 in float32, not in float64; and an i8 wraps."""
    source = """arch net()
input x: f32[N]
output y: f32[]
output z: i8[]
y = constant(0.1) + constant(0.2)
z = constant(100, dtype = "i8") + constant(100, dtype = "i8")
"""
    graph = loads(source)
    run_passes(graph, [FOLD_CONSTANTS, DCE])
    y, z = (n.call.params.value for n in graph.nodes)
    assert y == float(np.float32(0.1) + np.float32(0.2)) != 0.1 + 0.2
    assert z == -56


def test_large_and_symbolic_constants_are_left_to_run_time() -> None:
    graph = loads(HEAD + "f32[N, 4, 6]\ny = x + sum(expand(constant(1.0), [100, 100]))\n")
    assert not run_passes(graph, [FOLD_CONSTANTS])[0].changed


def randomised(graph: Graph, seed: int = 0) -> dict[str, Any]:
    """Weights in which every scale, shift and statistic matters."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 1.5, p.shape) for name, p in graph.parameters().items()}


PROGRAMS = {
    "resnet": """arch net(width: int = 4)
input  x: f32[N, 3, 8, 8]
output y: f32[N, 10]
def conv_bn(c, stride = 1) = conv(c, kernel = 3, stride = stride, bias = false) -> batch_norm
def block(c, stride = 1) = residual(conv_bn(c, stride) -> relu -> conv_bn(c),
    shortcut = if stride == 1 then identity else conv_bn(c, stride)) -> relu
y = x -> conv_bn(width) -> relu -> block(width) -> block(2 * width, 2) -> global_avg_pool -> linear(10)
""",
    "views": """arch net()
input  x: f32[N, 3, 8, 8]
output y: f32[N, 10]
y = x -> permute([0, 2, 3, 1]) -> flatten(from = 1, to = 2) -> layer_norm -> transpose(1, 2) -> reshape([-1, 3, 8, 8])
    -> dropout(0.5) -> skip(gate = mean([1, 2, 3], keepdim = true) -> sigmoid, body = identity -> tanh, mode = "soft")
    -> flatten -> linear(10) -> identity
""",
}


@pytest.mark.parametrize("source", PROGRAMS.values(), ids=PROGRAMS)
def test_pipelines_keep_the_function(source: str) -> None:
    graph = loads(source)
    weights = randomised(graph)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = outputs(graph, weights, x)
    before = len(list(graph.walk()))
    context = Context(dict(weights))
    run_passes(graph, CLEANUP, context)
    assert not run_passes(graph, CLEANUP)[0].changed  # nothing is left to do
    assert torch.allclose(outputs(graph, weights, x), expected, rtol=1e-12)
    run_passes(graph, INFERENCE, context)
    assert len(list(graph.walk())) < before
    assert not any(n.op.name == "batch_norm" for n in graph.walk())
    assert context.weights is not None
    assert torch.allclose(outputs(graph, context.weights, x), expected, rtol=1e-9)
