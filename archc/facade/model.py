"""`archc.Model`: an architecture in hand, and all that can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.facade.weights import Given
from archc.grammar.format import format_source
from archc.grammar.limits import DEFAULT, Limits
from archc.grammar.load import load as load_graph
from archc.grammar.load import loads as loads_graph
from archc.grammar.printer import print_graph
from archc.grammar.source import read_source
from archc.ir.canonical import Canonical, canonical
from archc.ir.cost import Cost, cost
from archc.ir.graph import Graph

if TYPE_CHECKING:
    from archc.backends.torch.module import ArchModule
    from archc.facade.summary import Summary
    from archc.metanet.symmetry import Certificate


@dataclass(frozen=True)
class Model:
    """A network: its graph, and the text that it came from.

    >>> model = loads('''
    ... arch tiny(width = 8)
    ... input  x: f32[N, 4]
    ... output y: f32[N, 2]
    ... y = x -> linear(width) -> relu -> linear(2)
    ... ''')
    >>> model.cost.params
    58
    """

    graph: Graph
    source: str = field(repr=False, default="")
    path: Path | None = None

    def __repr__(self) -> str:
        """
        >>> loads("arch a input x: f32[N, 4] output y: f32[N, 2] y = x -> linear(2)")
        Model(a: x: f32[N, 4] -> y: f32[N, 2], 10 parameters)
        """
        inputs = ", ".join(f"{v.name}: {v.type}" for v in self.graph.inputs)
        named = zip(self.graph.output_names, self.graph.outputs, strict=True)
        outputs = ", ".join(f"{name}: {v.type}" for name, v in named)
        return f"Model({self.name}: {inputs} -> {outputs}, {self.cost.params:,} parameters)"

    @property
    def name(self) -> str:
        return self.graph.name

    @cached_property
    def canonical(self) -> Canonical:
        """Canonical form: the hash that is the architecture's identity, and the canonical order of its parameters."""
        return canonical(self.graph)

    @property
    def hash(self) -> str:
        return self.canonical.hash

    @cached_property
    def cost(self) -> Cost:
        return cost(self.graph)

    def with_dims(self, dims: Mapping[str, int]) -> Model:
        """The same architecture with symbolic dimensions fixed."""
        return replace(loads(print_graph(self.graph), dims=dims), path=self.path)

    def text(self) -> str:
        """The graph as concrete `.arch` text, laid out as `archc fmt` does."""
        return format_source(print_graph(self.graph))

    def summary(self) -> Summary:
        """A table, layer by layer."""
        from archc.facade.summary import summarise

        return summarise(self.graph)

    def symmetry(self, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Certificate:
        """The numeric certificate of the axis classes."""
        from archc.metanet.symmetry import certify

        return certify(self.graph, seed, sizes=sizes)

    def draw(self, path: Path | str | None = None) -> str:
        """The picture as SVG text; with `path` (.svg, .png, .dot, .html) also written there."""
        from archc.drawing import draw

        return draw(self.graph, path)

    def to_torch(self, weights: Given = None, seed: int = 0) -> ArchModule:
        """An `nn.Module` whose state_dict keys are the IR's parameter names.

        `weights` are arrays by name, or a safetensors file; without them they are initialised from `seed`.
        """
        from archc.backends.torch.module import to_torch
        from archc.facade.weights import resolve

        return to_torch(self.graph, resolve(self.graph, weights, seed).arrays)

    def _repr_html_(self) -> str:
        return self.draw()


def load(path: str | Path, /, *, dims: Mapping[str, int] | None = None, **parameters: Any) -> Model:
    """The architecture in a file; keyword arguments set its parameters, `dims` fixes symbolic dimensions.

    Raises: CompileError with every mistake found.
    """
    return from_file(path, parameters, dims)


def from_file(
    path: str | Path,
    parameters: Mapping[str, Any],
    dims: Mapping[str, int] | None = None,
    limits: Limits = DEFAULT,
) -> Model:
    """`load` for parameters of any name, and other limits than the default ones."""
    graph = load_graph(path, parameters, dims, limits)
    return Model(graph, read_source(path, limits), Path(path))


def loads(text: str, /, *, dims: Mapping[str, int] | None = None, **parameters: Any) -> Model:
    """The architecture in a text; see `load`."""
    return Model(loads_graph(text, parameters, dims), text)


def as_model(what: Model | Path | str) -> Model:
    """A model, or the model of a file.

    Raises: TypeError for anything else, CompileError for a file with mistakes.
    """
    if isinstance(what, Model):
        return what
    if not isinstance(what, str | Path):
        raise TypeError(f"needed a Model or the path of an .arch file, found {type(what).__name__}; see archc.load")
    return load(what)
