"""Compiling, loading and verifying: `archc.compile`, `archc.build`, `archc.load_artifact`, `archc.verify`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archc.backends.runtime import Artifact, load
from archc.facade.model import Model, as_model
from archc.facade.weights import Given, Origin, resolve
from archc.grammar.printer import print_graph
from archc.ir.diagnostics import did_you_mean, fail
from archc.ir.dims import symbol
from archc.ir.graph import Graph

if TYPE_CHECKING:
    from archc.backends.artifact import Manifest
    from archc.backends.tvm.targets import TargetSpec
    from archc.facade.numerics import Verification
    from archc.passes.manager import Pass

Device = Literal["auto", "cpu", "cuda"]


def compile(
    model: Model | Path | str,
    target: str = "cpu",
    weights: Given = None,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    threads: int | None = None,
    batch: int | None = None,
    passes: Sequence[str | Pass] = (),
    cache: bool = True,
) -> Artifact:
    """Compile a network and load it: `artifact(x)` runs it on numpy arrays and torch tensors.

    `model` is a Model or the path of an `.arch` file. `weights` are arrays by parameter name, a safetensors file, or
    what `archc.train` made; without them they are initialised from `seed`. `batch` fixes the batch axis, which is open
    otherwise. `passes` run before the usual ones: cleanups, and transforms as in `archc.transform`. With `out` the
    artifact is kept there. For a machine that is not this one, `build` writes the file without loading it.

    Raises: CompileError with every diagnostic.

    >>> import numpy as np
    >>> from archc.facade.model import loads
    >>> model = loads('''
    ... arch double()
    ... input  x: f32[N, 4]
    ... output y: f32[N, 4]
    ... y = x + x
    ... ''')
    >>> compile(model)(np.ones((2, 4), np.float32)).sum()                # doctest: +SKIP
    16.0
    """
    options: dict[str, Any] = {"seed": seed, "batch": batch, "passes": passes, "cache": cache}
    if out is not None:
        build(model, out, target, weights, threads=threads, **options)
        return load(out, threads=threads)
    with tempfile.TemporaryDirectory(prefix="archc-") as folder:  # the file stays mapped after it is gone
        path = Path(folder) / "model.archc"
        build(model, path, target, weights, threads=threads, **options)
        return load(path, threads=threads)


def build(
    model: Model | Path | str,
    out: Path | str,
    target: str = "cpu",
    weights: Given = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    batch: int | None = None,
    passes: Sequence[str | Pass] = (),
    cache: bool = True,
) -> Manifest:
    """Compile a network and write the artifact to `out`, atomically, without loading it; see `compile`.

    What has been compiled before is taken from the cache, which needs neither tvm nor torch.
    """
    from archc.backends.tvm.targets import parse_target

    model = as_model(model)
    if batch is not None:
        model = fix_batch(model, batch)
    spec = parse_target(target, threads=threads or cores())
    model, origin, others = _changed(model, weights, seed, passes)
    return _write(model, origin, out, spec, passes=others, cache=cache)


def load_artifact(path: Path | str, *, device: Device = "auto", threads: int | None = None) -> Artifact:
    """Open a compiled network. Imports neither tvm nor torch.

    Raises: CompileError E0505, E0508 (exit code 4) when it cannot run here, E0509–E0515 when the file is not sound.
    """
    return load(path, device=device, threads=threads)


def verify(
    what: Model | Artifact | Path | str,
    weights: Given = None,
    *,
    target: str = "cpu",
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    threads: int | None = None,
    locate: bool = True,
) -> Verification:
    """Compare compiled code with torch in float64 on random inputs drawn from `seed`: shapes, dtypes, the places of NaN
    and infinities, and errors against what rounding explains.

    `what` is an artifact, the path of one, or a network, which is compiled first. `sizes` fixes symbolic dimensions.
    With `locate`, the first node that diverges is looked for when an output does.

    Raises: CompileError E0215 for `sizes` of what is not open, E0517 when an artifact's weights came from a file and
    are not given.
    """
    from archc.backends.artifact import is_artifact
    from archc.facade.numerics import first_divergence, verify_run

    if isinstance(what, str | Path) and is_artifact(what):
        what = load(what, threads=threads)
    if isinstance(what, Artifact):
        artifact = what
        graph, origin = reference(artifact, weights)
        open_sizes(graph, sizes)
    else:
        model = as_model(what)
        open_sizes(model.graph, sizes)
        graph, origin = model.graph, resolve(model.graph, weights, seed)
        artifact = compile(model, target, origin.arrays, threads=threads)
    result = verify_run(graph, origin.arrays, artifact.run, seed=seed, sizes=sizes)
    if result.ok or not locate:
        return result
    spec = artifact.manifest.target
    found = first_divergence(graph, origin.arrays, _runner(origin, spec), seed=seed, sizes=sizes)
    return replace(result, diverges=found)


def reference(artifact: Artifact, weights: Given = None) -> tuple[Graph, Origin]:
    """The network that an artifact was compiled from, and its weights.

    Raises: CompileError E0517 when these are not the weights that it was compiled with, E0518 when its program is
    missing or means something else to this version of archc.
    """
    from archc.backends.tvm.compile import facts_of
    from archc.facade.model import loads

    manifest = artifact.manifest
    if not artifact.source:
        raise fail("E0518", f"the artifact of `{manifest.name}` does not hold its program")
    model = loads(artifact.source)
    if model.hash != manifest.ir_hash:
        raise fail(
            "E0518",
            f"the program of `{manifest.name}` means another network to this version of archc",
            label=f"it was compiled by {manifest.created_by}",
            help="compile it again",
        )
    if weights is None and not manifest.seed_initialised:
        raise fail(
            "E0517",
            f"`{manifest.name}` was compiled with weights from elsewhere ({manifest.weights_origin})",
            help="name them: `--weights W.safetensors`",
        )
    seed = int(manifest.weights_origin.partition(":")[2]) if manifest.seed_initialised else 0
    origin = resolve(model.graph, weights, seed)
    if facts_of(model.graph, origin.arrays, "", None, ()).weights_hash != manifest.weights_hash:
        raise fail(
            "E0517",
            f"these are not the weights that `{manifest.name}` was compiled with",
            help="give the same file (after transforms, what `archc transform --weights-out` writes), or compile again",
        )
    return model.graph, origin


def fix_batch(model: Model, size: int) -> Model:
    """The model with its batch axis fixed: axis 0 of the first input.

    Raises: CompileError E0516 when that is not open, and has another size.
    """
    name = _batch_symbol(model.graph, size)
    return model.with_dims({name: size}) if name else model


def _batch_symbol(graph: Graph, size: int) -> str:
    """The symbol that makes the batch of a network so large; empty when the batch is fixed to that."""
    shape = graph.inputs[0].type.shape if graph.inputs else ()
    if shape[:1] == (size,):
        return ""
    name = next(iter(graph.symbols()), "")
    if shape[:1] != (symbol(name),):
        raise fail(
            "E0516",
            f"the batch of `{graph.name}` cannot be set to {size}",
            label=f"its first input is {graph.inputs[0].type}" if shape else "it has no input with a batch axis",
            help="give the first input a symbolic first axis: `input x: f32[N, …]`",
        )
    return name


def open_sizes(graph: Graph, sizes: Mapping[str, int] | None = None, batch: int | None = None) -> dict[str, int]:
    """The sizes that are asked for, by symbol, where the network leaves these open.

    Raises: CompileError E0215 for a symbol that it has not (any more), E0516 for a batch that is fixed or contradicted.
    """
    given, symbols = dict(sizes or {}), graph.symbols()
    for name in given:
        if name not in symbols:
            shapes = ", ".join(f"{v.name}: {v.type}" for v in graph.inputs)
            help = did_you_mean(name, symbols) or "a size that is fixed is set where the network is compiled"
            raise fail("E0215", f"no input has a dimension `{name}`", label=f"found {shapes}", help=help)
    name = "" if batch is None else _batch_symbol(graph, batch)
    if name and batch is not None and given.setdefault(name, batch) != batch:
        raise fail(
            "E0516",
            f"the batch of `{graph.name}` cannot be {batch} and {given[name]}",
            label=f"its axis is `{name}`, which `--dim` sets, too",
            help="give one of them",
        )
    return given


def cores() -> int:
    """How many processor cores this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _changed(
    model: Model, weights: Given, seed: int, passes: Sequence[str | Pass]
) -> tuple[Model, Origin, Sequence[Pass]]:
    """The network that transforms among the passes make of a model, its weights, and the other passes. What is compiled
    is that network: the artifact holds its program. Without weights it is initialised from the seed, as if it had been
    written so."""
    from archc.facade.transform import transform
    from archc.passes.spec import parse_pass

    found = [parse_pass(p) if isinstance(p, str) else p for p in passes]
    transforms = [p for p in found if p.find is not None]
    others = [p for p in found if p.find is None]
    origin = resolve(model.graph, weights, seed)
    if not transforms:
        return model, origin, others
    made = transform(model, *transforms, weights=None if weights is None else origin.arrays, seed=seed)
    if made.weights is None:
        return made.model, resolve(made.model.graph, None, seed), others
    return made.model, Origin(made.weights, origin.origin, origin.metadata), others


