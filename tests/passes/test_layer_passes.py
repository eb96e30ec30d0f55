"""Passes that compute new weights: `.arch` before and after, the function in float64, and what must stay as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.cost import cost
from archc.ir.dims import substitute
from archc.ir.equal import structurally_equal
from archc.ir.graph import Graph
from archc.passes.fold_batch_norm import FOLD_BATCH_NORM
from archc.passes.fuse_branches import FUSE_BRANCHES
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.merge_layers import MERGE_LAYERS
from archc.passes.pipeline import INFERENCE

Arrays = dict[str, Any]

IMAGE = "arch net\n\ninput  x: f32[N, 4, 9, 9]\noutput y: f32[{}]\n\n"
TOKENS = "arch net\n\ninput  x: f32[N, T, 6]\noutput y: f32[{}]\n\n"
ROWS = "arch net\n\ninput  x: f32[N, 6]\noutput y: f32[{}]\n\n"


def randomised(graph: Graph, seed: int = 0) -> Arrays:
    """Weights in which every scale, shift and statistic matters."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 1.5, p.shape) * (1 if p.trainable else 2) for name, p in graph.parameters().items()}


def computed(graph: Graph, weights: Arrays, training: bool = False) -> np.ndarray[Any, Any]:
    """All outputs in float64, one behind the other."""
    rng = torch.Generator().manual_seed(0)
    shapes = [[{"N": 3, "T": 5}.get(str(d), d) for d in v.type.shape] for v in graph.inputs]
    inputs = [torch.randn(shape, dtype=torch.float64, generator=rng) for shape in shapes]
    module = to_torch(graph).double().train(training)
    module.load_state_dict({name: torch.from_numpy(w.astype(np.float64)) for name, w in weights.items()})
    with torch.no_grad():
        made = module(*inputs)
    return np.concatenate([y.numpy().reshape(-1) for y in (made if isinstance(made, tuple) else (made,))])


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(a - b).max() <= 1e-12 * np.abs(a).max())


def after(step: Pass, graph: Graph, weights: Arrays, training: bool = False) -> Arrays:
    """The weights when `step` has run: once, for a second run must find nothing to do."""
    context = Context(dict(weights), training=training)
    assert run_passes(graph, [step], context)[0].changed
    assert not run_passes(graph, [step], context)[0].changed
    assert context.weights is not None
    assert context.weights.keys() == graph.parameters().keys()
    assert structurally_equal(graph, loads(print_graph(graph))) is None
    return context.weights


def unchanged(step: Pass, program: str) -> bool:
    graph = loads(program)
    return not run_passes(graph, [step], Context(randomised(graph)))[0].changed


