"""`archc predict`: weights for a network that was never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archc.cli.console import print_json, report
from archc.cli.options import Dims, File, Json, Seed, Set, keep, open_model, register


def add_commands(app: typer.Typer) -> None:
    register(app, predict)


def predict(
    file: File,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="W.safetensors", help="where the weights go")],
    task: Annotated[str | None, typer.Option(metavar="TASK", help="a task that the model was trained for")] = None,
    model: Annotated[str, typer.Option(metavar="M", help="a file, or one of `archc metanet list`")] = "ghn-small",
    finetune: Annotated[int, typer.Option(min=0, metavar="K", help="train K steps from the predicted weights")] = 0,
    seed: Seed = 0,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Predict all parameters of a network from its graph, without training it.

    Example: archc predict net.arch --task hard_digits -o w.safetensors
    """
    keep(file, Path(model), from_=out)
    network = open_model(file, settings, dims)

    from archc.facade.predict import predict as run

    found = run(network, task, using=model, out=out, finetune=finetune, seed=seed)
    if as_json:
        warned = [d.to_json() for d in found.warnings]
        scores = {"before": found.before, "after": found.after, "steps": found.steps}
        print_json({"weights": out, **found.provenance, **scores, "warnings": warned})
        return
    report(found.warnings)
    arrays = found.weights.arrays
    print(
        f"{sum(a.size for a in arrays.values()):,} numbers in {len(arrays)} parameters, by {found.provenance['model']}"
    )
    if found.provenance["statistics"] != "none":
        print(f"statistics of norms: {found.provenance['statistics']}")
    if task is None:
        print("no task: nothing is known of how well these weights do")
    elif found.expected is not None:
        print(f"expected accuracy on {task}: {found.expected}")
    if found.after is not None:
        print(f"validation accuracy: {found.before:.4f} as predicted, {found.after:.4f} after {found.steps} steps")
    print(f"weights: {out}")
