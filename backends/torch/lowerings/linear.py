"""Linear maps, products, look-up tables, and Kolmogorov-Arnold layers."""

from __future__ import annotations

from archc.backends.torch.codegen import TorchNode, lowering
from archc.backends.torch.text import quoted
from archc.ir.ops.quantised import codes_shape


@lowering("linear")
def _(n: TorchNode) -> str:
    return f"F.linear({n.x}, {n.weight}, {n.bias})" if n.bias != "None" else f"F.linear({n.x}, {n.weight})"


@lowering("tied_linear")
def _(n: TorchNode) -> str:
    return f"F.linear({n.x}, {n.weight})"


@lowering("bilinear")
def _(n: TorchNode) -> str:
    return f"F.bilinear({n.x}, {n.z}, {n.weight}, {n.bias})"


@lowering("embedding")
def _(n: TorchNode) -> str:
    narrow = n.node.operands[0].type.dtype == "i8"  # torch indexes with i32 and i64 only
    return f"F.embedding({n.ids}{'.long()' * narrow}, {n.weight})"


@lowering("matmul")
def _(n: TorchNode) -> str:
    product = f"torch.matmul({n.a}, {n.b})"
    return f"{product} / {n.a}.shape[-1] ** 0.5" if n.p.scaled else product


@lowering("einsum")
def _(n: TorchNode) -> str:
    return f"torch.einsum({quoted(n.p.equation.replace(' ', ''))}, {', '.join(n.args)})"


def dequantised(n: TorchNode) -> str:
    """The weights of a quantised layer as floats."""
    zero = n.zero if "zero" in n.node.weights else "None"
    return f"dequantised({n.weight}, {n.scale}, {zero}, {n.p.bits}, {codes_shape(n.node)})"


@lowering("quantized_linear")
def _(n: TorchNode) -> str:
    return f"F.linear({n.x}, {dequantised(n)}, {n.bias})"


@lowering("kan")
def _(n: TorchNode) -> str:
    p = n.p
    if p.basis == "grkan":
        return f"F.linear(rational({n.x}, {n.numerator}, {n.denominator}), {n.weight}, {n.bias})"
    if p.basis == "bspline":
        low, high = p.range
        basis = f"bspline_basis({n.x}, {low!r}, {high!r}, {p.grid}, {p.order})"
    else:
        basis = f"{p.basis}_basis({n.x}, {p.grid if p.basis == 'fourier' else p.order})"
    terms = [f'torch.einsum("...ik,oik->...o", {basis}, {n.coefficients})']
    if p.has_base:
        spellings = {"identity": n.x, "tanh": f"torch.tanh({n.x})", "sigmoid": f"torch.sigmoid({n.x})"}
        terms.insert(0, f"F.linear({spellings.get(p.base_function, f'F.{p.base_function}({n.x})')}, {n.base_weight})")
    if p.has_bias:
        terms.append(n.bias)
    return " + ".join(terms)
