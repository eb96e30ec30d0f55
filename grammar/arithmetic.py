"""Arithmetic and comparison of plain values: numbers, dimensions, texts."""

from __future__ import annotations

from typing import Any

from archc.grammar.values import describe, is_number
from archc.ir.diagnostics import Span, fail
from archc.ir.dims import Dim, Expr, exact_div, floor_div, symbols

LARGEST = 2**63 - 1
"""Whole numbers stay in 64 bits, so that no program makes one that fills the memory."""

TENSOR_OPS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
TENSOR_COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}

MOST_TERMS, MOST_FACTORS = 1000, 32
"""Of a dimension that is a product."""


def calculate(operator: str, a: Any, b: Any, span: Span, sides: tuple[Span, Span] | None = None) -> Any:
    """`a operator b` for numbers and dimensions; `sides` are the places of `a` and `b`.

    Raises: CompileError, E0333 for a division that is not exact or by zero, E0334 for other kinds of operands.
    """
    for value, side in zip((a, b), sides or (span, span), strict=True):
        if not is_number(value):
            raise fail("E0334", f"`{operator}` needs numbers or tensors", side, label=f"found {describe(value)}")
    if (isinstance(a, Expr) and isinstance(b, float)) or (isinstance(a, float) and isinstance(b, Expr)):
        raise fail(
            "E0334",
            f"`{operator}` cannot mix a dimension with a fraction",
            span,
            label=f"{describe(a)} and {describe(b)}",
            help="dimensions are whole: use `/` or `//` with a whole number",
        )
    if operator in ("/", "//", "%"):
        result = _divide(operator, a, b, span)
    elif operator == "+":
        result = a + b
    elif operator == "-":
        result = a - b
    else:
        if isinstance(a, Expr) and isinstance(b, Expr) and _unwieldy(a, b):
            raise fail("E0334", f"a dimension has at most {MOST_TERMS} terms, each of {MOST_FACTORS} factors", span)
        result = a * b
    if isinstance(result, int) and abs(result) > LARGEST:
        raise fail("E0334", "a whole number needs to fit into 64 bits", span, label="this one does not")
    return result


def _unwieldy(a: Expr, b: Expr) -> bool:
    """Whether a product of dimensions would be too long: squared again and again, it has a million terms soon."""
    factors = sum(max(len(monomial) for monomial, _ in side.terms) for side in (a, b))
    return len(a.terms) * len(b.terms) > MOST_TERMS or factors > MOST_FACTORS


def _divide(operator: str, a: Any, b: Any, span: Span) -> Any:
    if b == 0:
        raise fail("E0333", "division by zero", span)
    if isinstance(a, float) or isinstance(b, float):
        return a / b if operator == "/" else a // b if operator == "//" else a % b
    if operator == "//":
        return floor_div(a, b)
    if operator == "%":
        return a % b
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    raise fail(
        "E0333",
        "`/` of whole numbers needs to be exact",
        span,
        label=f"{a} / {b} is not a whole number",
        help="`//` rounds down" + (f"; `{a}.0 / {b}` is a fraction" if isinstance(a, int) else ""),
    )


def compare(operator: str, a: Any, b: Any, span: Span) -> bool:
    """`a operator b` for plain values.

    Raises: CompileError, E0334 for kinds that have no order, E0335 where it depends on an open dimension.
    """
    if isinstance(a, Expr) or isinstance(b, Expr):
        return _compare_dims(operator, a, b, span)
    if operator in ("==", "!="):
        same = a == b and isinstance(a, bool) == isinstance(b, bool)
        return same == (operator == "==")
    if not (is_number(a) and is_number(b)) and not (isinstance(a, str) and isinstance(b, str)):
        raise fail("E0334", f"`{operator}` needs two numbers", span, label=f"{describe(a)} and {describe(b)}")
    return bool({"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator])


def _compare_dims(operator: str, a: Any, b: Any, span: Span) -> bool:
    if not (is_number(a) and is_number(b)) or isinstance(a, float) or isinstance(b, float):
        if operator in ("==", "!="):
            return operator == "!="
        raise fail("E0334", f"`{operator}` needs two numbers", span, label=f"{describe(a)} and {describe(b)}")
    difference: Dim = a - b
    if isinstance(difference, int):
        return compare(operator, difference, 0, span)
    names = " and ".join(f"`{s}`" for s in sorted(symbols(difference)))
    raise fail(
        "E0335",
        "a condition needs to be known while the program is elaborated",
        span,
        label=f"this depends on {names}",
        help=f"fix the dimension: `--dim {min(symbols(difference))}=…`",
    )
