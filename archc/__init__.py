"""A compiler and laboratory for neural architectures.

>>> import archc
>>> model = archc.loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 2]\\ny = x -> linear(2)")
>>> model.cost.params
10
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archc.backends.runtime import Artifact
    from archc.facade.bench import bench
    from archc.facade.compile import build, compile, load_artifact, verify
    from archc.facade.export import export
    from archc.facade.graphs import graph
    from archc.facade.merge import merge
    from archc.facade.model import Model, load, loads
    from archc.facade.predict import predict
    from archc.facade.sameness import same_function
    from archc.facade.train import gallery, train
    from archc.facade.transform import plan, symbolic, transform
    from archc.ir.diagnostics import CompileError, Diagnostic

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "archc.backends.runtime",
    "CompileError": "archc.ir.diagnostics",
    "Diagnostic": "archc.ir.diagnostics",
    "Model": "archc.facade.model",
    "bench": "archc.facade.bench",
    "build": "archc.facade.compile",
    "compile": "archc.facade.compile",
    "export": "archc.facade.export",
    "gallery": "archc.facade.train",
    "graph": "archc.facade.graphs",
    "load": "archc.facade.model",
    "load_artifact": "archc.facade.compile",
    "loads": "archc.facade.model",
    "merge": "archc.facade.merge",
    "plan": "archc.facade.transform",
    "predict": "archc.facade.predict",
    "same_function": "archc.facade.sameness",
    "symbolic": "archc.facade.transform",
    "train": "archc.facade.train",
    "transform": "archc.facade.transform",
    "verify": "archc.facade.compile",
}

__all__ = [
    "Artifact",
    "CompileError",
    "Diagnostic",
    "Model",
    "bench",
    "build",
    "compile",
    "export",
    "gallery",
    "graph",
    "load",
    "load_artifact",
    "loads",
    "merge",
    "plan",
    "predict",
    "same_function",
    "symbolic",
    "train",
    "transform",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import archc` loads neither torch nor tvm."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'archc' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