REWRITTEN: dict[str, tuple[Pass, str, str, str]] = {
    "norm behind": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 8, 9, 9"),
        "y = x -> conv(8, kernel = 3, bias = false) -> batch_norm",
        'y = x -> conv(8, kernel = 3, name = "conv")',
    ),
    "norm before": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 8, 4, 4"),
        "y = x -> batch_norm -> conv(8, kernel = 3, stride = 2, padding = 0, groups = 2)",
        'y = x -> conv(8, kernel = 3, stride = 2, padding = 0, groups = 2, name = "conv")',
    ),
    "norm before linear": (
        FOLD_BATCH_NORM,
        ROWS.format("N, 3"),
        "y = x -> batch_norm -> linear(3, bias = false)",
        'y = x -> linear(3, name = "linear")',
    ),
    "norm before several": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 4, 9, 9"),
        "let h = x -> relu -> batch_norm\ny = (h -> conv(4, kernel = 1)) * (h -> conv(4, kernel = 1, bias = false))",
        'let relu_1 = x -> relu(name = "h.relu")\n'
        'let conv_1 = relu_1 -> conv(4, kernel = 1, name = "conv")\n'
        'let conv_2 = relu_1 -> conv(4, kernel = 1, name = "conv1")\n'
        'y = mul(conv_1, conv_2, name = "mul")',
    ),
    "norms before and behind": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 8, 9, 9"),
        "y = x -> batch_norm -> batch_norm -> conv(8, kernel = 1) -> batch_norm -> batch_norm",
        'y = x -> conv(8, kernel = 1, name = "conv")',
    ),
    "linear, linear": (
        MERGE_LAYERS,
        TOKENS.format("N, T, 3"),
        "y = x -> linear(8) -> linear(7, bias = false) -> linear(3)",
        'y = x -> linear(3, name = "linear2")',
    ),
    "convolution, 1x1": (
        MERGE_LAYERS,
        IMAGE.format("N, 2, 3, 3"),
        "y = x -> conv(8, kernel = 3, stride = [1, 2]) -> conv(2, kernel = 1, stride = [3, 2])",
        'y = x -> conv(2, kernel = 3, stride = [3, 4], name = "conv1")',
    ),
    "1x1, convolution": (
        MERGE_LAYERS,
        IMAGE.format("N, 4, 5, 5"),
        "y = x -> conv(8, kernel = 1, bias = false) -> conv(4, kernel = 3, stride = 2, dilation = 2, padding = 2)",
        'y = x -> conv(4, kernel = 3, stride = 2, padding = 2, dilation = 2, name = "conv1")',
    ),
    "1x1 with a bias, no border": (
        MERGE_LAYERS,
        IMAGE.format("N, 4, 7, 7"),
        "y = x -> conv(8, kernel = 1) -> conv(4, kernel = 3, padding = 0, bias = false)",
        'y = x -> conv(4, kernel = 3, padding = 0, name = "conv1")',
    ),
    "groups": (
        MERGE_LAYERS,
        IMAGE.format("N, 4, 9, 9"),
        "y = x -> conv(8, kernel = 3, groups = 2) -> conv(4, kernel = 1, groups = 2)",
        'y = x -> conv(4, kernel = 3, groups = 2, name = "conv1")',
    ),
    "linear beside linear": (
        FUSE_BRANCHES,
        TOKENS.format("N, T, 4"),
        "let gate = x -> linear(4)\nlet up = x -> linear(4)\ny = silu(gate) * up",
        "let split_1, split_2 = x\n"
        '    -> linear(8, name = "gate.linear_linear")\n'
        '    -> split(parts = [4, 4], axis = 2, name = "gate.linear_linear.split")\n'
        'let silu_1 = split_1 -> silu(name = "silu")\n'
        'y = mul(silu_1, split_2, name = "mul")',
    ),
    "convolutions side by side": (
        FUSE_BRANCHES,
        IMAGE.format("N, 7, 9, 9"),
        "y = concat(x -> conv(4, kernel = 3), x -> conv(3, kernel = 3), x -> conv(4, kernel = 3, bias = false)"
        " -> slice(1, to = 0), axis = 1)",
        "let split_1, split_2 = x\n"
        '    -> conv(7, kernel = 3, name = "conv_conv1")\n'
        '    -> split(parts = [4, 3], axis = 1, name = "conv_conv1.split")\n'
        'let slice_1 = x -> conv(4, kernel = 3, bias = false, name = "conv2") -> slice(1, to = 0, name = "slice")\n'
        'y = concat(split_1, split_2, slice_1, 1, name = "concat")',
    ),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_rewritten(case: str) -> None:
    step, head, before, expected = REWRITTEN[case]
    graph = loads(head + before)
    weights = randomised(graph)
    y, price = computed(graph, weights), cost(graph)
    new = after(step, graph, weights)
    assert print_graph(graph) == head + expected + "\n"
    assert same(y, computed(graph, new))
    if step is MERGE_LAYERS:
        assert cost(graph).params <= price.params
        assert substitute(cost(graph).flops, {"N": 1, "T": 1}) < substitute(price.flops, {"N": 1, "T": 1})
    *_, name = new
    assert not same(y, computed(graph, new | {name: new[name] * 1.001})), "the comparison sees a new weight"


