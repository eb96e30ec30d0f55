"""Every attribute of every op is part of the identity: change its value, and the canonical hash changes.

The registry is enumerated, and values are made from the types of the schemas: an op that is added is covered by itself.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError

from archc.grammar.parser import parse
from archc.grammar.program import Program
from archc.grammar.values import tensors_of
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.dims import Expr
from archc.ir.graph import Graph, Node
from archc.ir.op import REGISTRY, BindError, OpDef, bind

EXAMPLES = {  # where the declared example leaves no room for another value, or needs a share
    "tied_linear": ("f32[N, 6, 8]", "share e = embedding(9, 8)", "x0 -> tied_linear(e)"),
    "flatten": ("f32[N, 2, 3, 4]", "", "x0 -> flatten(from = 1, to = 2)"),
    "col2im": ("f32[N, 12, 8]", "", "x0 -> col2im(h = 3, w = 4)"),
    "positions": ("f32[N, 6, 8]", "", "x0 -> positions(length = 9)"),
    "attention": ("f32[N, 6, 16]", "", "x0 -> attention(4)"),
    "squeeze": ("f32[N, 1, 8, 1]", "", "x0 -> squeeze(1)"),
    "unflatten": ("f32[N, 6, 8]", "", "x0 -> unflatten(2, [2, 4])"),
    "expand": ("f32[N, 1, 8]", "", "x0 -> expand([N, 5, 8])"),
    "moe": ("f32[N, 6, 8]", "", "x0 -> moe(router = linear(4), experts = copies(4, linear(8)), top_k = 2)"),
    "prelu": ("f32[N, 1, 8]", "", "x0 -> prelu"),
    "concat": (("f32[N, 6, 8]", "f32[N, 6, 8]"), "", "concat(x0, x1, axis = 1)"),
    "gather": (("f32[N, 6, 8]", "i64[N, 6, 8]"), "", "(x0, x1) -> gather(1)"),
    "skip": ("f32[N, 6, 8]", "", "x0 -> skip(gate = linear(1), body = linear(8))"),
}
PARTNERS = {  # values that can only change together with others
    ("clamp", "min"): {"max": 9.0},
    ("kan", "groups"): {"basis": "grkan", "groups": 2},
    ("prelu", "num_parameters"): None,  # the size of the axis, or 1: another example, not another value
    ("moe", "shared"): None,  # says which regions there are: another graph, not another value
    ("moe", "routing"): {"capacity": 1.0},
    ("tied_linear", "out"): None,  # read off the shared weight
    ("parameter", "dtype"): {"dtype": "f16"},
    ("buffer", "dtype"): {"dtype": "f16"},
    ("permute", "order"): {"order": (0, 1, 2)},
    ("col2im", "h"): {"h": 4, "w": 3},
    ("col2im", "w"): {"h": 2, "w": 6},
    ("unflatten", "sizes"): {"sizes": (4, 2)},
    ("reshape", "shape"): {"shape": (-1,)},
    ("squeeze", "axis"): {"axis": 3},
    ("einsum", "equation"): {"equation": "nij,nkj->nki"},
    ("conv_transpose", "output_padding"): {"stride": 3, "output_padding": 2},
    ("unflatten", "axis"): {"axis": 1, "sizes": (2, 3)},
    ("pad", "mode"): {"mode": "circular"},
    ("expand", "shape"): {"shape": (1, -1, 4, -1)},
    ("batch_norm", "affine"): {"affine": False, "bias": False},
    ("split", "axis"): {"axis": 1},
}


def example(op: OpDef[Any]) -> tuple[Graph, Node]:
    """The network of an op's example, and the op's node in it."""
    if op.name in EXAMPLES:
        port, share, expression = EXAMPLES[op.name]
        inputs, text = (port,) if isinstance(port, str) else port, f"{share}\nlet r = {expression}\n"
    else:
        inputs = op.example_inputs
        feed = ", ".join(f"x{i}" for i in range(len(inputs)))
        text = f"let r = {f'({feed})' if ',' in feed else feed} -> {op.example}\n"
    program = Program(parse("arch e\n" + "".join(f"input x{i}: {t}\n" for i, t in enumerate(inputs)) + text))
    program.check()
    found = tensors_of(program.env.names["r"])
    assert found, [d.message for d in program.e.sink.diagnostics]
    program.graph.outputs = [t.value for t in found]  # type: ignore[union-attr]
    program.graph.output_names = [f"o{i}" for i in range(len(found))]
    (node,) = (n for n in program.graph.nodes if n.op is op)
    return program.graph, node


def other_values(annotation: Any, value: Any) -> Iterator[Any]:
    """Values of a type that differ from `value`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        yield not value
    elif annotation is int:
        base = value if isinstance(value, int) else 1
        yield from (base + 1, 2 * base + 2, max(1, base // 2), base - 1)
    elif annotation is float:
        base = value if isinstance(value, float | int) else 1.0
        yield from (base + 0.125, base / 2, -base)
    elif annotation is str:
        yield from ("zeros", "ones")
    elif annotation is Any:
        yield from (0.75, [0.75, 0.5])
    elif annotation is types.NoneType:
        yield None
    elif origin is Literal:
        yield from args
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from other_values(arg, value if not isinstance(value, tuple) or get_origin(arg) is tuple else None)
    elif origin is tuple and isinstance(value, tuple):
        for i, item in enumerate(value):
            kind = args[0] if args[-1] is Ellipsis else args[i]
            for changed in other_values(kind, item):
                yield (*value[:i], changed, *value[i + 1 :])
        yield value[::-1]
        yield (*value[1:], *value[:1])
    elif origin is tuple:
        yield from ((1, 2), (2, 1), (1, 2, 3))
    elif get_args(annotation):
        yield from other_values(get_args(annotation)[0], value)
    else:
        assert annotation is Expr, f"no values are known for {annotation}: add some"


def with_params(graph: Graph, node: Node, changes: dict[str, Any]) -> Graph | None:
    """The network with other parameters of one node; None when the op does not take them."""
    copy = clone(graph)
    changed = same_node(copy, node)
    fields = type(node.params).model_fields
    values = {name: getattr(node.params, name) for name in fields} | changes
    try:
        changed.params = type(node.params)(**{fields[k].alias or k: v for k, v in values.items()})
        changed.bound = bind(changed.op, changed.call)
    except (ValidationError, BindError):
        return None
    return copy


def same_node(graph: Graph, node: Node) -> Node:
    (found,) = (n for n in graph.walk() if n.name == node.name)
    return found


ATTRIBUTES = [(op, field) for op in sorted(REGISTRY) for field in REGISTRY[op].params.model_fields]


def changed_values(name: str, field: str) -> Iterator[tuple[Graph, Graph, Any]]:
    graph, node = example(REGISTRY[name])
    value = getattr(node.params, field)
    partners = PARTNERS.get((name, field)) or {}
    candidates = [partners[field]] if field in partners else []
    for other in [*candidates, *other_values(REGISTRY[name].params.model_fields[field].annotation, value)]:
        if other == value and type(other) is type(value):
            continue
        changed = with_params(graph, node, partners | {field: other})
        if changed is not None and same_node(changed, node).params != node.params:
            yield graph, changed, other


@pytest.mark.parametrize(("name", "field"), ATTRIBUTES, ids=lambda v: str(v))
def test_another_value_is_another_network(name: str, field: str) -> None:
    if PARTNERS.get((name, field), {}) is None:
        return
    found = list(changed_values(name, field))
    assert found, f"no other value of {name}.{field} fits the example: add one to EXAMPLES or PARTNERS"
    base = canonical(found[0][0]).hash
    alike = [(graph, changed, other) for graph, changed, other in found if canonical(changed).hash == base]
    assert len(alike) < len(found), "some other value makes another network"
    for graph, changed, other in alike:  # an axis counted from the other end, a default that is spelled out
        assert same_function(graph, changed), f"{name}.{field} = {other} is another network"


def same_function(one: Graph, two: Graph) -> bool:
    """Do two networks of the same parameters compute the same, to the bit?"""
    from archc.backends.inputs import random_inputs
    from archc.backends.torch.module import to_torch

    if [v.type for v in one.outputs] != [v.type for v in two.outputs]:
        return False
    inputs = [torch.from_numpy(a) for a in random_inputs(one, 0, dict.fromkeys(one.symbols(), 3)).values()]
    with torch.no_grad():
        results = [to_torch(graph, seed=0).eval()(*inputs) for graph in (one, two)]
    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True)
    return all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in pairs)


