"""From a graph and its weights to an artifact: rewrite, lower, build, write; and the cache around that.

    verify → inference passes → decompose what TVM has no lowering for → clean up → lower → build

Nothing here imports tvm before something has to be built, so that a compilation that the cache knows costs no start-up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from archc.backends.artifact import Facts, Manifest, Port, SizeNeed, read_manifest
from archc.backends.cache import Cache, cache_key, copy_out
from archc.backends.initial import InitialWeights
from archc.backends.inputs import index_bounds
from archc.backends.tvm.cuda import demand_static
from archc.backends.weights import check_weights, type_of
from archc.ir.canonical import canonical
from archc.ir.clone import clone
from archc.ir.diagnostics import fail
from archc.ir.graph import Graph, Parameter, Value
from archc.ir.needs import needs, unknowable
from archc.ir.types import TensorType
from archc.ir.verify import verify
from archc.passes.manager import Context, Dump, Pass, run_passes
from archc.passes.pipeline import CLEANUP, INFERENCE

if TYPE_CHECKING:
    from archc.backends.preprocessing import Preprocessing
    from archc.backends.tvm.targets import TargetSpec

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Prepared:
    """A network rewritten to what TVM has lowerings for, its weights, and the passes that changed something."""

    graph: Graph
    weights: Arrays
    passes: tuple[str, ...]


def compile_graph(
    graph: Graph,
    weights: Arrays,
    path: Path | str,
    *,
    spec: TargetSpec,
    source: str = "",
    weights_origin: str = "file",
    preprocessing: Preprocessing | None = None,
    passes: Sequence[Pass] = INFERENCE,
    dump: Dump | None = None,
) -> Manifest:
    """Compile a network for `spec` and write the artifact to `path`, atomically. The graph is not changed.

    Raises: CompileError E0603–E0606 for weights that do not fit, E0506 and E0507 for what TVM cannot express, and what
    `archc.backends.tvm.build.compile_module` raises.
    """
    _check(graph, weights)
    if spec.kind == "cuda":
        demand_static(graph)

    from archc.backends.tvm.build import compile_module
    from archc.backends.tvm.lower import lower

    prepared = prepare(graph, weights, passes, dump)
    facts = facts_of(graph, weights, weights_origin, preprocessing, prepared.passes)
    module = lower(prepared.graph, prepared.weights, spec.kind, index_bounds(graph))
    return compile_module(module, path, spec=spec, facts=facts, source=source)


def compile_cached(
    graph: Graph,
    weights: Arrays,
    path: Path | str,
    *,
    spec: TargetSpec,
    source: str = "",
    weights_origin: str = "file",
    preprocessing: Preprocessing | None = None,
    passes: Sequence[Pass] = INFERENCE,
    cache: Cache | None = None,
) -> Manifest:
    """`compile_graph` through the cache: what has been compiled before, by any process, is copied to `path`."""
    _check(graph, weights)
    identity = canonical(graph)
    values = _identity(weights, identity.parameters)
    facts = _facts(graph, identity.hash, values, weights_origin, preprocessing, ())
    key = cache_key(
        facts=facts.model_dump(mode="json"),
        target=spec.model_dump(mode="json"),
        pipeline=[p.name for p in passes],
        source=hashlib.sha256(source.encode()).hexdigest(),
    )

    def build(into: Path) -> Manifest:
        options: dict[str, Any] = {"source": source, "weights_origin": weights_origin, "preprocessing": preprocessing}
        return compile_graph(graph, weights, into, spec=spec, passes=passes, **options)

    copy_out((cache or Cache()).get_or_build(key, build), path)
    return read_manifest(path)


def prepare(graph: Graph, weights: Arrays, passes: Sequence[Pass] = INFERENCE, dump: Dump | None = None) -> Prepared:
    """Run the passes on a copy of the graph and decompose what TVM has no lowering for."""
    from archc.backends.tvm.lower import can_lower
    from archc.ir.decompose import decompose

    def run(graph: Graph, context: Context) -> bool:
        return decompose(graph, can_lower)

    copy, context = clone(graph), Context(weights=dict(weights))
    done = run_passes(copy, [*passes, Pass("decompose", run), *CLEANUP], context, dump)
    assert context.weights is not None
    return Prepared(copy, context.weights, tuple(dict.fromkeys(ran.name for ran in done if ran.changed)))


def facts_of(
    graph: Graph,
    weights: Arrays,
    weights_origin: str,
    preprocessing: Preprocessing | None,
    passes: Sequence[str],
) -> Facts:
    """What an artifact says of its network."""
    identity = canonical(graph)
    weights_hash = _digest(weights, identity.parameters)
    return _facts(graph, identity.hash, weights_hash, weights_origin, preprocessing, passes)


def _facts(
    graph: Graph,
    ir_hash: str,
    weights_hash: str,
    weights_origin: str,
    preprocessing: Preprocessing | None,
    passes: Sequence[str],
) -> Facts:
    bounds = index_bounds(graph)
    return Facts(
        name=graph.name,
        inputs=tuple(_port(v.name, v, bounds.get(v.name)) for v in graph.inputs),
        outputs=tuple(_port(name, v) for name, v in zip(graph.output_names, graph.outputs, strict=True)),
        needs=tuple(SizeNeed(size=str(need.size), words=need.words) for need in needs(graph)),
        ir_hash=ir_hash,
        weights_hash=weights_hash,
        weights_origin=weights_origin,
        passes=tuple(passes),
        model_parameters=sum(p.size for p in graph.parameters().values() if p.trainable),
        preprocessing=preprocessing,
    )


def _digest(weights: Arrays, parameters: Sequence[Parameter]) -> str:
    """A hash of the weights' values in canonical order: names do not count."""
    digest = hashlib.sha256()
    for parameter in parameters:
        array = np.ascontiguousarray(weights[parameter.name])
        digest.update(f"{type_of(array)}\n".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _identity(weights: Arrays, parameters: Sequence[Parameter]) -> str:
    """A hash of what decides the weights' values; for initial weights, none of which need be drawn for it, the seed."""
    if not isinstance(weights, InitialWeights):
        return _digest(weights, parameters)
    return hashlib.sha256(json.dumps(weights.identity([p.name for p in parameters])).encode()).hexdigest()


def _port(name: str, value: Value, below: int | None = None) -> Port:
    dims = tuple(d if isinstance(d, int) else str(d) for d in value.type.shape)
    return Port(name=name, dtype=value.type.dtype, dims=dims, below=below)


def _check(graph: Graph, weights: Arrays) -> None:
    verify(graph)
    for need in unknowable(graph):
        raise fail(
            "E0507",
            need.words,
            need.span,
            label="how large it is comes about while the network runs",
            help="do this before the region, or along an axis whose size an input tells",
        )
    needed: dict[str, TensorType] = {name: p.type for name, p in graph.parameters().items()}
    if isinstance(weights, InitialWeights):
        check_weights(needed, weights.types)
    else:
        check_weights(needed, {name: type_of(array) for name, array in weights.items()})