KEPT = {
    "a border": (FOLD_BATCH_NORM, IMAGE.format("N, 8, 9, 9") + "y = x -> batch_norm -> conv(8, kernel = 3)"),
    "an overlap": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 4, 11, 11") + "y = x -> batch_norm -> conv_transpose(4, kernel = 3)",
    ),
    "relu between": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 8, 9, 9") + "y = x -> batch_norm -> relu -> conv(8, kernel = 1)",
    ),
    "one reader that cannot": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 4, 9, 9") + "let h = x -> batch_norm\ny = (h -> conv(4, kernel = 1)) + h",
    ),
    "another axis": (FOLD_BATCH_NORM, TOKENS.replace("T", "4").format("N, 4, 3") + "y = x -> batch_norm -> linear(3)"),
    "weights that others use": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 4, 9, 9") + "share c = conv(4, kernel = 1)\ny = x -> batch_norm -> c -> relu -> c",
    ),
    "a norm that is shared": (
        FOLD_BATCH_NORM,
        IMAGE.format("N, 4, 9, 9") + "share n = batch_norm\ny = x -> n -> conv(4, kernel = 1) -> relu -> n",
    ),
    "a bottleneck": (MERGE_LAYERS, TOKENS.format("N, T, 6") + "y = x -> linear(2) -> linear(6)"),
    "kernels": (MERGE_LAYERS, IMAGE.format("N, 4, 9, 9") + "y = x -> conv(8, kernel = 3) -> conv(4, kernel = 3)"),
    "a bias before a border": (
        MERGE_LAYERS,
        IMAGE.format("N, 4, 9, 9") + "y = x -> conv(8, kernel = 1) -> conv(4, kernel = 3)",
    ),
    "a padded 1x1": (
        MERGE_LAYERS,
        IMAGE.format("N, 4, 11, 11") + "y = x -> conv(8, kernel = 3) -> conv(4, kernel = 1, padding = 1)",
    ),
    "depthwise, pointwise": (
        MERGE_LAYERS,
        IMAGE.format("N, 4, 9, 9") + "y = x -> conv(4, kernel = 3, groups = 4) -> conv(4, kernel = 1)",
    ),
    "one that others read": (
        MERGE_LAYERS,
        TOKENS.format("N, T, 8") + "let h = x -> linear(8)\ny = (h -> linear(8)) + h",
    ),
    "shared weights": (
        MERGE_LAYERS,
        TOKENS.format("N, T, 6") + "share f = linear(6)\ny = x -> f -> f",
    ),
    "biases on one side": (
        FUSE_BRANCHES,
        TOKENS.format("N, T, 4") + "y = (x -> linear(4)) * (x -> linear(4, bias = false))",
    ),
    "two geometries": (
        FUSE_BRANCHES,
        IMAGE.format("N, 4, 9, 9") + "y = (x -> conv(4, kernel = 1)) * (x -> conv(4, kernel = 3))",
    ),
    "two tensors": (FUSE_BRANCHES, TOKENS.format("N, T, 4") + "y = (x -> linear(4)) * (x -> relu -> linear(4))"),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    assert unchanged(*KEPT[case])


def test_what_is_kept_would_change_the_function() -> None:
    """The folded weights of a convolution without a border, in one with it: the borders differ, and nothing else."""
    head, program = IMAGE.format("N, 8, 7, 7"), "y = x -> batch_norm -> conv(8, kernel = 3, padding = 0)"
    graph = loads(head + program)
    weights = randomised(graph)
    folded = after(FOLD_BATCH_NORM, graph, weights)
    wide = IMAGE.format("N, 8, 9, 9")
    a = computed(loads(wide + program.replace(", padding = 0", "")), weights).reshape(3, 8, 9, 9)
    b = computed(loads(wide + "y = x -> conv(8, kernel = 3)"), folded).reshape(3, 8, 9, 9)
    assert same(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])
    assert not same(a, b)


def test_a_norm_without_shift_folds_before_a_border() -> None:
    for layer in ("conv(8, kernel = 3)", "conv_transpose(6, kernel = 3, stride = 2, padding = 1, groups = 2)"):
        size = 9 if layer.startswith("conv(") else 17
        out = 8 if size == 9 else 6
        graph = loads(IMAGE.format(f"N, {out}, {size}, {size}") + f"y = x -> batch_norm(bias = false) -> {layer}")
        weights = randomised(graph)
        (mean,) = (name for name in weights if name.endswith("running_mean"))
        assert unchanged(FOLD_BATCH_NORM, print_graph(graph))
        weights[mean] *= 0
        y = computed(graph, weights)
        assert same(y, computed(graph, after(FOLD_BATCH_NORM, graph, weights)))
        assert [n.op.name for n in graph.nodes] == [layer.partition("(")[0]]


NORMED = {
    "conv": "conv(8, kernel = 3, groups = 2, bias = false)",
    "conv with a bias": "conv(8, kernel = 3, stride = 2)",
    "conv_transpose": "conv_transpose(6, kernel = 3, stride = 2, groups = 2)",
}


@pytest.mark.parametrize("layer", NORMED.values(), ids=NORMED)
@pytest.mark.parametrize("norm", ["batch_norm", "norm", "batch_norm(affine = false)", "batch_norm(bias = false)"])
def test_a_norm_folds_into_the_layer_before_it(layer: str, norm: str) -> None:
    graph = loads(IMAGE.format("N") + f"y = x -> {layer} -> {norm} -> sum([1, 2, 3])\n")
    weights = randomised(graph)
    y = computed(graph, weights)
    folded = after(FOLD_BATCH_NORM, graph, weights)
    assert [n.op.name for n in graph.nodes][1:] == ["sum"]
    assert same(y, computed(graph, folded))
    name = graph.nodes[0].weights["weight"].name
    assert not np.allclose(folded[name], weights[name])  # it was the weights that took the norm up


