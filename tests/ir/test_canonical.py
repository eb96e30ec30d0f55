"""The canonical hash: equal for every way to write one architecture, different for every other architecture."""

from __future__ import annotations

import time

import pytest

from archc.grammar.load import loads
from archc.ir.canonical import canonical

HEAD = "arch a(c = 8)\ninput x: f32[N, 3, 16, 16]\noutput y: f32[N, 4]\n"
TAIL = "\ny = v -> global_avg_pool -> linear(4)\n"


def hash_of(body: str, head: str = HEAD, tail: str = TAIL) -> str:
    return canonical(loads(head + body + tail)).hash


BASE = 'let v = x -> branch(conv(8, kernel = 3), conv(8, kernel = 5) -> relu, conv(8, kernel = 1), merge = "add")'

SAME = {
    "branches in another order": BASE.replace("conv(8, kernel = 3), ", "").replace(
        "conv(8, kernel = 1)", "conv(8, kernel = 1), conv(8, kernel = 3)"
    ),
    "names and layout": """
        let left  = x -> conv(8, kernel = 3, name = "anything")
        let right = x -> conv(c, kernel = 5)   # a comment
        let v = (relu(right) + left) + (x -> conv(8, kernel = 1))
    """,
    "defaults spelled out": BASE.replace("kernel = 3", "kernel = 3, stride = 1, groups = 1, bias = true"),
    "identities": BASE.replace("let v = x", "let v = x -> identity").replace("-> relu", "-> identity -> relu"),
    "dead code": BASE + "\nlet unused = x -> conv(5, kernel = 1)",
    "associativity": """
        let p = x -> conv(8, kernel = 3)
        let q = x -> conv(8, kernel = 5) -> relu
        let v = (x -> conv(8, kernel = 1)) + (q + p)
    """,
}

OTHER = {
    "a kernel": BASE.replace(
        "kernel = 1)", "kernel = 2, padding = 1, stride = 1) -> slice(2, to = 16) -> slice(3, to = 16)"
    ),
    "a bias": BASE.replace("kernel = 1)", "kernel = 1, bias = false)"),
    "an activation": BASE.replace("relu", "gelu"),
    "an activation's parameter": BASE.replace("relu", 'gelu(approximate = "tanh")'),
    "an initialiser": BASE.replace("kernel = 1)", 'kernel = 1, init = "zeros")'),
    "a merge": BASE.replace('"add"', '"mul"'),
    "an activation moved": BASE.replace("conv(8, kernel = 5) -> relu", "relu -> conv(8, kernel = 5)"),
    "shared weights": "share s = conv(8, kernel = 3)\nlet v = s(x) + relu(s(x))",
}


def test_every_way_to_write_it_has_one_hash() -> None:
    base = hash_of(BASE)
    assert {what: hash_of(body) == base for what, body in SAME.items()} == dict.fromkeys(SAME, True)


def test_every_other_architecture_has_another() -> None:
    hashes = {what: hash_of(body) for what, body in OTHER.items()} | {"base": hash_of(BASE)}
    assert len(set(hashes.values())) == len(hashes)


def test_the_batch_may_have_any_name_but_not_any_place() -> None:
    renamed = hash_of(BASE, HEAD.replace("[N,", "[B,").replace("f32[N", "f32[B"))
    assert renamed == hash_of(BASE)
    assert hash_of(BASE, HEAD.replace("16, 16", "16, 18")) != hash_of(BASE)


def test_sharing_is_part_of_the_identity() -> None:
    shared = "share s = linear(4)\nlet v = x -> mean([2, 3])\nlet a = v -> linear(3) -> s -> relu\n"
    tail = "\ny = a + (v -> linear(3) -> {})\n"
    one = hash_of(shared, tail=tail.format("s"))
    two = hash_of(shared, tail=tail.format("linear(4)"))
    assert one != two


def test_equal_branches_with_a_shared_one() -> None:
    """Three equal branches, two of which share weights with a later layer: whichever they are."""
    program = """
        share s = linear(3)
        let w = x -> mean([2, 3])
        let a = w -> {}
        let b = w -> {}
        let d = w -> {}
    """
    tail = "\ny = (a + b + d) -> s -> linear(4)\n"
    ways = [("s", "linear(3)", "linear(3)"), ("linear(3)", "s", "linear(3)"), ("linear(3)", "linear(3)", "s")]
    assert len({hash_of(program.format(*way), tail=tail) for way in ways}) == 1
    assert hash_of(program.format("s", "s", "linear(3)"), tail=tail) != hash_of(program.format(*ways[0]), tail=tail)


