"""Symbolic dimensions agree with integer arithmetic wherever their symbols are given."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archc.ir.dims import Dim, exact_div, floor_div, lower_bound, product, substitute, symbol, symbols, total

VALUES = {"N": 3, "T": 10, "H": 7}


@st.composite
def dims(draw: st.DrawFn, depth: int = 3) -> tuple[Dim, int]:
    """A dimension, and its value under VALUES computed with plain integers."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(VALUES)))
            return symbol(name), VALUES[name]
        number = draw(st.integers(0, 9))
        return number, number
    (a, x), (b, y) = draw(dims(depth - 1)), draw(dims(depth - 1))
    match draw(st.sampled_from("+-*/%")):
        case "+":
            return a + b, x + y
        case "-":
            return a - b, x - y
        case "*":
            return a * b, x * y
        case "/":
            k = draw(st.integers(1, 6))
            return floor_div(a, k), x // k
        case _:
            k = draw(st.integers(1, 6))
            return a % k, x % k


@settings(max_examples=300, deadline=None)
@given(dims())
def test_arithmetic_agrees_with_integers(case: tuple[Dim, int]) -> None:
    dim, value = case
    assert substitute(dim, VALUES) == value


@settings(max_examples=200, deadline=None)
@given(dims(), dims())
def test_equality_is_by_normal_form(one: tuple[Dim, int], two: tuple[Dim, int]) -> None:
    (a, _), (b, _) = one, two
    assert a + b == b + a
    assert a * b == b * a
    assert a + b - b == a
    assert (a + 1) * b == a * b + b
    assert a + 1 != a


@settings(max_examples=200, deadline=None)
@given(dims(), dims())
def test_exact_division_undoes_multiplication(one: tuple[Dim, int], two: tuple[Dim, int]) -> None:
    (a, _), (b, _) = one, two
    if b == 0:
        assert exact_div(a, b) is None
    elif isinstance(b, int) or len(b.terms) == 1:
        assert exact_div(a * b, b) == a


def test_spelling() -> None:
    n, t, h = symbol("N"), symbol("T"), symbol("H")
    assert str(2 * n * t + 1) == "2*N*T + 1"
    assert str((h - 1) // 2) == "(H + 1)//2 - 1"
    assert str(n - n) == "0"
    assert str(3 * (h // 2) * n) == "3*(H//2)*N"
    assert str(4 * t % 3) == "(4*T) % 3"


def test_helpers() -> None:
    n, h = symbol("N"), symbol("H")
    assert symbols(n * (h // 2) + 1) == {"N", "H"}
    assert product([2, n, 3]) == 6 * n
    assert total([2, n, 3]) == n + 5
    assert lower_bound(2 * n + 3) == 3
    assert lower_bound(1 - n) is None
    with pytest.raises(ZeroDivisionError):
        floor_div(n, 0)
