"""Elementwise, reduction, shape and index operators: inferred types against what torch makes, and what is refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

import archc.ir.ops  # noqa: F401  (fills the registry)
from archc.ir.dims import substitute, symbol
from archc.ir.op import REGISTRY, BindError, Bound, Call, OpDef, bind, register
from archc.ir.ops.constants import ConstantParams
from archc.ir.ops.plugins import _load
from archc.ir.ops.shape import aligned_factors
from archc.ir.types import NUMPY_NAMES, TensorType

N, T = symbol("N"), symbol("T")
SIZES = {"N": 4, "T": 5}


def typed(text: str) -> TensorType:
    """`f32[N, 3]` as a type."""
    dtype, _, dims = text.rstrip("]").partition("[")
    known = {"N": N, "T": T}
    return TensorType(tuple(known.get(d) or int(d) for d in dims.replace(" ", "").split(",") if d), dtype)


def bound(name: str, *types: str, **params: Any) -> Bound:
    op = REGISTRY[name]
    return bind(op, Call(op.params(**params), tuple(map(typed, types))))


def example(type_: TensorType) -> Tensor:
    shape = [substitute(d, SIZES) for d in type_.shape]
    return torch.ones(shape, dtype=getattr(torch, NUMPY_NAMES[type_.dtype])) * (type_.dtype[0] != "i")


Case = tuple[str, tuple[str, ...], dict[str, Any], Callable[..., Any]]
SHAPES: list[Case] = [
    ("add", ("f32[N, 3]", "f32[3]"), {}, torch.add),
    ("mul", ("f64[N, 1]", "f64[1, 3]"), {}, torch.mul),
    ("add", ("f32[N, T]", "f32[]"), {}, torch.add),
    ("lt", ("i64[N, 3]", "i64[1]"), {}, torch.lt),
    ("where", ("bool[N, 1]", "f32[3]", "f32[N, 3]"), {}, torch.where),
    ("sum", ("i32[N, 3]",), {"axis": 1}, lambda x: x.sum(1)),
    ("sum", ("f16[N, 3, 2]",), {"axis": (0, -1), "keepdim": True}, lambda x: x.sum((0, -1), keepdim=True)),
    ("mean", ("f32[N, 3]",), {}, torch.mean),
    ("var", ("f32[N, 3]",), {"axis": 1}, lambda x: x.var(1)),
    ("argmax", ("f32[N, 3]",), {"axis": -1}, lambda x: x.argmax(-1)),
    ("cumsum", ("i8[N, 3]",), {"axis": 1}, lambda x: x.cumsum(1)),
    ("flip", ("f32[N, 3]",), {"axis": 1}, lambda x: x.flip(1)),
    ("any", ("bool[N, 3]",), {"axis": 1, "keepdim": True}, lambda x: x.any(1, keepdim=True)),
    ("concat", ("f32[N, 3]", "f32[N, 2]"), {"axis": -1}, lambda *xs: torch.cat(xs, -1)),
    ("stack", ("f32[N, 3]", "f32[N, 3]"), {"axis": 1}, lambda *xs: torch.stack(xs, 1)),
    ("split", ("f32[N, 6]",), {"parts": 3, "axis": 1}, lambda x: x.chunk(3, 1)),
    ("split", ("f32[N, 6]",), {"parts": (1, 5), "axis": 1}, lambda x: x.split((1, 5), 1)),
    ("slice", ("f32[N, T]",), {"axis": 1, "from_": 1, "to": -1}, lambda x: x[:, 1:-1]),
    ("slice", ("f32[N, T]",), {"axis": 1, "from_": 1, "step": 3}, lambda x: x[:, 1::3]),
    ("slice", ("f32[N, 7]",), {"axis": 1, "from": -3, "step": 2}, lambda x: x[:, -3::2]),
    ("select", ("f32[N, 6]",), {"axis": 1, "index": -1}, lambda x: x[:, -1]),
    ("pad", ("f32[N, 3, 4]",), {"widths": (1, 2, 0, 1)}, lambda x: F.pad(x, (1, 2, 0, 1))),
    ("pad", ("f32[N, 3, 4]",), {"widths": (1, 2), "mode": "reflect"}, lambda x: F.pad(x, (1, 2), "reflect")),
    ("reshape", ("f32[N, T, 6]",), {"shape": (N, -1, 2, 3)}, lambda x: x.reshape(4, 5, 2, 3)),
    ("reshape", ("f32[N, T, 6]",), {"shape": (N * T, 6)}, lambda x: x.reshape(20, 6)),
    ("flatten", ("f32[N, 3, 4]",), {}, lambda x: x.flatten(1)),
    ("flatten", ("f32[N, T, 3, 4]",), {"from": 0, "to": 1}, lambda x: x.flatten(0, 1)),
    ("unflatten", ("f32[N, 6]",), {"axis": 1, "sizes": (2, -1)}, lambda x: x.unflatten(1, (2, -1))),
    ("permute", ("f32[N, 3, 4]",), {"order": (2, 0, -2)}, lambda x: x.permute(2, 0, -2)),
    ("transpose", ("f32[N, 3, 4]",), {"a": -1, "b": 1}, lambda x: x.transpose(-1, 1)),
    ("expand", ("f32[N, 1]",), {"shape": (2, -1, T)}, lambda x: x.expand(2, -1, 5)),
    ("squeeze", ("f32[N, 1, 3, 1]",), {"axis": (1, -1)}, lambda x: x.squeeze((1, -1))),
    ("unsqueeze", ("f32[N, 3]",), {"axis": -1}, lambda x: x.unsqueeze(-1)),
    ("cast", ("f32[N]",), {"dtype": "bf16"}, lambda x: x.to(torch.bfloat16)),
    ("gather", ("f32[N, 3]", "i64[N, 7]"), {"axis": 1}, lambda x, i: x.gather(1, i)),
    ("index_select", ("f32[N, 3]", "i32[7]"), {"axis": 1}, lambda x, i: x.index_select(1, i)),
    ("top_k", ("f32[N, 6]",), {"k": 2}, lambda x: tuple(x.topk(2))),
    ("one_hot", ("i64[N]",), {"num_classes": 3}, lambda x: F.one_hot(x, 3)),
    ("constant", (), {"value": ((1, 2, 3), (4, 5, 6))}, lambda: torch.tensor([[1, 2, 3], [4, 5, 6]])),
    ("constant", (), {"value": (True,)}, lambda: torch.tensor([True])),
]


@pytest.mark.parametrize(
    ("name", "types", "params", "reference"), SHAPES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_inferred_types_are_what_torch_makes(
    name: str, types: tuple[str, ...], params: dict[str, Any], reference: Callable[..., Any]
) -> None:
    results = reference(*(example(typed(t)) for t in types))
    expected = results if isinstance(results, tuple | list) else [results]
    found = [t.substitute(SIZES) for t in bound(name, *types, **params).results]
    assert [(t.shape, NUMPY_NAMES[t.dtype]) for t in found] == [
        (tuple(r.shape), str(r.dtype).removeprefix("torch.")) for r in expected
    ]


REFUSED = [
    ("E0301", "add", ("f32[N, 3]", "f32[T, 3]"), {}),  # a symbol never broadcasts
    ("E0304", "add", ("f32[3]", "f64[3]"), {}),
    ("E0304", "add", ("bool[3]", "bool[3]"), {}),
    ("E0304", "div", ("i64[3]", "i64[3]"), {}),
    ("E0304", "mean", ("i64[3]",), {}),
    ("E0304", "where", ("f32[3]", "f32[3]", "f32[3]"), {}),
    ("E0304", "clamp", ("i64[3]",), {"min": 0.5}),
    ("E0304", "gather", ("f32[3]", "f32[3]"), {"axis": 0}),
    ("E0306", "softmax", ("f32[3]",), {"axis": 1}),
    ("E0306", "sum", ("f32[N, 3]",), {"axis": (1, -1)}),
    ("E0306", "permute", ("f32[N, 3]",), {"order": (0, 0)}),
    ("E0308", "max", ("f32[N, 0]",), {"axis": 1}),
    ("E0301", "concat", ("f32[N, 3]", "f32[T, 3]"), {"axis": 1}),
    ("E0302", "concat", ("f32[N, 3]", "f32[3]"), {"axis": 1}),
    ("E0305", "split", ("f32[N, 7]",), {"parts": 2, "axis": 1}),
    ("E0301", "split", ("f32[N, 7]",), {"parts": (3, 3), "axis": 1}),
    ("E0312", "slice", ("f32[N, 7]",), {"axis": 1, "to": 8}),
    ("E0312", "slice", ("f32[N, 7]",), {"axis": 1, "to": -8}),
    ("E0312", "slice", ("f32[N, 7]",), {"axis": 1, "from_": 8}),
    ("E0312", "slice", ("f32[N, T]",), {"axis": 1, "from_": 3, "to": 2}),
    ("E0312", "select", ("f32[N, 7]",), {"axis": 1, "index": 7}),
    ("E0312", "top_k", ("f32[N, 3]",), {"k": 4}),
    ("E0312", "pad", ("f32[N, 2]",), {"widths": (2, 0), "mode": "reflect"}),
    ("E0302", "pad", ("f32[2]",), {"widths": (1, 1, 1, 1)}),
    ("E0301", "reshape", ("f32[N, 6]",), {"shape": (T, 6)}),
    ("E0305", "reshape", ("f32[N, 6]",), {"shape": (-1, 4)}),
    ("E0305", "unflatten", ("f32[N, 7]",), {"axis": 1, "sizes": (2, -1)}),
    ("E0301", "expand", ("f32[N, 3]",), {"shape": (-1, 4)}),
    ("E0301", "squeeze", ("f32[N, 3]",), {"axis": 0}),
    ("E0301", "prelu", ("f32[N, 3]",), {"num_parameters": 4}),
]


@pytest.mark.parametrize(("code", "name", "types", "params"), REFUSED)
def test_what_cannot_be_applied_is_refused(
    code: str, name: str, types: tuple[str, ...], params: dict[str, Any]
) -> None:
    with pytest.raises(BindError) as e:
        bound(name, *types, **params)
    assert e.value.code == code


@pytest.mark.parametrize("fields", [{"value": ((1, 2), (3,))}, {"value": "1"}, {"value": 0.5, "dtype": "i64"}])
def test_malformed_constants_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"constant|length|whole"):
        ConstantParams(**fields)


def test_equal_numbers_of_different_kinds_are_different_constants() -> None:
    kinds = [ConstantParams(value=v) for v in (1, 1.0, True)]
    assert [k.dtype for k in kinds] == ["i64", "f32", "bool"]
    assert len(set(kinds)) == 3
    assert ConstantParams(value=1, dtype="f32") == ConstantParams(value=1.0)


RESHAPES = [
    ((4, 3, 2, 5), (4, 30)),
    ((6, 4), (2, 12)),
    ((4, 6), (8, 3)),
    ((2, 3, 4, 5), (6, 2, 10)),
    ((3, 4, 2), (2, 6, 2)),
]


@pytest.mark.parametrize(("before", "after"), RESHAPES)
def test_reshape_commutes_with_permuting_its_free_factors(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    left, right, sizes = aligned_factors(before, after)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(before)
    free = {f for axis in left for f in axis if not f.endswith("!")}
    factors = {f for axis in left + right for f in axis}
    orders = {f: (rng.permutation if f in free else np.arange)(sizes[f.rstrip("!")]) for f in sorted(factors)}
    moved = permuted(x, left, orders).reshape(after)
    assert np.array_equal(moved, permuted(x.reshape(after), right, orders))
    if any(not np.array_equal(o, np.arange(len(o))) for o in orders.values()):
        assert not np.array_equal(moved, x.reshape(after))  # something did move


def permuted(x: NDArray[Any], axes: list[list[str]], orders: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """`x` with every factor of every axis permuted."""
    flat = [f for axis in axes for f in axis]
    y = x.reshape([len(orders[f]) for f in flat])
    for i, f in enumerate(flat):
        y = y.take(orders[f], axis=i)
    return y.reshape([math.prod(len(orders[f]) for f in axis) for axis in axes])


def test_reshape_pins_what_does_not_align() -> None:
    assert str(bound("reshape", "f32[N, 3, 4]", shape=(N, 2, 6)).signature) == "x[f0, f1!, f2!] -> [f0, f3!, f4!]"
    # Negative control: permuting a pinned factor does not commute.
    x = np.arange(12).reshape(3, 4)
    assert not np.array_equal(x[[1, 0, 2]].reshape(2, 6), x.reshape(2, 6)[[1, 0]])


def test_flatten_keeps_its_axes_as_factors() -> None:
    assert str(bound("flatten", "f32[N, 3, 4, 5]").signature) == "x[d0, d1, d2, d3] -> [d0, d1.d2.d3]"


def _good_plugin() -> None:
    register(OpDef(name="from_a_plugin", doc="", line="x[*b] -> [*b]"))


def _bad_plugin() -> None:
    register(OpDef(name="half_a_plugin", doc="", line="x[*b] -> [*b]"))
    register(OpDef(name="relu", doc="", line="x[*b] -> [*b]"))


def test_a_plugin_registers_all_its_ops_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_plugin", type("M", (), {"good": _good_plugin, "bad": _bad_plugin}))
    try:
        assert _load(EntryPoint("ops", "a_plugin:good", "archc.ops")) is None
        assert "from_a_plugin" in REGISTRY
    finally:
        REGISTRY.pop("from_a_plugin", None)
    warning = _load(EntryPoint("ops", "a_plugin:bad", "archc.ops"))
    assert warning is not None
    assert (warning.code, warning.severity) == ("E0210", "warning")
    assert "half_a_plugin" not in REGISTRY
