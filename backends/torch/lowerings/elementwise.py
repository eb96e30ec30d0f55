"""Arithmetic, comparisons, activations and constants."""

from __future__ import annotations

from typing import Any

from archc.backends.torch.codegen import TorchNode, lowering
from archc.backends.torch.text import number, quoted
from archc.ir.types import FLOATS

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}
_INFIX |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_FUNCTIONS = {
    **dict.fromkeys(("abs", "ceil", "cos", "erf", "exp", "expm1", "floor", "log", "log1p", "reciprocal"), "torch"),
    **dict.fromkeys(("rsqrt", "sigmoid", "sign", "sin", "sqrt", "square", "tanh", "logical_not"), "torch"),
    **dict.fromkeys(("logical_and", "logical_or", "maximum", "minimum", "where"), "torch"),
    **dict.fromkeys(("hardsigmoid", "hardswish", "mish", "relu", "relu6", "silu"), "F"),
}


@lowering(*_INFIX)
def _(n: TorchNode) -> str:
    return f"{n.a} {_INFIX[n.node.op.name]} {n.b}"


@lowering(*_FUNCTIONS)
def _(n: TorchNode) -> str:
    return f"{_FUNCTIONS[n.node.op.name]}.{n.node.op.name}({', '.join(n.args)})"


@lowering("neg")
def _(n: TorchNode) -> str:
    return f"-{n.x}"


@lowering("clamp")
def _(n: TorchNode) -> str:
    whole = n.node.output.type.dtype not in FLOATS  # a float bound would make floats of integers
    bounds = {name: value for name in ("min", "max") if (value := getattr(n.p, name)) is not None}
    return f"torch.clamp({n.x}{''.join(f', {k}={number(int(v) if whole else v)}' for k, v in bounds.items())})"


@lowering("leaky_relu")
def _(n: TorchNode) -> str:
    return f"F.leaky_relu({n.x}, {n.p.negative_slope})"


@lowering("elu")
def _(n: TorchNode) -> str:
    return f"F.elu({n.x}, {n.p.alpha})"


@lowering("gelu")
def _(n: TorchNode) -> str:
    return f"F.gelu({n.x}, approximate={quoted(n.p.approximate)})" if n.p.approximate != "none" else f"F.gelu({n.x})"


@lowering("softplus")
def _(n: TorchNode) -> str:
    return f"F.softplus({n.x}, {n.p.beta}, {n.p.threshold})"


@lowering("prelu")
def _(n: TorchNode) -> str:
    return f"F.prelu({n.x}, {n.weight})"


@lowering("softmax", "log_softmax")
def _(n: TorchNode) -> str:
    return f"F.{n.node.op.name}({n.x}, dim={n.p.axis})"


@lowering("dropout")
def _(n: TorchNode) -> str:
    return f"F.dropout({n.x}, {n.p.p}, self.training)"


@lowering("constant")
def _(n: TorchNode) -> str:
    dtype = n.dtype(n.node.output.type.dtype)
    value = f"[{', '.join(map(_nested, n.p.value))}]" if n.p.shape else number(n.p.value)
    # one number is filled in on the device; more are copied there
    return f"torch.{'tensor(' if n.p.shape else 'full((), '}{value}, dtype={dtype}, device={n.device})"


def _nested(value: Any) -> str:
    return f"[{', '.join(map(_nested, value))}]" if isinstance(value, tuple) else number(value)


@lowering("parameter", "buffer")
def _(n: TorchNode) -> str:
    return n.weight


@lowering("cast")
def _(n: TorchNode) -> str:
    return f"{n.x}.to({n.dtype(n.p.dtype)})"
