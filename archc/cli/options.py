"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archc.cli import console
from archc.grammar.limits import DEFAULT, flags
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
Either = Annotated[
    Path, typer.Argument(metavar="FILE|OUT", help="an .arch file, or what `archc compile` wrote", show_default=False)
]
First = Annotated[Path, typer.Argument(metavar="A", help="an .arch file", show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B", help="an .arch file", show_default=False)]
PROGRAMS = (File, Files, Either, First, Second)
"""A command that has one of these reads programs, and takes the flags that raise their limits."""

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


limits = DEFAULT
"""What programs may ask for; set by the --max-… flags before a command runs."""

_LIMITS = {f"max_{field}": (field, flag) for field, flag in flags().items()}


def register(app: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add commands, named as their functions. Each takes -q and -v, and those that read programs the flags that raise a
    limit, which the help leaves out: whoever needs one is told by the diagnostic."""
    for command in commands:
        app.command(command.__name__.rstrip("_"))(_with_common_flags(command))


def _with_common_flags(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(*args: Any, quiet: bool, verbose: bool, **named: Any) -> None:
        global limits
        console.loudness = -1 if quiet else 1 if verbose else 0
        raised = {_LIMITS[name][0]: named.pop(name) for name in _LIMITS.keys() & named.keys()}
        limits = replace(DEFAULT, **{field: value for field, value in raised.items() if value is not None})
        command(*args, **named)

    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        inspect.Parameter("verbose", keyword, default=False, annotation=Verbose),
    ]
    if any(p.annotation in PROGRAMS for p in signature.parameters.values()):
        common += [
            inspect.Parameter(
                name, keyword, default=None, annotation=Annotated[int | None, typer.Option(flag, min=1, hidden=True)]
            )
            for name, (_, flag) in _LIMITS.items()
        ]
    parameters = [*signature.parameters.values(), *common]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def parse_values(pairs: list[str] | None) -> dict[str, Any]:
    """`name=value` settings with their values as the language reads them: numbers, true, false, none, lists
    of these, else text.

    >>> parse_values(["width=32", "name=abc", "flag=true", "rate=1e-3", "betas=[0.9, 0.95]"])
    {'width': 32, 'name': 'abc', 'flag': True, 'rate': 0.001, 'betas': [0.9, 0.95]}
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
    if text.startswith("[") and text.endswith("]"):
        return [_value(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip('"')


def keep(*read: Path | None, from_: Path | None) -> None:
    """Refuse to write to `from_` what would replace a file that the command reads: a typing error would cost it."""
    for file in read:
        if file and from_ and os.path.exists(file) and os.path.exists(from_) and os.path.samefile(file, from_):
            raise fail(
                "E0029",
                f"`{from_}` is read by this command, which would write over it",
                help="choose another name for what is written",
                exit_code=2,
            )


def open_model(file: Path, settings: list[str] | None = None, dims: list[str] | None = None) -> Model:
    """The architecture that a command speaks of."""
    from archc.facade.model import from_file

    return from_file(file, parse_values(settings), parse_dims(dims), limits)