def test_norms_fold_in_regions_and_in_the_dtype_of_the_weights() -> None:
    program = "y = x -> exit(head = linear(3), rest = linear(16) -> batch_norm -> relu -> linear(3), threshold = 2.0)"
    graph = loads(ROWS.format("N, 3") + program)
    weights = {k: v.astype(np.float32) for k, v in randomised(graph).items()}
    y = computed(graph, weights)
    folded = after(FOLD_BATCH_NORM, graph, weights)
    assert [n.op.name for n in graph.nodes[0].regions[1].nodes] == ["linear", "relu", "linear"]
    assert {v.dtype for v in folded.values()} == {np.dtype(np.float32)}
    assert np.allclose(y, computed(graph, folded), rtol=1e-5)


@pytest.mark.parametrize(
    "statements",
    [
        "let h = x -> conv(4, kernel = 3)\ny = sum(batch_norm(h) + h, [1, 2, 3])",  # read twice
        "share c = conv(4, kernel = 3)\ny = x -> c -> batch_norm -> c -> sum([1, 2, 3])",  # weights used twice
        "y = x -> conv(4, kernel = 3) -> relu -> batch_norm -> sum([1, 2, 3])",
        "y = x -> linear(5) -> batch_norm -> sum([1, 2, 3])",  # another axis
        "let v, i = x -> top_k(2)\ny = v -> batch_norm -> sum([1, 2, 3])",  # one of several results
    ],
)
def test_a_norm_stays_where_folding_would_change_the_function(statements: str) -> None:
    assert unchanged(FOLD_BATCH_NORM, IMAGE.format("N") + statements)


@pytest.mark.parametrize("step", [FOLD_BATCH_NORM, MERGE_LAYERS], ids=lambda p: p.name)
def test_no_weights_are_changed_in_training_or_unknown(step: Pass) -> None:
    graph = loads(ROWS.format("N, 3") + "y = x -> linear(6) -> batch_norm -> linear(6) -> linear(3)")
    for context in (Context(randomised(graph), training=True), Context()):
        assert not run_passes(graph, [step], context)[0].changed
    assert run_passes(graph, [step], Context(randomised(graph)))[0].changed


def test_branches_fuse_in_training_too() -> None:
    graph = loads(ROWS.format("N, 3") + "y = (x -> linear(3) -> batch_norm) * (x -> linear(3))")
    weights = randomised(graph)
    y = computed(graph, weights, training=True)
    assert same(y, computed(graph, after(FUSE_BRANCHES, graph, weights, training=True), training=True))


def test_numbers_too_large_for_the_dtype_of_the_weights_are_not_written() -> None:
    graph = loads((ROWS.format("N, 3") + "y = x -> linear(3) -> batch_norm").replace("f32", "f16"))
    weights = {name: w.astype(np.float16) for name, w in randomised(graph).items()}
    weights["batch_norm.weight"][:] = 6e4
    assert not run_passes(graph, [FOLD_BATCH_NORM], Context(dict(weights)))[0].changed
    weights["batch_norm.weight"][:] = 1
    assert run_passes(graph, [FOLD_BATCH_NORM], Context(dict(weights)))[0].changed


def test_a_new_bias_takes_no_name_that_a_program_has_given() -> None:
    source = """arch net
input x: f32[N, 4, 5]
output y: f32[N, 4, 5]
let h = x -> linear(5, name = "first", bias = "c.bias")
y = h -> conv(4, kernel = 3, bias = false, name = "c") -> batch_norm
"""
    graph = loads(source)
    weights = randomised(graph)
    y = computed(graph, weights)
    folded = after(FOLD_BATCH_NORM, graph, weights)
    assert folded.keys() == {"first.weight", "c.bias", "c.weight", "c.bias_"}
    assert same(y, computed(graph, folded))


def test_the_inference_pipeline_leaves_one_layer() -> None:
    graph = loads(
        IMAGE.format("N, 4, 9, 9")
        + "y = x -> batch_norm -> conv(8, kernel = 1) -> batch_norm -> dropout -> conv(4, kernel = 1) -> batch_norm"
    )
    weights = randomised(graph)
    y, context = computed(graph, weights), Context(dict(weights))
    run_passes(graph, INFERENCE, context)
    assert [n.op.name for n in graph.nodes] == ["conv"]
    assert context.weights is not None
    assert same(y, computed(graph, context.weights))
