"""Graphs as files for others: Python source that needs torch alone, ONNX, and `torch.export`'s `.pt2`."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archc.backends.torch.codegen import generate, parameter_paths
from archc.backends.torch.module import TORCH_DTYPES, to_torch
from archc.backends.torch.runtime import HEADER, HELPERS
from archc.backends.torch.text import number, quoted, remark, tuple_text
from archc.backends.weights import atomic_file
from archc.ir.diagnostics import fail
from archc.ir.dims import known
from archc.ir.graph import Graph, Parameter
from archc.ir.types import FLOATS

OPSET = 20
"""The version of the ONNX operators: the oldest with `gelu` and all else that is needed."""


def export_source(graph: Graph) -> str:
    """A Python file that imports only torch: a class `Model` with the generated `forward`, and the helpers it calls.

    Its parameters have the distributions of the graph's initial values, drawn by torch; `Model().load_weights(path)`
    reads a safetensors file (with the package safetensors).

    Raises: CompileError E0901 or E0902, as `to_torch` does.
    """
    parameters = graph.parameters()
    paths = parameter_paths(parameters)
    source = generate(graph, paths)
    helpers = _with_dependencies({*source.helpers, "attach", "draw"})
    rows = [f"    {quoted(name)}: {_parameter(p)},\n" for name, p in parameters.items()]
    renamed = {name: ".".join(path) for name, path in paths.items() if ".".join(path) != name}
    names = [f"    {quoted(old)}: {quoted(new)},\n" for old, new in renamed.items()]
    title = f'"""{remark(graph.name)}, as PyTorch source.'
    return "".join(
        [
            f'{title}\n\n    model = Model().load_weights("weights.safetensors").eval()\n"""\n\n{HEADER}\n',
            *(f"\n{_source(HELPERS[name])}\n" for name in HELPERS if name in helpers),
            "\nPARAMETERS: dict[str, tuple[tuple[int, ...], torch.dtype, bool, str, Any]] = {\n",
            "    # name: shape, dtype, whether it is trained, distribution of the initial values and its size\n",
            *rows,
            "}\n",
            "# Of parameters whose name would hide an attribute of the module.\n",
            "ATTRIBUTES: dict[str, str] = {",
            "\n" * bool(names),
            *names,
            "}\n\n\n",
            _MODEL,
            "\n",
            source.methods,
        ]
    )


_MODEL = '''\
class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, (shape, dtype, trainable, kind, size) in PARAMETERS.items():
            path = tuple(ATTRIBUTES.get(name, name).split("."))
            attach(self, path, draw(shape, dtype, kind, size), trainable)

    def load_weights(self, path: str) -> Model:
        """Read a safetensors file whose keys are the parameters' names; RuntimeError when it does not fit."""
        from safetensors.torch import load_file

        self.load_state_dict({ATTRIBUTES.get(name, name): tensor for name, tensor in load_file(path).items()})
        return self
'''


def export_onnx(graph: Graph, weights: Mapping[str, Any] | None, path: Path | str, seed: int = 0) -> None:
    """Write the network, as in evaluation, as an ONNX file with open sizes where the graph has symbols.

    Structural ops become masks over all rows, recurrences ONNX's `Scan`. `weights` None: initial values from `seed`.

    Raises: CompileError E0903 when ONNX cannot express the network or holds more than its 2 GB, E0904 without the
    packages onnx and onnxscript, E0603–E0606 for weights that do not fit.
    """
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise fail(
            "E0904", f"exporting to ONNX needs the package `{error.name}`", help="pip install 'archc[export]'"
        ) from error
    assert onnxscript
    inputs, shapes = example_inputs(graph), dynamic_shapes(graph)
    module = to_torch(graph, weights, seed).eval().requires_grad_(False)  # a loop would keep sizes for its gradient
    with _cannot_say("ONNX"), _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[v.name for v in graph.inputs],
            output_names=graph.output_names,
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
        data = _named_axes(graph, model).SerializeToString()
        onnx.checker.check_model(data)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def export_pt2(graph: Graph, weights: Mapping[str, Any] | None, path: Path | str, seed: int = 0) -> None:
    """Write the network, as in evaluation, as a `torch.export` archive; `torch.export.load(path).module()` runs it.

    Raises: CompileError E0903 when `torch.export` cannot trace it, E0603–E0606 for weights that do not fit.
    """
    module = to_torch(graph, weights, seed).eval()
    buffer = io.BytesIO()
    with _cannot_say("torch.export"), _quiet():
        program = torch.export.export(module, example_inputs(graph), dynamic_shapes=dynamic_shapes(graph))
        torch.export.save(program, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def example_inputs(graph: Graph, sizes: Mapping[str, int] | None = None) -> tuple[Tensor, ...]:
    """Inputs of some size: zeros and normal numbers. The first symbol is taken for the batch, and is small."""
    sizes = sizes or {name: 16 + 8 * i if i else 3 for i, name in enumerate(graph.symbols())}
    generator = torch.Generator().manual_seed(0)
    found = []
    for value in graph.inputs:
        shape, dtype = known(value.type.substitute(sizes).shape), TORCH_DTYPES[value.type.dtype]
        assert shape is not None, f"sizes for {value.type} are missing: {sizes}"
        zeros = value.type.dtype not in FLOATS
        found.append(torch.zeros(shape, dtype=dtype) if zeros else torch.randn(shape, generator=generator).to(dtype))
    return tuple(found)


def dynamic_shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    """Which axes of the inputs are open, as `torch.export` wants it."""
    return tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(v.type.shape) if not isinstance(dim, int)}
        for v in graph.inputs
    )


def _parameter(parameter: Parameter) -> str:
    shape, init = tuple_text(list(map(str, parameter.shape))), parameter.init
    size = f"[{', '.join(map(number, init.values))}]" if init.kind == "values" else number(init.a)
    dtype = TORCH_DTYPES[parameter.type.dtype]
    return f"({shape}, {dtype}, {parameter.trainable}, {quoted(init.kind)}, {size})"


def _source(function: Any) -> str:
    return re.sub(r"^(@\w+\n)+", "", inspect.getsource(function))


def _with_dependencies(names: set[str]) -> set[str]:
    """Helpers, and the helpers that they call."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += HELPERS.keys() & set(re.findall(r"[A-Za-z_]\w*", _source(HELPERS[name])))
    return found


def _named_axes(graph: Graph, model: Any) -> Any:
    """Give the open axes of an ONNX model's inputs and outputs the names that the program has for them."""
    ports = [*zip(graph.inputs, model.graph.input, strict=True), *zip(graph.outputs, model.graph.output, strict=True)]
    for value, port in ports:
        for dim, axis in zip(value.type.shape, port.type.tensor_type.shape.dim, strict=True):
            if not isinstance(dim, int):
                axis.dim_param = str(dim)
    return model


@contextlib.contextmanager
def _cannot_say(form: str) -> Iterator[None]:
    """An exporter's failure as a diagnostic: it is the format that cannot say what torch and TVM can."""
    try:
        yield
    except Exception as error:  # exporters raise whatever their layers do
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer ones tell how to report a bug
            cause = cause.__cause__
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise fail(
            "E0903",
            f"{form} cannot express this network",
            label=reason[:300],
            help="fix symbolic sizes with `--dim`, or export as Python source: `--format torch`",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters write their progress and warnings to the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
