"""Operations counted by hand, beside what operators say of themselves."""

from __future__ import annotations

import re

import pytest
from cases import Case
from harness import build

from archc.ir.cost import graph_flops
from archc.ir.op import REGISTRY

VECTOR = ("f32[2, 6]",)
TOKENS = ("f32[2, 5, 6]",)
IMAGE = ("f32[2, 4, 8, 8]",)
COUNTED = [
    # an operation for each element, or a few
    ("x -> relu", VECTOR, 12),
    ("x -> exp", VECTOR, 10 * 12),
    ("pow(x, 3)", VECTOR, 10 * 12),
    ("x + 1", VECTOR, 12),
    ("x -> clamp(0, 1)", VECTOR, 2 * 12),
    ("x -> sqrt", VECTOR, 2 * 12),
    ("x -> rsqrt", VECTOR, 3 * 12),
    ("x -> transpose(0, 1)", VECTOR, 0),
    ("x -> reshape([3, 4])", VECTOR, 0),
    ("x -> flip(1)", VECTOR, 0),
    ("x -> cumsum(1)", VECTOR, 12),
    # those that look once at each element of their input
    ("x -> sum(1)", VECTOR, 12),
    ("x -> mean", VECTOR, 12),
    ("x -> var(1)", VECTOR, 4 * 12),
    ("x -> argmax(1)", VECTOR, 12),
    ("x -> global_avg_pool", IMAGE, 2 * 4 * 64),
    ("x -> adaptive_avg_pool(2)", IMAGE, 2 * 4 * 64),
    # each window of each result
    ("x -> max_pool(2)", IMAGE, 2 * 4 * 16 * 4),
    ("x -> avg_pool(3, stride = 2, padding = 1)", IMAGE, 2 * 4 * 16 * 9),
    ("x -> upsample(2)", IMAGE, 0),
    ('x -> upsample(2, mode = "bilinear")', IMAGE, 2 * 4 * 256 * 9),
    # norms: a few for each element, and one each for scale and shift
    ("x -> batch_norm", IMAGE, 512 * (2 + 2)),
    ("x -> norm", IMAGE, 512 * (2 + 2)),
    ("x -> norm", TOKENS, 60 * (5 + 2)),
    ("x -> layer_norm", TOKENS, 60 * (5 + 2)),
    ("x -> layer_norm(affine = false)", TOKENS, 60 * 5),
    ("x -> rms_norm", TOKENS, 60 * (3 + 1)),
    # products: twice the letters
    ("x -> linear(7)", TOKENS, 2 * 10 * 6 * 7),
    ("x -> conv(8, 3, padding = 1)", IMAGE, 2 * 2 * 8 * 64 * 4 * 9),
    ("x -> conv(8, 3, padding = 1, groups = 2)", IMAGE, 2 * 2 * 8 * 64 * 2 * 9),
    ("x -> conv(8, 3, stride = 2, padding = 1)", IMAGE, 2 * 2 * 8 * 16 * 4 * 9),
    ("x -> conv_transpose(3, 2, stride = 2)", IMAGE, 2 * 512 * 3 * 4),
    ("x -> quantized_linear(7, bits = 4)", TOKENS, 2 * 10 * 6 * 7),
    ("x -> quantized_conv(8, 3, padding = 1)", IMAGE, 2 * 2 * 8 * 64 * 4 * 9),
    ("matmul(x, y)", ("f32[2, 6]", "f32[6, 3]"), 2 * 2 * 6 * 3),
    ('einsum("ij,jk->ik")(x, y)', ("f32[2, 3]", "f32[3, 5]"), 2 * 2 * 3 * 5),
    ('einsum("ij,jk,kl->il")(x, y, z)', ("f32[2, 3]", "f32[3, 5]", "f32[5, 7]"), 2 * 2 * 3 * 5 + 2 * 2 * 5 * 7),
    ('einsum("ij,j,k->ik")(x, y, z)', ("f32[2, 3]", "f32[3]", "f32[5]"), 2 * 2 * 3 + 2 * 2 * 5),
    # (what only one operand has is summed before the product, uncounted)
    ('einsum("ij,jkm->ik")(x, y)', ("f32[2, 3]", "f32[3, 5, 4]"), 2 * 2 * 3 * 5),
    ('einsum("ij->i")(x)', ("f32[2, 3]",), 6),
    ('einsum("ij->ji")(x)', ("f32[2, 3]",), 0),
    # attention: q, k, v and out, then scores and sums of two heads of three
    ("scaled_dot_product(x, x, x)", ("f32[2, 2, 5, 3]",), 2 * 2 * 2 * 25 * (3 + 3)),
    ("x -> attention(2)", TOKENS, 4 * 2 * 10 * 36 + 2 * 2 * 2 * 25 * (3 + 3)),
    ("x -> attention(2, kv_heads = 1)", TOKENS, 2 * 2 * 10 * 36 + 2 * 2 * 10 * 18 + 2 * 2 * 2 * 25 * (3 + 3)),
    # KAN: 11 intervals with the margins, three rounds of the recursion, 8 splines and silu (13)
    ("x -> kan(4)", VECTOR, 12 * (3 * 11 + 7 * (10 + 9 + 8) + 13) + 2 * 2 * 4 * 6 * (8 + 1)),
    ('x -> kan(4, base = "none")', VECTOR, 12 * (3 * 11 + 7 * (10 + 9 + 8)) + 2 * 2 * 4 * 6 * 8),
    ('x -> kan(4, basis = "fourier", grid = 3)', VECTOR, 12 * 21 * 3 + 2 * 2 * 4 * 6 * 6),
    ('x -> kan(4, basis = "chebyshev", order = 3)', VECTOR, 12 * (10 + 3 * 2) + 2 * 2 * 4 * 6 * 4),
    ('x -> kan(4, basis = "grkan", groups = 2)', VECTOR, 12 * (2 * 5 + 2 * 4 + 3) + 2 * 2 * 4 * 6),
    # a router, its softmax (14 an expert) and the weighing of 2; half of the experts for each row; one for all
    (
        "x -> moe(router = linear(4), experts = copies(4, linear(7)), top_k = 2)",
        VECTOR,
        2 * 2 * 6 * 4 + 2 * (14 * 4 + 3 * 2) + 2 * (2 * 2 * 6 * 7),
    ),
    (
        "x -> moe(router = linear(4), experts = copies(4, linear(7)), top_k = 2, shared = linear(7))",
        VECTOR,
        2 * 2 * 6 * 4 + 2 * (14 * 4 + 3 * 2) + 2 * (2 * 2 * 6 * 7) + 2 * 2 * 6 * 7,
    ),
    ("x -> scan(fn(v, h) { let n = linear(4)(v) return n, n }, state = [[4]], axis = 1)", TOKENS, 5 * 2 * 2 * 6 * 4),
    # at most: every gate open, no sample leaves early
    ("x -> skip(gate = linear(1), body = linear(6))", VECTOR, 2 * 2 * 6 + 2 * 2 * 6 * 6),
    ("x -> exit(head = linear(3), rest = linear(3), threshold = 0.9)", VECTOR, 2 * (2 * 2 * 6 * 3)),
]


@pytest.mark.parametrize(("expression", "types", "needed"), COUNTED, ids=[c[0] for c in COUNTED])
def test_operations_are_those_counted_by_hand(expression: str, types: tuple[str, ...], needed: int) -> None:
    assert graph_flops(build(Case("", (), (expression,), types, ("normal",) * len(types)))) == needed


def test_no_rule_of_counting_is_left_out() -> None:
    """Every function that counts for some operator is met above."""
    rules = {name: op.flops.__code__ for name, op in REGISTRY.items() if callable(op.flops)}
    met = {rules[word] for c in COUNTED for word in re.findall(r"\w+", c[0]) if word in rules}
    assert [name for name, rule in rules.items() if rule not in met] == []
