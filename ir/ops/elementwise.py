"""Arithmetic and comparisons, element by element, broadcasting as NumPy does where a size is literally 1."""

from __future__ import annotations

from typing import Any

from archc.ir.op import BindError, Call, OpDef, register


def broadcast_line(call: Call[Any], result: str = "") -> str:
    """The signature of an elementwise op on the call's operands: axes aligned at the end, size 1 broadcasts.

    >>> from archc.ir.types import TensorType
    >>> from archc.ir.op import NoParams
    >>> broadcast_line(Call(NoParams(), (TensorType((2, 3)), TensorType((3,)))))
    'a[d0, d1] b[d1] -> [d0, d1]'
    """
    rank = max(t.rank for t in call.types)
    names: list[str] = []
    for i in range(rank):
        sizes = [t.shape[i - rank] for t in call.types if t.rank >= rank - i]
        names.append("1" if all(s == 1 for s in sizes) else f"d{i}")
        wide = {s for s in sizes if s != 1}
        if len(wide) > 1:
            raise BindError(
                "E0301",
                "elementwise operands need equal shapes (only a size of literally 1 broadcasts)",
                label=" vs ".join(str(t) for t in call.types),
                operands=range(len(call.types)),
            )
    tensors = []
    for letter, t in zip("abcdefgh", call.types, strict=False):
        own = names[rank - t.rank :]
        axes = ["1" if size == 1 else name for size, name in zip(t.shape, own, strict=True)]
        tensors.append(f"{letter}[{', '.join(axes)}]")
    return f"{' '.join(tensors)} -> {result}[{', '.join(names)}]"


ADD = register(
    OpDef(
        name="add",
        doc="`a + b`.",
        line=broadcast_line,
        operands=("a", "b"),
        flops=1,
        commutative=True,
        elementwise=True,
        example="fn(x) { return add(x, 1) }",
        category="arithmetic",
    )
)
