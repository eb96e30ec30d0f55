"""Attention and positions."""

from __future__ import annotations

from archc.backends.torch.codegen import TorchNode, lowering
from archc.ir.ops.attention import alibi_slopes


@lowering("rope")
def _(n: TorchNode) -> str:
    return f"rope({n.x}, {n.p.base!r}, {n.p.interleaved})"


@lowering("positions")
def _(n: TorchNode) -> str:
    if n.p.kind == "sinusoidal":
        return f"{n.x} + sinusoids({n.x}, {n.p.base!r})"
    x = n.node.operands[0].type
    if x.rank == 4 or n.p.length is None or x.shape[-2] == n.p.length:
        return f"{n.x} + {n.weight}"
    return f"{n.x} + {n.weight}[:{n.size(x.shape[-2])}]"


@lowering("scaled_dot_product")
def _(n: TorchNode) -> str:
    options = ", causal=True" * n.p.causal + (f", scale={n.p.scale}" if n.p.scale is not None else "")
    return f"attend({', '.join(n.args)}{options})"


@lowering("attention")
def _(n: TorchNode) -> str:
    p = n.p
    options = {"heads": p.heads, "kv_heads": p.kv_heads or p.heads, "causal": p.causal or None, "scale": p.scale}
    options["rope_base"] = p.rope_base if p.positions == "rope" else None
    options["slopes"] = alibi_slopes(p.heads) if p.positions == "alibi" else None
    given = {role: getattr(n, role) for role in n.node.weights}
    given |= {name: repr(value) for name, value in options.items() if value is not None}
    return f"attention({', '.join(n.args)}, {', '.join(f'{k}={v}' for k, v in given.items())})"
