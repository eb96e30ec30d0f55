"""Exact sizes of spaces, and lists of what is in them."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from archc.grammar.draw import draw, read_space
from archc.grammar.enumerate import Count, count, listing
from archc.ir.canonical import canonical
from archc.ir.diagnostics import CompileError

HEAD = "space s\ninput x: f32[N, 4]\noutput y: f32[N, 4]\n"
ACT = "rule Act = relu | tanh | gelu\n"


def space(text: str):
    return read_space(HEAD + text)


@pytest.mark.parametrize(
    ("text", "derivations"),
    [
        (ACT + "y = x -> Act", 3),
        (ACT + "y = x -> Act -> Act", 9),
        (ACT + "y = x -> repeat(2) { Act }", 3),  # one mention, copied
        (ACT + "y = x -> repeat(2) as i { Act }", 9),
        (ACT + "y = x -> repeat(range(1, 3)) as i { Act }", 3 + 9 + 27),
        (ACT + "rule Times = 1 | 3\ny = x -> repeat(Times) as i { Act }", 3 + 27),
        (ACT + "y = x -> branch(2, Act)", 3),
        (ACT + "y = x -> branch(Act, Act)", 9),
        (ACT + "def twice(m) = m -> m\ny = x -> twice(Act)", 3),
        (ACT + "def two = Act -> Act\ny = x -> two -> two", 81),
        (ACT + "let kind = choose { 0 | 1 }\ny = x -> (if kind == 0 then Act else Act)", 6),
        ("rule A = relu | tanh -> A when depth < 3\ny = x -> A", 4),
        ("rule A = relu | A -> A when depth < 2\ny = x -> A", 1 + (1 + 1) ** 2),
        ("y = x -> linear(range(8, 32, step = 8)) -> linear(4)", 4),
        ("rule Wide(w) = linear(w) | linear(w) -> relu\ny = x -> Wide(choose { 4 | 8 }) -> linear(4)", 4),
    ],
)
def test_counts_are_those_of_lists(text: str, derivations: int):
    assert count(space(text)).exact == derivations
    assert len(list(listing(space(text)))) == derivations


def test_a_list_holds_what_fits():
    found = list(
        listing(space("rule A = relu | conv(4, kernel = 3) | linear(8)\nrule B = tanh | linear(4)\ny = x -> A -> B"))
    )
    assert (
        count(
            space("rule A = relu | conv(4, kernel = 3) | linear(8)\nrule B = tanh | linear(4)\ny = x -> A -> B")
        ).exact
        == 6
    )
    assert [d.trace for d in found] == [{"A": 0, "B": 0}, {"A": 0, "B": 1}, {"A": 2, "B": 1}]
    assert sum(d.probability for d in found) == pytest.approx(3 / 6)


def test_guards_and_requirements_hold_in_a_list():
    text = "require params < 60\nrule W = 4 | 8\nrule A = linear(W) | relu -> A when depth < 1\ny = x -> A -> linear(4)"
    found = list(listing(space(text)))
    assert [len(d.graph.nodes) for d in found] == [2, 3]
    assert len(list(listing(space(text.replace("60", "100"))))) == 4


def test_probabilities_are_those_of_draws():
    text = ACT.replace("relu", "2: relu") + "rule A = 3: Act | Act -> Act when depth < 1\ny = x -> A"
    exact = {tuple(d.trace.items()): d.probability for d in listing(space(text))}
    assert sum(exact.values()) == pytest.approx(1)
    total = 600
    found = Counter(tuple(draw(HEAD + text, index=i).trace.items()) for i in range(total))
    assert set(found) <= set(exact)
    statistic = sum((found[k] - total * p) ** 2 / (total * p) for k, p in exact.items())
    assert statistic < 29.6  # 11 degrees of freedom: exceeded once in 500
    even = sum((found[k] - total / len(exact)) ** 2 / (total / len(exact)) for k in exact)
    assert even > 29.6  # the control: all alike


def test_equal_architectures_have_one_hash():
    found = [canonical(d.graph).hash for d in listing(space(ACT + "y = x -> branch(Act, Act)"))]
    assert (len(found), len(set(found))) == (9, 6)


def test_what_has_no_list_is_told():
    endless = space("rule A = relu | 0.3: A -> A\ny = x -> A")
    assert str(count(endless)) == "endless"
    assert len(list(islice(listing(endless), 5))) == 5
    with pytest.raises(CompileError, match="E0717"):
        list(listing(endless, limit=100))
    continuous = space("y = x -> dropout(range(0.0, 0.5))")
    assert str(count(continuous)) == "endless"
    with pytest.raises(CompileError, match="E0717"):
        list(listing(continuous))


def test_large_numbers():
    big = space("rule A = relu | tanh | A -> A when depth < 20\ny = x -> A")
    assert count(big).exact is None
    assert count(big).log10 == pytest.approx(432_954, rel=0.3)
    middle = space("rule A = relu | tanh | A -> A when depth < 8\ny = x -> A")
    size = 2
    for _ in range(8):
        size = 2 + size**2
    assert count(middle).exact == size
    assert str(Count.of(3) ** 100_000) == "about 10^47712"
    assert (Count.of(0) * count(big)).exact == 0
