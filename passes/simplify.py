"""Arithmetic that changes nothing goes: neutral numbers, and what is done or undone twice.

    a = mul(x, constant(value=1.0))
    b = relu(a)                          c = relu(x)
    c = relu(b)                    →     return c
    d = neg(neg(c))
    return d

Every rule keeps each bit of every number, of NaN, infinities and -0 too: `x + 0.0` stays, for it turns -0 into 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import copysign
from typing import Any

from archc.ir.graph import Graph, GraphBuilder, Node, Value
from archc.ir.op import OpDef
from archc.ir.ops.activations import RELU, RELU6
from archc.ir.ops.constants import CONSTANT
from archc.ir.ops.elementwise import (
    ABS,
    ADD,
    CEIL,
    CLAMP,
    DIV,
    FLOOR,
    LOGICAL_AND,
    LOGICAL_NOT,
    LOGICAL_OR,
    MAXIMUM,
    MINIMUM,
    MUL,
    NEG,
    SIGN,
    SUB,
    WHERE,
)
from archc.ir.types import FLOATS
from archc.passes.manager import Context, Pass
from archc.passes.rewrite import producer, rewrite

NEUTRAL: Mapping[OpDef[Any], float | bool] = {
    MUL: 1.0, DIV: 1.0, ADD: -0.0, SUB: 0.0, LOGICAL_AND: True, LOGICAL_OR: False,
}  # fmt: skip
"""The number that, as the other operand (as the second, of `div` and `sub`), leaves a value as it is."""

UNDONE_TWICE = (NEG, LOGICAL_NOT)
ONCE_IS_ENOUGH = (RELU, RELU6, ABS, SIGN, FLOOR, CEIL, CLAMP)
OF_EQUALS = (MINIMUM, MAXIMUM, LOGICAL_AND, LOGICAL_OR)
"""Ops that give back a value when both operands are that value."""


def simplify(graph: Graph, context: Context) -> bool:
    """Apply the rules below once to every node."""

    def rule(b: GraphBuilder, node: Node) -> Sequence[Value] | None:
        result = _simpler(node)
        return [result] if result is not None and result.type == node.output.type else None

    return rewrite(graph, rule)


def _simpler(node: Node) -> Value | None:
    op, operands = node.op, node.operands
    if op in NEUTRAL:
        kept = _beside_neutral(node)
        if kept is not None:
            return kept
    if op in OF_EQUALS and operands[0] is operands[1]:
        return operands[0]
    if op is WHERE and operands[1] is operands[2]:
        return operands[1]
    if op not in UNDONE_TWICE and op not in ONCE_IS_ENOUGH:
        return None
    before = producer(operands[0], op)
    if before is None or repr(before.params) != repr(node.params):
        return None
    return before.operands[0] if op in UNDONE_TWICE else before.output


def _beside_neutral(node: Node) -> Value | None:
    """The operand that stands beside the neutral number."""
    places = [(0, 1), (1, 0)] if node.op.commutative else [(0, 1)]
    for kept, other in places:
        constant = producer(node.operands[other], CONSTANT)
        if constant is not None and _is(constant, NEUTRAL[node.op]):
            return node.operands[kept]
    return None


def _is(constant: Node, number: float | bool) -> bool:
    """Is this the number itself, its sign included? (Integers have one zero.)"""
    value = constant.call.params.value
    if isinstance(value, tuple) or value != number:
        return False
    return constant.output.type.dtype not in FLOATS or copysign(1, value) == copysign(1, number)


SIMPLIFY = Pass("simplify", simplify)
