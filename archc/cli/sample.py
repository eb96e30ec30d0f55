"""`archc sample`: architectures from a space."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from archc.cli import options
from archc.cli.console import note, print_json
from archc.cli.options import Dims, Json, Set, parse_dims, parse_values, register
from archc.ir.diagnostics import fail

Space = Annotated[Path, typer.Argument(metavar="SPACE", help="an .arch file that begins with `space`")]


def add_commands(app: typer.Typer) -> None:
    register(app, sample)


def sample(
    space: Space,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="where the files go")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="how many architectures")] = 1,
    seed: Annotated[int, typer.Option(help="each (seed, number) is one architecture")] = 0,
    first: Annotated[int, typer.Option(min=0, help="the number of the first")] = 0,
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
    from archc.backends.weights import atomic_file
    from archc.grammar.draw import read_space
    from archc.grammar.traces import read_trace
    from archc.ir.cost import cost

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
    for index in range(first, first + count):
        begin = time.perf_counter()
        drawn = drawing.redraw(given, seed, index)
        seconds = time.perf_counter() - begin
        row: dict[str, Any] = {
            "number": index,
            "nodes": sum(1 for _ in drawn.graph.walk()),
            "params": cost(drawn.graph).params,
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
            print(f"  {name}: {values[0]:,} to {values[-1]:,}, half of them up to {round(median(values)):,}")
        tries = sum(row["attempts"] for row in rows)
        note(f"{sum(row['seconds'] for row in rows):.2f} s, {tries} attempts")
