"""Rewrites that do no arithmetic: `.arch` before and after, and each bit of the function kept, of NaN and -0 too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from archc.backends.torch.module import to_torch
from archc.grammar.load import loads
from archc.grammar.printer import print_graph
from archc.ir.clone import clone
from archc.ir.graph import Graph
from archc.metanet.symmetry import random_weights
from archc.passes.cancel_views import CANCEL_VIEWS
from archc.passes.canonicalise import CANONICALISE
from archc.passes.dce import DCE
from archc.passes.fold_constants import FOLD_CONSTANTS
from archc.passes.join_pieces import JOIN_PIECES
from archc.passes.manager import Context, Pass, run_passes
from archc.passes.simplify import SIMPLIFY

HEAD = "arch net\n\ninput  x: f32[N, 4, 6, 6]\ninput  z: f32[N, 4, 6, 6]\noutput y: f32[{}]\n\n"
SAME = "N, 4, 6, 6"

REWRITTEN: dict[str, tuple[Pass, str, str, str]] = {
    "times one": (SIMPLIFY, SAME, "y = (1.0 * x) / 1.0 - 0.0", "y = x"),
    "minus zero": (SIMPLIFY, SAME, "y = x + constant(-0.0)", "y = x"),
    "of integers": (
        SIMPLIFY,
        SAME,
        'y = ((x -> cast("i64")) + 0) * 1 -> cast("f32")',
        'y = x -> cast(dtype = "i64", name = "cast") -> cast(dtype = "f32", name = "cast1")',
    ),
    "done twice": (
        SIMPLIFY,
        SAME,
        "y = x -> relu -> relu -> floor -> floor",
        'y = x -> relu(name = "relu") -> floor(name = "floor")',
    ),
    "undone": (SIMPLIFY, SAME, "y = -(-x)", "y = x"),
    "of equals": (SIMPLIFY, SAME, "let m = maximum(x, x)\ny = where(m > z, minimum(m, m), m)", "y = x"),
    "no pool, no upsampling": (CANONICALISE, SAME, "y = x -> max_pool(1) -> upsample(1)", "y = x"),
    "casts that lose nothing": (
        CANONICALISE,
        SAME,
        'y = (x > z) -> cast("i8") -> cast("f32")',
        'y = gt(x, z, name = "gt") -> cast(dtype = "f32", name = "cast1")',
    ),
    "there and back": (CANONICALISE, SAME, 'y = x -> cast("f64") -> cast("f32")', "y = x"),
    "expand before a sum": (
        CANONICALISE,
        SAME,
        "y = (x -> slice(1, to = 1) -> expand([N, 4, 6, 6])) + z",
        'let slice_1 = x -> slice(1, to = 1, name = "slice")\ny = add(slice_1, z, name = "add")',
    ),
    "parts joined": (JOIN_PIECES, SAME, "let a, b = split(x, [1, 3], axis = 1)\ny = concat(a, b, axis = 1)", "y = x"),
    "seams": (JOIN_PIECES, SAME, "let a, b = concat(x, z, axis = 1) -> split(2, axis = 1)\ny = b", "y = z"),
    "slice of one operand": (
        JOIN_PIECES,
        "N, 2, 6, 6",
        "y = concat(x, z, x, axis = 1) -> slice(1, from = 5, to = -5)",
        'y = z -> slice(1, from = 1, to = 3, name = "slice")',
    ),
    "slice of a slice": (
        JOIN_PIECES,
        "N, 4, 6, 2",
        "y = x -> slice(3, from = 1, to = -1) -> slice(-1, from = 1, to = 3)",
        'y = x -> slice(3, from = 2, to = 4, name = "slice1")',
    ),
    "concats": (
        JOIN_PIECES,
        "N, 12, 6, 6",
        "y = concat(concat(x, z, axis = 1), x, axis = 1)",
        'y = concat(x, z, x, 1, name = "concat1")',
    ),
    "what was stacked": (JOIN_PIECES, SAME, "y = stack(x, z, axis = 2) -> select(2, -1)", "y = z"),
    "permutations around arithmetic": (
        CANCEL_VIEWS,
        SAME,
        "let h = permute(x, [0, 2, 3, 1])\nlet g = permute(z, [0, 2, 3, 1])\n"
        "y = where(g > h, silu(h), h * 2.0) -> permute([0, 3, 1, 2])",
        'let constant_1 = constant(value = 2.0, dtype = "f32", name = "constant")\n'
        'let gt_1 = gt(z, x, name = "gt")\n'
        'let silu_1 = x -> silu(name = "silu")\n'
        'let mul_1 = mul(x, constant_1, name = "mul")\n'
        'y = where(gt_1, silu_1, mul_1, name = "where")',
    ),
    "reshapes around arithmetic": (
        CANCEL_VIEWS,
        SAME,
        "y = x -> reshape([N, 4, 36]) -> tanh -> exp -> reshape([N, 4, 6, 6])",
        'y = x -> tanh(name = "tanh") -> exp(name = "exp")',
    ),
}

KEPT: dict[str, tuple[Pass, str, str]] = {
    "plus zero": (SIMPLIFY, SAME, "y = x + 0.0"),  # turns -0 into 0
    "one over": (SIMPLIFY, SAME, "y = 1.0 / x"),
    "zero minus": (SIMPLIFY, SAME, "y = 0.0 - x"),
    "minus minus zero": (SIMPLIFY, SAME, "y = x - constant(-0.0)"),
    "a wider result": (SIMPLIFY, "N, N, 4, 6, 6", "y = x * (constant(1.0) -> expand([N, 1, 1, 1, 1]))"),
    "relu behind abs": (SIMPLIFY, SAME, "y = x -> clamp(min = 0.0) -> clamp(min = 1.0)"),
    "averages of one": (CANONICALISE, SAME, "y = x -> avg_pool(1)"),  # 0 + -0 is 0
    "bilinear by one": (CANONICALISE, SAME, 'y = x -> upsample(1, mode = "bilinear")'),  # 0 · inf is NaN
    "casts that lose": (CANONICALISE, SAME, 'y = x -> cast("f16") -> cast("f32")'),
    "too large for an integer": (CANONICALISE, SAME, 'y = x -> cast("f64") -> cast("i32") -> cast("f32")'),
    "expand that is needed": (
        CANONICALISE,
        SAME,
        "def f = slice(1, to = 1)\ny = (f(x) -> expand([N, 4, 6, 6])) + f(z)",
    ),
    "parts in another order": (JOIN_PIECES, SAME, "let a, b = split(x, 2, axis = 1)\ny = concat(b, a, axis = 1)"),
    "on another axis": (JOIN_PIECES, "N, 2, 12, 6", "let a, b = split(x, 2, axis = 1)\ny = concat(a, b, axis = 2)"),
    "slice across a seam": (JOIN_PIECES, SAME, "y = concat(x, z, axis = 1) -> slice(1, from = 2, to = 6)"),
    "stepping slices": (JOIN_PIECES, "N, 4, 6, 2", "y = x -> slice(3, step = 2) -> slice(3, to = 2)"),
    "a concat that others read": (
        JOIN_PIECES,
        "N, 12, 6, 6",
        "let a = concat(x, z, axis = 1)\ny = concat(a, x + sum(a), axis = 1)",
    ),
    "no inverse": (
        CANCEL_VIEWS,
        SAME,
        "y = x -> permute([0, 1, 3, 2]) -> relu -> permute([0, 3, 1, 2]) -> permute([0, 2, 1, 3])",
    ),
    "one that others read": (
        CANCEL_VIEWS,
        SAME,
        "let a = x -> permute([0, 2, 3, 1]) -> exp\ny = permute(a, [0, 3, 1, 2]) + sum(a)",
    ),
    "softmax between": (CANCEL_VIEWS, SAME, "y = x -> permute([0, 2, 3, 1]) -> softmax -> permute([0, 3, 1, 2])"),
    "a tensor beside": (CANCEL_VIEWS, SAME, "y = permute(permute(x, [0, 2, 3, 1]) + parameter([4]), [0, 3, 1, 2])"),
    "broadcast in the shape between": (
        CANCEL_VIEWS,
        SAME,
        "let m = x -> slice(1, to = 2) -> max(axis = [2, 3]) -> reshape([N, 2, 1])\n"
        "y = (x -> reshape([N, 2, 72])) * m -> reshape([N, 4, 6, 6])",
    ),
}


def bits(graph: Graph) -> Sequence[bytes]:
    """What the network computes of numbers among which there are infinities, NaN and both zeros."""
    rng = np.random.default_rng(0)
    weights = {n: w.astype(np.float32) for n, w in random_weights(graph, 0).items()}
    inputs = []
    for _ in graph.inputs:
        x = rng.normal(size=(2, 4, 6, 6)).astype(np.float32)
        x.flat[rng.permutation(x.size)[:40]] = rng.choice([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-42], 40)
        inputs.append(torch.from_numpy(x))
    with torch.no_grad():
        made = to_torch(graph, weights).eval()(*inputs)
    found = [y.numpy() for y in (made if isinstance(made, tuple) else (made,))]
    return [np.where(np.isnan(y), np.nan, y).tobytes() for y in found]


@pytest.mark.parametrize("case", REWRITTEN)
def test_rewritten(case: str) -> None:
    step, shape, before, after = REWRITTEN[case]
    head = HEAD.format(shape)
    graph = loads(head + before)
    run_passes(graph, [FOLD_CONSTANTS, DCE])
    expected = bits(graph)
    copy = clone(graph)
    while run_passes(graph, [step, DCE])[0].changed:
        pass
    assert print_graph(graph) == head + after + "\n"
    assert bits(graph) == expected
    assert bits(copy) == expected


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    step, shape, program = KEPT[case]
    graph = loads(HEAD.format(shape) + program)
    run_passes(graph, [FOLD_CONSTANTS, DCE])
    assert not run_passes(graph, [step])[0].changed


@pytest.mark.parametrize(("before", "after"), [("y = x + 0.0", "y = x"), ("y = x -> avg_pool(1)", "y = x")])
def test_what_is_kept_would_change_a_bit(before: str, after: str) -> None:
    head = HEAD.format(SAME)
    assert bits(loads(head + before)) != bits(loads(head + after))


def test_dropout_of_nothing_goes_in_training_too() -> None:
    for p, left in ((0.0, []), (0.1, ["dropout"])):
        graph = loads(HEAD.format(SAME) + f"y = x -> dropout({p})\n")
        run_passes(graph, [CANONICALISE], Context(training=True))
        assert [n.op.name for n in graph.nodes] == left


def test_views_cancel_in_regions_and_one_after_the_other() -> None:
    turned = "permute([0, 2, 3, 1]) -> relu -> permute([0, 3, 1, 2])"
    source = f"y = x -> {turned} -> {turned} -> skip(gate = mean([1, 2, 3], keepdim = true), body = {turned})\n"
    graph = loads(HEAD.format(SAME) + source)
    assert run_passes(graph, [CANCEL_VIEWS, DCE])[0].changed
    assert [n.op.name for n in graph.walk()] == ["relu", "relu", "mean", "relu", "skip"]
    assert not run_passes(graph, [CANCEL_VIEWS])[0].changed


def test_weights_that_no_node_has_go_with_the_dead() -> None:
    graph = loads(HEAD.format(SAME) + "let unused = x -> linear(3)\ny = x -> linear(6) -> relu\n")
    weights = random_weights(graph, 0) | {"other": np.zeros(3)}
    context = Context(dict(weights))
    assert run_passes(graph, [DCE], context)[0].changed
    assert context.weights is not None
    assert context.weights.keys() == graph.parameters().keys()
    assert len(context.weights) == 2
    assert not run_passes(graph, [DCE], context)[0].changed
