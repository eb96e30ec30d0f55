"""Exported files compute what the module computes: torch source by itself, ONNX in onnxruntime, `.pt2` archives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from expressions import graph_of, graph_of_example, random_inputs
from torch import Tensor

import archc.ir.ops
from archc.backends.torch.codegen import TorchNode, lowering
from archc.backends.torch.export import dynamic_shapes, example_inputs, export_onnx, export_pt2, export_source
from archc.backends.torch.module import to_torch
from archc.backends.weights import read_weights, write_weights
from archc.grammar.load import load, loads
from archc.ir.diagnostics import CompileError
from archc.ir.graph import Graph
from archc.ir.op import REGISTRY, OpDef
from archc.ir.types import TensorType

assert archc.ir.ops.__all__

TAGGER = """
arch tagger(dim = 8)
input  tokens: i64[N, T]
input  image:  f32[N, 3, 8, 8]
output tags:   f32[N, T, 4]
output class:  f32[N, 5]
def rnn = fn(x, h) { let new = tanh(linear(dim)(x) + linear(dim)(h)) return new, new }
def double(c) = conv(c, kernel = 3) -> batch_norm -> relu
let hidden, last = tokens -> embedding(9, dim) -> attention(2, kv_heads = 1, causal = true, positions = "rope")
    -> scan(rnn, state = [[dim]], axis = 1)
