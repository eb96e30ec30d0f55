"""Networks for others: `archc.export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from archc.facade.model import Model, as_model
from archc.facade.weights import Given, resolve

Format = Literal["torch", "onnx", "pt2"]
FORMATS: tuple[str, ...] = get_args(Format)


def export(
    model: Model | Path | str,
    out: Path | str,
    format: Format,
    weights: Given = None,
    *,
    seed: int = 0,
) -> None:
    """Write a network as Python source that needs torch alone, as ONNX, or as a `torch.export` archive.

    Source holds no weights: its `Model().load_weights(path)` reads the safetensors file, which is checked here.

    Raises: CompileError E090x when the format cannot express the network, E06xx for weights that do not fit; ValueError
    for a format that there is not.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}: known are {', '.join(FORMATS)}")
    from archc.backends.torch.export import export_onnx, export_pt2, export_source
    from archc.backends.weights import atomic_file

    model = as_model(model)
    arrays = resolve(model.graph, weights, seed).arrays
    if format == "torch":
        with atomic_file(out) as temporary:
            temporary.write_text(export_source(model.graph), encoding="utf-8")
    else:
        (export_onnx if format == "onnx" else export_pt2)(model.graph, arrays, out)