def _write(
    model: Model,
    origin: Origin,
    out: Path | str,
    spec: TargetSpec,
    *,
    passes: Sequence[Pass] = (),
    cache: bool = True,
) -> Manifest:
    """The text that is kept is the program as elaborated: it stands alone, whatever was imported or set."""
    from archc.backends.tvm.compile import compile_cached, compile_graph
    from archc.passes.pipeline import INFERENCE

    write = compile_cached if cache else compile_graph
    return write(
        model.graph,
        origin.arrays,
        out,
        spec=spec,
        source=print_graph(model.graph),
        weights_origin=origin.origin,
        preprocessing=origin.preprocessing,
        passes=(*passes, *INFERENCE),
    )


def _runner(origin: Origin, spec: TargetSpec) -> Callable[[Graph], Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
    """Compiles a graph as the artifact was compiled, and returns how to run it."""
    from archc.backends.tvm.compile import compile_graph

    def compile_run(graph: Graph) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="archc-") as folder:
            path = Path(folder) / "exposed.archc"
            compile_graph(graph, origin.arrays, path, spec=spec)
            return load(path, threads=spec.threads).run

    return compile_run


def random_inputs_of(
    artifact: Artifact, batch: int | None = None, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Random inputs for an artifact, `batch` examples of them (1) where its batch is open; see `open_sizes`."""
    from archc.backends.inputs import random_inputs
    from archc.facade.model import loads

    graph = loads(artifact.source).graph
    return random_inputs(graph, seed, example_sizes(graph, sizes, batch))


def example_sizes(graph: Graph, sizes: Mapping[str, int] | None = None, batch: int | None = None) -> dict[str, int]:
    """A size for each symbol: what is asked for (see `open_sizes`), else one example."""
    from archc.backends.inputs import symbol_sizes

    return symbol_sizes(graph, dict.fromkeys(graph.symbols()[:1], 1) | open_sizes(graph, sizes, batch))
