"""`archc train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli import console
from archc.cli.console import note, print_json
from archc.cli.options import Dims, File, Json, Seed, Set, Threads, Weights, keep, open_model, parse_pairs, register

if TYPE_CHECKING:
    from archc.facade.train import Trained


def add_commands(app: typer.Typer) -> None:
    register(app, train)


def train(
    file: File,
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help="digits, hard_digits, add_digits, mult_digits, tiles, dyck, listops, copy, induction, breast_cancer, "
            "wine, images:FOLDER, text:FILE, npz:FILE; add `?option=value`",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="W.safetensors", help="where the weights go")],
    epochs: Annotated[int | None, typer.Option(min=1, help="how often the data are gone through")] = None,
    lr: Annotated[float | None, typer.Option(help="the highest learning rate")] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="batch_size, weight_decay, optimiser, patience, … (repeatable)"),
    ] = None,
    weights: Weights = None,
    nowcast: Annotated[bool, typer.Option("--nowcast", help="predict the weights ahead, every 50 steps")] = False,
    nowcast_model: Annotated[
        str | None,
        typer.Option("--nowcast-model", metavar="MODEL", help="by this model: a file, a shipped name or `linear`"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="write learning curve, confusion matrix and pictures with predictions"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one)")] = None,
    settings: Set = None,
    dims: Dims = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a network; the weights that validate best are kept, and tested once.

    Ctrl-C loses nothing: the same command with --resume goes on.

    Example: archc train examples/digits_resnet.arch --task digits -o digits.safetensors --report out/
    """
    if nowcast and nowcast_model is None:
        from archc.metanet.nowcast.forecast import SHIPPED

        nowcast_model = SHIPPED
    flags: dict[str, Any] = {"epochs": epochs, "lr": lr, "device": device, "nowcast": nowcast_model}
    options = {name: value for name, value in flags.items() if value is not None}
    options = {"seed": seed} | options | parse_pairs(recipe, "--recipe")
    keep(file, Path(task.partition("?")[0].partition(":")[2] or file), from_=out)
    model = open_model(file, settings, dims)

    from archc.backends.torch.training import Recipe
    from archc.backends.torch.training.options import build
    from archc.facade.train import checkpoint_path
    from archc.facade.train import train as run

    build(Recipe, options, "E0617", "the recipe")  # whatever its options are called, they are the recipe's
    state = checkpoint_path(out)
    if state.exists() and not resume:
        note(f"starting anew: {state} is of an interrupted run, which --resume would go on with")
    try:
        trained = run(
            model,
            task,
            out,
            weights=weights,
            resume=resume,
            report=report,
            threads=threads,
            progress=console.loudness >= 0,
            **options,
        )
    except KeyboardInterrupt:
        if state.exists():
            note(f"\nstopped; {state} holds the state of the run. Go on with the same command and --resume.")
        raise
    if as_json:
        files = {"weights": out, **({"report": report} if report else {})}
        print_json({**trained.result.to_json(), **files})
        return
    _tell(trained, out, report)


def _tell(trained: Trained, out: Path, report: Path | None) -> None:
    result = trained.result
    judged = result.test or result.val
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in judged.metrics.items())
    print(f"{judged.split} ({judged.examples} examples): {scores}")
    if judged.stats:
        from archc.backends.torch.training import summary

        print(", ".join(f"{name} {value:.4f}" for name, value in summary(judged.stats).items()))
    if result.nowcasts is not None:
        kept, refused, forwards = (result.nowcasts[key] for key in ("kept", "refused", "forwards"))
        print(f"nowcasting: {kept} of {kept + refused} jumps kept; judging them took {forwards} forward passes")
    if result.confusion is not None and len(result.confusion) <= 20:
        _print_confusion(result.confusion, result.preprocessing.labels)
    print(f"weights: {out}" + (f"; pictures: {report}" if report else ""))
    sys.stdout.flush()


def _print_confusion(confusion: Any, labels: tuple[str, ...]) -> None:
    from archc.cli.tables import print_table

    rows = [
        (label, *(str(n) if n else "." for n in row)) for label, row in zip(labels, confusion.tolist(), strict=True)
    ]
    print_table(("true \\ predicted", *labels), rows, right=1)
