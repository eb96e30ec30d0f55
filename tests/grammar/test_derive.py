"""Drawing on types: the law, and that what a draw says of an architecture is true of its graph."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

import archc
from archc.grammar.draw import Space, read_space
from archc.ir.canonical import canonical
from archc.ir.cost import cost

HEAD = "space s\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
ROOT = Path(archc.__file__).parents[1]
SPACES = ROOT / "examples" / "spaces"


def chi_square(found: Counter, expected: dict) -> float:
    total = sum(found.values())
    assert set(found) <= set(expected)
    return sum((found[k] - total * p) ** 2 / (total * p) for k, p in expected.items())


def test_a_part_has_its_own_law_on_condition_that_it_fits():
    space = read_space(
        HEAD + "rule Wide = linear(4) | 3: linear(8) | conv(4, kernel = 3)\ny = x -> branch(Wide, Wide) -> linear(4)\n"
    )
    found = Counter(tuple(space.draw(2, i).trace[p] for p in ("Wide", "Wide#1")) for i in range(600))
    assert chi_square(found, {(0, 0): 0.25, (1, 1): 0.75}) < 10.8  # one degree of freedom: once in 1000
    assert chi_square(found, {(0, 0): 0.1, (1, 1): 0.9}) > 10.8  # the control: pairs drawn anew until they meet


def test_what_is_bounded_has_its_law_on_condition_of_the_bound():
    widths = (8, 16, 32, 64)
    params = {(a, b): 5 * a + (a + 1) * b + (b + 1) * 4 for a, b in product(widths, widths)}
    most = 1500
    space = read_space(
        HEAD + f"require params < {most}\ny = x -> linear(W) -> linear(W) -> linear(4)\nrule W = 8 | 16 | 32 | 64\n"
    )
    fit = [pair for pair, n in params.items() if n < most]
    found = Counter(tuple(widths[int(n)] for n in space.draw(2, i).trace.values()) for i in range(900))
    assert 1 < len(fit) < 16
    assert chi_square(found, {pair: 1 / len(fit) for pair in fit}) < 29.6  # ten degrees of freedom
    first = Counter(a for a, _ in fit)
    locally = {(a, b): 1 / len(first) / first[a] for a, b in fit}
    assert chi_square(found, locally) > 29.6  # the control: each choice among what it leaves open


@pytest.mark.parametrize("name", ["einspace", "digits_net", "cells", "choices", "darts", "transformer", "sequences"])
def test_costs_and_hashes_are_those_of_the_graph(name: str):
    space = read_space(SPACES / f"{name}.arch")
    pairs = set()
    for index in range(8):
        drawn = space.draw(4, index)
        costs = cost(drawn.graph)
        assert (drawn.params, drawn.flops, drawn.activation_bytes) == (
            costs.params, costs.flops, costs.activation_bytes,
        )  # fmt: skip
        assert drawn.nodes == sum(1 for _ in drawn.graph.walk())
        pairs.add((drawn.hash, canonical(drawn.graph).hash))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) > 4


def test_hashes_do_not_depend_on_how_rules_are_nested():
    def hash_of(body: str) -> str:
        return read_space(HEAD + f"rule R = relu\nrule L = linear(4)\ny = x -> {body}\n").draw().hash

    assert hash_of("branch(R -> L, tanh)") == hash_of("branch(tanh, relu -> identity -> L)")
    assert hash_of("branch(branch(R, L), tanh)") == hash_of("branch(R, branch(tanh, L))")
    assert hash_of("L -> branch(R, tanh)") != hash_of("branch(L -> R, L -> tanh)")  # one `linear`, or two
    assert hash_of('branch(R, L, merge = "mul")') != hash_of("branch(R, L)")
    assert len(hash_of("L -> branch(R, tanh)")) == 32
    crossed = "fn(a) { let b = a -> L; let c = b -> R; return (c -> tanh) + c * b }"
    assert len(hash_of(crossed)) == 64  # not series-parallel: the hash of the graph


def test_a_draw_is_the_same_whatever_was_drawn_before(monkeypatch: pytest.MonkeyPatch):
    path = SPACES / "einspace.arch"
    space = read_space(path)
    drawn = {index: space.draw(1, index).hash for index in range(40)}
    fresh: Space = read_space(path)
    assert all(fresh.draw(1, index).hash == drawn[index] for index in (39, 7, 20))
    monkeypatch.setattr("archc.grammar.draw.MOST_TYPES", 0)  # nothing is remembered
    kept = fresh.draw(1, 20)
    assert (fresh.draw(1, 7).hash, kept.hash) == (drawn[7], drawn[20])
    code = f"from archc.grammar.draw import read_space; print(read_space({str(path)!r}).draw(1, 7).hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == drawn[7]


def test_a_trace_that_does_not_fit_gives_way():
    space = read_space(
        HEAD + "rule Wide = linear(4) | linear(8) | linear(12)\ny = x -> branch(Wide, Wide) -> linear(4)\n"
    )
    drawn = space.draw(0, 0)
    other = (drawn.trace["Wide"] + 1) % 3
    moved = space.redraw({**drawn.trace, "Wide": other})
    assert moved.trace["Wide"] == moved.trace["Wide#1"] == other


def test_copies_of_a_choice_are_one_derivation_for_other_types_too():
    space = read_space(
        "space s\ninput x: f32[N, 4]\noutput y: f32[N, 1]\n"
        "rule Half = linear(2) | slice(1, 0, 2) | flip(1)\ny = x -> repeat(2) { Half } -> linear(1)\n"
    )
    for index in range(12):
        names = [n.op.name for n in space.draw(0, index).graph.nodes[:2]]
        assert names[0] == names[1]