@pytest.mark.parametrize("swap", [False, True])
def test_parameters_come_in_canonical_order(swap: bool) -> None:
    a, b = "(x -> conv(8, kernel = 3))", "(x -> conv(8, kernel = 5))"
    graph = loads(HEAD + f"let v = {b} + {a}" + TAIL if swap else HEAD + f"let v = {a} + {b}" + TAIL)
    order = [p.shape for p in canonical(graph).parameters]
    assert order == [p.shape for p in canonical(loads(HEAD + f"let v = {a} + {b}" + TAIL)).parameters]
    assert set(canonical(graph).names()) == set(graph.parameters())


def test_regions_count() -> None:
    head = "arch m()\ninput x: f32[N, T, 8]\noutput y: f32[N, T, 8]\n"
    body = "y = x -> residual(moe(router = linear(4), experts = copies(4, linear(8) -> {}), top_k = {}))"
    hashes = {canonical(loads(head + body.format(act, k))).hash for act in ("relu", "gelu") for k in (1, 2)}
    assert len(hashes) == 4
    two = "\ny = ({0}) + ({1})\n"
    a = "x -> moe(router = linear(2), experts = copies(2, linear(8)), top_k = 1)"
    b = "x -> moe(router = linear(3), experts = copies(3, linear(8)), top_k = 1)"
    assert canonical(loads(head + two.format(a, b))).hash == canonical(loads(head + two.format(b, a))).hash


DEAD = "arch a\ninput x: f32[N, 8]\ninput m: f32[8]\noutput y: f32[N, 8]\noutput z: f32[N, 8]\n"
READ_ELSEWHERE = {  # a program, and statements that no output needs
    "a link of a chain": ("let s = x + (x -> tanh)\ny = s + (x -> sigmoid)\nz = x\n", "let d = s -> relu"),
    "one of two equal operands": (
        "let a = x -> linear(8)\nlet b = x -> linear(8)\ny = a + b\nz = a -> {}\n", "let d = {} -> exp",
    ),
    "a shared weight": ("share f = linear(8)\ny = f(x) + (x -> linear(8))\nz = x\n", "let d = f(x * 2.0)"),
}  # fmt: skip


@pytest.mark.parametrize("what", READ_ELSEWHERE)
def test_what_no_output_needs_does_not_count_wherever_it_reads(what: str) -> None:
    program, dead = READ_ELSEWHERE[what]
    for act in ("tanh", "sigmoid", "relu", "gelu", "elu", "silu"):  # which of two equal operands is first is by chance
        alone = canonical(loads(DEAD + program.format(act))).hash
        for read in ("a", "b"):
            assert canonical(loads(DEAD + program.format(act) + dead.format(read))).hash == alone
    used = dead.replace("let d", "z").format("b")
    assert canonical(loads(DEAD + program.format("tanh").rpartition("z =")[0] + used)).hash != alone


def test_a_capture_that_no_region_needs_does_not_count() -> None:
    body = "y = x -> skip(gate = linear(1), body = fn(v) {{ {} return v -> tanh }})\nz = x"
    hashes = [canonical(loads(DEAD + body.format(s))).hash for s in ("", "let unused = v * m")]
    assert hashes[0] == hashes[1]
    assert canonical(loads(DEAD + body.replace("tanh", "add(m)").format(""))).hash != hashes[0]


def test_an_identity_does_not_part_a_chain() -> None:
    sums = [
        "x + ((x -> tanh) + (x -> sin))",
        "x + (((x -> tanh) + (x -> sin)) -> identity())",
        "(x + sin(x)) + tanh(x)",
    ]
    assert len({canonical(loads(f"{DEAD}y = {s}\nz = x -> identity()")).hash for s in sums}) == 1


def test_a_long_sum_takes_linear_time() -> None:
    """4000 terms took eight minutes when each link of the chain looked at the rest of it."""
    graph = loads(f"arch a\ninput x: f32[N]\noutput y: f32[N]\ny = {' + '.join(['x', '(x -> relu)'] * 2000)}")
    start = time.process_time()
    canonical(graph)
    assert time.process_time() - start < 5
