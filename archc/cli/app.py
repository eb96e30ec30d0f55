"""The command table."""

from __future__ import annotations

from typing import Annotated

import typer

from archc.cli import (
    build,
    graph,
    inspect,
    machine,
    merge,
    metanet,
    predict,
    sample,
    search,
    study,
    symmetry,
    train,
    transform,
)

app = typer.Typer(
    help="A compiler and laboratory for neural architectures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from archc import __version__

        print(f"archc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """A compiler and laboratory for neural architectures."""


FAMILIES = (inspect, symmetry, sample, search, study, transform, train, build, merge, metanet, predict, graph, machine)
for family in FAMILIES:
    family.add_commands(app)
