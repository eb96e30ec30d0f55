"""Commands that make and use compiled networks: compile, run, verify, bench, profile, export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli.console import note, print_json
from archc.cli.options import (
    Batch,
    Dims,
    Either,
    File,
    Json,
    Seed,
    Set,
    Target,
    Threads,
    Weights,
    keep,
    open_model,
    parse_batch,
    parse_dims,
    register,
)
from archc.facade.tables import human
from archc.ir.diagnostics import fail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archc.backends.artifact import Manifest
    from archc.facade.bench import Benchmark, Timing
    from archc.facade.model import Model
    from archc.facade.numerics import Verification
    from archc.facade.sameness import Sameness

Out = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="the file to write")]
Compiled = Annotated[Path, typer.Argument(metavar="OUT", help="what `archc compile` wrote", show_default=False)]


def add_commands(app: typer.Typer) -> None:
    register(app, compile_, run, verify, bench, profile, export)


def compile_(
    file: File,
    out: Out,
    target: Target = "cpu",
    weights: Weights = None,
    passes: Annotated[
        list[str] | None, typer.Option("--pass", metavar="P", help="run this pass first (repeatable)")
    ] = None,
    check: Annotated[bool, typer.Option("--verify", help="write nothing unless it agrees with torch")] = False,
    batch: Batch = None,
    threads: Threads = None,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    cache: Annotated[bool, typer.Option(help="use what was compiled before")] = True,
    as_json: Json = False,
) -> None:
    """Compile a network for a machine; the one file that is written runs without torch and without the compiler.

    Example: archc compile examples/resnet18.arch --target cpu --weights w.safetensors -o resnet18.archc
    """
    import time

    from archc.backends.weights import atomic_file
    from archc.facade.compile import build, load_artifact
    from archc.facade.compile import verify as compare

    begin = time.monotonic()
    keep(file, weights, from_=out)
    model, size = open_model(file, settings, dims), parse_batch(batch)
    options: dict[str, Any] = {"seed": seed, "threads": threads, "batch": size, "passes": passes or (), "cache": cache}
    verification = None
    with atomic_file(out) as temporary:
        manifest = build(model, temporary, target, weights, **options)
        if check:
            given = None if manifest.seed_initialised else weights
            verification = compare(load_artifact(temporary, threads=threads), given, seed=seed)
            if not verification.ok:
                raise _mismatch(manifest, verification)
    note(f"passes that changed something: {', '.join(manifest.passes) or 'none'}", at=1)
    if manifest.seed_initialised:
        note(f"weights: initialised from seed {seed}; `--weights` names trained ones")
    if as_json:
        facts = manifest.model_dump(mode="json", exclude={"preprocessing"})
        extra = {"verification": verification.to_json()} if verification else {}
        print_json({"file": out, "bytes": out.stat().st_size, **facts, **extra})
        return
    seconds = time.monotonic() - begin
    print(f"{out}: {manifest.name} for {manifest.target}, {human(out.stat().st_size, 'B')}, {seconds:.1f} s")
    if verification:
        _tell_verification(verification)


def run(
    out: Compiled,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", metavar="[name=]FILE", help=".npy, .npz (arrays by name), an image, or .txt (repeatable)"
        ),
    ],
    write: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="y.npz", help="write the outputs to .npz or .npy")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="so many classes for each example")] = 3,
    raw: Annotated[bool, typer.Option("--raw", help="arrays are raw data: prepare them as in training")] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a compiled network on arrays or images.

    Example: archc run digits.archc --input seven.png --top-k 3
    """
    from archc.facade.compile import load_artifact
    from archc.facade.run import predictions, run_files, write_outputs

    keep(out, *(Path(text) for given in inputs for text in (given, given.partition("=")[2]) if text), from_=write)
    artifact = load_artifact(out, threads=threads)
    if artifact.manifest.seed_initialised:
        note("the weights are nothing but an initialisation: train the network and compile it with `--weights`")
    read, outputs = run_files(artifact, inputs, raw)
    for file in read.unprepared:
        note(f"`{file}` is taken as the network's own input; `--raw` prepares raw data as in training")
    found = predictions(artifact.manifest, read, outputs, top_k)
    if write:
        write_outputs(outputs, write)
    if as_json:
        print_json(
            {
                "outputs": {
                    name: {"shape": array.shape, "dtype": array.dtype.name, "values": _small(array)}
                    for name, array in outputs.items()
                },
                "predictions": [
                    {"example": p.example, "classes": [{"label": c, "probability": s} for c, s in p.classes]}
                    for p in found
                ],
                "file": write,
            }
        )
        return
    prepared = artifact.manifest.preprocessing
    is_text = prepared is not None and prepared.kind == "text"
    for p in found:
        classes = ", ".join(
            f"{label!r} ({share:.1%})" if is_text else f"{label} ({share:.1%})" for label, share in p.classes
        )
        print(f"{p.example}: next {classes}" if is_text else f"{p.example}: {classes}")
    if not found:
        for name, array in outputs.items():
            print(f"{name}: {array.dtype.name}{list(array.shape)} {_glance(array)}")
    if write:
        print(f"outputs: {write}")


