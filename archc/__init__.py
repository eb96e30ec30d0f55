"""A compiler and laboratory for neural architectures.

>>> import archc
>>> model = archc.loads("arch a()\\ninput x: f32[N, 4]\\noutput y: f32[N, 2]\\ny = x -> linear(2)")
>>> model.cost.params
10
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
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
    from archc.facade.search import search
    from archc.facade.study import Study
    from archc.facade.train import gallery, train
    from archc.facade.transform import plan, symbolic, transform
    from archc.ir.diagnostics import CompileError, Diagnostic

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "archc.backends.runtime",
    "CompileError": "archc.ir.diagnostics",
    "Diagnostic": "archc.ir.diagnostics",
    "Model": "archc.facade.model",
    "Study": "archc.facade.study",
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
    "Study",
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
    "search",
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


class _Search(ModuleType):
    """`archc.search` is a package, and the function that searches: whoever imports first, it is both."""

    def __call__(self, *args: Any, **options: Any) -> Study:
        from archc.facade.search import search

        return search(*args, **options)


importlib.import_module("archc.search")
sys.modules["archc.search"].__class__ = _Search
