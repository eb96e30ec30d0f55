"""The layers: their shapes, weights, initial values, FLOPs and axes against what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import archc.ir.ops
from archc.ir.axes import derive_axes
from archc.ir.cost import node_flops
from archc.ir.decompose import decompose
from archc.ir.diagnostics import CompileError
from archc.ir.dims import symbol
from archc.ir.graph import Graph, Node
from archc.ir.op import REGISTRY
from archc.ir.types import NUMPY_NAMES, TensorType
from archc.ir.verify import verify

assert archc.ir.ops.__all__
torch.manual_seed(0)  # the modules below draw their weights


def tensor(text: str) -> TensorType:
    """`f32[N, 3, 8]` as a type; capital letters are symbols."""
    dtype, _, inside = text.partition("[")
    axes = [a.strip() for a in inside.rstrip("]").split(",") if a.strip()]
    return TensorType(tuple(int(a) if a.isdigit() else symbol(a) for a in axes), dtype)


def graph_of(op: str, types: list[str], **params: Any) -> Graph:
    """A network that is one op."""
    graph = Graph("test")
    inputs = [graph.add_input(f"x{i}", tensor(t)) for i, t in enumerate(types)]
    node = graph.add(REGISTRY[op], inputs, REGISTRY[op].params(**params), name=op)
    graph.outputs = list(node.outputs)
    graph.output_names = [v.name for v in node.outputs]
    return graph


def node_of(op: str, types: list[str], **params: Any) -> Node:
    return graph_of(op, types, **params).nodes[0]


Case = tuple[str, dict[str, Any], list[str], Callable[..., torch.Tensor] | None]


CASES: list[Case] = [
    ("linear", {"out": 5}, ["f32[2, 3, 8]"], nn.Linear(8, 5)),
    ("linear", {"out": 5, "bias": False}, ["f32[8]"], nn.Linear(8, 5, bias=False)),
    ("bilinear", {"out": 5}, ["f32[2, 3, 8]", "f32[2, 3, 6]"], nn.Bilinear(8, 6, 5)),
    ("embedding", {"count": 11, "dim": 4}, ["i64[2, 3]"], nn.Embedding(11, 4)),
    ("matmul", {}, ["f32[2, 1, 3, 8]", "f32[4, 8, 5]"], torch.matmul),
    ("matmul", {"scaled": True}, ["f32[3, 8]", "f32[2, 8, 5]"], torch.matmul),
    ("einsum", {"equation": "nhtd,nhud->nhtu"}, ["f32[2, 3, 4, 5]", "f32[2, 3, 6, 5]"], None),
    ("einsum", {"equation": "...i,oij,...j->...o"}, ["f32[2, 3, 4]", "f32[7, 4, 5]", "f32[2, 3, 5]"], None),
    ("einsum", {"equation": "ij->j"}, ["f32[2, 3]"], None),
    ("conv", {"out": 8, "kernel": 3}, ["f32[2, 6, 9]"], nn.Conv1d(6, 8, 3, padding=1)),
    (
        "conv",
        {"out": 8, "kernel": (5, 2), "stride": (2, 1), "dilation": 2, "groups": 2},
        ["f32[2, 6, 9, 10]"],
        nn.Conv2d(6, 8, (5, 2), (2, 1), padding=(4, 0), dilation=2, groups=2),
    ),
    ("conv", {"out": 6, "kernel": 3, "groups": 6, "bias": False, "padding": 0}, ["f32[2, 6, 4, 5, 6]"], None),
    ("conv", {"out": 8, "kernel": 3, "dilation": 4, "causal": True}, ["f32[2, 6, 9]"], None),
    (
        "conv_transpose",
        {"out": 4, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        ["f32[2, 6, 5, 7]"],
        nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, 2),
    ),
    (
        "conv_transpose",
        {"out": 4, "kernel": 4, "dilation": 2},
        ["f32[2, 6, 5]"],
        nn.ConvTranspose1d(6, 4, 4, dilation=2),
    ),
    ("im2col", {"kernel": 3, "stride": 2}, ["f32[2, 3, 8, 7]"], lambda x: F.unfold(x, 3, 1, 1, 2).transpose(1, 2)),
    ("im2col", {"kernel": 4, "stride": 4}, ["f32[2, 3, 8, 8]"], lambda x: F.unfold(x, 4, stride=4).transpose(1, 2)),
    ("col2im", {}, ["f32[2, 16, 3]"], lambda x: x.transpose(1, 2).reshape(2, 3, 4, 4)),
    ("col2im", {"w": 8}, ["f32[2, 16, 3]"], lambda x: x.transpose(1, 2).reshape(2, 3, 2, 8)),
    ("pixel_shuffle", {"r": 2}, ["f32[2, 12, 4, 5]"], nn.PixelShuffle(2)),
    ("upsample", {"factor": 3}, ["f32[2, 3, 4, 5]"], nn.Upsample(scale_factor=3)),
    ("upsample", {"factor": (2, 3), "mode": "bilinear"}, ["f32[2, 3, 4, 5]"], nn.Upsample(scale_factor=(2, 3))),
    ("upsample", {"factor": 4, "mode": "bilinear"}, ["f32[2, 3, 1, 2]"], nn.Upsample(scale_factor=4)),
    (
        "upsample",
        {"factor": 2, "mode": "bilinear", "align_corners": True},
        ["f32[2, 3, 5]"],
        nn.Upsample(scale_factor=2),
    ),
    ("batch_norm", {}, ["f32[2, 6, 4, 5]"], nn.BatchNorm2d(6)),
    ("batch_norm", {"affine": False}, ["f32[2, 6]"], nn.BatchNorm1d(6, affine=False)),
    ("layer_norm", {}, ["f32[2, 3, 8]"], nn.LayerNorm(8)),
    ("layer_norm", {"bias": False}, ["f32[2, 3, 8]"], nn.LayerNorm(8, bias=False)),
    ("group_norm", {"groups": 3}, ["f32[2, 6, 4, 5]"], nn.GroupNorm(3, 6)),
    ("instance_norm", {}, ["f32[2, 6, 4, 5]"], nn.InstanceNorm2d(6)),
    ("instance_norm", {"affine": True}, ["f32[2, 6, 4]"], nn.InstanceNorm1d(6, affine=True)),
    ("rms_norm", {}, ["f32[2, 3, 8]"], nn.RMSNorm(8)),
    ("norm", {}, ["f32[2, 6, 4, 5]"], nn.BatchNorm2d(6)),
    ("norm", {}, ["f32[2, 6, 4]"], nn.LayerNorm(4)),
    ("max_pool", {"kernel": 3, "stride": 2, "padding": 1}, ["f32[2, 6, 9, 8]"], nn.MaxPool2d(3, 2, 1)),
    ("max_pool", {"kernel": 2, "dilation": 2}, ["f32[2, 6, 9]"], nn.MaxPool1d(2, dilation=2)),
    *(
        (
            name,
            {"kernel": 3, "stride": s, "padding": p, "ceil_mode": True},
            [f"f32[2, 6, {size}]"],
            m(3, s, p, ceil_mode=True),
        )
        for size in (7, 8, 9, 10)
        for s, p in ((2, 0), (2, 1), (3, 0), (4, 1))
        for name, m in (("max_pool", nn.MaxPool1d), ("avg_pool", nn.AvgPool1d))
    ),
    ("avg_pool", {"kernel": 2}, ["f32[2, 6, 9, 8, 4]"], nn.AvgPool3d(2)),
    (
        "avg_pool",
        {"kernel": 3, "stride": 1, "padding": 1, "count_include_pad": False},
        ["f32[2, 6, 9]"],
        nn.AvgPool1d(3, 1, 1),
    ),
    ("adaptive_avg_pool", {"size": (3, 5)}, ["f32[2, 6, 9, 8]"], nn.AdaptiveAvgPool2d((3, 5))),
    ("adaptive_avg_pool", {"size": 4}, ["f32[2, 6, 8]"], nn.AdaptiveAvgPool1d(4)),
    ("adaptive_avg_pool", {"size": 1}, ["f32[2, 6, 9, 8]"], nn.AdaptiveAvgPool2d(1)),
    ("global_avg_pool", {}, ["f32[2, 6, 9, 8]"], lambda x: x.mean((2, 3))),
    ("global_max_pool", {"keepdim": True}, ["f32[2, 6, 9]"], lambda x: x.amax(2, keepdim=True)),
    (
        "scaled_dot_product",
        {},
        ["f32[2, 4, 3, 8]", "f32[2, 4, 5, 8]", "f32[2, 4, 5, 7]"],
        F.scaled_dot_product_attention,
    ),
    (
        "scaled_dot_product",
        {"causal": True},
        ["f32[2, 4, 3, 8]", "f32[2, 2, 3, 8]", "f32[2, 2, 3, 8]"],
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    ),
    (
        "scaled_dot_product",
        {"scale": 0.5},
        ["f32[2, 4, 3, 8]", "f32[2, 4, 5, 8]", "f32[2, 4, 5, 8]", "bool[2, 1, 1, 5]"],
        F.scaled_dot_product_attention,
    ),
    (
        "scaled_dot_product",
        {"causal": True},
        ["f32[2, 4, 5, 8]", "f32[2, 4, 5, 8]", "f32[2, 4, 5, 8]", "f32[5, 5]"],
        F.scaled_dot_product_attention,
    ),
    ("rope", {}, ["f32[2, 4, 5, 8]"], lambda x: x),
    ("rope", {"interleaved": True}, ["f16[2, 5, 8]"], lambda x: x),
    ("positions", {}, ["f32[2, 5, 8]"], lambda x: x),
    ("positions", {"length": 7}, ["f32[2, 5, 8]"], lambda x: x),
    ("positions", {}, ["f32[2, 3, 5, 8]"], lambda x: x),
    ("positions", {"kind": "sinusoidal"}, ["bf16[2, 5, 8]"], lambda x: x),
    (
        "attention",
        {"heads": 4},
        ["f32[2, 5, 8]"] * 3,
        lambda q, k, v: nn.MultiheadAttention(8, 4, batch_first=True)(q, k, v)[0],
    ),
    (
        "attention",
        {"heads": 4, "kv_heads": 2, "positions": "rope", "causal": True, "gate": "head"},
        ["f32[2, 5, 8]"] * 3,
        None,
    ),
    (
        "attention",
        {"heads": 4, "qk_norm": True, "gate": "element", "out": 6},
        ["f32[2, 5, 8]", "f32[2, 7, 6]", "f32[2, 7, 9]"],
        None,
    ),
    ("attention", {"heads": 3, "head_dim": 4, "positions": "alibi"}, ["f32[2, 5, 8]"] * 3 + ["bool[1, 1, 5, 5]"], None),
    ("attention", {"heads": 2, "positions": "alibi", "bias": False}, ["f32[2, 5, 8]"] * 3 + ["f32[5, 5]"], None),
    ("kan", {"out": 5}, ["f32[2, 3, 8]"], nn.Linear(8, 5)),
    ("kan", {"out": 5, "base": "none", "order": 1, "grid": 1}, ["f32[2, 8]"], nn.Linear(8, 5)),
    ("kan", {"out": 5, "basis": "fourier"}, ["f32[2, 3, 8]"], nn.Linear(8, 5)),
    ("kan", {"out": 5, "basis": "chebyshev", "order": 1, "base": "gelu"}, ["f32[2, 3, 8]"], nn.Linear(8, 5)),
    ("kan", {"out": 5, "basis": "grkan", "groups": 4}, ["f32[2, 3, 8]"], nn.Linear(8, 5)),
]


def _torch_inputs(types: list[str]) -> list[torch.Tensor]:
    found = [tensor(t) for t in types]
    return [torch.zeros(*t.shape, dtype=getattr(torch, NUMPY_NAMES[t.dtype])) for t in found]  # type: ignore[arg-type]


def _name(case: Case) -> str:
    return f"{case[0]}-{'-'.join(f'{k}={v}' for k, v in case[1].items())}"


@pytest.mark.parametrize("case", [c for c in CASES if c[3] is not None or c[0] == "einsum"], ids=_name)
def test_shapes_are_those_that_torch_makes(case: Case) -> None:
    op, params, types, reference = case
    result = node_of(op, types, **params).outputs[0].type
    inputs = _torch_inputs(types)
    made = torch.einsum(params["equation"], *inputs) if op == "einsum" else reference(*inputs)
    assert result.shape == tuple(made.shape)
    assert NUMPY_NAMES[result.dtype] == str(made.dtype).removeprefix("torch.")


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c[3], nn.Module) and c[0] != "kan"], ids=_name)
def test_weights_are_those_of_the_torch_module(case: Case) -> None:
    op, params, types, module = case
    assert isinstance(module, nn.Module)
    weights = node_of(op, types, **params).weights
    state = {k: tuple(v.shape) for k, v in module.state_dict().items() if k != "num_batches_tracked"}
    assert {role: p.shape for role, p in weights.items()} == state
    assert {role for role, p in weights.items() if p.trainable} == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_decompositions_have_the_type_of_what_they_replace(case: Case) -> None:
    """`decompose` asserts it for each result; here also that the weights are all still there, and the graph sound."""
    op, params, types, _ = case
    graph = graph_of(op, types, **params)
    before, type_ = set(graph.parameters()), graph.outputs[0].type
    changed = decompose(graph, lambda o: o.name != op)
    verify(graph)
    assert changed == (REGISTRY[op].decompose is not None and (op != "matmul" or bool(params)))
    assert graph.outputs[0].type == type_
    assert set(graph.parameters()) == before
    decompose(graph, lambda o: False)
    verify(graph)
    assert set(graph.parameters()) == before


def test_decomposing_keeps_order_names_and_regions() -> None:
    graph = Graph("net")
    x = graph.add_input("x", tensor("f32[N, 6, 8, 8]"))
    a = graph.add(REGISTRY["norm"], [x], REGISTRY["norm"].params(), name="stem.norm").output
    b = graph.add(REGISTRY["relu"], [a], name="stem.relu").output
    c = graph.add(REGISTRY["global_avg_pool"], [b], REGISTRY["global_avg_pool"].params(), name="pool").output
    graph.outputs, graph.output_names = [c], ["y"]
    assert decompose(graph, lambda op: op.name in ("batch_norm", "relu", "mean"))
    assert [(n.name, n.op.name) for n in graph.nodes] == [
        ("stem.norm", "batch_norm"),
        ("stem.relu", "relu"),
        ("pool", "mean"),
    ]
    assert "stem.norm.running_var" in graph.parameters()
    verify(graph)
    assert not decompose(graph, lambda op: True)


@pytest.mark.parametrize(
    ("case", "bound"),
    [
        (("linear", {"out": 50}, ["f32[400]"], nn.Linear(400, 50)), 1 / 20),
        (("bilinear", {"out": 50}, ["f32[25]", "f32[30]"], nn.Bilinear(25, 30, 50)), 1 / 5),
        (("conv", {"out": 64, "kernel": 5}, ["f32[2, 16, 9, 9]"], nn.Conv2d(16, 64, 5)), 1 / 20),
        (("conv_transpose", {"out": 16, "kernel": 5}, ["f32[2, 64, 9, 9]"], nn.ConvTranspose2d(64, 16, 5)), 1 / 20),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else "",
)
def test_initial_values_have_the_bounds_of_torch(case: Case, bound: float) -> None:
    """For the weight and the bias, which draws from the fan-in of its layer and not of itself."""
    op, params, types, module = case
    assert isinstance(module, nn.Module)
    for role, parameter in node_of(op, types, **params).weights.items():
        theirs = module.state_dict()[role]
        assert parameter.init.kind == "uniform"
        assert parameter.init.a == pytest.approx(bound)
        assert 0.7 * bound < theirs.abs().max() <= bound + 1e-7


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in CASES
        if c[3] is not None and c[0] in ("linear", "conv", "conv_transpose", "matmul", "scaled_dot_product")
    ],
    ids=_name,
)
def test_flops_are_those_that_torch_counts(case: Case) -> None:
    op, params, types, reference = case
    if op == "linear" and len(tensor(types[0]).shape) == 1:
        pytest.skip("PyTorch counts no vector product")
    inputs = _torch_inputs(types)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it cannot count every fused kernel
        reference(*inputs)
    assert node_flops(node_of(op, types, **params)) == counter.get_total_flops()


def test_flops_of_attention_are_those_of_its_parts() -> None:
    graph = graph_of("attention", ["f32[2, 5, 8]"] * 3, heads=4, kv_heads=2, gate="element")
    whole = node_flops(graph.nodes[0])
    decompose(graph, lambda op: op.name != "attention")
    parts = [n for n in graph.nodes if n.op.name in ("linear", "scaled_dot_product")]
    assert len(parts) == 6
    assert whole == sum(node_flops(n) for n in parts)  # type: ignore[misc]


def test_symbolic_sizes_go_through() -> None:
    n, h, t = symbol("N"), symbol("H"), symbol("T")
    assert node_of("conv", ["f32[N, 3, H, 8]"], out=4, kernel=3, stride=2).output.type.shape == (n, 4, (h + 1) // 2, 4)
    assert node_of("max_pool", ["f32[N, 3, H]"], kernel=2).output.type.shape == (n, 3, h // 2)
    assert node_of("im2col", ["f32[N, 3, H, 8]"], kernel=2, stride=2).output.type.shape == (n, 4 * (h // 2), 12)
    assert node_of("attention", ["f32[N, T, 8]"] * 3, heads=2).output.type.shape == (n, t, 8)
    for op, params in (("upsample", {"factor": 2, "mode": "bilinear"}), ("im2col", {"kernel": 3, "stride": 2})):
        image = graph_of(op, ["f32[N, 3, H, 8]"], **params)
        assert decompose(image, lambda op: op.name not in ("upsample", "im2col"))
    graph = graph_of("positions", ["f32[N, T, 8]"], length=9)
    decompose(graph, lambda op: op.name != "positions")
    assert graph.outputs[0].type.shape == (n, t, 8)


ERRORS: list[tuple[str, str, dict[str, Any], list[str], str]] = [
    ("E0302", "conv", {"out": 3, "kernel": 3}, ["f32[2, 4]"], "rank 2"),
    ("E0302", "conv", {"out": 3, "kernel": (3, 3)}, ["f32[2, 4, 5]"], "(3, 3)"),
    ("E0302", "im2col", {"kernel": 3}, ["f32[2, 4, 5]"], "rank 4"),
    ("E0302", "norm", {}, ["f32[2, 4]"], "rank 4"),
    ("E0302", "matmul", {}, ["f32[2, 4]", "f32[4]"], "rank 2"),
    ("E0302", "global_avg_pool", {}, ["f32[2, 4]"], "rank 2"),
    ("E0301", "matmul", {}, ["f32[2, 4]", "f32[5, 3]"], "4 vs 5"),
    ("E0301", "matmul", {}, ["f32[2, 1, 4]", "f32[3, 4, 3]"], "2 vs 3"),
    ("E0301", "bilinear", {"out": 3}, ["f32[2, 4]", "f32[3, 4]"], "2"),
    ("E0303", "einsum", {"equation": "ij,jk->ik"}, ["f32[2, 4]"], "2 tensors"),
    ("E0301", "einsum", {"equation": "ij,jk->ik"}, ["f32[2, 4]", "f32[5, 3]"], "4 vs 5"),
    ("E0305", "conv", {"out": 4, "kernel": 3, "groups": 2}, ["f32[2, 5, 4]"], "divisible by 2"),
    ("E0307", "linear", {"out": 3}, ["f32[2, T]"], "fixed size"),
    ("E0307", "positions", {}, ["f32[N, T, 8]"], "largest"),
    ("E0308", "conv", {"out": 3, "kernel": 5, "padding": 0}, ["f32[2, 4, 4]"], "size 4"),
    ("E0308", "max_pool", {"kernel": 3}, ["f32[2, 4, 2]"], "size 2"),
    ("E0308", "conv_transpose", {"out": 2, "kernel": 2, "padding": 3}, ["f32[2, 4, 2]"], "nothing"),
    ("E0309", "linear", {"out": 3, "init": "magic"}, ["f32[2, 4]"], "magic"),
    ("E0309", "linear", {"out": 3, "init": "uniform(-1)"}, ["f32[2, 4]"], "uniform(-1)"),
    ("E0309", "linear", {"out": 3, "init": "normal(1e999)"}, ["f32[2, 4]"], "normal(1e999)"),
    ("E0311", "conv_transpose", {"out": 3, "kernel": 3, "output_padding": 1}, ["f32[2, 4, 2]"], "output_padding"),
    ("E0311", "col2im", {}, ["f32[2, 5, 2]"], "square"),
    ("E0311", "col2im", {}, ["f32[2, T, 2]"], "square"),
    ("E0305", "col2im", {"h": 2}, ["f32[2, 5, 2]"], "divisible by 2"),
    ("E0305", "pixel_shuffle", {"r": 2}, ["f32[2, 6, 2, 2]"], "divisible by 4"),
    ("E0305", "group_norm", {"groups": 4}, ["f32[2, 6, 2, 2]"], "divisible by 4"),
    ("E0311", "max_pool", {"kernel": 3, "padding": 2}, ["f32[2, 6, 4]"], "half"),
    ("E0311", "avg_pool", {"kernel": 3, "ceil_mode": True}, ["f32[2, 6, T]"], "fixed size"),
    ("E0311", "adaptive_avg_pool", {"size": 2}, ["f32[2, 6, T]"], "fixed size"),
    ("E0311", "rope", {}, ["f32[2, 6, 5]"], "even"),
    ("E0311", "positions", {"length": 4}, ["f32[2, 6, 8]"], "at most"),
    ("E0305", "attention", {"heads": 3}, ["f32[2, 6, 8]"] * 3, "divisible by heads = 3"),
    ("E0305", "attention", {"heads": 3, "kv_heads": 2, "head_dim": 4}, ["f32[2, 6, 8]"] * 3, "kv_heads = 2"),
    ("E0304", "attention", {"heads": 2}, ["f32[2, 6, 8]"] * 3 + ["i64[6, 6]"], "mask"),
    ("E0301", "attention", {"heads": 2}, ["f32[2, 6, 8]"] * 3 + ["bool[6, 7]"], "7"),
    ("E0302", "attention", {"heads": 2}, ["f32[2, 6, 8]"] * 3 + ["bool[1, 1, 1, 6, 6]"], "at most"),
    ("E0304", "embedding", {"count": 2, "dim": 2}, ["f32[2, 6]"], "integer"),
    ("E0304", "linear", {"out": 2}, ["i64[2, 6]"], "float"),
    ("E0305", "kan", {"out": 2, "basis": "grkan", "groups": 4}, ["f32[2, 6]"], "divisible by 4"),
]


@pytest.mark.parametrize(("code", "op", "params", "types", "says"), ERRORS)
def test_misuse_is_a_diagnostic(code: str, op: str, params: dict[str, Any], types: list[str], says: str) -> None:
    with pytest.raises(CompileError) as caught:
        node_of(op, types, **params)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert says in f"{diagnostic.message} {diagnostic.label}"


@pytest.mark.parametrize(
    ("op", "params", "says"),
    [
        ("einsum", {"equation": "ij,jk"}, "result"),
        ("einsum", {"equation": "ij,j2->i"}, "letters"),
        ("einsum", {"equation": "ij->ik"}, "`k`"),
        ("einsum", {"equation": "ij->ii"}, "twice"),
        ("einsum", {"equation": "...i,i->i"}, "..."),
        ("einsum", {"equation": "....i->....i"}, "letters"),
        ("conv", {"out": 3, "kernel": 3, "groups": 2}, "divisible"),
        ("conv", {"out": 3, "kernel": 3, "causal": True, "padding": 1}, "causal"),
        ("upsample", {"factor": 2, "align_corners": True}, "bilinear"),
        ("kan", {"out": 2, "range": (1.0, 1.0)}, "range"),
        ("kan", {"out": 2, "groups": 2}, "groups"),
        ("kan", {"out": 2, "basis": "grkan", "base": "relu"}, "base"),
    ],
)
def test_bad_parameters_are_told(op: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        REGISTRY[op].params(**params)


def free_axes(**params: Any) -> set[tuple[int, int, frozenset[str]]]:
    """(size, independent copies, weights that it stands in) of each free axis of an attention without biases."""
    graph = graph_of("attention", ["f32[N, T, 12]"] * 3, head_dim=6, bias=False, **params)
    return {
        (c.size, c.copies, frozenset(m.parameter.split(".")[1].removesuffix("_weight") for m in c.members))
        for c in derive_axes(graph).classes
    }


def test_heads_move_as_a_whole_and_channels_within_them() -> None:
    heads = (2, 1, frozenset({"q", "k", "v", "out"}))
    keys, values = frozenset({"q", "k"}), frozenset({"v", "out"})
    assert free_axes(heads=2) == {heads, (6, 2, keys), (6, 2, values)}
    assert free_axes(heads=2, causal=True) == free_axes(heads=2)  # tokens are no weight's axis
    served = (2, 2, frozenset({"q", "out"}))  # the query heads of each head of keys
    assert free_axes(heads=4, kv_heads=2) == {heads, served, (6, 2, keys), (6, 2, values)}


def test_what_knows_an_order_pins() -> None:
    values = (6, 2, frozenset({"v", "out"}))
    assert {a for a in free_axes(heads=2, positions="rope") if a[0] == 6} == {values}
    assert not [a for a in free_axes(heads=2, positions="alibi") if a[0] == 2]


def test_a_gain_shared_by_the_heads_ties_their_channels() -> None:
    keys = frozenset({"q", "k", "q_norm", "k_norm"})
    assert {a for a in free_axes(heads=2, qk_norm=True) if "q_norm" in a[2]} == {(6, 1, keys)}


# -- structural ops -------------------------------------------------------------------------------------------------


def chain(name: str, types: list[str], *layers: tuple[str, dict[str, Any]]) -> Graph:
    """A region: `layers` one behind the other on its first input; the other inputs are returned as they are."""
    graph = Graph(name)
    values = [graph.add_input(f"x{i}", tensor(t)) for i, t in enumerate(types)]
    x = values[0]
    for i, (op, params) in enumerate(layers):
        x = graph.add(REGISTRY[op], [x], REGISTRY[op].params(**params), name=f"{name}.{op}{i}").output
    graph.outputs = [x, *values[1:]]
    return graph


def structural(op: str, types: list[str], regions: list[Graph], **params: Any) -> Graph:
    graph = Graph("test")
    inputs = [graph.add_input(f"x{i}", tensor(t)) for i, t in enumerate(types)]
    node = graph.add(REGISTRY[op], inputs, REGISTRY[op].params(**params), name=op, regions=regions)
    graph.outputs, graph.output_names = list(node.outputs), [v.name for v in node.outputs]
    verify(graph)
    return graph


def linear(out: int) -> tuple[str, dict[str, Any]]:
    return "linear", {"out": out}


def test_moe_by_token_and_by_sample() -> None:
    experts = [chain(f"expert{i}", ["f32[Rows, 8]"], linear(5)) for i in range(4)]
    graph = structural("moe", ["f32[N, T, 8]"], [chain("router", ["f32[N, T, 8]"], linear(4)), *experts], top_k=2)
    assert str(graph.outputs[0].type) == "f32[N, T, 5]"
    rows = symbol("N") * symbol("T")
    assert node_flops(graph.nodes[0]) == 2 * rows * 8 * 4 + rows * (14 * 4 + 3 * 2) + 2 * rows * 2 * 8 * 5
    pooled: list[tuple[str, dict[str, Any]]] = [("global_avg_pool", {}), linear(2)]
    convs = [chain(f"expert{i}", ["f32[Rows, 3, 8, 8]"], ("conv", {"out": 6, "kernel": 3})) for i in range(3)]
    images = structural(
        "moe", ["f32[N, 3, 8, 8]"], [chain("router", ["f32[N, 3, 8, 8]"], *pooled), *convs], top_k=1, shared=True
    )
    assert str(images.outputs[0].type) == "f32[N, 6, 8, 8]"


def test_skip_by_sample_by_token_and_with_a_budget() -> None:
    def gate(*layers: tuple[str, dict[str, Any]]) -> Graph:
        return chain("gate", ["f32[N, T, 8]"], *layers, linear(1), ("sigmoid", {}))

    x = ["f32[N, T, 8]"]
    whole = structural("skip", x, [gate(("mean", {"axis": 1})), chain("body", ["f32[Rows, T, 8]"], linear(8))])
    tokens = structural("skip", x, [gate(), chain("body", x, linear(8))])
    budget = structural("skip", x, [gate(), chain("body", ["f32[N, Kept, 8]"], linear(8))], budget=0.5)
    assert {str(g.outputs[0].type) for g in (whole, tokens, budget)} == {"f32[N, T, 8]"}
    n, t = symbol("N"), symbol("T")
    assert node_flops(tokens.nodes[0]) - node_flops(budget.nodes[0]) == 128 * n * (t - t * 500 // 1000)
    with pytest.raises(CompileError, match="share of tokens"):
        structural("skip", x, [gate(("mean", {"axis": 1})), chain("body", ["f32[N, Kept, 8]"], linear(8))], budget=0.5)


def test_exit_and_scan() -> None:
    head, rest = chain("head", ["f32[N, 8]"], linear(3)), chain("rest", ["f32[Rows, 8]"], linear(9), linear(3))
    assert str(structural("exit", ["f32[N, 8]"], [head, rest], threshold=0.9).outputs[0].type) == "f32[N, 3]"
    cell = chain("cell", ["f32[N, 8]", "f32[N, 5]"], linear(4))
    graph = structural("scan", ["f32[N, T, 8]", "f32[N, 5]"], [cell])
    assert [str(v.type) for v in graph.outputs] == ["f32[N, T, 4]", "f32[N, 5]"]
    assert node_flops(graph.nodes[0]) == 64 * symbol("N") * symbol("T")
    last = structural(
        "scan", ["f32[N, 8, T]", "f32[N, 5]"], [chain("cell", ["f32[N, 8]", "f32[N, 5]"], linear(4))], axis=-1
    )
    assert str(last.outputs[0].type) == "f32[N, 4, T]"


ROUTER, EXPERT = chain("router", ["f32[N, T, 8]"], linear(2)), ["f32[Rows, 8]"]


@pytest.mark.parametrize(
    ("op", "regions", "params", "code", "says"),
    [
        (
            "moe",
            [chain("router", ["f32[N, T, 8]"], linear(3)), *[chain(f"e{i}", EXPERT) for i in range(2)]],
            {"top_k": 1},
            "E0315",
            "there are 2",
        ),
        ("moe", [ROUTER, *[chain(f"e{i}", EXPERT) for i in range(2)]], {"top_k": 3}, "E0311", "top_k = 3"),
        ("moe", [ROUTER, chain("e0", EXPERT), chain("e1", EXPERT, linear(9))], {"top_k": 1}, "E0315", "Rows, 9"),
        ("skip", [chain("gate", ["f32[N, T, 8]"], linear(2)), chain("body", ["f32[N, T, 8]"])], {}, "E0315", "gate"),
        (
            "skip",
            [chain("gate", ["f32[N, T, 8]"], linear(1)), chain("body", ["f32[N, T, 8]"], linear(7))],
            {},
            "E0315",
            "body",
        ),
        (
            "exit",
            [chain("head", ["f32[N, T, 8]"]), chain("rest", ["f32[Rows, T, 8]"])],
            {"threshold": 0.5},
            "E0315",
            "head",
        ),
    ],
    ids=["logits", "top_k", "experts", "gate", "body", "head"],
)
def test_misfit_parts_are_diagnostics(
    op: str, regions: list[Graph], params: Mapping[str, Any], code: str, says: str
) -> None:
    with pytest.raises(CompileError) as caught:
        structural(op, ["f32[N, T, 8]"], regions, **params)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert says in f"{diagnostic.message} {diagnostic.label}"