def verify(
    what: Either,
    weights: Weights = None,
    target: Target = "cpu",
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    threads: Threads = None,
    same_function: Annotated[
        Path | None,
        typer.Option(metavar="OLD", help="compare FILE with this network instead: do both compute the same?"),
    ] = None,
    new_weights: Annotated[
        Path | None,
        typer.Option(metavar="W2.safetensors", help="with --same-function: FILE's weights (--weights are OLD's)"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="X.npz", help="with --same-function: inputs by name (default: random)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare compiled code with torch in float64: shapes, dtypes, NaN and infinities, errors.

    Exit 3 on a mismatch, with the first node that diverges. Sizes that are open are 2 for the batch and 7, or --dim.
    With --same-function two networks are compared, in evaluation and in training; the exit code is for evaluation, and
    --set sets parameters of OLD.

    Example: archc verify resnet18.archc --weights w.safetensors

    Example: archc verify --same-function old.arch new.arch --weights old.safetensors --new-weights new.safetensors
    """
    from archc.facade.compile import verify as compare

    sizes = parse_dims(dims)
    if same_function is not None:
        found = _compared(same_function, what, weights, new_weights, data, seed, settings, sizes)
        raise typer.Exit(_tell_sameness(found, as_json))
    result = compare(_either(what, settings), weights, target=target, seed=seed, sizes=sizes, threads=threads)
    if as_json:
        print_json(_finite(result.to_json()))
    else:
        _tell_verification(result)
    raise typer.Exit(0 if result.ok else 3)


def _compared(
    old: Path,
    new: Path,
    weights: Path | None,
    new_weights: Path | None,
    data: Path | None,
    seed: int,
    settings: list[str] | None,
    sizes: Mapping[str, int],
) -> list[Sameness]:
    """The comparisons of two programs, in evaluation and in training; settings are the old one's."""
    from archc.facade.compile import open_sizes
    from archc.facade.sameness import same_function
    from archc.facade.transform import read_data
    from archc.facade.weights import resolve

    one, two = open_model(old, settings), open_model(new)
    open_sizes(one.graph, sizes)
    if weights is None or new_weights is None:
        note(f"weights: initialised from seed {seed}, by name; copies that a pass makes of weights need them as files")
    first, second = resolve(one.graph, weights, seed).arrays, resolve(two.graph, new_weights, seed).arrays
    options: dict[str, Any] = {"seed": seed, "sizes": sizes, "inputs": data and read_data(one.graph, data)}
    return [same_function(one.graph, two.graph, first, second, mode=mode, **options) for mode in ("eval", "train")]


def _tell_sameness(found: Sequence[Sameness], as_json: bool) -> int:
    """Print comparisons; the exit code."""
    if as_json:
        print_json(_finite([s.to_json() for s in found]))
    else:
        for s in found:
            for o in s.outputs:
                verdict = o.reason or ("the same" if o.ok else "DIFFERENT")
                print(f"{s.mode}: {o.name}: relative error {o.relative:.2e} (allowed {o.allowed:.2e}) {verdict}")
    return 0 if found[0].ok else 3


def bench(
    what: Either,
    against: Annotated[
        str | None, typer.Option(metavar="LIST", help="of torch, compile, onnxruntime; `none` (default: torch)")
    ] = None,
    weights: Weights = None,
    target: Target = "cpu",
    threads: Threads = None,
    batch: Annotated[int | None, typer.Option(min=1, help="examples in a call (default: 1)")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="how often the runners take turns")] = 15,
    seconds: Annotated[float, typer.Option(min=0.001, help="how long each turn is")] = 0.1,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a compiled network is: median, spread, and ratios to others with 95 % intervals.

    Runners take turns, each in a process of its own with the same threads and inputs. Exit 4 when one cannot run here.

    Example: archc bench examples/resnet18.arch --against torch,compile,onnxruntime --threads 1
    """
    from archc.facade.bench import bench as measure

    names = None if against is None else tuple(n for n in against.replace("none", "").split(",") if n)
    result = measure(
        _either(what, settings),
        names,
        weights=weights,
        target=target,
        threads=threads,
        batch=batch,
        sizes=parse_dims(dims),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    if as_json:
        print_json(result.to_json())
    else:
        _tell_benchmark(result)
    raise typer.Exit(4 if any(t.failure for t in result.timings) else 0)


def profile(
    out: Compiled,
    static: Annotated[
        bool, typer.Option("--static", help="what is known without running: code sizes, registers, shared memory")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="T.json", help="write a trace that https://ui.perfetto.dev opens")
    ] = None,
    chart: Annotated[Path | None, typer.Option(metavar="C.svg", help="write a bar chart, .svg or .png")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="examples in a call (default: 1)")] = None,
    runs: Annotated[int, typer.Option(min=1, help="how often it is run")] = 10,
    dims: Dims = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Where the time goes, kernel by kernel.

    Example: archc profile resnet18.archc --chart kernels.svg --trace kernels.json
    """
    from archc.backends.profile import profile as measure
    from archc.backends.profile import static_report
    from archc.facade.compile import load_artifact, random_inputs_of

    if static:
        from archc.backends.artifact import open_artifact

        facts = static_report(open_artifact(out))
        if as_json:
            print_json(facts)
        else:
            _tell_facts(facts)
        return
    for written in (trace, chart):
        keep(out, from_=written)
    if chart:
        _demand_suffix(chart, (".svg", ".png"))
    artifact = load_artifact(out, threads=threads)
    result = measure(artifact, random_inputs_of(artifact, batch, parse_dims(dims), seed), runs=runs)
    if trace:
        result.write_trace(trace)
    if chart:
        result.chart(chart)
    if as_json:
        print_json(result.to_json())
        return
    from archc.cli.tables import print_table

    rows = [(k.name, str(k.calls), f"{k.ms:.4f}", f"{k.share:.1%}") for k in result.kernels]
    print_table(("kernel", "calls", "ms", "share"), rows, right=1)
    print(f"\n{result.name} on {result.target}, {_threads(result.threads)}: {result.total_ms:.4f} ms a run")


class Format(StrEnum):
    torch = "torch"
    onnx = "onnx"
    pt2 = "pt2"


def export(
    file: File,
    out: Out,
    format: Annotated[
        Format, typer.Option(help="torch: Python source that needs torch alone; pt2: a torch.export archive")
    ],
    weights: Weights = None,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Write a network for others to use: PyTorch source, ONNX or torch.export.

    Example: archc export examples/resnet18.arch --format onnx --weights w.safetensors -o resnet18.onnx
    """
    from archc.facade.export import export as write

    keep(file, weights, from_=out)
    model = open_model(file, settings, dims)
    write(model, out, format.value, weights, seed=seed)
    if format is Format.torch:
        note(f"weights: Model().load_weights({str(weights) if weights else 'W.safetensors'!r})")
    elif weights is None:
        note(f"weights: initialised from seed {seed}; `--weights` names trained ones")
    if as_json:
        print_json({"file": out, "format": format.value, "bytes": out.stat().st_size})
    else:
        print(out)


def _either(what: Path, settings: list[str] | None) -> Model | Path:
    """A file that is an artifact is known by its content."""
    from archc.backends.artifact import is_artifact

    if not is_artifact(what):
        return open_model(what, settings)
    if settings:
        raise fail("E0026", f"`{what}` is compiled: `--set` comes too late", help="compile it again", exit_code=2)
    return what


def _mismatch(manifest: Manifest, result: Verification) -> Exception:
    reasons = "; ".join(f"{o.name}: {o.reason}" for o in result.outputs if not o.ok)
    where = f"the first node that diverges is `{result.diverges}`" if result.diverges else "no single node diverges"
    return fail(
        "E0519",
        f"the code compiled for `{manifest.name}` does not agree with torch",
        label=reasons,
        help=f"{where}; this is a bug in archc, please report it",
        exit_code=3,
    )


def _tell_verification(result: Verification) -> None:
    sizes = ", ".join(f"{name} = {size}" for name, size in result.sizes.items())
    for o in result.outputs:
        verdict = "ok" if o.ok else f"MISMATCH: {o.reason}"
        print(
            f"{o.name}: {o.dtype}{list(o.shape)} error {o.error:.2e} (allowed {o.allowed:.2e}, "
            f"largest value {o.scale:.3g}) {verdict}"
        )
    if not result.ok and result.diverges:
        print(f"the first node that diverges: {result.diverges}")
    print(f"{'agrees with' if result.ok else 'DIFFERS from'} torch in float64, seed {result.seed}", end="")
    print(f", {sizes}" if sizes else "")


def _tell_benchmark(result: Benchmark) -> None:
    from archc.cli.tables import print_table

    inputs = ", ".join(f"{name} {type_}" for name, type_ in result.inputs.items())
    print(f"{result.name} on {result.target}, {_threads(result.threads)}, {inputs}\n")
    print_table(
        ("runner", "median ms", "10–90 %", "times archc", "difference", "version"),
        [_timing_row(t) for t in result.timings],
    )


def _timing_row(t: Timing) -> tuple[str, ...]:
    if t.failure:
        return (t.runner, "failed", "", "", "", t.failure)
    ratio = f"{t.ratio:.2f} [{t.ratio_low:.2f}, {t.ratio_high:.2f}]" if t.ratio is not None else ""
    difference = f"{t.difference:.1e}" if t.difference is not None else ""
    return (t.runner, f"{t.median_ms:.4f}", f"{t.low_ms:.4f}–{t.high_ms:.4f}", ratio, difference, t.version)


_STATIC = (  # a fact of a kernel in the compiler's report, and the head of its column
    ("name", "kernel"),
    ("arch", "arch"),
    ("registers", "registers"),
    ("spill_store_bytes", "spills"),
    ("shared_bytes", "shared memory"),
    ("stack_bytes", "stack"),
    ("bytes", "code"),
)


def _tell_facts(facts: dict[str, Any]) -> None:
    from archc.cli.tables import print_table

    kernels = facts.get("kernels", [])
    columns = [(key, head) for key, head in _STATIC if any(key in kernel for kernel in kernels)]
    if kernels:
        rows = [[_fact(key, kernel.get(key, "")) for key, _ in columns] for kernel in kernels]
        print_table([head for _, head in columns], rows, right=2 if "arch" in kernels[0] else 1)
        print()
    else:
        print("the compiler gave no figures on kernels\n")
    if images := facts.get("images"):
        print(f"machine code for {', '.join(images)}")
    sizes = ", ".join(f"{name} {human(size, 'B')}" for name, size in facts["bytes"].items())
    print(f"{facts['name']} for {facts['target']['kind']}: {sizes}")


def _fact(key: str, value: Any) -> str:
    return f"{value:,} B" if key.endswith("bytes") and value != "" else str(value)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _glance(array: Any) -> str:
    import numpy as np

    if not array.size:
        return "(nothing)"
    if array.size <= 10:
        return np.array2string(array, precision=4, separator=", ").replace("\n", "")
    return f"from {array.min():.4g} to {array.max():.4g}, mean {array.astype(np.float64).mean():.4g}"


def _small(array: Any) -> Any:
    """The values of a small output; a large one is for a file."""
    return _finite(array.tolist()) if array.size <= 1000 else None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _demand_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix not in suffixes:
        raise fail("E0025", f"`{path}` needs to end in {' or '.join(suffixes)}", exit_code=2)
