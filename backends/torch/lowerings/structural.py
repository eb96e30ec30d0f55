"""Ops with regions: each region is a nested function, called by a helper of the runtime.

What is captured is passed on to every region, so that the functions close over `self`, sizes and `aux` alone.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from archc.backends.torch.codegen import TorchNode, lowering
from archc.backends.torch.text import quoted, tuple_text
from archc.ir.ops.structural import skip_by_token


def _options(n: TorchNode, defaults: dict[str, Any]) -> str:
    """Parameters that differ from the helper's defaults, as keyword arguments."""
    values = {name: getattr(n.p, name) for name in defaults}
    return "".join(f", {name}={value!r}" for name, value in values.items() if value != defaults[name])


@lowering("moe")
def _(n: TorchNode) -> str:
    count = len(n.node.regions) - n.p.shared
    router = n.region(0, "router")
    experts = tuple_text([n.region(i, f"expert{i - 1}") for i in range(1, count)])
    shared = f", {n.region(count, 'shared')}" if n.p.shared else ""
    options = f"top_k={n.p.top_k}, normalize={n.p.normalize}, training=self.training"
    options += _options(n, {"capacity": None, "noise": 0.0, "balance": 0.0, "z_loss": 0.0})
    options += _options(n, {"score": "softmax", "routing": "token", "temperature": 1.0})
    return f"moe({n.x}, {tuple_text(n.captures)}, {router}, {experts}{shared}, {options}, aux=aux, key={n.key})"


@lowering("skip")
def _(n: TorchNode) -> str:
    gate, body = n.region(0, "gate"), n.region(1, "body")
    options = f"hard={n.p.mode == 'hard'}, by_token={skip_by_token(n.node.call)}, threshold={n.p.threshold!r}"
    options += ", training=self.training"
    if n.p.budget is not None:
        share = Fraction(repr(n.p.budget))  # in whole numbers: 0.29 * 100 in floats is below 29
        tokens = f"{n.x}.shape[1] * {share.numerator} // {share.denominator}"
        options += f", kept=max(1, {tokens})"
    options += _options(n, {"cost": 0.0, "target": 0.0}) + f", aux=aux, key={n.key}"
    return f"skip({n.x}, {tuple_text(n.captures)}, {gate}, {body}, {options})"


@lowering("exit")
def _(n: TorchNode) -> str:
    head, rest = n.region(0, "head"), n.region(1, "rest")
    options = f"confidence={quoted(n.p.confidence)}, threshold={n.p.threshold!r}, training=self.training"
    return f"early_exit({n.x}, {tuple_text(n.captures)}, {head}, {rest}, {options}, aux=aux, key={n.key})"


@lowering("scan")
def _(n: TorchNode) -> str:
    cell, axis = n.region(0, "cell"), n.node.call.axis(n.p.axis)
    x, *states = n.args[: len(n.args) - n.node.captures]
    call = f"scan({x}, {tuple_text(states)}, {tuple_text(n.captures)}, {cell}, axis={axis}, reverse={n.p.reverse})"
    return call if states else f"{call}[0]"