def test_an_attribute_that_did_not_count_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a canonical text without `eps`."""
    graph, changed, _ = next(changed_values("layer_norm", "eps"))
    assert canonical(graph).hash != canonical(changed).hash
    assert not same_function(graph, changed)
    from archc.ir import canonical as module

    whole = module._Canonicaliser.params
    monkeypatch.setattr(
        module._Canonicaliser, "params", lambda self, node: re.sub(r"eps=[^,]*", "", whole(self, node)), raising=True
    )
    assert canonical(graph).hash == canonical(changed).hash


IMAGE, TOKENS = "f32[N, 8, 6, 6]", "f32[N, 6, 8]"
SPELLED = [
    (TOKENS, "softmax", "softmax(axis = 2)"),
    (TOKENS, "mean(-1)", "mean([2])"),
    (TOKENS, "sum", "sum([2, 0, 1])"),
    (TOKENS, "argmax(-2)", "argmax(1)"),
    (TOKENS, "attention(2)", "attention(2, kv_heads = 2, head_dim = 4, out = 8)"),
    (TOKENS, "flatten", "flatten(from = 1, to = 2)"),
    (TOKENS, "flatten(from = -2)", "flatten(from = 1, to = 2)"),
    (TOKENS, "slice(1)", "slice(-2, from = 0, to = 6)"),
    (TOKENS, "slice(1, to = -1)", "slice(1, to = 5)"),
    (TOKENS, "select(1, -1)", "select(1, 5)"),
    (TOKENS, "reshape([N, -1])", "reshape([N, 48])"),
    (TOKENS, "transpose(1, 2)", "transpose(-1, -2)"),
    (TOKENS, "permute([0, -1, 1])", "permute([0, 2, 1])"),
    (TOKENS, "unsqueeze(-1)", "unsqueeze([3])"),
    (TOKENS, "pad([1, 1])", "pad([1, 1, 0, 0])"),
    (TOKENS, "unflatten(-1, [2, -1])", "unflatten(2, [2, 4])"),
    (TOKENS, "expand([-1, 6, -1])", "expand([N, 6, 8])"),
    (TOKENS, "fn(v) { let a, b = v -> split(2, axis = 1) return a }",
        "fn(v) { let a, b = v -> split([3, 3], axis = -2) return a }"),
    (IMAGE, "conv(8, kernel = 3)", "conv(8, kernel = [3, 3], padding = 1, stride = [1, 1])"),
    (IMAGE, "conv(8, kernel = 2)", "conv(8, kernel = 2, padding = [0, 0])"),
    (IMAGE, "conv_transpose(8, kernel = 2)", "conv_transpose(8, kernel = [2, 2], padding = [0, 0])"),
    (IMAGE, "max_pool(2)", "max_pool([2, 2], stride = 2)"),
    (IMAGE, "avg_pool(2)", "avg_pool(2, stride = [2, 2])"),
    (IMAGE, "upsample(2)", "upsample([2, 2])"),
    (IMAGE, "adaptive_avg_pool(3)", "adaptive_avg_pool([3, 3])"),
    (IMAGE, "im2col(kernel = 3)", "im2col(kernel = 3, padding = 1)"),
    ("f32[N, 9, 8]", "col2im", "col2im(h = 3, w = 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("port", "short", "long"), SPELLED, ids=[row[1] for row in SPELLED])
def test_what_is_left_open_and_what_is_spelled_out_are_one(port: str, short: str, long: str) -> None:
    networks = []
    for expression in (short, long):
        program = Program(parse(f"arch e\ninput x: {port}\nlet r = x -> {expression}\n"))
        program.check()
        program.graph.outputs = [t.value for t in tensors_of(program.env.names["r"]) or ()]  # type: ignore[union-attr]
        program.graph.output_names = ["y"]
        networks.append(program.graph)
    assert canonical(networks[0]).hash == canonical(networks[1]).hash
    assert same_function(*networks)


def test_the_two_zeros_differ() -> None:
    """They are equal as numbers, and 1 / 0.0 is not 1 / -0.0."""
    hashes = set()
    for first, second in (("0.0", "0.0"), ("0.0", "-0.0"), ("-0.0", "-0.0")):
        text = f"arch a\ninput x: f32[N]\noutput y: f32[N]\ny = x / constant({first}) - tanh(x) / constant({second})"
        program = Program(parse(text))
        hashes.add(canonical(program.elaborate()).hash)
    assert len(hashes) == 3
