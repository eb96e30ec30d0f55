"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli import console
from archc.ir.diagnostics import fail

if TYPE_CHECKING:
    from archc.facade.model import Model

File = Annotated[Path, typer.Argument(metavar="FILE", help="an .arch file", show_default=False)]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help=".arch files", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="set a parameter of the architecture (repeatable)"),
]
Dims = Annotated[list[str] | None, typer.Option("--dim", metavar="T=128", help="fix a symbolic dimension (repeatable)")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
Weights = Annotated[
    Path | None, typer.Option(metavar="W.safetensors", help="weights (default: initialised from --seed)")
]
Seed = Annotated[int, typer.Option(help="seed of initial weights and random inputs")]
Threads = Annotated[int | None, typer.Option(min=1, help="number of threads (default: one for each core)")]
Batch = Annotated[str | None, typer.Option(metavar="N|dynamic", help="fix the batch (default: as the program has it)")]
Target = Annotated[
    str, typer.Option(metavar="T", help="cpu, cuda, cuda:sm_90, x86-64-v3, aarch64, or a TVM target as text or JSON")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, no remarks")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="more remarks; the traceback of an internal error")]


def register(app: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add commands, named as their functions; every one of them takes -q and -v."""
    for command in commands:
        app.command(command.__name__.rstrip("_"))(_with_loudness(command))


def _with_loudness(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(*args: Any, quiet: bool, verbose: bool, **named: Any) -> None:
        console.loudness = -1 if quiet else 1 if verbose else 0
        command(*args, **named)

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    both = [
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        inspect.Parameter("verbose", keyword, default=False, annotation=Verbose),
    ]
    parameters = [*signature.parameters.values(), *both]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def parse_values(pairs: list[str] | None) -> dict[str, Any]:
    """`name=value` settings with their values as the language reads them: numbers, true, false, none, else text.

    >>> parse_values(["width=32", "name=abc", "flag=true", "rate=1e-3"])
    {'width': 32, 'name': 'abc', 'flag': True, 'rate': 0.001}
    """
    return parse_pairs(pairs, "--set")


def parse_pairs(pairs: list[str] | None, flag: str) -> dict[str, Any]:
    """`name=value` settings of a repeatable flag."""
    return {name: _value(text) for name, text in _split(pairs, flag)}


def parse_dims(pairs: list[str] | None) -> dict[str, int]:
    """`T=128` settings."""
    dims = {}
    for name, text in _split(pairs, "--dim"):
        if not text.isdecimal():
            raise fail("E0021", "`--dim` needs a size", label=f"found `{name}={text}`", exit_code=2)
        dims[name] = int(text)
    return dims


def parse_batch(text: str | None) -> int | None:
    """A size, or None for what the program has."""
    if text in (None, "dynamic"):
        return None
    if not text.isdecimal() or not int(text):
        raise fail("E0024", "`--batch` needs a size of 1 or more, or `dynamic`", label=f"found `{text}`", exit_code=2)
    return int(text)


def _split(pairs: list[str] | None, flag: str) -> list[tuple[str, str]]:
    found = []
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise fail("E0021", f"`{flag}` needs NAME=VALUE", label=f"found `{pair}`", exit_code=2)
        found.append((name.strip(), text.strip()))
    return found


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip('"')


def open_model(file: Path, settings: list[str] | None = None, dims: list[str] | None = None) -> Model:
    """The architecture that a command speaks of."""
    from archc.facade.model import from_file

    return from_file(file, parse_values(settings), parse_dims(dims))
