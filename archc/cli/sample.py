"""`archc sample`: architectures from a space."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from archc.cli import options
from archc.cli.console import note, print_json
from archc.cli.options import Dims, Json, Set, parse_dims, parse_values, register
from archc.ir.diagnostics import fail

Space = Annotated[Path, typer.Argument(metavar="SPACE", help="an .arch file that begins with `space`")]

LONG = 50
"""Architectures from which on progress is shown."""


def add_commands(app: typer.Typer) -> None:
    register(app, sample)


def sample(
    space: Space,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="where the files go")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="how many architectures")] = 1,
    seed: Annotated[int, typer.Option(help="each (seed, number) is one architecture")] = 0,
    first: Annotated[int, typer.Option(min=0, help="the number of the first")] = 0,
    unique: Annotated[
        bool, typer.Option("--unique", help="leave out architectures that came before, by their hash")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="T.json", help="keep these choices, and draw what they leave open")
    ] = None,
    settings: Set = None,
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Draw architectures from a space: an .arch file each, and its choices beside it as .json.

    Without -o, the one architecture goes to the standard output.

    Example: archc sample examples/spaces/digits_net.arch -n 20 --seed 1 -o drawn
    """
    from rich.console import Console
    from rich.progress import track

    from archc.backends.weights import atomic_file
    from archc.grammar.draw import read_space
    from archc.grammar.traces import read_trace

    if out is None and count > 1 and not as_json:
        raise fail("E0028", "several architectures need a folder", help="name one: `-o DIR`", exit_code=2)
    drawing = read_space(space, parse_values(settings), parse_dims(dims), options.limits)
    given = {} if trace is None else read_trace(trace)
    rows: list[dict[str, Any]] = []
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise fail("E0608", f"cannot write `{out}`", label=error.strerror or str(error)) from error
    known: set[str] = set()
    numbers = range(first, first + count)
    console = Console(stderr=True)
    shown = console.is_terminal and count >= LONG and (out is not None or as_json)
    for index in track(numbers, "drawing", console=console, transient=True) if shown else numbers:
        begin = time.process_time()
        drawn = drawing.redraw(given, seed, index)
        fresh = drawn.hash not in known
        seconds = time.process_time() - begin
        known.add(drawn.hash)
        if unique and not fresh:
            continue
        row: dict[str, Any] = {
            "number": index,
            "hash": drawn.hash,
            "nodes": drawn.nodes,
            "params": drawn.params,
            "attempts": drawn.attempts,
            "seconds": round(seconds, 4),
        }
        if out is not None:
            for suffix, text in ((".arch", drawn.text), (".json", json.dumps(drawn.trace, indent=1) + "\n")):
                path = out / f"{drawing.name}_{seed}_{index:05}{suffix}"
                with atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            row["file"] = str(out / f"{drawing.name}_{seed}_{index:05}.arch")
        elif as_json:
            row |= {"text": drawn.text, "trace": drawn.trace}
        else:
            print(drawn.text, end="")
        rows.append(row)
    if as_json:
        print_json({"space": drawing.name, "seed": seed, "architectures": rows})
    elif out is not None:
        print(f"{len(rows)} architectures of `{drawing.name}` in {out}")
        for name in ("nodes", "params"):
            values = sorted(row[name] for row in rows)
            tenth, half, most = (values[min(int(len(values) * q), len(values) - 1)] for q in (0.1, 0.5, 0.9))
            print(f"  {name}: {values[0]:,} to {values[-1]:,}; a tenth, half and nine tenths up to "
                  f"{tenth:,}, {half:,} and {most:,}")  # fmt: skip
        if count > len(known):
            print(f"  {count - len(known)} of {count} came twice or more" + (" and were left out" if unique else ""))
        tries, seconds = sum(row["attempts"] for row in rows), sum(row["seconds"] for row in rows)
        note(f"{seconds:.2f} s of CPU for drawing, {len(rows) / max(seconds, 1e-4):,.0f} a second, {tries} attempts")