tags = hidden -> moe(router = linear(3), experts = copies(3, linear(dim)), top_k = 2) -> linear(4)
let seen = image -> double(4) -> max_pool(2) -> global_avg_pool
class = concat(seen, last, axis = 1) -> linear(5)
"""


def results(module: torch.nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        found = module(*inputs)
    return [t.numpy() for t in (found if isinstance(found, tuple | list) else (found,))]


def agree(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_source_runs_where_archc_is_not(tmp_path: Path) -> None:
    """The file, safetensors weights and torch are enough; importing archc there would fail."""
    graph = loads(TAGGER)
    module, inputs = to_torch(graph, seed=5).eval(), random_inputs(graph, {"N": 3, "T": 4})
    (tmp_path / "model.py").write_text(export_source(graph), encoding="utf-8")
    (tmp_path / "archc.py").write_text("raise ImportError('not here')")
    write_weights(tmp_path / "w.safetensors", {k: v.numpy() for k, v in module.state_dict().items()})
    np.savez(tmp_path / "in.npz", *[x.numpy() for x in inputs])
    (tmp_path / "use.py").write_text(
        "import numpy, torch\n"
        "from model import Model\n"
        "model = Model().load_weights('w.safetensors').eval()\n"
        "inputs = [torch.from_numpy(x) for x in numpy.load('in.npz').values()]\n"
        "outputs, aux = model.forward_with_aux(*inputs)\n"
        "assert [key for key in aux if key.endswith('moe.balance')]\n"
        "numpy.savez('out.npz', *[y.detach().numpy() for y in outputs])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=environment, check=True, timeout=120)
    with np.load(tmp_path / "out.npz") as found:
        agree(list(found.values()), results(module, inputs))


@pytest.mark.parametrize("op", [op for op in REGISTRY.values() if op.example], ids=lambda op: op.name)
def test_source_of_every_op(op: OpDef[Any]) -> None:
    """Every helper comes along with what it needs; initial values are drawn in the parameters' shapes and dtypes."""
    graph = graph_of_example(op)
    namespace: dict[str, object] = {}
    source = export_source(graph)
    assert "archc" not in source
    exec(compile(source, op.name, "exec"), namespace)
    model, module = namespace["Model"]().eval(), to_torch(graph).eval()  # type: ignore[operator]
    state = model.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in module.state_dict().items()
    }
    model.load_state_dict(module.state_dict())
    inputs = random_inputs(graph, {"N": 3, "T": 4})
    for found, wanted in zip(results(model, inputs), results(module, inputs), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_source_takes_hostile_names() -> None:
    graph = graph_of(["x -> linear(2)"], ["f32[N, 3]"])
    graph.name = 'evil"""\nraise SystemExit'
    for parameter in graph.parameters().values():
        parameter.name = f'train."{parameter.name}\\\n'
    namespace: dict[str, object] = {}
    exec(compile(export_source(graph), "hostile", "exec"), namespace)
    assert namespace["Model"]()(torch.zeros(4, 3)).shape == (4, 2)  # type: ignore[operator]


def test_onnx_runs_in_onnxruntime(tmp_path: Path) -> None:
    """With the program's names for ports and open sizes, other sizes than those it was traced with, a recurrence."""
    graph = loads(TAGGER)
    weights = {name: value.numpy() for name, value in to_torch(graph, seed=2).state_dict().items()}
    export_onnx(graph, weights, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert [(p.name, p.shape) for p in session.get_inputs()] == [("tokens", ["N", "T"]), ("image", ["N", 3, 8, 8])]
    assert [(p.name, p.shape) for p in session.get_outputs()] == [("tags", ["N", "T", 4]), ("class", ["N", 5])]
    for sizes in ({"N": 5, "T": 7}, {"N": 1, "T": 3}):
        inputs = random_inputs(graph, sizes, seed=1)
        found = session.run(None, {"tokens": inputs[0].numpy(), "image": inputs[1].numpy()})
        agree(found, results(to_torch(graph, weights).eval(), inputs))


@pytest.mark.parametrize(
    "expression",
    [
        "x -> skip(gate = linear(1) -> sigmoid, body = linear(6) -> tanh, budget = 0.5)",
        "x -> skip(gate = mean(1) -> linear(1) -> sigmoid, body = linear(6) -> tanh)",
        """x -> linear(6) -> scan(fn(p, h) { let a = h + p return sum(a, 1, keepdim = true) * a, a }, state = [[6]])
          -> fn(y, h) { return y }""",
        'x -> kan(6) -> rope -> gelu(approximate = "tanh") -> rms_norm -> top_k(2) -> fn(v, i) { return v }',
    ],
)
def test_onnx_of_other_ops(expression: str, tmp_path: Path) -> None:
    graph = graph_of([expression], ["f32[N, T, 6]"])
    export_onnx(graph, None, tmp_path / "m.onnx", seed=4)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    inputs = random_inputs(graph, {"N": 6, "T": 5})
    agree(session.run(None, {"x": inputs[0].numpy()}), results(to_torch(graph, seed=4).eval(), inputs))


def test_pt2_archives_run(tmp_path: Path) -> None:
    graph = loads(TAGGER)
    export_pt2(graph, None, tmp_path / "m.pt2", seed=7)
    program = torch.export.load(tmp_path / "m.pt2").module()
    for sizes in ({"N": 5, "T": 7}, {"N": 2, "T": 30}):
        inputs = random_inputs(graph, sizes)
        agree(results(program, inputs), results(to_torch(graph, seed=7).eval(), inputs))


def test_what_a_format_cannot_say_is_told(tmp_path: Path) -> None:
    """Every op of ours can be said in ONNX; one of another package need not. No half file is left behind."""

    @lowering("test_export_bessel")
    def _(n: TorchNode) -> str:
        return f"torch.special.bessel_j0({n.x})"

    graph = Graph("net")
    x = graph.add_input("x", TensorType((3,)))
    node = graph.add(OpDef("test_export_bessel", "", "x[*b] -> [*b]"), [x], name="bessel")
    graph.outputs, graph.output_names = [node.output], ["y"]
    with pytest.raises(CompileError) as raised:
        export_onnx(graph, None, tmp_path / "m.onnx")
    assert raised.value.diagnostics[0].code == "E0903"
    assert "bessel_j0" in raised.value.diagnostics[0].label
    assert not list(tmp_path.iterdir())
    export_pt2(graph, None, tmp_path / "m.pt2")


def test_exported_weights_are_what_was_given(tmp_path: Path) -> None:
    graph = graph_of(["x -> linear(2)"], ["f32[N, 3]"])
    with pytest.raises(CompileError, match="E0603"):
        export_onnx(graph, {}, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    state = {k: v.numpy() for k, v in to_torch(graph, seed=9).state_dict().items()}
    write_weights(tmp_path / "w.safetensors", state)
    assert set(read_weights(tmp_path / "w.safetensors").arrays) == set(graph.parameters())


SMALL = ("digits_resnet", "kan", "lstm", "resnet20", "skipnet", "tagger")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_examples_are_traced(name: str) -> None:
    """torch.export with open sizes, and torch.compile without a graph break."""
    graph = load(Path(__file__).parents[3] / "examples" / f"{name}.arch")
    module = to_torch(graph).eval()
    inputs = example_inputs(graph)
    program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes(graph)).module()
    other = example_inputs(graph, {symbol: 5 + i for i, symbol in enumerate(graph.symbols())})
    agree(results(program, other), results(module, other))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    agree(results(compiled, other), results(module, other))
