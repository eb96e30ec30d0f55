"""`archc merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from archc.cli.console import note, print_json
from archc.cli.options import Dims, Json, Seed, Set, Threads, keep, open_model, register
from archc.ir.diagnostics import fail

if TYPE_CHECKING:
    from archc.facade.merge import Merged


def add_commands(app: typer.Typer) -> None:
    register(app, merge)


def merge(
    weights: Annotated[
        list[Path], typer.Argument(metavar="A B [C…]", help="weights of two or more networks", show_default=False)
    ],
    arch: Annotated[Path, typer.Option(metavar="FILE", help="their architecture, an .arch file")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="C.safetensors", help="where the merged weights go")],
    data: Annotated[
        str | None, typer.Option(metavar="TASK", help="digits, images:FOLDER, …: what `archc train --task` takes")
    ] = None,
    alpha: Annotated[float | None, typer.Option(min=0, max=1, help="the share of B (default: 0.5)")] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="weights|activations", help="what is matched (default: activations, with --data)"),
    ] = None,
    repair: Annotated[bool, typer.Option(help="with --data: set the merged network's statistics right")] = True,
    points: Annotated[int, typer.Option(min=2, max=101, help="so many points of the line from A to B")] = 11,
    plot: Annotated[
        Path | None, typer.Option(metavar="C.svg", help="draw metrics along the line, .svg or .png")
    ] = None,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Merge networks of one architecture that were trained apart into one of the same size.

    Their hidden units are matched first, over the axes that `archc symmetry` certifies; what each network computes does
    not change by that, and is checked. With --data statistics are repaired, and all is measured on validation data.

    Example: archc merge a.safetensors b.safetensors --arch examples/digits_resnet.arch --data digits -o c.safetensors
    """
    if len(weights) < 2:
        raise fail("E0028", "merging needs two networks or more", label=f"found {len(weights)}", exit_code=2)
    if method not in (None, "weights", "activations"):
        raise fail("E0028", "`--method` is weights or activations", label=f"found `{method}`", exit_code=2)
    if plot and (data is None or len(weights) > 2):
        raise fail("E0028", "`--plot` needs `--data`, and two networks: a line is measured between them", exit_code=2)
    if method == "activations" and data is None:
        raise fail("E0028", "activations are measured on data", help="name a task: `--data digits`", exit_code=2)
    if alpha is not None and len(weights) > 2:
        raise fail("E0028", f"`--alpha` is the share of B; of {len(weights)} networks each has the same", exit_code=2)
    keep(arch, *weights, from_=out)
    keep(arch, *weights, from_=plot)
    model = open_model(arch, settings, dims)

    from archc.facade.merge import merge as run
    from archc.metanet.merge.picture import check_picture

    if plot:
        check_picture(plot)
    if threads:
        import torch

        torch.set_num_threads(threads)
    chosen: Literal["weights", "activations"] | None = method  # type: ignore[assignment]  # checked above
    merged = run(
        model,
        *weights,
        data=data,
        out=out,
        alpha=alpha,
        method=chosen,
        repair=repair,
        points=points,
        seed=seed,
    )
    if plot:
        merged.plot(plot)
    for text in merged.notes:
        note(text)
    if as_json:
        print_json({**merged.to_json(), "file": str(out)} | ({"plot": str(plot)} if plot else {}))
        return
    _tell(merged, out)


def _tell(merged: Merged, out: Path) -> None:
    from archc.cli.tables import print_table

    for name, m in zip("BCDEFGHIJKLMNOPQRSTUVWXYZ", merged.matches, strict=False):
        groups = f"{len(m.axes.classes)} classes" + (f", {len(m.axes.exchanges)} exchanges" * bool(m.axes.exchanges))
        note(f"{name} to A by {m.method}: {groups}, cosine of weights {m.product[0]:.3f} -> {m.product[1]:.3f}")
        note(f"  what {name} computes is kept: relative error {m.error:.1e}", at=1)
        if m.by_weights:
            note(f"  {m.by_weights} classes stand where no activations are seen, and were matched by weights", at=1)
    if merged.scores:
        note(f"repair: {merged.repair}")
        metrics = list(next(iter(merged.scores.values())))
        rows = [(name, *(f"{scores[m]:.4f}" for m in metrics)) for name, scores in merged.scores.items()]
        print_table(("on validation data", *(m.replace("_", " ") for m in metrics)), rows, right=1)
    if merged.lines:
        print()
        print_table(("line from A to B", "barrier of loss"), [(n, f"{b:.4f}") for n, b in merged.barriers().items()],
                    right=1)  # fmt: skip
    print(f"weights: {out}")
